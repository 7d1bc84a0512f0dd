"""Devices of other hosts: read there what can be read there, send the rest once, and hash it where it lies."""
