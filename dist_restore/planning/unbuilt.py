"""What the program has not built, held against a checkpoint: an error only where that has variables for it. Pure.

What belongs to a layer or an optimizer that exists is never left behind in silence; what belongs to none may be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from dist_restore.core.errors import UnbuiltModelError, UnmatchedError
from dist_restore.core.index import (
    AliasKind,
    CheckpointIndex,
    Group,
    SourceTensor,
    TargetIndex,
    Unbuilt,
)
from dist_restore.core.nearest import quote
from dist_restore.planning.beginnings import OF_LOSS_SCALE
from dist_restore.planning.entries import PlanEntry

_MAX_LISTED = 8
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
        unread |= item.class_name == "LossScaleOptimizer" and tensor.name.rpartition("/")[2] in OF_LOSS_SCALE
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
