"""What the program has not built, held against a checkpoint: an error only where that has variables for it. Pure.

What belongs to a layer or an optimizer that exists is never left behind in silence; what belongs to none may be.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec

from dist_restore.core.errors import UnbuiltModelError, UnmatchedError
from dist_restore.core.graph import Node
from dist_restore.core.index import (
    AliasKind,
    CheckpointIndex,
    Group,
    OptimizerInfo,
    SourceTensor,
    TargetIndex,
    TargetVariable,
    Unbuilt,
)
from dist_restore.core.nearest import quote
from dist_restore.naming.slot_roles import degree_of, is_known
from dist_restore.planning.entries import PlanEntry, Problem, Status

_MAX_LISTED = 8
# What a LossScaleOptimizer of Keras 3 has besides what every optimizer has.
_LOSS_SCALE = frozenset({"step_counter", "dynamic_scale"})
_BY_NAME = frozenset({AliasKind.SEMANTIC, AliasKind.COUNTED})


def refuse_unbuilt(
    sources: CheckpointIndex, targets: TargetIndex, entries: Collection[PlanEntry], dropped: Collection[str]
) -> None:
    """Raises where a checkpoint has variables for what exists in the program, and which the program cannot take.

    Args:
      sources: the checkpoint's index.
      targets: the program's index.
      entries: what was decided for all of the program's variables.
      dropped: names of tensors that rules dropped.

    Raises:
      UnbuiltModelError: a layer or an optimizer is not built.
      UnmatchedError: an optimizer was built without a variable that it has slots for in the checkpoint.
    """
    used = {name for entry in entries if entry.filled for name in entry.sources}
    left = [t for t in sources.tensors if not (t.name in used or t.name in dropped or t.tracker_only)]
    if not left:
        return
    side = _Side(sources, targets, used, left)
    found = side.of_unbuilt(targets.unbuilt)
    # An optimizer is not built because its model is not: that is what to say.
    layers = [(item, tensors) for item, tensors in found if item.kind != "optimizer"]
    if found:
        raise _unbuilt(layers or found)
    _refuse_parted(side, targets, entries)


def keep_beginnings(sources: CheckpointIndex, targets: TargetIndex, entries: list[PlanEntry]) -> list[PlanEntry]:
    """Lets slots keep what they begin with, where neither the checkpoint's optimizer nor the program's made a step."""
    fresh = {o.name: o for o in targets.optimizers if o.name in targets.fresh}
    if not fresh:
        return entries
    stored = {t.slot.optimizer for t in sources.tensors if t.slot is not None}
    pairs = ((fresh.get(mine), theirs) for mine, theirs in _pairs(entries) if theirs not in stored)
    found = ((mine.name, _Start.find(mine, theirs, sources)) for mine, theirs in pairs if mine is not None)
    starts = {name: start for name, start in found if start is not None}
    empty = (mine for name, mine in fresh.items() if is_known(mine.family) and _is_empty(name, sources))
    starts |= {mine.name: _Start(mine.family, False, True) for mine in empty}
    begin = {v.name for v in targets.variables if starts and _begins(v, starts)}
    return [_kept(e) if e.target in begin and e.problem is Problem.UNMATCHED else e for e in entries]


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
        below = [t for t in sources.tensors if t.name.startswith(f"{name}/")]
        if any(t.name_kind is AliasKind.POSITIONAL for t in below):
            return None  # state of which nobody knows what it is
        theirs = next((o for o in sources.optimizers if o.name == name), None)
        if theirs is not None:
            return _Start(mine.family, True) if _same_class(mine, theirs) and not _trains(name, sources) else None
        # One of tf_keras, which has lists for its slots from the first step on, whatever its class.
        raw = {alias.name for t in below for alias in t.aliases}
        return _Start(mine.family, False) if f"{name}/_iterations" in raw else None

    def allows(self, role: str) -> bool:
        """Whether slots of a role may keep what they begin with."""
        if role == "average":
            return self.seeds
        # What begins as a copy of its variable began as one of what that held before the restore.
        return degree_of(role, self.family) != -1


def _same_class(mine: OptimizerInfo, theirs: OptimizerInfo) -> bool:
    return not theirs.roles and (theirs.family or _base(theirs.label)) in (mine.family, _base(mine.label))


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
    made = variable.slot is not None or role in _LOSS_SCALE or (start is not None and start.empty)
    return start is not None and start.allows(role) and made


def _kept(entry: PlanEntry) -> PlanEntry:
    return msgspec.structs.replace(
        entry,
        status=Status.KEPT,
        problem=Problem.NONE,
        reason="the checkpoint was saved before its optimizer's first step, and this one made none: it is as it begins",
        evidence="no slots in the checkpoint",
    )


class _Side:
    """The checkpoint's tensors that nothing used, and what they belong to."""

    def __init__(
        self, sources: CheckpointIndex, targets: TargetIndex, used: Collection[str], left: Sequence[SourceTensor]
    ) -> None:
        self.left = left
        self._live = [v.name for v in targets.variables]
        self._optimizers = tuple({o.name for o in sources.optimizers} | {o.name for o in targets.optimizers})
        self._optimizers += tuple(item.name for item in targets.unbuilt if item.kind == "optimizer")
        self._taken = {t.slot.optimizer for t in sources.tensors if t.slot is not None and t.name in used}

    def of_unbuilt(self, unbuilt: Sequence[Unbuilt]) -> list[tuple[Unbuilt, list[SourceTensor]]]:
        """What is not built, and the tensors that belong to it, or that may: of what belongs to none of them."""
        named = [(item, self._left_for(item)) for item in unbuilt]
        known = {t.name for _, tensors in named for t in tensors}
        # It may have another name in the checkpoint.
        others = [t for t in self.left if t.spec.shape and t.name not in known and not self._is_state(t)]
        others = [t for t in others if not _is_metric(t)]
        could = ((item, tensors or (others if item.makes and item.kind == "layer" else [])) for item, tensors in named)
        return [(item, tensors) for item, tensors in could if tensors]

    def _left_for(self, item: Unbuilt) -> list[SourceTensor]:
        if item.kind == "optimizer":
            return [t for t in self.left if self._is_state_of(t, item)]
        if not item.makes and self._lives(item):
            return []  # all that is below it is, and what else was there was removed
        below = (t for t in self.left if _is_below(t, item) and not self._is_state(t))
        return [t for t in below if item.makes or not _is_metric(t)]

    def is_taken(self, tensor: SourceTensor) -> bool:
        """Whether it is a slot of an optimizer of which others were used."""
        return tensor.slot is not None and tensor.slot.optimizer in self._taken

    def _is_state_of(self, tensor: SourceTensor, item: Unbuilt) -> bool:
        names = {item.name, *item.aliases}
        if tensor.slot is not None:
            own = _without_part(tensor, tensor.slot.optimizer) in names
            return own or (item.makes and tensor.slot.optimizer not in self._taken)
        unread = tensor.name_kind is AliasKind.POSITIONAL or not self._lives(item)
        # It has what the optimizer inside has before it is built, and these two after.
        unread |= item.class_name == "LossScaleOptimizer" and tensor.name.rpartition("/")[2] in _LOSS_SCALE
        return item.makes and unread and any(_starts(tensor.own_name, name) for name in names)

    def _is_state(self, tensor: SourceTensor) -> bool:
        return tensor.slot is not None or any(_starts(tensor.own_name, name) for name in self._optimizers if name)

    def _lives(self, item: Unbuilt) -> bool:
        """Whether any variable below it exists."""
        return any(_starts(name, item.name) for name in self._live)


def _starts(name: str, prefix: str) -> bool:
    return not prefix or name.startswith(f"{prefix}/")


def _is_below(tensor: SourceTensor, item: Unbuilt) -> bool:
    named = [tensor.own_name, *(_without_part(tensor, a.name) for a in tensor.aliases if a.kind in _BY_NAME)]
    return any(_starts(name, prefix) for name in named for prefix in (item.name, *item.aliases))


def _without_part(tensor: SourceTensor, name: str) -> str:
    return name.removeprefix(f"{tensor.part}:") if tensor.part else name


def _is_metric(tensor: SourceTensor) -> bool:
    return any("metrics" in part for part in tensor.name.split("/"))


def _unbuilt(found: Sequence[tuple[Unbuilt, Sequence[SourceTensor]]]) -> UnbuiltModelError:
    lines = [f"  {_place(item)}{item.message} The checkpoint has {_some(left)}." for item, left in found[:_MAX_LISTED]]
    more = [f"  ... and {len(found) - _MAX_LISTED} more"] if len(found) > _MAX_LISTED else []
    rules = _drop_rules(t for _, left in found for t in left)
    text = "\n".join(
        [
            f"Nothing was changed. The checkpoint has variables that nothing took, and {len(found)} object(s) of the "
            "program are not built:",
            *lines,
            *more,
            f"Where they are left out on purpose, say so in rules: {rules}.",
        ]
    )
    return UnbuiltModelError(text, names=tuple(item.name for item, _ in found))


def _place(item: Unbuilt) -> str:
    return f"{quote([item.name])}: " if item.name else ""


def _some(tensors: Sequence[SourceTensor]) -> str:
    names = quote([t.name for t in tensors[:3]])
    return f"{names} and {len(tensors) - 3} more" if len(tensors) > 3 else names


def _drop_rules(tensors: Iterable[SourceTensor]) -> str:
    patterns = dict.fromkeys(_pattern(t) for t in tensors)
    shown = [f'drop = "{pattern}"' for pattern in list(patterns)[:3]]
    return ", ".join(shown) + (", ..." if len(patterns) > 3 else "")


def _pattern(tensor: SourceTensor) -> str:
    head = tensor.name.removesuffix(tensor.slot.owner) if tensor.slot is not None else ""
    head = head or f"{tensor.name.rpartition('/')[0]}/"
    return f"{head}{{rest}}" if len(head) > 1 else tensor.name


def _refuse_parted(side: _Side, targets: TargetIndex, entries: Iterable[PlanEntry]) -> None:
    """Refuses where a variable that hangs on no layer has slots in the checkpoint, and none in the program."""
    loose = {v.name for v in targets.variables if v.slot is None and v.group is Group.OTHER}
    loose -= {v.slot.owner for v in targets.variables if v.slot is not None}
    owners = {name: e.target for e in entries if e.filled and e.target in loose for name in e.sources}
    if not owners:
        return
    found = [t for t in side.left if t.slot is not None and t.slot.owner in owners and side.is_taken(t)]
    if found:
        names = sorted({owners[t.slot.owner] for t in found if t.slot is not None})
        raise UnmatchedError(
            f"Nothing was changed. The checkpoint has slots of {quote(names)} ({_some(found)}), and the program's "
            "optimizer was built without it. Call optimizer.build(variables) with all variables that it trains, under "
            f"strategy.scope() first; where it is not trained any more: {_drop_rules(found)}.",
            names=tuple(names),
        )
