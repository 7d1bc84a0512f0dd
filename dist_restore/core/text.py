"""Texts of names and sizes.

Names come from files that anybody may have written: what could move a cursor, break a row or turn text around is
escaped before it is shown.
"""

from __future__ import annotations

import functools
import math
import re

_DIGITS = re.compile(r"([0-9]+)")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def escape_text(name: str) -> str:
    r"""A name with everything unprintable as an escape (`\n`, `\x1b`, `\u202e`), and so readable both ways.

    A backslash is doubled, and blanks at either end are `\x20`, so that different names stay different.
    """
    name = name.replace("\\", "\\\\")
    inner = name.strip(" ")
    if len(inner) < len(name):
        left = len(name) - len(name.lstrip(" ")) if inner else 0
        name = "\\x20" * left + inner + "\\x20" * (len(name) - len(inner) - left)
    return printable(name)


def printable(text: str) -> str:
    """The text with everything unprintable as an escape; backslashes stay as they are."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def natural_key(name: str) -> tuple[tuple[tuple[int, str, str], ...], str]:
    """Sorts block 2 before block 10, whatever the name and however long its numbers are."""
    parts = _DIGITS.split(name)
    # A number by its length and then its digits: int() refuses very long ones. The name itself breaks ties.
    numbers = ["", *(digits.lstrip("0") for digits in parts[1::2])]
    return tuple((len(n), n, text) for n, text in zip(numbers, parts[::2], strict=True)), name


def human_bytes(count: float) -> str:
    """A size in binary units: `512 B`, `1.5 KiB`, `24.0 MiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    # 1023.96 KiB would be shown as 1024.0 KiB: such counts belong to the next unit.
    power = min(int(math.log(count / 0.99995, 1024)), len(_UNITS) - 1)
    return f"{count / 1024**power:.1f} {_UNITS[power]}"


@functools.lru_cache(maxsize=1 << 10)  # asked for each layer
def snake_case(class_name: str) -> str:
    """A class name as Keras writes it in groups and automatic names: `BatchNormalization` -> `batch_normalization`."""
    name = re.sub(r"\W+", "", class_name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
