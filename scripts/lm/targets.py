"""What `plan_restore.py --target=lm.targets:version_2` restores into: the models at their default sizes."""

from __future__ import annotations

import tensorflow as tf

from lm.sizes import Sizes
from lm.state import build


def version_1() -> tf.train.Checkpoint:
    """The model as it was first written."""
    return build(1, Sizes()).checkpoint()


def version_2() -> tf.train.Checkpoint:
    """The refactored model."""
    return build(2, Sizes()).checkpoint()
