"""What names alone prove, and which shapes could become which: what a suggestion that takes effect rests on. Pure."""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Iterable, Mapping

from dist_restore.core.index import AliasKind, SourceTensor, TargetVariable
from dist_restore.core.nearest import words_in_order
from dist_restore.planning.name_table import Named

_Words = tuple[str, ...]
# Products of axes of a tensor with more axes than this are not made: such a one could become anything.
_MAX_AXES = 8


class SameWords:
    """Pairs of names that differ in their separators only (`block_0_mlp/w`, `block_0/mlp/w`), and are meant to."""

    def __init__(self, sources: Iterable[SourceTensor], targets: Iterable[TargetVariable]) -> None:
        self._theirs = _families((s.own_name, s) for s in sources)
        self._ours = _families((t.name, t) for t in targets)
        both = self._ours.keys() & self._theirs.keys()
        self._agreed = {family for family in both if self._ours[family].keys() == self._theirs[family].keys()}

    def source_of(self, target: str) -> str:
        """The one source whose name has the same words in the same order, and whose spec is equal; else empty.

        An index counts as a word only where both sides have the same ones: else a block was inserted or removed.
        """
        family, numbers = _split(target)
        if family not in self._agreed:
            return ""
        theirs, ours = self._theirs[family][numbers], self._ours[family][numbers]
        if len(theirs) != 1 or len(ours) != 1:
            return ""
        source, mine = theirs[0], ours[0]
        chosen = source.name_kind is mine.name_kind is AliasKind.SEMANTIC
        return source.name if chosen and source.spec == mine.spec else ""


def _families(named: Iterable[tuple[str, Named]]) -> Mapping[_Words, Mapping[_Words, list[Named]]]:
    """Words without their numbers -> numbers -> what is called so."""
    table: dict[_Words, dict[_Words, list[Named]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for name, item in named:
        family, numbers = _split(name)
        table[family][numbers].append(item)
    return table


def _split(name: str) -> tuple[_Words, _Words]:
    words = words_in_order(name)
    return tuple("#" if w.isdigit() else w for w in words), tuple(w for w in words if w.isdigit())


def could_make(source: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether transposing, reshaping, splitting and joining may lead from one shape to the other, alone or with others.

    What is joined or split along one axis has the others in common, so that some product of axes is.
    """
    sizes = math.prod(source), math.prod(target)
    if sizes[0] == sizes[1]:
        return True
    if not source or not target:
        return False
    if len(source) == len(target) == 1:
        return True
    return not _products(source).isdisjoint(_products(target))


@functools.lru_cache(maxsize=4096)
def _products(shape: tuple[int, ...]) -> frozenset[int]:
    """The products of some of the axes, but not of all."""
    if len(shape) == 1:
        return frozenset(shape)
    if len(shape) > _MAX_AXES:
        return frozenset(range(2, 4096))
    counts = range(1, len(shape))
    return frozenset(math.prod(axes) for n in counts for axes in itertools.combinations(shape, n)) - {1}
