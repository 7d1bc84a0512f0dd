"""One side's index read as the other's: a checkpoint as what is to be filled, live variables as what is stored.

Conversion needs the first (the model is another checkpoint), running rules backwards the second.
"""

from __future__ import annotations

import dataclasses

from dist_restore.core.dtypes import OPAQUE
from dist_restore.core.index import CheckpointIndex, Group, SourceTensor, TargetIndex, TargetVariable
from dist_restore.core.tensors import TensorSpec

_COUNTER_REASON = "the checkpoint's own counter; Checkpoint.write() stores none"


def is_value(spec: TensorSpec) -> bool:
    """Whether a name stands for a tensor that can be filled, not for the state of a table or a data iterator."""
    return not spec.is_object and spec.dtype not in OPAQUE


def only_values(targets: TargetIndex) -> TargetIndex:
    """The targets that are tensors."""
    return dataclasses.replace(targets, variables=tuple(v for v in targets.variables if is_value(v.spec)))


def as_targets(index: CheckpointIndex) -> TargetIndex:
    """What a checkpoint of these tensors would have to be filled with; opaque ones cannot be."""
    optimizers = tuple(f"{o.name}/" for o in index.optimizers if o.name)
    tensors = (t for t in index.tensors if is_value(t.spec))
    return TargetIndex(tuple(_target(tensor, optimizers) for tensor in tensors), index.optimizers, scene=index.scene)


def as_sources(targets: TargetIndex) -> CheckpointIndex:
    """What a checkpoint of these variables would say of itself; it has no path."""
    tensors = sorted(map(_source, targets.variables), key=lambda t: t.name)
    return CheckpointIndex("", "live", tuple(tensors), targets.optimizers, scene=targets.scene)


def _target(tensor: SourceTensor, optimizers: tuple[str, ...]) -> TargetVariable:
    return TargetVariable(
        name=tensor.name,
        spec=tensor.spec,
        aliases=tensor.aliases,
        name_kind=tensor.name_kind,
        group=_group(tensor, optimizers),
        slot=tensor.slot,
        keep_reason=_COUNTER_REASON if tensor.tracker_only else "",
        tracker_only=tensor.tracker_only,
        layer_class=tensor.place.layer_class if tensor.place else "",
        members=tensor.members,
    )


def _group(tensor: SourceTensor, optimizers: tuple[str, ...]) -> Group:
    if tensor.slot is not None or tensor.name.startswith(optimizers):
        return Group.OPTIMIZER
    return Group.MODEL if "/" in tensor.name else Group.OTHER


def _source(variable: TargetVariable) -> SourceTensor:
    return SourceTensor(
        name=variable.name,
        spec=variable.spec,
        aliases=variable.aliases,
        name_kind=variable.name_kind,
        slot=variable.slot,
        tracker_only=variable.tracker_only,
        members=variable.members,
    )
