"""What the name of a Keras layer in a file says of its class."""

from __future__ import annotations

import re

from dist_restore.naming.automatic_names import without_counter
from dist_restore.naming.layer_variables import KNOWN

# What people call such layers; it stands for the class where a layer is an attribute, whose class is not stored.
_HINTS = {
    "layer_?norm": "layer_normalization",
    "batch_?norm": "batch_normalization",
    "group_?norm": "group_normalization",
}


def class_of(own_name: str) -> str:
    """The class that a layer's own name gives away; empty where it does not."""
    base = without_counter(own_name)
    if base in KNOWN:
        return base
    found = {kind for pattern, kind in _HINTS.items() if re.search(pattern, own_name)}
    return found.pop() if len(found) == 1 else ""
