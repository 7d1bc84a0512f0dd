"""The engine of evidence: every witness is asked in one order, and all that they say is heard together.

    optimizers' state   what wrappers of optimizers have twice
    names               equal names that somebody chose, below aligned roots
    the walk            where plain TensorFlow would look; rows of layers by their names, then by their order
    an optimizer's list what has no path in the checkpoint, by its place in what is trained
    numbers             files that number a layer's variables
    counters            files without an object graph, by the order of automatic names

A function of two indexes and of what rules decided. Slots are not asked: they follow their owners.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from dist_restore.core.graph import Scene
from dist_restore.core.index import CheckpointIndex, SourceTensor, TargetIndex, TargetVariable
from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.naming.optimizers import keras_3_optimizers
from dist_restore.planning.apply_rules import Decisions
from dist_restore.planning.matching.borrowed import mark_borrowed
from dist_restore.planning.matching.by_counter import by_counter
from dist_restore.planning.matching.by_name import by_name
from dist_restore.planning.matching.by_number import by_number
from dist_restore.planning.matching.by_optimizer_list import by_optimizer_list
from dist_restore.planning.matching.by_walk import Walked, by_walk, own_words
from dist_restore.planning.matching.exchanged import (
    flat_names_of,
    in_files,
    in_flat_names,
    in_full_names,
    names_in_files,
    refuse_exchanged,
)
from dist_restore.planning.matching.lists import rests_on_index
from dist_restore.planning.matching.moved_members import refuse_moved_members
from dist_restore.planning.matching.optimizer_state import TF1_STEP, OptimizerState
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome
from dist_restore.planning.matching.own_classes import refuse_misnamed
from dist_restore.planning.matching.roots import Alignment, align
from dist_restore.planning.matching.shared_slots import judge_shared
from dist_restore.planning.matching.verdict import (
    hear,
    mark_indexes,
    refuse_other_members,
    refuse_shared,
)
from dist_restore.planning.matching.view import optimizer_places
from dist_restore.planning.name_table import Side


@dataclasses.dataclass(frozen=True)
class Case:
    """What is to be matched.

    Attributes:
      sources: the checkpoint.
      targets: the program.
      optimizers: what is known of their state.
      decisions: what rules decided.
      owned: the variables that are no slots.
      open: those of them that rules did not decide.
    """

    sources: CheckpointIndex
    targets: TargetIndex
    optimizers: OptimizerState
    decisions: Decisions
    owned: Sequence[TargetVariable]
    open: Sequence[TargetVariable]


def match(case: Case) -> Mapping[str, Outcome]:
    """Target name -> match or conflict; targets of which no witness knows anything are absent."""
    free = _free(case)
    state = case.optimizers.match(case.open, free)
    matched = {o.source.name for o in state.values() if isinstance(o, Match)} - {TF1_STEP}
    # TF1's step may be wanted twice: as iterations, and by a variable of its own name.
    free = [t for t in free if t.name not in matched]
    open_ = [v for v in case.open if v.name not in state]
    found = _Hearing(case, open_, free).run() if open_ else {}
    return {**found, **_nameless_state(case, open_, free, found), **state}


def _nameless_state(
    case: Case, open_: Sequence[TargetVariable], free: Sequence[SourceTensor], found: Mapping[str, Outcome]
) -> dict[str, Match]:
    """What optimizers keep without a name, where a file numbers it."""
    if not case.optimizers.numbers.pairs:
        return {}
    ruled = ((n, a) for n, a in case.decisions.assigned.items() if not a.ops and len(a.sources) == 1)
    matched = {n: o.source for n, o in found.items() if isinstance(o, Match)}
    left = [v for v in open_ if v.name not in found]
    return case.optimizers.numbers.match_nameless(left, free, matched | {n: a.sources[0] for n, a in ruled})


def _differ(pairs: Iterable[tuple[str, str]], ours: Mapping[str, object], theirs: Mapping[str, object]) -> bool:
    """Whether the two sides say different things of some pair of a target and a source."""
    return any([ours.get(name) != theirs.get(source) for name, source in pairs])


def _places(scene: Scene | None) -> Mapping[str, tuple[int, int]]:
    if scene is None:
        return {}
    places = optimizer_places(scene.nodes, keras_3_optimizers(scene.nodes))
    return {scene.names[node]: place for node, place in places.items() if node in scene.names}


def _says_nothing(outcome: Outcome | None) -> bool:
    """Whether nothing is known of a target but that an index in its name misleads."""
    return outcome is None or (isinstance(outcome, Conflict) and outcome.of_indexes and not outcome.candidates)


def _free(case: Case) -> list[SourceTensor]:
    taken = case.decisions.used.keys() | case.decisions.dropped.keys()
    return [t for t in case.sources.tensors if t.slot is None and t.name not in taken]


class _Hearing:
    """The witnesses of one case, one after the other."""

    def __init__(self, case: Case, open_: Sequence[TargetVariable], free: Sequence[SourceTensor]) -> None:
        self._case, self._open, self._free = case, open_, free
        # An average that begins as its weight says nothing of where that comes from.
        assigned = [(n, a) for n, a in case.decisions.assigned.items() if n not in case.decisions.seeded]
        self._settled = [(n, s.name) for n, a in assigned for s in a.sources]
        # What is made of several layers, or of a part of one, says nothing of the rest of these layers.
        self._whole = [(n, a.sources[0].name) for n, a in assigned if len(a.sources) == a.parts == 1]
        self._mine = Side(open_, case.owned)
        self._other = Side(free, [t for t in case.sources.tensors if t.slot is None])
        # Whether the two programs are equal in all that was asked.
        self._all_agree = False

    def run(self) -> dict[str, Outcome]:
        alignment = align(self._open, self._other, self._settled)
        named = by_name(self._mine, self._other, alignment)
        walked = self._walk(named, alignment)
        found = hear(self._open, mark_indexes(named, self._open, walked, self._called()), walked)
        found |= self._by_list(found)
        if self._left(found):
            found |= by_number(Side(self._left(found), self._case.owned), self._free)
            paths = self._case.sources.scene is None
            found |= by_counter(self._open, found, self._unused(found), alignment, paths=paths)
        found = dict(judge_shared(self._seen_in_graphs(found), self._full_names, self._moved()))
        return refuse_shared(refuse_other_members(found, self._open))

    def _moved(self) -> frozenset[str]:
        """The targets that rules fill from another variable than their own, or keep."""
        decisions = self._case.decisions
        ruled = {n for n, a in decisions.assigned.items() if [s.name for s in a.sources] != [n]}
        return frozenset(ruled | decisions.kept.keys())

    def _seen_in_graphs(self, found: Mapping[str, Outcome]) -> Mapping[str, Outcome]:
        """What names of layers, which only the graphs have, say against what was found."""
        mine, other = self._case.targets.scene, self._case.sources.scene
        if mine is None:
            return found
        found = mark_borrowed(found, mine)
        if other is None or self._all_agree:
            return found
        if other.by_layer:
            found = refuse_misnamed(found, mine)
            return refuse_exchanged(found, names_in_files(mine), names_in_files(other), in_files(self._words))
        names = self._full_names, self._their_full_names
        found = refuse_moved_members(found, *names, self._words)
        found = refuse_exchanged(found, *names, in_full_names(self._words))
        if not (self._case.targets.optimizers and self._case.sources.optimizers):
            return found
        flat = flat_names_of(self._open), flat_names_of(self._free)
        return refuse_exchanged(found, *flat, in_flat_names(self._words))

    def _left(self, found: Mapping[str, Outcome]) -> list[TargetVariable]:
        return [v for v in self._open if v.name not in found]

    def _unused(self, found: Mapping[str, Outcome]) -> list[SourceTensor]:
        used = {o.source.name for o in found.values() if isinstance(o, Match)}
        return [t for t in self._free if t.name not in used]

    def _walk(self, named: Mapping[str, Outcome], alignment: Alignment) -> Walked:
        scenes = self._case.targets.scene, self._case.sources.scene
        if scenes[0] is None or scenes[1] is None or not self._is_needed(named, scenes[0], scenes[1]):
            return Walked({})
        matches = ((n, o) for n, o in named.items() if isinstance(o, Match))
        hard = [(n, o.source.name) for n, o in matches if not rests_on_index(o.name)]
        return by_walk((scenes[0], scenes[1]), self._open, self._free, [*self._whole, *hard], alignment.clear_pairs())

    def _is_needed(self, named: Mapping[str, Outcome], mine: Scene, other: Scene) -> bool:
        """Names that somebody chose are enough where they say all; and indexes where all else says the same.

        So it is for most of large programs, which are not walked then.
        """
        if not all([isinstance(named.get(v.name), Match) or v.tracker_only for v in self._open]):
            return True
        pairs = [(name, o.source.name) for name, o in named.items() if isinstance(o, Match)]
        known = [] if mine.by_layer or other.by_layer else [*self._called_by()]
        self._all_agree = bool(known) and not any(_differ(pairs, *names) for names in known)
        if self._all_agree:
            return False
        weak = [(n, o.source.name) for n, o in named.items() if isinstance(o, Match) and rests_on_index(o.name)]
        return bool(weak) and (not known or any(_differ(weak, *names) for names in known))

    def _called_by(self) -> Iterator[tuple[Mapping[str, object], Mapping[str, object]]]:
        """What both graphs say of variables beside their places: full names, and what the optimizers have."""
        yield self._full_names, self._their_full_names
        if self._case.targets.optimizers and self._case.sources.optimizers:
            yield flat_names_of(self._open), flat_names_of(self._free)
            yield _places(self._case.targets.scene), _places(self._case.sources.scene)

    @functools.cached_property  # asked for by two witnesses, of some 50,000 variables
    def _full_names(self) -> Mapping[str, str]:
        scene = self._case.targets.scene
        return scene.full_names() if scene is not None else {}

    @functools.cached_property
    def _their_full_names(self) -> Mapping[str, str]:
        scene = self._case.sources.scene
        return scene.full_names() if scene is not None else {}

    @functools.cached_property
    def _words(self) -> Vocabulary:
        scene = self._case.targets.scene
        return Vocabulary(own_words(scene) if scene is not None else ())

    def _called(self) -> Callable[[str], str]:
        """What the full name of a variable says of the layer that it is in, counters apart."""
        names, known = self._full_names, functools.cache(lambda scope: self._words.path(scope).text)
        return lambda name: known(names.get(name, "").rpartition("/")[0])

    def _by_list(self, found: Mapping[str, Outcome]) -> dict[str, Outcome]:
        left = frozenset(v.name for v in self._open if _says_nothing(found.get(v.name)))
        if not left:
            return {}
        ruled = {
            n: Match(a.sources[0], "rule") for n, a in self._case.decisions.assigned.items() if len(a.sources) == 1
        }
        free = frozenset(t.name for t in self._unused(found))
        full_names = self._full_names, self._their_full_names
        known = {**{n: o for n, o in found.items() if n not in left}, **ruled}
        return by_optimizer_list(self._case.targets, self._case.sources, known, left, free, self._words, full_names)
