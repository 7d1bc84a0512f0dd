"""Arrays as bytes."""

from __future__ import annotations

import numpy as np


def bytes_of(array: np.ndarray) -> np.ndarray:
    """A contiguous array's bytes (uint8), without a copy."""
    return array.reshape(-1).view(np.uint8)
