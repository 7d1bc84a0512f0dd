"""Evidence of numbers in files that only number an optimizer's state (`.weights.h5`, `.keras`).

Such a file has the list `optimizer.variables` of the program that wrote it, and no name in it. The class of the
optimizer gives the list its order, and the order of the variables that it trains; so both lists must be the same, one
by one, and nothing that the file says of the order of layers may speak against it. What a number cannot show is which
layers were frozen when the file was written. That is order, and no proof. Pure.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from dist_restore.core.index import AliasKind, CheckpointIndex, OptimizerInfo, SourceTensor, TargetIndex, TargetVariable
from dist_restore.core.nearest import quote
from dist_restore.core.tensors import TensorSpec
from dist_restore.naming.optimizer_classes import KERAS_3
from dist_restore.naming.slot_roles import INSIDE, class_name, is_known
from dist_restore.ops import is_float_cast
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.outcome import Match
from dist_restore.planning.name_table import Named

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}\Z")
_OURS, _THEIRS, _TRAINED = "variables", "vars", "trainable_variables"
# What the base class of Keras 3 makes for every class: in turns before 3.10, in two rows since.
_OF_BASE = frozenset({"average", "accumulated_gradient"})
_NUMBERS = "the checkpoint only numbers the state of its optimizer"


@dataclasses.dataclass(frozen=True)
class NumberedState:
    """What one optimizer of the program and one of the checkpoint keep, by number.

    Attributes:
      mine: the program's optimizer.
      other: the checkpoint's.
      ours: its variables.
      theirs: its tensors.
      trained: names of the variables that the program's optimizer trains, in its order.
    """

    mine: OptimizerInfo
    other: OptimizerInfo
    ours: Mapping[int, TargetVariable]
    theirs: Mapping[int, SourceTensor]
    trained: Sequence[str]

    @functools.cached_property
    def _sources(self) -> Mapping[str, SourceTensor]:
        return {v.name: self.theirs[n] for n, v in self.ours.items() if n in self.theirs}

    def source_of(self, target: str) -> SourceTensor | None:
        """The tensor of the same number."""
        return self._sources.get(target)

    @functools.cached_property
    def trouble(self) -> str:
        """Why a number does not tell what a tensor is; empty where it does."""
        if not _same_class(self.mine, self.other):
            ours, theirs = (o.family or o.label or "unknown" for o in (self.mine, self.other))
            return f"{_NUMBERS}, of the class {theirs!r}, and the program's is {ours!r}"
        if sorted(self.ours) != [*range(len(self.theirs))] or self.ours.keys() != self.theirs.keys():
            return f"{_NUMBERS}: it keeps {len(self.theirs)} variables, and the program's {len(self.ours)}"
        differ = next((n for n, v in sorted(self.ours.items()) if not _becomes(self.theirs[n].spec, v.spec)), None)
        if differ is not None:
            here, there = self.ours[differ], self.theirs[differ]
            return (
                f"{_NUMBERS}: number {differ} is a {there.spec}, and that of the program, {here.name!r}, a {here.spec}"
            )
        if self._reads_otherwise():
            return f"{_NUMBERS}, and its roles may lie in rows or take turns: all shapes are equal either way"
        return ""

    def order_trouble(self, owners: Mapping[str, SourceTensor]) -> str:
        """Why slots of the same number may have another owner; empty where nothing says so.

        Args:
          owners: what fills the variables that the program's optimizer trains, each as it is.
        """
        missing = next((name for name in self.trained if name not in owners), "")
        if missing:
            return f"{_NUMBERS}, and nothing of it fills {missing!r} as it is"
        keys = [owners[name].key for name in self.trained]
        moved = next((row for row in self.other.rows if _is_moved(keys, row)), ())
        if moved:
            shown = [path for path in moved if any(key.startswith(f"{path}/") for key in keys)]
            return f"{_NUMBERS}, and says that its layers {quote(shown[:4])} came in another order"
        return ""

    def _reads_otherwise(self) -> bool:
        """Whether the shapes would fit as well if roles lay in rows and not in turns, or in turns and not in rows."""
        settled = self.other.structure[:1] == (KERAS_3,) and is_known(self.other.family)
        slots = [v for _, v in sorted(self.ours.items()) if v.slot is not None]
        if settled:  # each class kept its own order, from the first release on
            slots = [v for v in slots if v.slot is not None and v.slot.role in _OF_BASE]
        roles = {role: n for n, role in enumerate(dict.fromkeys(v.slot.role for v in slots if v.slot is not None))}
        owners = {owner: n for n, owner in enumerate(dict.fromkeys(v.slot.owner for v in slots if v.slot is not None))}
        places = [(roles[v.slot.role], owners[v.slot.owner], v) for v in slots if v.slot is not None]
        rows = [v for *_, v in sorted(places, key=lambda p: (p[0], p[1]))]
        turns = [v for *_, v in sorted(places, key=lambda p: (p[1], p[0]))]
        return any(other != slots and _specs(other) == _specs(slots) for other in (rows, turns))


class StateNumbers:
    """All pairs of optimizers of which the checkpoint numbers the state; one object per resolution."""

    def __init__(self, targets: TargetIndex, sources: CheckpointIndex, pairs: Iterable[tuple[str, str]]) -> None:
        """Finds the lists.

        Args:
          targets: the program's index.
          sources: the checkpoint's.
          pairs: names of optimizers that belong together.
        """
        theirs = numbered_lists(sources.tensors, [o.name for o in sources.optimizers if not o.roles], _THEIRS)
        self._copies = {t.name for name in theirs for t in _cut(theirs, name)}
        named = [(mine, other) for mine, other in pairs if theirs.get(other)]
        names = [mine for mine, _ in named]
        ours, trained = (
            numbered_lists(targets.variables, names, _OURS),
            numbered_lists(targets.variables, names, _TRAINED),
        )
        mine_by_name = {o.name: o for o in targets.optimizers}
        other_by_name = {o.name: o for o in sources.optimizers}
        self.pairs = {
            mine: NumberedState(
                mine_by_name[mine],
                other_by_name[other],
                ours[mine],
                theirs[other],
                [v.name for _, v in sorted(trained[mine].items())] or _owners(ours[mine]),
            )
            for mine, other in named
        }

    def match(self, targets: Iterable[TargetVariable], free: Iterable[SourceTensor]) -> dict[str, Match]:
        """Sources of state that is no slot, and that the optimizer itself names: counters and rates."""
        if not self.pairs:
            return {}
        usable = {mine: pair for mine, pair in self.pairs.items() if not pair.trouble}
        names, found = {t.name for t in free}, dict[str, Match]()
        for target in targets:
            pair = usable.get(target.name.rpartition("/")[0])
            source = pair.source_of(target.name) if pair is not None else None
            if source is not None and source.name in names and target.name_kind is not AliasKind.POSITIONAL:
                found[target.name] = Match(source, _evidence(source), Proof.STRUCTURE)
        return found

    def match_nameless(
        self, targets: Iterable[TargetVariable], free: Iterable[SourceTensor], owners: Mapping[str, SourceTensor]
    ) -> dict[str, Match]:
        """Sources of state without a name or an owner, such as Adafactor's, once it is known what fills the owners."""
        if not self.pairs:
            return {}
        names, found = {t.name for t in free}, dict[str, Match]()
        usable = [p for p in self.pairs.values() if not (p.trouble or p.order_trouble(owners))]
        for target in targets:
            sources = [p.source_of(target.name) for p in usable] if target.name_kind is AliasKind.POSITIONAL else []
            found.update((target.name, Match(s, _evidence(s), Proof.ORDER)) for s in sources if s and s.name in names)
        return found

    def is_copy(self, tensor: SourceTensor) -> bool:
        """Whether a wrapper has it a second time: it lists what the optimizer inside keeps."""
        return tensor.name in self._copies

    def lacks(self, optimizer: str, target: TargetVariable) -> bool:
        """Whether all that an optimizer keeps has a number, and a variable beside has none."""
        pair = self.pairs.get(optimizer)
        return pair is not None and not pair.trouble and pair.source_of(target.name) is None

    def trouble(self, optimizer: str) -> str:
        """Why the numbers say nothing of an optimizer's state; empty where they do, or where there are none."""
        pair = self.pairs.get(optimizer)
        return pair.trouble if pair is not None else ""


class NumberedSlots:
    """Sources of slots by their numbers, once their owners are known; one object per resolution."""

    def __init__(
        self,
        numbers: StateNumbers,
        owners: Mapping[str, SourceTensor],
        ruled: Mapping[str, Sequence[str]],
        dropped: Collection[str],
    ) -> None:
        """Prepares.

        Args:
          numbers: what the checkpoint numbers.
          owners: variable -> the tensor that fills it, where that is one and as it is.
          ruled: target name -> names of the tensors that rules fill it from.
          dropped: names of tensors that rules dropped.
        """
        self._pairs, self._owners, self._ruled, self._dropped = numbers.pairs, owners, ruled, dropped
        self._troubles: dict[str, str] = {}

    def find(self, target: TargetVariable) -> Match | str | None:
        """The source of a slot, or why the number does not tell it; None where the checkpoint numbers nothing."""
        pair = self._pairs.get(target.slot.optimizer) if target.slot is not None else None
        if pair is None:
            return None
        if pair.mine.name not in self._troubles:
            self._troubles[pair.mine.name] = pair.trouble or self._ruled_otherwise(pair)
            self._troubles[pair.mine.name] = self._troubles[pair.mine.name] or pair.order_trouble(self._owners)
        source = pair.source_of(target.name)
        if self._troubles[pair.mine.name] or source is None:
            return self._troubles[pair.mine.name] or f"{_NUMBERS}, and that of this variable is not known here"
        if source.name in self._dropped:
            return f"a rule drops {source.name!r}"
        return Match(source, _evidence(source), Proof.ORDER)

    def _ruled_otherwise(self, pair: NumberedState) -> str:
        ruled = (
            (v.name, self._ruled[v.name], pair.theirs[n].name) for n, v in pair.ours.items() if v.name in self._ruled
        )
        bad = next((name for name, sources, own in ruled if [*sources] != [own]), "")
        return f"{_NUMBERS}, and a rule fills {bad!r} from another number" if bad else ""


def _evidence(source: SourceTensor) -> str:
    number = source.name.rpartition("/")[2]
    return f"number {number} of an optimizer of the same class, which keeps equally many of equal shapes"


def numbered_lists(items: Iterable[Named], optimizers: Sequence[str], edge: str) -> dict[str, dict[int, Named]]:
    """Optimizer's name -> what it keeps, by number."""
    found: dict[str, dict[int, Named]] = {name: {} for name in optimizers}
    places = {f"{name}/{edge}" if name else edge: numbers for name, numbers in found.items()}
    for item in items if places else ():
        for name in (item.name, *(a.name for a in item.aliases if a.kind is AliasKind.POSITIONAL)):
            head, _, index = name.rpartition("/")
            if head in places and _INDEX.match(index):
                places[head][int(index)] = item
    return found


def _cut(lists: Mapping[str, dict[int, SourceTensor]], name: str) -> list[SourceTensor]:
    """Takes what the optimizer inside keeps off the end of a wrapper's list, which has it too; gives what was there."""
    own, inside = lists[name], lists.get(f"{name}/{INSIDE}", {})
    tail = sorted(own)[len(own) - len(inside) :]
    if not inside or [own[n].spec for n in tail] != [t.spec for _, t in sorted(inside.items())]:
        return []
    return [own.pop(n) for n in tail]


def _becomes(stored: TensorSpec, wanted: TensorSpec) -> bool:
    """Whether a tensor may be a variable's: of its shape, and of its kind of dtype, as another policy makes it."""
    if stored.shape != wanted.shape or stored.is_object or wanted.is_object:
        return stored == wanted
    return stored.dtype == wanted.dtype or is_float_cast(stored.dtype, wanted.dtype)


def _same_class(ours: OptimizerInfo, theirs: OptimizerInfo) -> bool:
    """Whether the file says that its optimizer is of the program's class; a name that somebody chose does not."""
    return bool(ours.family) and ours.family == (theirs.family or class_name(theirs.label))


def _owners(kept: Mapping[int, TargetVariable]) -> list[str]:
    """What an optimizer trains, by its slots: those of tf_keras have no list of it."""
    return list(dict.fromkeys(v.slot.owner for _, v in sorted(kept.items()) if v.slot is not None))


def _specs(variables: Iterable[TargetVariable]) -> list[object]:
    return [v.spec for v in variables]


def _is_moved(keys: Iterable[str], row: Sequence[str]) -> bool:
    """Whether tensors come in another order than the layers of a row that they are in."""
    places = {path: n for n, path in enumerate(row)}
    depth = row[0].count("/") + 1
    found = [places.get("/".join(key.split("/")[:depth])) for key in keys]
    numbers = [n for n in found if n is not None]
    return numbers != sorted(numbers)
