"""What TensorFlow does not promise: its memory, its single writes, its sharded variables. Each with a public fallback.

Knows variables and buffers; knows no names, no plan, no format. docs/dev/private_api.md has the versions that it was
tried on.
"""
