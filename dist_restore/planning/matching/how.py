"""What a pair of objects may rest on."""

from __future__ import annotations

import enum


class How(enum.IntEnum):
    """What a pair of objects rests on; the smaller, the stronger.

    Attributes:
      CHOSEN: edges or names that somebody chose.
      STRUCTURE: being alike, and the only ones on both sides.
      ORDER: a place in a row, or the order among equals.
    """

    CHOSEN = 0
    STRUCTURE = 1
    ORDER = 2
