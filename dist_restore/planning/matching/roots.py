"""Aligning roots: `net/dense/kernel` in the checkpoint is `model/dense/kernel` in the program.

Only where one alignment fits and no other does; a root that already fits as it is stays where it is.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from dist_restore.core.index import AliasKind, Group, SourceTensor, TargetVariable
from dist_restore.planning.name_table import Side

PATH_KINDS = (AliasKind.SEMANTIC, AliasKind.COUNTED)
# Roots that one name may be found under before it says nothing about roots; also bounds the work.
MAX_ROOTS = 8

Pair = tuple[str, str]  # (root in the program, root in the checkpoint); an empty root stands for none


@dataclasses.dataclass(frozen=True, slots=True)
class Alignment:
    """Source names in the program's terms.

    Attributes:
      names: name in the program's terms -> the source tensors that have it (more than one is a conflict).
      moved: names in `names` that are not the source's own, with what moved them, for `evidence`.
      doubtful: the moved names whose root has several possible places, with the reason.
      pairs: source root -> program roots that it goes to.
      claimed: source roots that go nowhere.
    """

    names: Mapping[str, tuple[SourceTensor, ...]]
    moved: Mapping[str, str]
    doubtful: Mapping[str, str]
    pairs: Mapping[str, tuple[str, ...]]
    claimed: frozenset[str]

    def clear_pairs(self) -> list[Pair]:
        """The pairs of which neither root has another partner."""
        pairs = [(place, root) for root, places in self.pairs.items() for place in places]
        counts = collections.Counter(place for place, _ in pairs)
        return [(place, root) for place, root in pairs if counts[place] == len(self.pairs[root]) == 1]

    def in_program(self, name: str) -> Iterator[str]:
        """A source's name in the program's terms, once for each place that its root has."""
        root, _, rest = name.partition("/")
        places = self.pairs.get(root, ()) if rest and root not in self.claimed else ()
        yield from (_join(place, rest) for place in places)
        if not places:
            yield name
        if root not in self.claimed:
            yield from (_join(place, name) for place in self.pairs.get("", ()))


def align(
    targets: Sequence[TargetVariable], sources: Side[SourceTensor], settled: Iterable[tuple[str, str]]
) -> Alignment:
    """Expresses the semantic names of sources in the program's terms.

    Args:
      targets: variables that still want a source.
      sources: tensors, and which of them are still free.
      settled: (target name, source name) pairs that rules decided; they tell which roots belong together.

    Returns:
      The names. A root with several possible alignments gets all of them, and its names are doubtful.
    """
    own = sources.own_names(PATH_KINDS)
    wanted = [t for t in targets if t.name_kind in PATH_KINDS and not t.tracker_only]
    roots = _Settled({(_root(target), _root(source)) for target, source in settled})
    claimed = frozenset({_root(t.name) for t in wanted if t.name in own} | roots.namesakes)
    pairs = _without_echoes(_few(_root_pairs(wanted, own, claimed, roots)), own)
    places: dict[str, list[str]] = collections.defaultdict(list)
    for place, root in sorted(pairs):
        places[root].append(place)
    return _rename(own, Alignment({}, {}, {}, {r: tuple(p) for r, p in places.items()}, claimed))


def _rename(own: Mapping[str, SourceTensor], plan: Alignment) -> Alignment:
    if not plan.pairs:
        return dataclasses.replace(plan, names={name: (tensor,) for name, tensor in own.items()})
    names: dict[str, list[SourceTensor]] = collections.defaultdict(list)
    moved: dict[str, str] = {}
    doubtful: dict[str, str] = {}
    doubts = _doubts(plan.pairs, own)
    for name, tensor in own.items():
        for new in plan.in_program(name):
            if not any(t is tensor for t in names[new]):
                names[new].append(tensor)
                if new != name:
                    pair = _pair(new, name)
                    moved[new] = f"root {pair[1] or '(none)'!r} aligned with {pair[0] or '(none)'!r}"
                    doubtful.update({new: doubts[pair]} if pair in doubts else {})
    table = {name: tuple(found) for name, found in names.items()}
    return dataclasses.replace(plan, names=table, moved=moved, doubtful=doubtful)


def _pair(new: str, old: str) -> Pair:
    """The roots that a move has exchanged."""
    if new.endswith(f"/{old}"):
        return new[: -len(old) - 1], ""
    root, _, rest = old.partition("/")
    return ("" if new == rest else _root(new)), root


def _doubts(pairs: Mapping[str, Sequence[str]], own: Mapping[str, SourceTensor]) -> dict[Pair, str]:
    """The pairs of which one side has another partner too, and not only the same one under two names."""
    partners: dict[tuple[bool, str], list[Pair]] = collections.defaultdict(list)
    for pair in ((place, root) for root, places in pairs.items() for place in places):
        partners[True, pair[0]].append(pair)
        partners[False, pair[1]].append(pair)
    doubts = {}
    for rivals in partners.values():
        if len(rivals) > 1 and not _are_one({root for _, root in rivals}, own):
            text = ", ".join(f"{root or '(none)'!r} as {place or '(none)'!r}" for place, root in sorted(rivals))
            doubts.update(dict.fromkeys(rivals, f"its root has several possible places: {text}"))
    return doubts


class _Settled:
    """What rules say about roots, for which other pairs are then excluded."""

    def __init__(self, pairs: set[Pair]) -> None:
        self._pairs = pairs
        self._targets = {target for target, _ in pairs}
        self._sources = {source for _, source in pairs}
        self.namesakes = {target for target, source in pairs if target == source}

    def allow(self, target: str, source: str) -> bool:
        if not self._pairs or (target, source) in self._pairs:
            return True
        if not target or not source:
            return source in self._sources or target in self._targets
        return target not in self._targets and source not in self._sources


def _root_pairs(
    wanted: Sequence[TargetVariable], own: Mapping[str, SourceTensor], claimed: frozenset[str], settled: _Settled
) -> set[Pair]:
    """The pairs of roots below which some name is the same."""
    hits = any(t.name in own for t in wanted)
    # Where a part of the model has its own root (`enc`, `head`) and fits as it is, the others are parts too: what is
    # left over on both sides may be an old head and a new one, and only a person can tell.
    if any(t.name in own and t.group is Group.MODEL for t in wanted):
        return set()
    below: dict[str, list[str]] = collections.defaultdict(list)
    for name in own:
        root, slash, rest = name.partition("/")
        if slash and root not in claimed:
            below[rest].append(root)
    # Names that Keras made up are equal by chance, so that they prove no root.
    chosen = [t for t in wanted if t.name_kind is AliasKind.SEMANTIC]
    found = {("", r, t.name) for t in chosen for r in _some(below, t.name) if not hits and settled.allow("", r)}
    # Both may fit where a model has a part that is called as its root is: then neither is taken.
    found |= set(_below_roots(chosen, own, below, claimed, settled))
    strong = {(t, r) for t, r, rest in found if "/" in rest}
    # `kernel` below two roots may be two layers. Below the only roots that there are, and with all else, it counts.
    weak = {(t, r) for t, r, _ in found}
    alone = len(weak) == 1 and all(_same_below(pair, wanted, own) and _is_all(pair[0], wanted) for pair in weak)
    return strong or (weak if alone else set())


def _below_roots(
    wanted: Sequence[TargetVariable],
    own: Mapping[str, SourceTensor],
    below: Mapping[str, Sequence[str]],
    claimed: frozenset[str],
    settled: _Settled,
) -> Iterator[tuple[str, str, str]]:
    namesakes = {_root(v.name) for v in wanted}  # a root that the program has too does not become another one
    for variable in wanted:
        root, _, rest = variable.name.partition("/")
        if not rest or root in claimed:
            continue
        places = (r for r in _some(below, rest) if r not in namesakes and settled.allow(root, r))
        yield from ((root, r, rest) for r in places)
        if rest in own and _root(rest) not in claimed and settled.allow(root, ""):
            yield root, "", rest


def _some(below: Mapping[str, Sequence[str]], rest: str) -> Sequence[str]:
    roots = below.get(rest, ())
    return roots if len(roots) <= MAX_ROOTS else ()


def _same_below(pair: Pair, wanted: Sequence[TargetVariable], own: Mapping[str, SourceTensor]) -> bool:
    """Whether two roots hold just the same names."""
    target, source = pair
    theirs = (tensor.name for name, tensor in own.items() if name == tensor.name)
    return _rests((t.name for t in wanted), target) == _rests(theirs, source)


def _is_all(root: str, wanted: Sequence[TargetVariable]) -> bool:
    """Whether the program has no other model besides."""
    return all(_root(t.name) == root or not root for t in wanted if t.group is Group.MODEL)


def _rests(names: Iterable[str], root: str) -> set[str]:
    return {name.partition("/")[2] for name in names if _root(name) == root} if root else set(names)


def _without_echoes(pairs: set[Pair], own: Mapping[str, SourceTensor]) -> set[Pair]:
    """The pairs without those whose source root only says again what another root of the same place says."""
    rivals: dict[str, list[str]] = collections.defaultdict(list)
    for place, root in sorted(pairs):
        rivals[place].append(root)
    contested = {root for roots in rivals.values() if len(roots) > 1 for root in roots}
    below = {root: _below(root, own) for root in contested}
    kept = ((p, _no_echoes(roots, below) if len(roots) > 1 else roots) for p, roots in rivals.items())
    return {(place, root) for place, roots in kept for root in roots}


def _below(root: str, own: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The names below a root, without it."""
    return {n.partition("/")[2]: t for n, t in own.items() if _root(n) == root} if root else dict(own)


def _no_echoes(roots: Sequence[str], below: Mapping[str, Mapping[str, SourceTensor]]) -> list[str]:
    left = list(roots)
    for root in reversed(roots):  # of two that say the same the first one stays
        others = (below[other] for other in left if other != root)
        if any(all(other.get(rest) is tensor for rest, tensor in below[root].items()) for other in others):
            left.remove(root)
    return left


def _are_one(roots: Collection[str], own: Mapping[str, SourceTensor]) -> bool:
    """Whether several roots are names of one thing: the same tensors are below each, and no name means two of them."""
    if len(roots) < 2:
        return False
    meant: dict[str, SourceTensor] = {}
    tensors = []
    for names in (_below(root, own) for root in sorted(roots)):
        if any(meant.setdefault(rest, tensor) is not tensor for rest, tensor in names.items()):
            return False
        tensors.append({id(t) for t in names.values()})
    return all(found == tensors[0] for found in tensors)


def _few(pairs: set[Pair]) -> set[Pair]:
    """The pairs of roots that have few partners; with many, nobody could tell which is meant."""
    targets = collections.Counter(target for target, _ in pairs)
    sources = collections.Counter(source for _, source in pairs)
    return {(t, s) for t, s in pairs if targets[t] <= MAX_ROOTS and sources[s] <= MAX_ROOTS}


def _root(name: str) -> str:
    return name.partition("/")[0]


def _join(root: str, rest: str) -> str:
    return f"{root}/{rest}" if root else rest
