"""Families: names that differ in an index only.

An index in a list (`blocks/3`) is a name only while both sides hold equally many of that family; else a member
was inserted or removed somewhere, and equal names mislead.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator, Mapping

_COUNTER = re.compile(r"_(\d+)\Z")
_NUMBER = re.compile(r"\d+")


def list_positions(name: str) -> Iterator[tuple[str, str]]:
    """(container, index) for each list index in a name: `a/blocks/3/w` gives (`a/blocks`, `3`)."""
    if not any(c.isdigit() for c in name):
        return
    parts = name.split("/")
    for position, part in enumerate(parts):
        if position and part.isdigit():
            yield "/".join(parts[:position]), part


def list_members(names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Container -> the indexes that occur in it."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for name in names:
        for container, index in list_positions(name):
            found[container].add(index)
    return {container: frozenset(members) for container, members in found.items()}


def unequal_family(
    name: str, targets: Mapping[str, frozenset[str]], sources: Mapping[str, frozenset[str]]
) -> tuple[str, int, int] | None:
    """The first list in a name whose members differ between the sides: (container, in program, in checkpoint)."""
    for container, _ in list_positions(name):
        ours, theirs = targets.get(container, frozenset()), sources.get(container, frozenset())
        if ours and theirs and ours != theirs:
            return container, len(ours), len(theirs)
    return None


def template_of_counted(name: str) -> tuple[str, tuple[int, ...]]:
    """A name with its automatic counters taken out, and the counters: `net/dense_2/kernel`, (2,)."""
    parts = name.split("/")
    counters = []
    for position, part in enumerate(parts[:-1]):
        found = _COUNTER.search(part)
        counters.append(int(found.group(1)) if found and len(found.group(1)) < 10 else 0)
        parts[position] = _COUNTER.sub("", part)
    return "/".join(parts), tuple(counters)


def template_of_flat(name: str) -> str:
    """A flattened name without its numbers: `net_block_1_dense_5_kernel` gives `net_block_dense_kernel`."""
    return re.sub(r"_+", "_", _NUMBER.sub("", name))
