"""tf_keras's (Keras 2) objects, for the walk over live objects: the only code that knows their insides.

The package does not need tf_keras: where nobody imported it, nobody has an object of it. Tried on tf_keras 2.21.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeGuard

import tensorflow as tf

from dist_restore.naming.slot_roles import role_of_edge
from dist_restore.tf_internals.sharded import parts_of

# Hyperparameters of legacy optimizers that are state all the same: what is scheduled by hand must come back.
_RESTORED = frozenset({"learning_rate"})


class _Legacy(Protocol):
    """An optimizer as it was before 2.11."""

    _hyper: Mapping[str, object]

    def get_slot_names(self) -> list[str]: ...

    def get_slot(self, var: tf.Variable, slot_name: str) -> tf.Variable: ...

    def _create_all_weights(self, var_list: Sequence[tf.Variable]) -> None: ...


class _Listed(Protocol):
    """An optimizer of the new style: a list for each role, in the order of the variables that it trains."""

    _variables: list[tf.Variable]

    def build(self, var_list: Sequence[tf.Variable]) -> None: ...

    def _var_key(self, variable: tf.Variable) -> str: ...


def classes(*names: str) -> tuple[type, ...]:
    """The classes of these names below `tf_keras`; none where it is not imported."""
    found: list[type] = []
    for name in names:
        item: object = sys.modules.get("tf_keras")
        for part in name.split("."):
            item = getattr(item, part, None)
        found += [item] if isinstance(item, type) else []
    return tuple(found)


def is_optimizer(item: object) -> TypeGuard[_Legacy | _Listed]:
    """Whether it is an optimizer of tf_keras, of either style."""
    return _is_listed(item) or is_legacy(item)


def inside(optimizer: object) -> _Legacy | _Listed | None:
    """The optimizer that one wraps, as LossScaleOptimizer and Model Garden's averages do; None for any other."""
    found = vars(optimizer).get("_optimizer")
    return found if is_optimizer(found) else None


def stands_for(optimizer: object) -> object:
    """What an optimizer is in a checkpoint: a LossScaleOptimizer is the one inside, with a loss scale beside."""
    found = inside(optimizer) if _is_kind(type(optimizer), "mixed_precision.LossScaleOptimizer") else None
    return optimizer if found is None else found


def is_optimizer_class(kind: object) -> bool:
    """Whether objects of a class are optimizers of tf_keras."""
    return _is_kind(kind, "optimizers.Optimizer") or _is_kind(kind, "optimizers.legacy.Optimizer")


def is_built(optimizer: _Legacy | _Listed) -> bool:
    """Whether its variables exist; a legacy SGD without momentum has no slots, and a look at one makes the others."""
    core = _core(optimizer)
    return bool(getattr(core, "_hypers_created" if is_legacy(core) else "_built", False))


def may_lack_slots(optimizer: _Legacy | _Listed) -> bool:
    """Whether it is to be built; building a second time changes nothing."""
    core = _core(optimizer)
    return not is_built(core) or (is_legacy(core) and not core.get_slot_names())


def lacks_averages(optimizer: object) -> bool:
    """Whether it is a wrapper that could keep slots of its own, as averages of weights, and has made none."""
    if not is_legacy(optimizer) or stands_for(optimizer) is not optimizer:
        return False
    return inside(optimizer) is not None and not optimizer.get_slot_names()


def iterations(optimizer: object) -> object:
    """The variable that counts its steps; None where none exists yet, for a look must not make one."""
    own = optimizer if is_optimizer(optimizer) else None
    core = None if own is None else _core(own)
    return vars(core).get("_iterations") if core is not None and is_built(core) else None


def build(optimizer: _Legacy | _Listed, variables: Sequence[tf.Variable]) -> None:
    """Makes the slots as the first step would, under the same names. To be called under the strategy's scope."""
    core = _core(optimizer)
    name = str(getattr(core, "name", "") or getattr(core, "_name", ""))
    with tf.init_scope(), tf.name_scope(name) if name else contextlib.nullcontext():
        if is_legacy(core):
            core._create_all_weights(variables)
        elif _is_listed(core):
            core.build(variables)


def _core(optimizer: _Legacy | _Listed) -> _Legacy | _Listed:
    """The innermost of an optimizer and what it wraps: that one makes the slots."""
    found = inside(optimizer)
    return optimizer if found is None else _core(found)


def slots(
    optimizer: _Legacy | _Listed, variables: Iterable[tf.Variable]
) -> Iterator[tuple[str, tf.Variable, tf.Variable]]:
    """(slot's name or role, owner, slot) of all slots whose owner is among the variables."""
    own = stands_for(optimizer)
    if is_legacy(own):
        yield from _legacy_slots(own, variables)
    elif _is_listed(own):
        yield from _listed_slots(own, variables)


def settings(optimizer: _Legacy | _Listed) -> Iterator[tuple[tf.Variable, str]]:
    """Variables that hold what the program says rather than what was learned, and why they may keep their value."""
    own = stands_for(optimizer)
    if is_legacy(own):
        for name, value in own._hyper.items():
            if isinstance(value, tf.Variable) and name not in _RESTORED:
                yield (
                    value,
                    "a hyperparameter that only legacy optimizers of Keras 2 store; it keeps the program's value",
                )
    else:
        current = getattr(own, "_current_learning_rate", None)
        if isinstance(current, tf.Variable):
            yield current, "the schedule's value at this step, made anew at each step"


def is_legacy(optimizer: object) -> TypeGuard[_Legacy]:
    """Whether it is an optimizer as they were before 2.11, which has no `build`."""
    return _is_kind(type(optimizer), "optimizers.legacy.Optimizer")


def _is_listed(optimizer: object) -> TypeGuard[_Listed]:
    return _is_kind(type(optimizer), "optimizers.Optimizer")


def _is_kind(kind: object, name: str) -> bool:
    return _is_below(kind, name)


# Every object of a program is asked. A class that exists before tf_keras is imported is none of its own.
@functools.lru_cache(maxsize=4096)
def _is_below(kind: object, name: str) -> bool:
    return isinstance(kind, type) and issubclass(kind, classes(name))


def _legacy_slots(
    optimizer: _Legacy, variables: Iterable[tf.Variable]
) -> Iterator[tuple[str, tf.Variable, tf.Variable]]:
    names = optimizer.get_slot_names()
    for variable in variables:
        for name in names:
            # As TensorFlow asks when it saves them.
            with contextlib.suppress(AttributeError, KeyError):
                yield name, variable, optimizer.get_slot(variable, name)


def _listed_slots(
    optimizer: _Listed, variables: Iterable[tf.Variable]
) -> Iterator[tuple[str, tf.Variable, tf.Variable]]:
    places: Mapping[str, int] = getattr(optimizer, "_index_dict", {})  # there is none before it is built
    keys = ((optimizer._var_key(part), v) for v in variables for part in parts_of(v) or (v,))
    owners = {places[key]: v for key, v in keys if key in places}
    # Its lists hold the parts of a slot in parts, and `_variables` the whole.
    state = {id(part): v for v in optimizer._variables for part in parts_of(v) or (v,)}
    # By attributes and not as TensorFlow tracks them: that is remembered from the first look, before lists were there.
    for attribute, members in vars(optimizer).items():
        if attribute != "_variables" and isinstance(members, list):
            slots = ((owners[i], state[id(m)]) for i, m in enumerate(members) if id(m) in state and i in owners)
            found = {id(slot): (owner, slot) for owner, slot in slots}
            yield from ((role_of_edge(attribute), owner, slot) for owner, slot in found.values())
