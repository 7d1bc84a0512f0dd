"""Families: names that differ in an index only.

An index in a list (`blocks/3`) is a name only while both sides hold equally many of that family; else a member
was inserted or removed somewhere, and equal names mislead.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TypeAlias

_COUNTER = re.compile(r"_(\d+)\Z")
_INDEX = re.compile(r"(?:^|/)[0-9]+(?:/|\Z)")
_NUMBER = re.compile(r"\d+")

Members: TypeAlias = Mapping[str, frozenset[str]]  # container -> the indexes that occur in it


def rests_on_index(name: str) -> bool:
    """Whether a name has a list index in it, which is a place and no name."""
    return _INDEX.search(name) is not None


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
        """Finds the lists that are not the same on both sides: once, not for each of their members' names.

        Args:
          open_targets: names of the variables that rules have not decided.
          open_sources: names of the tensors that they have not decided, in the program's terms.
          targets: names of all variables; looked at where open lists differ.
          sources: names of all tensors, in the program's terms; looked at where open lists differ.
        """
        ours, theirs = frozenset(open_targets), frozenset(open_sources)
        suspects = list_members(ours ^ theirs).keys()
        self._unequal = _unequal_lists(suspects, (ours, theirs), (targets, sources)) if suspects else {}

    @property
    def all_equal(self) -> bool:
        """Whether every index is a name."""
        return not self._unequal

    def unequal(self, name: str) -> str:
        """Why an index in a name is no evidence, for the first list of which that is true; else empty."""
        return next((self._unequal[c] for c, _ in list_positions(name) if c in self._unequal), "")


def _unequal_lists(
    suspects: Iterable[str], open_: Sequence[Iterable[str]], whole: Sequence[Iterable[str]]
) -> dict[str, str]:
    members, all_members = [list_members(side) for side in open_], [list_members(side) for side in whole]
    reasons = ((container, _why_unequal(container, members, all_members)) for container in suspects)
    return {container: reason for container, reason in reasons if reason}


def _why_unequal(container: str, open_: Sequence[Members], whole: Sequence[Members]) -> str:
    """Why two lists are not the same; empty where they are, or where one side has none of its members open."""
    ours, theirs = (side.get(container, frozenset()) for side in open_)
    if not ours or not theirs or ours == theirs:
        return ""
    all_ours, all_theirs = (side.get(container, frozenset()) for side in whole)
    if all_ours != all_theirs:
        return _unequal(container, all_ours, all_theirs)
    # Lists that are equal as wholes stay so when rules keep or drop some members.
    return "" if ours < theirs or theirs < ours else _unequal(container, ours, theirs)


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


def template_of_flat(name: str) -> str:
    """A flattened name without its numbers: `net_block_1_dense_5_kernel` gives `net_block_dense_kernel`."""
    return re.sub(r"_+", "_", _NUMBER.sub("", name))
