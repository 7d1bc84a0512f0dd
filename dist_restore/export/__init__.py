"""Planned mappings written out as new TensorFlow checkpoints."""
