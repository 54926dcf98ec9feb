"""What a GPU gives: one command on a machine that has PyTorch and transformers, each part in a process of its own."""
