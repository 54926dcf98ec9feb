"""Published benchmarks from files, by name: one protocol a module, scored and measured alike (suite.py)."""
