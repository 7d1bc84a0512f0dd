"""Two indexes and rules become a plan. Pure: no TensorFlow, no files, no live objects."""
