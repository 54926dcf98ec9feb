"""Decoders whose keys and values lie in buffers of a fixed size, so that a step is one CUDA graph.

`decoder.py` has the passes, `attention.py` how new tokens read the buffers, `graph.py` the capture, `states.py` what a
search or an agent's session keeps of texts that go on. On other devices the same code runs call by call; there
`prefixes/` needs less memory.
"""
