"""Live objects -> a `TargetIndex` and the variables behind its names.

Walks what `tf.train.Checkpoint` walks, and besides what Keras 3 keeps in plain lists and dicts, which
`tf.train.Checkpoint` neither saves nor restores. Knows live objects; knows no checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import keras
import msgspec
import tensorflow as tf

from dist_restore.core.errors import RestoreError, UnbuiltModelError
from dist_restore.core.graph import Leaf, Node, Scene
from dist_restore.core.index import Alias, AliasKind, Group, OptimizerInfo, TargetIndex, TargetVariable, Unbuilt
from dist_restore.core.tensors import TensorSpec
from dist_restore.naming.names import NamedLeaf, name_graph
from dist_restore.targets.facts import LiveLeaf
from dist_restore.targets.objects import spec_of
from dist_restore.targets.walk import LiveGraph, first_strategy, is_default, walk
from dist_restore.tf_internals.sharded import parts_of

Restorable: TypeAlias = "tf.train.Checkpoint | tf.Module | keras.Model | Mapping[str, object]"
# The name of what stands for the variables that an object does not have yet, while everything is named.
_MARK = "variables of what is not built"
_MAX_LISTED = 8
_SEED_REASON = (
    "tf.train.Checkpoint never saves it (a Keras 3 seed generator), so no checkpoint holds it; it keeps its value"
)
_METRIC_REASON = "tf.train.Checkpoint never saves it (a Keras 3 metric), so no checkpoint holds it; it keeps its value"
_COUNTER_REASON = "the checkpoint's own counter; Checkpoint.write() stores none"
_OBJECT_REASON = "the checkpoint has no state of this name for it; it keeps its own"
_LOST_NOTE = (
    "tf.train.Checkpoint never saves this variable by itself: Keras 3 holds it in a plain list or dict. It is "
    "in a checkpoint only through an optimizer that was saved too, or through Checkpoint(blocks=list(model.blocks))."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Targets:
    """The live variables: their index, and the variable behind each name.

    Attributes:
      index: what everybody may know.
      handles: `(canonical name, variable)` in the order of the index; for `assigner` alone.
      objects: likewise, the tables and iterators that are restored by methods of their own.
      strategy: the strategy that the variables were created under.
    """

    index: TargetIndex
    handles: tuple[tuple[str, tf.Variable], ...]
    objects: tuple[tuple[str, object], ...]
    strategy: tf.distribute.Strategy

    def without_scene(self) -> Targets:
        """The same without the object graph, which only planning looks at."""
        return dataclasses.replace(self, index=self.index.without_scene())


def find_targets(root: Restorable, strategy: tf.distribute.Strategy | None = None) -> Targets:
    """Finds and names all variables below a live object. Called by all workers.

    Optimizers that have no slots yet are built, under the strategy's scope, where it is clear which variables they
    train. What is not built otherwise is in the index: whether that matters, only a checkpoint tells.

    Args:
      root: a Checkpoint, model, module, or a mapping of names to such objects or variables.
      strategy: where the variables live; taken from them when None.

    Raises:
      UnbuiltModelError: there is no variable at all, or one of unknown shape.
      RestoreError: the variables live under more than one strategy.
    """
    if isinstance(root, tf.train.CheckpointManager):
        raise RestoreError(
            "The target is a tf.train.CheckpointManager, which holds no variables itself: pass manager.checkpoint as "
            "the target, and the manager as the path."
        )
    graph = walk(root, strategy)
    named = _name(graph)
    leaves, optimizers = named.leaves, named.optimizers
    if not leaves:
        raise _nothing(root, named.unbuilt)
    specs = _Specs()
    variables = tuple([_target(leaf, graph, specs) for leaf in leaves])
    found = [(leaf.name, graph.leaves[leaf.node]) for leaf in leaves]
    handles = tuple([(name, live.variable) for name, live in found if not live.is_stateful])
    objects = tuple([(name, live.variable) for name, live in found if live.is_stateful])
    fresh = tuple(sorted(named.fresh))
    scene = Scene(graph.tracked, {leaf.node: leaf.name for leaf in leaves}, graph.nodes)
    index = TargetIndex(variables, optimizers, named.unbuilt, fresh, scene)
    return Targets(index, handles, objects, strategy or common_strategy(handles))


class _Named(NamedTuple):
    """A live graph with names: its variables, its optimizers, what is unbuilt, and which optimizers made no step."""

    leaves: tuple[NamedLeaf, ...]
    optimizers: tuple[OptimizerInfo, ...]
    unbuilt: tuple[Unbuilt, ...]
    fresh: tuple[str, ...]


def _name(graph: LiveGraph) -> _Named:
    """Names the variables, and by variables put below them the objects that have none, or are asked for their names."""
    marked = [*graph.unbuilt, *(index for index in graph.fresh if index not in graph.unbuilt)]
    nodes, count = list(graph.nodes), len(graph.nodes)
    for index in marked:
        nodes[index] = msgspec.structs.replace(nodes[index], edges=(*nodes[index].edges, (_MARK, len(nodes))))
        nodes.append(Node((), Leaf(f"{_MARK}/{index}", f"{_MARK}/{index}")))
    leaves, optimizers = name_graph(nodes)
    if not marked:
        return _Named(leaves, optimizers, (), ())
    names = {marked[leaf.node - count]: _names_of_mark(leaf) for leaf in leaves if leaf.node >= count}
    unbuilt = tuple([_renamed(item, names[i], bare=graph.bare) for i, item in graph.unbuilt.items() if i in names])
    fresh = tuple([names[i][0] for i in graph.fresh if i in names])
    return _Named(tuple([leaf for leaf in leaves if leaf.node < count]), optimizers, unbuilt, fresh)


def _names_of_mark(leaf: NamedLeaf) -> tuple[str, ...]:
    """Names of what a mark was put below, the canonical one first."""
    names = [leaf.name, *(alias.name for alias in leaf.aliases)]
    ends = (name.removesuffix(_MARK) for name in names if name.endswith(_MARK))
    return tuple(dict.fromkeys(end.rstrip("/") for end in ends)) or ("",)


def _renamed(item: Unbuilt, names: tuple[str, ...], *, bare: bool) -> Unbuilt:
    # A rule written for Checkpoint(model=...) also serves the bare model.
    more = (f"model/{names[0]}" if names[0] else "model",) if bare else ()
    return dataclasses.replace(item, name=names[0], aliases=(*names[1:], *more))


def _nothing(root: object, unbuilt: Sequence[Unbuilt]) -> UnbuiltModelError:
    what = "; ".join(item.message for item in unbuilt[:_MAX_LISTED])
    advice = "Build it first: call the model on a batch (or model.build(shape)) under strategy.scope()."
    return UnbuiltModelError(
        f"{type(root).__name__} holds no variables, so that nothing could be restored into it: {what or advice}",
        names=tuple(item.name for item in unbuilt),
    )


def guess_strategy(root: Restorable, strategy: tf.distribute.Strategy | None) -> tf.distribute.Strategy:
    """Where the variables below an object live, without naming or building any; for who must know before that."""
    return strategy or first_strategy(root) or tf.distribute.get_strategy()


def common_strategy(handles: tuple[tuple[str, tf.Variable], ...]) -> tf.distribute.Strategy:
    """The one strategy under which the variables were created; the default one if under none."""
    components = ((parts_of(variable) or (variable,))[0] for _, variable in handles)
    found = {id(s): s for s in (getattr(v, "distribute_strategy", None) for v in components) if s is not None}
    others = [s for s in found.values() if not is_default(s)]
    if len(others) > 1:
        raise RestoreError(
            f"The variables live under {len(others)} strategies ({', '.join(type(s).__name__ for s in others)}). "
            "Create the model and the optimizer under one strategy.scope()."
        )
    return others[0] if others else tf.distribute.get_strategy()


def _target(leaf: NamedLeaf, graph: LiveGraph, specs: _Specs) -> TargetVariable:
    live = graph.leaves[leaf.node]
    keep_reason = _keep_reason(live)
    # By position: keywords double the time that making it takes.
    return TargetVariable(
        leaf.name,
        spec_of(live.variable) if live.is_stateful else specs.of(leaf.name, live.variable),
        _aliases(leaf, live, bare=graph.bare),
        leaf.kind,
        Group.OPTIMIZER if leaf.slot is not None else live.group,
        leaf.slot,
        keep_reason,
        "" if live.saved or keep_reason else _LOST_NOTE,
        live.is_save_counter,
        live.layer_class,
        live.members,
    )


def _keep_reason(live: LiveLeaf) -> str:
    if live.is_stateful:
        return _OBJECT_REASON
    if live.is_save_counter:
        return _COUNTER_REASON
    if live.setting:
        return live.setting
    if live.saved:
        return ""
    return {"seed": _SEED_REASON, "metric": _METRIC_REASON}.get(live.transient, "")


class _Specs:
    """The specs of variables; equal ones are one object, for most variables share a few."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[int, ...], str], TensorSpec] = {}

    def of(self, name: str, variable: tf.Variable) -> TensorSpec:
        shape, dtype = variable.shape, variable.dtype.name
        try:
            sizes = shape.as_list()
        except ValueError:  # of unknown rank
            sizes = [None]
        if None in sizes:
            raise UnbuiltModelError(
                f"{name}: the variable's shape is {shape}, and a restore needs it fully defined. "
                "Create it with an explicit shape.",
                names=(name,),
            )
        key = tuple(sizes), dtype
        spec = self._known.get(key)
        if spec is None:
            spec = self._known[key] = TensorSpec(*key)
        return spec


def _aliases(leaf: NamedLeaf, live: LiveLeaf, *, bare: bool) -> tuple[Alias, ...]:
    """All names but the canonical one; a Keras path is semantic unless Keras counted it up."""
    extra = _path_aliases(live) if live.keras_path and leaf.slot is None else []
    if bare:
        # A rule written for Checkpoint(model=...) also serves the bare model.
        extra.append(Alias(f"model/{leaf.name}", AliasKind.POSITIONAL))
    if not extra:
        return leaf.aliases
    known = {leaf.name} | {e.name for e in extra}
    rest = (a for a in leaf.aliases if a.name not in known)
    if live.counted_path:  # and so is what its slots are called
        rest = (Alias(a.name, AliasKind.COUNTED) if a.kind is AliasKind.FLAT else a for a in rest)
    return (*(e for e in extra if e.name != leaf.name), *rest)


def _path_aliases(live: LiveLeaf) -> list[Alias]:
    path = Alias(live.keras_path, AliasKind.COUNTED if live.counted_path else AliasKind.SEMANTIC)
    flat_kind = AliasKind.COUNTED if live.counted_path else AliasKind.FLAT
    # The model's own name may be counted (`net_1`) or absent; slots in a checkpoint carry it either way.
    names = dict.fromkeys([live.keras_path, *live.shorter_paths])
    return [path, *(Alias(name.replace("/", "_"), flat_kind) for name in names)]
