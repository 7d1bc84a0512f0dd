"""Values and errors that all rooms share: tensors and their boxes, the two indexes, object graphs, options, checksums.

Knows no file, no rule and no TensorFlow. `TensorSpec`, `CheckpointIndex` and `TargetIndex` are in `specs.py`, every
error in `errors.py`.

    spec = TensorSpec((512, 64), "float32")
    spec.nbytes  # 131072
"""
