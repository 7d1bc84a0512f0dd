"""Checkpoint formats, one file each, behind one contract (`base.Source`)."""
