"""What a causal model computed of texts' beginnings, kept for texts that go on from there.

`tree` holds it, `attention` reads it, `pool` computes what is missing. Which beginnings of a chain have scores is known
in `scoring/incremental/`.
"""
