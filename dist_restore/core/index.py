"""The two indexes: what a checkpoint has, and what a live program wants; names, kinds and slots of each tensor.

Knows neither TensorFlow nor files nor live objects, so that whatever is decided from these values can be tested in
milliseconds.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from dist_restore.core.graph import Scene
from dist_restore.core.tensors import TensorSpec


class Group(str, enum.Enum):
    """What a variable is part of; coverage is counted by it."""

    MODEL = "model"
    OPTIMIZER = "optimizer"
    OTHER = "other"


class AliasKind(str, enum.Enum):
    """How much a name says about what a tensor is.

    Attributes:
      SEMANTIC: attribute and layer names that somebody chose.
      FLAT: a semantic name whose separators are lost (`net_block_1_dense_5_kernel`), from a slot's name.
      COUNTED: layer names of which some are automatic counters (`dense_1`): they tell order, not meaning.
      POSITIONAL: an index into a container that nobody named (`_trainable_variables/7`).
    """

    SEMANTIC = "semantic"
    FLAT = "flat"
    COUNTED = "counted"
    POSITIONAL = "positional"


# `gc=False`, as all values of which there is one or more for each variable: the search for cycles passes them over, for
# what is frozen and made of such values has none. 16 bytes less for each, 10 MB of 155 with 50,000 variables.
class Alias(msgspec.Struct, frozen=True, gc=False):
    """One name of a tensor, and how much it says."""

    name: str
    kind: AliasKind


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """Says that a variable is an optimizer's slot: which role it has, and for which variable.

    Attributes:
      role: what the optimizer keeps in it, in the singular: `momentum`, `velocity`, `average`.
      owner: canonical name of the variable that the slot belongs to.
      optimizer: canonical name of the optimizer, such as `optimizer`.
    """

    role: str
    owner: str
    optimizer: str


@dataclasses.dataclass(frozen=True, slots=True)
class OptimizerInfo:
    """An optimizer in a checkpoint or a live program.

    Attributes:
      name: canonical name of the object (`optimizer`, `model/optimizer`).
      family: lower-case class name such as `adam`; empty when nothing gives it away.
      label: the optimizer's own name, as its variables carry it (`adam`, `my_opt`); empty if unknown.
      roles: slot roles that occur, sorted.
      structure: whose it is and which attributes it keeps its state in (`optimizer_classes`); empty if unknown.
      rows: where a file only numbers an optimizer's state: what it says of the order of the layers, as rows of the
        beginnings of keys.
    """

    name: str
    family: str
    label: str
    roles: tuple[str, ...]
    structure: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in its layer, for files that number a layer's variables and do not name them.

    Attributes:
      layer: names of the layer, the canonical one first.
      layer_class: its class in snake case (`batch_normalization`); empty where the file does not say.
    """

    layer: tuple[Alias, ...]
    layer_class: str


class SourceTensor(msgspec.Struct, frozen=True, gc=False):
    """One tensor of a checkpoint, as everybody but its `Source` sees it.

    Attributes:
      name: canonical name.
      spec: shape and dtype as stored.
      aliases: the tensor's other names, without `name`.
      name_kind: how much `name` itself says.
      slot: set when the tensor is an optimizer slot.
      key: the name under which the file stores it.
      tracker_only: the tensor is bookkeeping of the checkpoint itself (`save_counter`).
      place: set when the name is positional, and the file says something of the layer.
      members: names that somebody chose for the layers on the way that are members of a list or dict.
      part: which of several checkpoints has it (`encoder`); all its names then begin with `encoder:`.
    """

    name: str
    spec: TensorSpec
    aliases: tuple[Alias, ...] = ()
    name_kind: AliasKind = AliasKind.SEMANTIC
    slot: Slot | None = None
    key: str = ""
    tracker_only: bool = False
    place: Place | None = None
    members: tuple[str, ...] = ()
    part: str = ""

    @property
    def own_name(self) -> str:
        """The name that it has in its own checkpoint."""
        return self.name[len(self.part) + 1 :] if self.part else self.name


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """One of several checkpoints that are read as one: its name in the mapping, and its index."""

    name: str
    index: CheckpointIndex

    def named(self, name: str) -> str:
        """A name of this checkpoint among those of all."""
        return in_part(self.name, name)


def in_part(part: str, name: str) -> str:
    """How a name of one of several checkpoints is written: `encoder:model/dense/kernel`; as it is for a single one."""
    return f"{part}:{name}" if part else name


@dataclasses.dataclass(frozen=True)
class CheckpointIndex:
    """Everything that a checkpoint says without its tensor data.

    Attributes:
      path: what was opened: a checkpoint prefix or a file.
      format: short name of the format, such as `tf2` or `tf1`.
      tensors: all tensors, sorted by canonical name; names are unique.
      optimizers: the optimizers whose slots are among the tensors.
      ignored: `(name, reason)` of stored things that are no tensors of a variable.
      parts: the checkpoints that this one consists of, sorted by name; none where it is a single one.
      scene: the object graph; None where the file has none.
    """

    path: str
    format: str
    tensors: tuple[SourceTensor, ...]
    optimizers: tuple[OptimizerInfo, ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    parts: tuple[Part, ...] = ()
    scene: Scene | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def paths(self) -> tuple[str, ...]:
        """What was opened: the paths of all parts, or the one path."""
        return tuple(part.index.path for part in self.parts) or (self.path,)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that there are among the parts, each once; or the one format."""
        return tuple(dict.fromkeys(part.index.format for part in self.parts)) or (self.format,)

    @functools.cached_property  # of some 100,000 names, and asked for in several phases
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, dtypes and keys; equal for equal indexes wherever the files lie.

        Of other names than the canonical ones, without their numbers, which Keras counts on in a process: what plans
        say of the members of a list rests on these.
        """
        texts = _SpecTexts()
        rows = [f"{t.name}\0{texts.of(t.spec)}\0{t.key}\0{_slot_text(t.slot)}" for t in self.tensors]
        return _fingerprint(rows, _other_names(self.tensors))

    def without_scene(self) -> CheckpointIndex:
        """The same without the object graph, which only planning looks at: 15 MB for 50,000 variables."""
        parts = tuple([Part(part.name, part.index.without_scene()) for part in self.parts])
        return _with_fingerprint_of(self, dataclasses.replace(self, parts=parts, scene=None))


class TargetVariable(msgspec.Struct, frozen=True, gc=False):
    """One live variable, as everybody but `targets` sees it.

    Attributes:
      name: canonical name.
      spec: shape and dtype of the variable.
      aliases: the variable's other names, without `name`.
      name_kind: how much `name` itself says.
      group: what the variable is part of.
      slot: set when the variable is an optimizer slot.
      keep_reason: not empty when the variable is allowed to keep its value where a checkpoint lacks it, and
        why: state that `tf.train.Checkpoint` never saves (`Dropout`'s seed), or its own bookkeeping.
      note: what a message about this variable should add, such as that plain TF never saves it.
      tracker_only: bookkeeping of the checkpoint itself (`save_counter`).
      layer_class: class of the Keras layer that holds it, in snake case; empty where none does.
      members: names that somebody chose for the layers above it that are members of a list or dict.
    """

    name: str
    spec: TensorSpec
    aliases: tuple[Alias, ...] = ()
    name_kind: AliasKind = AliasKind.SEMANTIC
    group: Group = Group.OTHER
    slot: Slot | None = None
    keep_reason: str = ""
    note: str = ""
    tracker_only: bool = False
    layer_class: str = ""
    members: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Unbuilt:
    """A live layer, module or optimizer of which variables do not exist yet, or may not.

    Attributes:
      name: canonical name, with which those of its variables will begin; empty for the root itself.
      aliases: its other names.
      kind: `layer` (modules and models too) or `optimizer`.
      class_name: of its class.
      makes: whether it is known to make variables of its own once it is built; others only hold what does.
      message: what it is, and what to do.
    """

    name: str
    aliases: tuple[str, ...]
    kind: str
    class_name: str
    makes: bool
    message: str


@dataclasses.dataclass(frozen=True)
class TargetIndex:
    """The live variables, in the order in which they were found; names are unique.

    Attributes:
      variables: all of them.
      optimizers: the optimizers among the objects that hold them.
      unbuilt: what has no variables yet; a checkpoint that has some for it cannot be restored.
      fresh: names of the optimizers that made no step, so that their slots are as they begin.
      scene: the object graph; None where there is none.
    """

    variables: tuple[TargetVariable, ...]
    optimizers: tuple[OptimizerInfo, ...] = ()
    unbuilt: tuple[Unbuilt, ...] = ()
    fresh: tuple[str, ...] = ()
    scene: Scene | None = dataclasses.field(default=None, repr=False, compare=False)

    @functools.cached_property  # of some 100,000 names, and asked for in several phases
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and dtypes; equal on all workers that built the same program.

        Of other names than the canonical ones without their numbers, as for a checkpoint.
        """
        texts, variables = _SpecTexts(), sorted(self.variables, key=lambda v: v.name)
        rows = [f"{v.name}\0{texts.of(v.spec)}\0{_slot_text(v.slot)}" for v in variables]
        return _fingerprint(rows, _other_names(variables))

    def without_scene(self) -> TargetIndex:
        """The same without the object graph, which only planning looks at."""
        return _with_fingerprint_of(self, dataclasses.replace(self, scene=None))


_Index = TypeVar("_Index", CheckpointIndex, TargetIndex)


def _with_fingerprint_of(known: _Index, index: _Index) -> _Index:
    """Hands on what was computed of the same names: some 50 ms for 50,000."""
    if "fingerprint" in vars(known):
        vars(index)["fingerprint"] = known.fingerprint
    return index


def _slot_text(slot: Slot | None) -> str:
    return "" if slot is None else f"{slot.optimizer}|{slot.role}|{slot.owner}"


class _SpecTexts:
    """What fingerprints say of specs, which are few objects where variables are many."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}  # by identity: the index holds the specs meanwhile

    def of(self, spec: TensorSpec) -> str:
        text = self._known.get(id(spec))
        if text is None:
            text = self._known[id(spec)] = "\0".join([spec.dtype, *map(str, spec.shape)])
        return text


def _other_names(items: Iterable[SourceTensor | TargetVariable]) -> str:
    """Aliases and names of list members, without their numbers: `dense` is `dense_1` in the next model."""
    names = ["\0".join([*[a.name for a in i.aliases], *i.members]) if i.aliases or i.members else "" for i in items]
    return re.sub(r"_?[0-9]+", "", "\x01".join(names))


def _fingerprint(rows: Iterable[str], others: str) -> str:
    text = "".join([*(f"{row}\x01" for row in rows), others])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
