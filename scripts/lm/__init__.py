"""A small byte-level language model in two versions: the second is a refactor of the first."""
