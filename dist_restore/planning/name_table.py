"""Looking names up: any alias of a tensor, as long as it means one tensor only."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from dist_restore.core.errors import RuleError
from dist_restore.core.index import AliasKind, SourceTensor, TargetVariable

Named = TypeVar("Named", bound=SourceTensor | TargetVariable)
_MATCHED = (AliasKind.SEMANTIC, AliasKind.FLAT)


@dataclasses.dataclass(frozen=True)
class Side(Generic[Named]):
    """One side of a match: what wants a partner, and everything, for what its names and its lists say."""

    open: Sequence[Named]
    all: Sequence[Named]

    def own_names(self, kinds: Sequence[AliasKind]) -> Mapping[str, Named]:
        """The names of these kinds that mean one item only, of what is open."""
        # Asked for several kinds, of which most sides have one only: found once in a match.
        present = tuple([kind for kind in kinds if kind in self._kinds])
        names = self._found.get(present)
        if names is None:
            names = self._found[present] = self._open_names(present) if present else {}
        return names

    @functools.cached_property
    def _found(self) -> dict[tuple[AliasKind, ...], Mapping[str, Named]]:
        """What `own_names` has found, by the kinds that occur."""
        return {}

    @functools.cached_property
    def _kinds(self) -> frozenset[AliasKind]:
        kinds = {item.name_kind for item in self.all}
        return frozenset(kinds | {alias.kind for item in self.all for alias in item.aliases})

    def _open_names(self, kinds: Sequence[AliasKind]) -> Mapping[str, Named]:
        names = own_names(self.all, kinds)
        if len(self.open) == len(self.all):
            return names
        wanted = {id(item) for item in self.open}
        return {name: item for name, item in names.items() if id(item) in wanted}


class NameTable(Generic[Named]):
    """All names of one side (checkpoint or program), canonical ones first."""

    def __init__(self, items: Sequence[Named], side: str) -> None:
        """Builds the table.

        Args:
          items: the tensors or variables; canonical names are unique.
          side: how messages call this side: `the checkpoint` or `the model`.
        """
        self.side = side
        self.items = tuple(items)

    @functools.cached_property
    def _canonical(self) -> Mapping[str, Named]:
        return {item.name: item for item in self.items}

    @functools.cached_property
    def _aliases(self) -> Mapping[str, Sequence[Named]]:
        """Alias -> the items that have it; a name that is somebody's canonical one is nobody's alias."""
        table: dict[str, list[Named]] = collections.defaultdict(list)
        for item in self.items:
            for alias in item.aliases:
                if alias.name not in self._canonical:
                    table[alias.name].append(item)
        return dict(table)

    def get(self, name: str) -> Named | None:
        """The item of this name, or None.

        Raises:
          RuleError: the name is an alias of several items.
        """
        item = self._canonical.get(name)
        if item is not None:
            return item
        found = self._aliases.get(name, ())
        if len(found) > 1:
            raise RuleError(
                f"{name!r} is a name of {len(found)} tensors of {self.side}: "
                f"{', '.join(repr(i.name) for i in found[:5])}. Use the full name of the one that you mean."
            )
        return found[0] if found else None

    def framed(self, prefix: str, suffix: str) -> Iterator[tuple[str, Named]]:
        """What a pattern that begins and ends so may match: canonical names, then the semantic aliases.

        Positional names are left out: `optimizer/{rest}` would otherwise match most of a Keras 3 model, whose
        variables are also `optimizer/trainable_variables/N`.
        """
        tail = _tail(suffix)
        for names, table in self._sorted if tail is None else self._with_tail(tail):
            first = bisect.bisect_left(names, prefix)
            last = bisect.bisect_right(names, prefix, first, key=lambda name: name[: len(prefix)])
            # A list made at once: 40 ns a name, where a loop takes 90; 20 rules may ask for 100,000 names each.
            yield from [(name, table[name]) for name in names[first:last] if name.endswith(suffix)]

    @functools.cached_property
    def _sorted(self) -> tuple[tuple[Sequence[str], Mapping[str, Named]], ...]:
        aliases = own_names(self.items, _MATCHED)
        tables = self._canonical, {n: item for n, item in aliases.items() if n not in self._canonical}
        return tuple((sorted(table), table) for table in tables)

    def _with_tail(self, tail: str) -> Iterator[tuple[Sequence[str], Mapping[str, Named]]]:
        """As `_sorted`, those names only that end in two segments: rules for parts of blocks differ in these."""
        for tails, (_, table) in zip(self._tails, self._sorted, strict=True):
            yield tails.get(tail, ()), table

    @functools.cached_property
    def _tails(self) -> tuple[Mapping[str, Sequence[str]], ...]:
        return tuple(_by_tail(names) for names, _ in self._sorted)

    def all_names(self) -> Iterable[str]:
        """Canonical names, for the nearest ones in messages."""
        return self._canonical.keys()


def _tail(suffix: str) -> str | None:
    """The two last segments of all names that end so; None where the end leaves them open."""
    parts = suffix.rsplit("/", 2)
    return f"{parts[1]}/{parts[2]}" if len(parts) == 3 else None


def _by_tail(names: Iterable[str]) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        tail = _tail(name)
        if tail is not None:
            found[tail].append(name)
    return dict(found)


def own_names(items: Iterable[Named], kinds: Sequence[AliasKind]) -> dict[str, Named]:
    """The names of these kinds that mean one item only; a canonical name is nobody else's alias."""
    items = tuple(items)
    table = {item.name: item for item in items if item.name_kind in kinds}
    others = [(alias.name, item) for item in items for alias in item.aliases if alias.kind in kinds]
    if not others:  # so it is for variables that have no name but their path
        return table
    canonical = {item.name for item in items}
    shared: set[str] = set()
    for name, item in others:
        if name not in canonical and table.setdefault(name, item) is not item:
            shared.add(name)
    return {name: item for name, item in table.items() if name not in shared} if shared else table
