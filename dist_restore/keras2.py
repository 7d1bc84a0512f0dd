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

from dist_restore.sharded import parts_of
from dist_restore.slot_roles import role_of_edge

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
    return _is_listed(item) or _is_legacy(item)


def is_built(optimizer: _Legacy | _Listed) -> bool:
    """Whether its variables exist; a legacy SGD without momentum has no slots, and a look at one makes the others."""
    return bool(getattr(optimizer, "_hypers_created" if _is_legacy(optimizer) else "_built", False))


def may_lack_slots(optimizer: _Legacy | _Listed) -> bool:
    """Whether it is to be built; building a second time changes nothing."""
    return not is_built(optimizer) or (_is_legacy(optimizer) and not optimizer.get_slot_names())


def build(optimizer: _Legacy | _Listed, variables: Sequence[tf.Variable]) -> None:
    """Makes the slots as the first step would, under the same names. To be called under the strategy's scope."""
    name = str(getattr(optimizer, "name", "") or getattr(optimizer, "_name", ""))
    with tf.init_scope(), tf.name_scope(name) if name else contextlib.nullcontext():
        if _is_legacy(optimizer):
            optimizer._create_all_weights(variables)
        elif _is_listed(optimizer):
            optimizer.build(variables)


def slots(
    optimizer: _Legacy | _Listed, variables: Iterable[tf.Variable]
) -> Iterator[tuple[str, tf.Variable, tf.Variable]]:
    """(slot's name or role, owner, slot) of all slots whose owner is among the variables."""
    if _is_legacy(optimizer):
        yield from _legacy_slots(optimizer, variables)
    elif _is_listed(optimizer):
        yield from _listed_slots(optimizer, variables)


def settings(optimizer: _Legacy | _Listed) -> Iterator[tuple[tf.Variable, str]]:
    """Variables that hold what the program says rather than what was learned, and why they may keep their value."""
    if _is_legacy(optimizer):
        for name, value in optimizer._hyper.items():
            if isinstance(value, tf.Variable) and name not in _RESTORED:
                yield (
                    value,
                    "a hyperparameter that only legacy optimizers of Keras 2 store; it keeps the program's value",
                )
    else:
        current = getattr(optimizer, "_current_learning_rate", None)
        if isinstance(current, tf.Variable):
            yield current, "the schedule's value at this step, made anew at each step"


def _is_legacy(optimizer: object) -> TypeGuard[_Legacy]:
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
