"""Text cut to a width, so that what tells it from its neighbours is still there. Knows characters only."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

NAME_WIDTH = 56  # two names, a shape and the ops then fit a terminal of about 200 columns
# Less than this of an end says nothing.
_LEAST_TAIL = 8


def shorten(text: str, width: int = NAME_WIDTH) -> str:
    """Cuts the middle out of what is wider than `width`; both ends of a name tell it from its neighbours."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 3 // 5
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def shorten_apart(texts: Sequence[str], width: int = NAME_WIDTH) -> list[str]:
    """As `shorten`, and texts that differ still do: what tells them apart is kept, or they are not cut."""
    alike: dict[str, set[str]] = {}
    for text in texts:
        alike.setdefault(shorten(text, width), set()).add(text)
    cut = {text: short for group, whole in alike.items() for text, short in _apart_texts(group, whole, width)}
    return [cut[text] for text in texts]


def _apart_texts(short: str, texts: set[str], width: int) -> list[tuple[str, str]]:
    """The texts that have one short form, each with its own."""
    if len(texts) == 1:
        return [(text, short) for text in texts]
    begin = _shared(texts)
    end = _shared([text[begin:][::-1] for text in texts])
    cut = [(text, _around(text, begin, len(text) - end, width)) for text in sorted(texts)]
    return cut if len({c for _, c in cut}) == len(texts) else [(text, text) for text in sorted(texts)]


def _shared(texts: Iterable[str]) -> int:
    """How many characters all begin with."""
    return sum(1 for _ in itertools.takewhile(lambda found: len(set(found)) == 1, zip(*texts, strict=False)))


def _around(text: str, begin: int, end: int, width: int) -> str:
    """Both ends of a text and the segments of its part that matters; the whole text where that is too long."""
    begin = text.rfind("/", 0, begin) + 1
    end = end if text.find("/", end) < 0 else text.find("/", end)
    room = width - (end - begin) - 2
    tail = room * 3 // 5
    head = room - tail
    if tail < _LEAST_TAIL or begin <= head or len(text) - end <= tail:
        return text
    return f"{text[:head]}…{text[begin:end]}…{text[-tail:]}"
