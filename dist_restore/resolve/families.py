"""Families: names that differ in an index only.

An index in a list (`blocks/3`) is a name only while both sides hold equally many of that family; else a member
was inserted or removed somewhere, and equal names mislead.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator, Sized

_COUNTER = re.compile(r"_(\d+)\Z")
_NUMBER = re.compile(r"\d+")


def list_positions(name: str) -> Iterator[tuple[str, str]]:
    """(container, index) for each list index in a name: `a/blocks/3/w` gives (`a/blocks`, `3`)."""
    if not _NUMBER.search(name):
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


class Lists:
    """The lists of both sides, and whether an index in one of them is a name."""

    def __init__(
        self, open_targets: Iterable[str], open_sources: Iterable[str], targets: Iterable[str], sources: Iterable[str]
    ) -> None:
        """Finds the lists.

        Args:
          open_targets: names of the variables that rules have not decided.
          open_sources: names of the tensors that they have not decided, in the program's terms.
          targets: names of all variables.
          sources: names of all tensors, in the program's terms.
        """
        self._open = list_members(open_targets), list_members(open_sources)
        self._whole = list_members(targets), list_members(sources)

    def unequal(self, name: str) -> str:
        """Why an index in a name is no evidence, for the first list of which that is true; else empty."""
        for container, _ in list_positions(name):
            ours, theirs = (side.get(container, frozenset()) for side in self._open)
            if ours and theirs and ours != theirs:
                whole, there = (side.get(container, frozenset()) for side in self._whole)
                # Lists that are equal as wholes stay so when rules keep or drop some members.
                if whole != there or not (ours < theirs or theirs < ours):
                    return _unequal(container, *((whole, there) if whole != there else (ours, theirs)))
        return ""


def _unequal(container: str, ours: Sized, theirs: Sized) -> str:
    return (
        f"{container!r} holds {len(ours)} members in the model and {len(theirs)} in the checkpoint, so one was "
        "inserted or removed and equal indexes mislead; a rule must say where"
    )


def template_of_counted(name: str) -> tuple[str, tuple[int, ...]]:
    """A name with its automatic counters taken out, and the counters: `net/dense_2/kernel`, (2,)."""
    parts = name.split("/")
    counters = []
    for position, part in enumerate(parts[:-1]):
        found = _COUNTER.search(part)
        counters.append(int(found.group(1)) if found and len(found.group(1)) < 10 else 0)
        parts[position] = _COUNTER.sub("", part)
    return "/".join(parts), tuple(counters)


def template_of_list(name: str) -> str:
    """A name with its list indexes taken out: `a/blocks/3/w` gives `a/blocks/{}/w`."""
    head, *parts = name.split("/")
    return "/".join([head, *("{}" if part.isdigit() else part for part in parts)])


def counters_of_flat(name: str) -> tuple[int, ...]:
    """The counter behind each word of a flattened name, 0 for none: `net_block_dense_2_w` gives (0, 0, 2, 0)."""
    counters: list[int] = []
    for part in name.split("_"):
        if part.isdigit() and counters:
            counters[-1] = int(part[:9])
        elif part:
            counters.append(0)
    return tuple(counters)


def template_of_flat(name: str) -> str:
    """A flattened name without its numbers: `net_block_1_dense_5_kernel` gives `net_block_dense_kernel`."""
    return re.sub(r"_+", "_", _NUMBER.sub("", name))
