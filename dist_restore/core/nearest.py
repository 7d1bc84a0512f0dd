"""The nearest names, for messages and suggestions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rapidfuzz import fuzz, process

_TOKEN = re.compile(r"[0-9]+|[^\W\d_]+")
# What is no separator: `a+b` and `a-b` are two words.
_WORD = re.compile(r"[0-9]+|[^0-9/_.]+")
# Similarity below this (0 to 100) helps nobody to see a typing error.
MIN_SCORE = 45.0
# Names longer than this are compared by their ends only; hostile names may be megabytes.
MAX_COMPARED = 300


def nearest(name: str, candidates: Iterable[str], limit: int = 3) -> tuple[str, ...]:
    """The most similar candidates, best first, ties by name."""
    pool = sorted(set(candidates))
    found = process.extract(name, pool, scorer=fuzz.ratio, processor=_shorten, limit=limit, score_cutoff=MIN_SCORE)
    return tuple(choice for choice, _, _ in found)


def tokens(name: str) -> frozenset[str]:
    """The words and numbers of a name, without its separators."""
    found, numbers = set(), 0
    for token in _TOKEN.findall(_shorten(name).lower()):
        if token.isdigit():
            # By place, so that block 1, norm 2 is not block 2, norm 1.
            token, numbers = f"{numbers}:{token}", numbers + 1
        found.add(token)
    return frozenset(found)


def words_in_order(name: str) -> tuple[str, ...]:
    """The words and numbers of a name in their order: equal for names that differ in separators only."""
    return tuple(_WORD.findall(name.lower()))


def likeness(left: frozenset[str], right: frozenset[str]) -> float:
    """The share of words and numbers that two names have in common, 0 to 1 (Jaccard's index)."""
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_COMPARED else name[: MAX_COMPARED // 2] + name[-MAX_COMPARED // 2 :]


def quote(names: Sequence[str]) -> str:
    """Names for a message: quoted, hostile characters escaped, absurd lengths cut."""
    return ", ".join(repr(n if len(n) <= MAX_COMPARED else _shorten(n) + "...") for n in names)
