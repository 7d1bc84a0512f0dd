"""Suggestions: the nearest candidates, and rules that can be pasted as they are.

What takes effect when it is pasted is proven: by names that have the same words, and by the shape as it is. What rests
on likeness, on a shape or on what an index means is a guess, and a comment that says so.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Collection, Container, Iterator, Mapping, Sequence

import msgspec

from dist_restore.core.index import CheckpointIndex, SourceTensor, TargetIndex
from dist_restore.core.nearest import likeness, nearest, tokens
from dist_restore.core.tensors import TensorSpec
from dist_restore.planning.entries import PlanEntry, Problem
from dist_restore.planning.name_table import NameTable
from dist_restore.planning.proofs_by_name import SameWords, could_make
from dist_restore.planning.proposals import Proposal, collapse, without_rivals
from dist_restore.planning.unclear import render_unclear

# Pairs of names compared in one resolution (about a second): a bound on the work, far above what people read.
MAX_PAIRS = 500_000
# A proposal must share half of the words, and lead the next best by a tenth; below that it is a comment only.
MIN_LIKENESS = 0.5
MIN_LEAD = 0.1
# Below this likeness a name of equal shape is mentioned only where there is none that is more alike.
MIN_MENTION = 0.2
# Comments are for people: blocks of them; rules that take effect are never left out.
MAX_COMMENTS = 60

_FIT = '{ fit = { fill = "keep" } }'
# Of a vocabulary whose tokens moved, or of heads of another size, shapes tell nothing.
_FIT_MEANS = "fit keeps every index where it is; where indices are tokens, and some moved: remap_rows"
_CAST_MEANS = "the dtypes mean different things; a cast takes the numbers as they are, and scales nothing"
_AXES_MEAN = "the shapes differ in axes of size 1 only, and the names are not equal"
_ALIKE = "the names are alike, and no others are as much so"
_NOT_NEW = "no name is alike, but something that nothing uses could be reshaped, split or joined into it"


class Suggester:
    """Candidates for single targets, and the TOML text for a whole plan."""

    def __init__(self, sources: CheckpointIndex) -> None:
        self._index = sources
        self._pairs_left = MAX_PAIRS
        self._lead: dict[str, float] = {}
        self._nothing_alike: set[str] = set()

    @functools.cached_property
    def _sources(self) -> Mapping[str, SourceTensor]:
        return {t.name: t for t in self._index.tensors if t.slot is None}

    @functools.cached_property
    def _words(self) -> Mapping[str, frozenset[str]]:
        return {name: tokens(tensor.own_name) for name, tensor in self._sources.items()}

    @functools.cached_property
    def _by_shape(self) -> Mapping[tuple[int, ...], Sequence[str]]:
        table: dict[tuple[int, ...], list[str]] = collections.defaultdict(list)
        for name, tensor in self._sources.items():
            if not tensor.spec.is_object:
                table[tensor.spec.shape].append(name)
        return table

    @functools.cached_property
    def _by_size(self) -> Mapping[int, Sequence[str]]:
        table: dict[int, list[str]] = collections.defaultdict(list)
        for shape, names in self._by_shape.items():
            table[math.prod(shape)].extend(names)
        return table

    @functools.cached_property
    def _by_word(self) -> Mapping[str, Sequence[str]]:
        table: dict[str, list[str]] = collections.defaultdict(list)
        for name, words in self._words.items():
            for word in words:
                table[word].append(name)
        return table

    def with_candidates(
        self, entries: Sequence[PlanEntry], targets: TargetIndex, used: Container[str]
    ) -> list[PlanEntry]:
        """The entries, those that nothing fills with their candidates among the sources that are still free."""
        open_ = {e.target for e in entries if e.problem is Problem.UNMATCHED and not e.candidates}
        if not open_:
            return list(entries)
        open_ &= {v.name for v in targets.variables if v.slot is None}  # a slot has those of its owner
        return [
            msgspec.structs.replace(e, candidates=self._candidates(e, used)) if e.target in open_ else e
            for e in entries
        ]

    def _candidates(self, entry: PlanEntry, used: Container[str], limit: int = 3) -> tuple[str, ...]:
        """The most alike names: of equal shape, else of any, else by spelling; best first."""
        words = tokens(entry.target)
        fitting = self._ranked(words, self._by_shape.get(entry.spec.shape, ()), used)
        self._lead[entry.target] = _lead(fitting or ())
        # Another shape of as many elements is next.
        sized = None if fitting else self._ranked(words, self._by_size.get(entry.spec.elements, ()), used)
        named = [pair for pair in fitting or sized or () if pair[0] >= MIN_MENTION]
        other = None if named else self._ranked(words, self._sharing(words), used, MIN_LIKENESS)
        found = named or other or fitting or sized
        if found:
            return tuple(name for _, name in found[:limit])
        if fitting is not None and other is not None:
            self._nothing_alike.add(entry.target)
        if self._pairs_left < len(self._sources):
            return ()
        self._pairs_left -= len(self._sources)
        return nearest(entry.target, (n for n in self._sources if n not in used), limit)

    def _ranked(
        self, words: frozenset[str], names: Collection[str], used: Container[str], least: float = 0.0
    ) -> list[tuple[float, str]] | None:
        """(likeness, name) of the free names, best first; None when there are more than may be compared."""
        if len(names) > self._pairs_left:
            return None
        self._pairs_left -= len(names)
        scored = sorted((-likeness(words, self._words[name]), name) for name in names if name not in used)
        return [(-value, name) for value, name in scored if -value >= least]

    def _sharing(self, words: frozenset[str]) -> Collection[str]:
        """All names that could share half of the words: they have one of any half of them, such as the rarest."""
        lists = sorted((self._by_word.get(w, ()) for w in words), key=len)[: len(words) // 2 + 1]
        # Too many to be compared are not put together either.
        return set().union(*lists) if sum(map(len, lists)) <= self._pairs_left else self._sources

    def text(
        self, entries: Sequence[PlanEntry], targets: TargetIndex, used: Container[str], ruled: Container[str]
    ) -> str:
        """TOML rules for every target that is refused; empty when none is.

        Args:
          entries: the plan's, with their candidates.
          targets: all live variables.
          used: source names that something uses.
          ruled: targets that rules decided; another rule for these would only contradict.
        """
        owners = {v.name: v for v in targets.variables if v.slot is None}
        refused = [e for e in entries if e.problem is not Problem.NONE and e.target in owners]
        if not refused:
            return ""
        advice = _Advice(self, SameWords(self._sources.values(), owners.values()), used)
        found = [p for e in refused if e.target not in ruled and (p := advice.propose(e)) and p.can_be_written]
        rules = without_rivals([p for p in found if p.source not in used])
        proposed = {p.target for p in rules}
        unclear = [e for e in refused if e.target not in proposed]
        few = collapse(rules, self._source_names, NameTable(targets.variables, "the model")) if rules else []
        comments = [*(p.render() for p in few if p.guess), *render_unclear(unclear, self._sources)]
        return "\n".join([*(p.render() for p in few if not p.guess), *_bounded(comments)])

    @functools.cached_property
    def _source_names(self) -> NameTable[SourceTensor]:
        return NameTable(self._index.tensors, "the checkpoint")

    def lead(self, target: str) -> bool:
        """Whether the first candidate of a target is clearly more alike than the others."""
        return self._lead.get(target, 0.0) > 0

    def nothing_alike(self, target: str) -> bool:
        """Whether a target was compared with all names, and none is alike."""
        return target in self._nothing_alike

    def spec_of(self, source: str) -> TensorSpec:
        """Shape and dtype of a source."""
        return self._sources[source].spec

    def free_shapes(self, used: Container[str]) -> frozenset[tuple[int, ...]]:
        """The shapes of what nothing uses."""
        return frozenset(shape for shape, names in self._by_shape.items() if any(n not in used for n in names))


class _Advice:
    """What is proposed for one target each, and whether it is proven."""

    def __init__(self, suggester: Suggester, names: SameWords, used: Container[str]) -> None:
        self._suggester, self._names, self._used = suggester, names, used
        self._free = suggester.free_shapes(used)
        self._is_new: dict[tuple[int, ...], bool] = {}

    def propose(self, entry: PlanEntry) -> Proposal | None:
        """The one rule to propose; None where it is not clear."""
        if entry.problem in (Problem.SHAPE, Problem.DTYPE) and len(entry.candidates) == 1:
            return self._mend(entry, entry.candidates[0])
        if entry.problem is not Problem.UNMATCHED:
            return None
        proven = self._names.source_of(entry.target)
        if proven and proven not in self._used:
            return Proposal(proven, entry.target)
        if self._suggester.lead(entry.target):
            return Proposal(entry.candidates[0], entry.target, guess=_ALIKE)
        if self._suggester.nothing_alike(entry.target):
            return Proposal("", entry.target, guess="" if self._nothing_makes(entry.spec) else _NOT_NEW)
        return None

    def _mend(self, entry: PlanEntry, source: str) -> Proposal | None:
        """A source of another shape or dtype with the op that may be meant."""
        found = self._suggester.spec_of(source)
        if found.is_object or entry.spec.is_object:
            return None
        if entry.problem is Problem.DTYPE:
            if "string" in (found.dtype, entry.spec.dtype):
                return None
            return Proposal(source, entry.target, f'{{ cast = {{ dtype = "{entry.spec.dtype}" }} }}', _CAST_MEANS)
        if _squeezed(found.shape) == _squeezed(entry.spec.shape):
            ops = f"{{ reshape = {{ shape = {list(entry.spec.shape)} }} }}"
            return Proposal(source, entry.target, ops, "" if source == entry.target else _AXES_MEAN)
        # Equal numbers of elements prove nothing: it may be a transpose, or a transpose and a reshape.
        if len(found.shape) == len(entry.spec.shape) and found.elements != entry.spec.elements:
            return Proposal(source, entry.target, _FIT, _FIT_MEANS)
        return None

    def _nothing_makes(self, spec: TensorSpec) -> bool:
        """Whether nothing that is free could become such a variable, alone, in parts or joined."""
        if spec.shape not in self._is_new:
            self._is_new[spec.shape] = not any(could_make(shape, spec.shape) for shape in self._free)
        return self._is_new[spec.shape]


def _bounded(comments: Sequence[str]) -> Iterator[str]:
    yield from comments[:MAX_COMMENTS]
    if len(comments) > MAX_COMMENTS:
        yield f"# ... and {len(comments) - MAX_COMMENTS} more that are not clear\n"


def _lead(found: Sequence[tuple[float, str]]) -> float:
    """By how much the best candidate leads, if it is good enough to propose; else 0."""
    if not found or found[0][0] < MIN_LIKENESS:
        return 0.0
    lead = found[0][0] - (found[1][0] if len(found) > 1 else 0.0)
    return lead if lead >= MIN_LEAD else 0.0


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
