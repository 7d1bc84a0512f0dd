"""Optimizers that made no step yet, on either side: their slots keep what they begin with. Pure.

Whether a checkpoint was saved before the first step is seen where its format shows what the optimizer trains, or where
its class always has slots.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from dist_restore.core.graph import Node
from dist_restore.core.index import AliasKind, CheckpointIndex, OptimizerInfo, TargetIndex, TargetVariable
from dist_restore.naming.optimizer_classes import KERAS_3
from dist_restore.naming.slot_roles import degree_of, is_known
from dist_restore.planning.entries import PlanEntry, Problem, Status

# What a LossScaleOptimizer of Keras 3 has besides what every optimizer has.
OF_LOSS_SCALE = frozenset({"step_counter", "dynamic_scale"})
# Without momentum it has no slots.
_WITHOUT_SLOTS = "sgd"
_NUMBERED = re.compile(r"(.*)/variables/\d+\Z", re.DOTALL)


def beginnings(sources: CheckpointIndex, targets: TargetIndex, entries: Sequence[PlanEntry]) -> frozenset[str]:
    """What nothing fills and keeps what it begins with: neither side's optimizer made a step.

    Args:
      sources: the checkpoint's index.
      targets: the program's index.
      entries: what was decided for all of the program's variables.
    """
    fresh = {o.name: o for o in targets.optimizers if o.name in targets.fresh}
    if not fresh:
        return frozenset()
    stored = {t.slot.optimizer for t in sources.tensors if t.slot is not None}
    pairs = ((fresh.get(mine), theirs) for mine, theirs in _pairs(entries) if theirs not in stored)
    found = ((mine.name, _Start.find(mine, theirs, sources)) for mine, theirs in pairs if mine is not None)
    starts = {name: start for name, start in found if start is not None}
    empty = (mine for name, mine in fresh.items() if is_known(mine.family) and _is_empty(name, sources))
    starts |= {mine.name: _Start(mine.family, False, True) for mine in empty}
    begin = {v.name for v in targets.variables if starts and _begins(v, starts)}
    return frozenset(e.target for e in entries if e.target in begin and e.problem is Problem.UNMATCHED)


@dataclasses.dataclass(frozen=True, slots=True)
class _Start:
    """What the checkpoint has of an optimizer without slots.

    Attributes:
      family: class of the program's.
      seeds: whether its averages are taken from the weights at the first step, and not when it is built.
      empty: whether it had no state at all; those of tf_keras before 2.11 make all of it at the first step.
    """

    family: str
    seeds: bool
    empty: bool = False

    @staticmethod
    def find(mine: OptimizerInfo, name: str, sources: CheckpointIndex) -> _Start | None:
        """None where the checkpoint has no such optimizer, of the same class and without a step."""
        if not is_known(mine.family):
            return None
        theirs = next((o for o in sources.optimizers if o.name == name), None)
        if theirs is not None:
            return _Start(mine.family, True) if _same_class(mine, theirs) and is_unstepped(theirs, sources) else None
        below = [t for t in sources.tensors if t.name.startswith(f"{name}/")]
        if any(t.name_kind is AliasKind.POSITIONAL for t in below):
            return None  # state of which nobody knows what it is
        # One of tf_keras, which has lists for its slots from the first step on, whatever its class.
        raw = {alias.name for t in below for alias in t.aliases}
        return _Start(mine.family, False) if f"{name}/_iterations" in raw else None

    def allows(self, role: str) -> bool:
        """Whether slots of a role may keep what they begin with."""
        if role == "average":
            return self.seeds
        # What begins as a copy of its variable began as one of what that held before the restore.
        return degree_of(role, self.family) != -1


def is_unstepped(theirs: OptimizerInfo, sources: CheckpointIndex) -> bool:
    """Whether an optimizer of a checkpoint is known to have made no step, so that its counter is zero."""
    below = (t for t in sources.tensors if t.name.startswith(f"{theirs.name}/"))
    if theirs.roles or any(t.name_kind is AliasKind.POSITIONAL for t in below):
        return False
    if theirs.structure[:1] == (KERAS_3,):
        return not _trains(theirs.name, sources)
    return is_known(theirs.family) and theirs.family != _WITHOUT_SLOTS


def _same_class(mine: OptimizerInfo, theirs: OptimizerInfo) -> bool:
    return (theirs.family or _base(theirs.label)) in (mine.family, _base(mine.label))


def _pairs(entries: Iterable[PlanEntry]) -> Iterator[tuple[str, str]]:
    """Names of the program's optimizers and of the checkpoint's, by whose steps fill whose."""
    for entry in entries:
        mine, _, last = entry.target.rpartition("/")
        if last == "iterations" and entry.filled and len(entry.sources) == 1:
            yield mine, entry.sources[0].rpartition("/")[0]


def _trains(optimizer: str, sources: CheckpointIndex) -> bool:
    """Whether an optimizer of Keras 3 lists variables that it trains, as each does from its first step on."""
    start = f"{optimizer}/_trainable_variables/"
    return any(alias.name.startswith(start) for tensor in sources.tensors for alias in tensor.aliases)


def _is_empty(name: str, sources: CheckpointIndex) -> bool:
    """Whether the checkpoint has an object of this name, and nothing at all in it."""
    nodes = sources.scene.nodes if sources.scene is not None else ()
    at: int | None = 0 if nodes else None
    for edge in name.split("/"):
        at = dict(nodes[at].edges).get(edge) if at is not None else None
    return at is not None and nodes[at] == Node()


def _base(label: str) -> str:
    return re.sub(r"_\d+\Z", "", label)


def _begins(variable: TargetVariable, starts: Mapping[str, _Start]) -> bool:
    """Whether a slot, or the state of a loss scale, is made at the first step and not before."""
    optimizer, _, role = variable.name.rpartition("/")
    if variable.slot is not None:
        optimizer, role = variable.slot.optimizer, variable.slot.role
    start = starts.get(optimizer)
    made = variable.slot is not None or role in OF_LOSS_SCALE or (start is not None and start.empty)
    numbered = _NUMBERED.match(variable.name)
    if numbered is not None and variable.name_kind is AliasKind.POSITIONAL:  # Adafactor's, say, which are no slots here
        start, made = starts.get(numbered[1]), True
    return start is not None and start.allows(role) and made


def begun(entry: PlanEntry) -> PlanEntry:
    """The entry of what keeps what it begins with."""
    return msgspec.structs.replace(
        entry,
        status=Status.KEPT,
        problem=Problem.NONE,
        reason="the checkpoint was saved before its optimizer's first step, and this one made none: it is as it begins",
        evidence="no slots in the checkpoint",
    )
