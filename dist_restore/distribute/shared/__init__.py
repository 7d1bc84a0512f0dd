"""Each worker reads a share of the files, and passes it on."""
