"""Evidence of the object graphs: where plain TensorFlow would look, corrected by names; order where nobody has one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dist_restore.core.graph import Scene
from dist_restore.core.index import SourceTensor, TargetVariable
from dist_restore.naming.automatic_names import Vocabulary, without_counter
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.how import How
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome
from dist_restore.planning.matching.rows import Unclear
from dist_restore.planning.matching.view import Signatures, View
from dist_restore.planning.matching.walk import Walk

_PROOFS = {How.CHOSEN: Proof.NAME, How.STRUCTURE: Proof.STRUCTURE, How.ORDER: Proof.ORDER}
_EVIDENCE = {
    How.CHOSEN: "equal place in the object graph",
    How.STRUCTURE: "equal place in the only model that is left on either side, and these are alike",
    How.ORDER: "order among layers that nothing else tells apart",
}
_SHOWN = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Walked:
    """What the walk says.

    Attributes:
      outcomes: target name -> match or conflict.
      sure: targets below a root that is the same program on both sides, all names included.
      unnamed: targets in layers of which the checkpoint has none of that name, where others have names.
    """

    outcomes: Mapping[str, Outcome]
    sure: frozenset[str] = frozenset()
    unnamed: frozenset[str] = frozenset()


def by_walk(
    scenes: tuple[Scene, Scene],
    targets: Sequence[TargetVariable],
    sources: Sequence[SourceTensor],
    pins: Iterable[tuple[str, str]],
    roots: Iterable[tuple[str, str]],
) -> Walked:
    """Walks both graphs.

    Args:
      scenes: the program's and the checkpoint's.
      targets: the variables that take part: no slots, none that rules decided.
      sources: the tensors that do.
      pins: (target, source) pairs that are decided, which say which members of rows belong together.
      roots: (root of the program, root of the checkpoint) pairs that belong together under other names.
    """
    return _Case(scenes, targets, sources).run(pins, roots)


class _Case:
    def __init__(
        self, scenes: tuple[Scene, Scene], targets: Sequence[TargetVariable], sources: Sequence[SourceTensor]
    ) -> None:
        by_layer = scenes[1].by_layer or scenes[0].by_layer
        # What may keep its value is in no file of weights: states of seeds.
        self._targets = {v.name: v for v in targets if not (v.tracker_only or (by_layer and v.keep_reason))}
        self._sources = {t.name: t for t in sources if not t.tracker_only}
        signatures, words = Signatures(), Vocabulary(own_words(scenes[0]))
        ours = {name: v.spec.shape for name, v in self._targets.items()}
        theirs = {name: t.spec.shape for name, t in self._sources.items()}
        self._mine = View(scenes[0], ours, signatures, words, by_layer=by_layer)
        self._other = View(scenes[1], theirs, signatures, words, by_layer=by_layer)
        self._scenes, self._words = scenes, words

    def run(self, pins: Iterable[tuple[str, str]], roots: Iterable[tuple[str, str]]) -> Walked:
        walk = Walk(self._mine, self._other, dict(self._nodes(pins)))
        starts = [(0, 0), *self._aligned(roots)]
        for ours, theirs in starts:
            walk.start(ours, theirs)
        lonely = self._lonely(walk)
        if lonely is not None:
            walk.start(*lonely, How.STRUCTURE)
            starts.append(lonely)
        outcomes = {**dict(self._conflicts(walk)), **dict(self._matches(walk))}
        unnamed = frozenset(self._mine.names[v] for v, unclear in walk.unclear.items() if not unclear.theirs)
        return Walked(outcomes, frozenset(self._sure(walk, starts)), unnamed)

    def _nodes(self, pins: Iterable[tuple[str, str]]) -> Iterator[tuple[int, int]]:
        ours = {name: node for node, name in self._scenes[0].names.items()}
        theirs = {name: node for node, name in self._scenes[1].names.items()}
        yield from ((ours[t], theirs[s]) for t, s in pins if t in ours and s in theirs)

    def _aligned(self, roots: Iterable[tuple[str, str]]) -> Iterator[tuple[int, int]]:
        for ours, theirs in roots:
            mine, other = self._mine.root(ours), self._other.root(theirs)
            if mine is not None and other is not None and (ours or theirs):
                yield mine, other

    def _lonely(self, walk: Walk) -> tuple[int, int] | None:
        """The one root of each side that has no partner, where the two are alike: whatever they are called."""
        roots = _roots(self._mine), _roots(self._other)
        if any(v in walk.pairs for root in roots[0] for v in self._mine.variables(root)):
            return None  # a part of the model fits as it is: what is left may be an old part and a new one
        ours, theirs = (side if len(side) == 1 else [] for side in roots)
        # The root itself stands for a bare model, and for a file that has one.
        pairs = [(a, b) for a in (0, *ours) for b in (0, *theirs) if a or b]
        if self._other.by_layer and len(roots[0]) == 1 and not self._mine.rows[roots[0][0]]:
            return self._only_list(roots[0][0], roots[1]) or (roots[0][0], 0)  # a file of one model's weights
        alike = [(a, b) for a, b in pairs if self._mine.signature(a) == self._other.signature(b)]
        return alike[0] if len(alike) == 1 else None

    def _only_list(self, model: int, theirs: Sequence[int]) -> tuple[int, int] | None:
        """The one list that a model consists of, and what a file has in its place, where the two are alike."""
        ours = [child for _, child in self._mine.kids[model]]
        if len(ours) != 1 or len(theirs) != 1 or not self._mine.rows[ours[0]]:
            return None
        is_alike = self._mine.signature(ours[0]) == self._other.signature(theirs[0])
        return (ours[0], theirs[0]) if is_alike else None

    def _matches(self, walk: Walk) -> Iterator[tuple[str, Outcome]]:
        for node, name in self._mine.names.items():
            theirs, how = walk.pairs.get(node, (-1, How.ORDER))
            source = self._other.names.get(theirs)
            if source is not None:
                yield name, Match(self._sources[source], _EVIDENCE[how], _PROOFS[how])

    def _conflicts(self, walk: Walk) -> Iterator[tuple[str, Outcome]]:
        for node, unclear in walk.unclear.items():
            name = self._mine.names[node]
            candidates = tuple(self._candidates(self._targets[name], unclear))
            if candidates:
                yield name, Conflict(candidates, unclear.reason)

    def _candidates(self, target: TargetVariable, unclear: Unclear) -> Iterator[SourceTensor]:
        own = target.name.rpartition("/")[2]
        below = (self._sources[self._other.names[v]] for m in unclear.theirs for v in self._other.variables(m))
        found = [s for s in below if s.spec.shape == target.spec.shape]
        alike = [s for s in found if any(n.rpartition("/")[2] == own for n in (s.name, *(a.name for a in s.aliases)))]
        yield from (alike or found)[:_SHOWN]

    def _sure(self, walk: Walk, starts: Iterable[tuple[int, int]]) -> Iterator[str]:
        """Targets below roots that are equal in structure, and in all names but for counters."""
        for ours, theirs in starts:
            pairs = [(ours, theirs)] if ours or theirs else []
            if not pairs:
                pairs = [(a, b) for a in self._mine.children(0) if (b := walk.pairs.get(a, (-1, 0))[0]) >= 0]
            for a, b in pairs:
                if self._mine.signature(a) == self._other.signature(b) and self._same_names(walk, a, b):
                    yield from (self._mine.names[v] for v in self._mine.variables(a))

    def _same_names(self, walk: Walk, root: int, partner: int) -> bool:
        variables = self._mine.variables(root)
        # Of several places that one variable has here, the other side may have as many variables.
        if not all(v in walk.pairs for v in variables) or len(variables) != len(self._other.variables(partner)):
            return False
        names = ((self._mine.full_name(v), self._other.full_name(walk.pairs[v][0])) for v in variables)
        flat = ((self._mine.flat_name(v), self._other.flat_name(walk.pairs[v][0])) for v in variables)
        return all(a == b or self._words.path(a).text == self._words.path(b).text for a, b in names) and all(
            not a or not b or self._words.flat(a).text == self._words.flat(b).text for a, b in flat
        )


def _roots(view: View) -> list[int]:
    """What a model may be: the children of the root that are no optimizers and no variables."""
    return [c for _, c in view.kids[0] if not view.is_optimizer(c) and c not in view.shapes]


def own_words(scene: Scene) -> Iterator[str]:
    """The automatic names of a program's own classes (`my_block` for `my_block_2`), and of its optimizers."""
    yield from (without_counter(n.layer.name) for n in scene.nodes if n.layer is not None and n.layer.counted)
    labels = dict(_optimizer_labels(scene))
    for label, family in labels.items():
        base = without_counter(label)
        # A second optimizer of one name gets a counter, whoever chose the name.
        if base.replace("_", "").lower() == family or (base != label and base in labels):
            yield base


def _optimizer_labels(scene: Scene) -> Iterator[tuple[str, str]]:
    """(what an optimizer calls itself, its class in lower case), as its number of steps says."""
    for node in scene.nodes:
        for name, child in node.edges if node.family else ():
            leaf = scene.nodes[child].leaf
            if leaf is not None and name.lstrip("_") == "iterations":
                yield leaf.full_name.partition("/")[0], node.family
