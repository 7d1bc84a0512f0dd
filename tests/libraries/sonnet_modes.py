"""What people do with a Sonnet module: its weights, and with the library's optimizers."""

from __future__ import annotations

from collections.abc import Callable

import sonnet as snt
import tensorflow as tf

from own_checkpoint import Mode, Program

OPTIMIZERS: dict[str, Callable[[], snt.Module]] = {
    "adam": lambda: snt.optimizers.Adam(0.01),
    "momentum": lambda: snt.optimizers.Momentum(0.01, 0.9),
    "rmsprop": lambda: snt.optimizers.RMSProp(0.01, momentum=0.9, centered=True),
}


def weights(module: snt.Module) -> Program:
    return Program(tf.train.Checkpoint(model=module), lambda: module.variables)


def given(module: snt.Module, make: Callable[[], snt.Module]) -> Program:
    optimizer = make()
    optimizer._initialize(module.trainable_variables)  # what `apply` does first
    root = tf.train.Checkpoint(model=module, optimizer=optimizer)
    return Program(root, lambda: [*module.variables, *optimizer.variables])


ALL = (
    Mode("weights", weights),
    *(Mode(name, lambda module, make=make: given(module, make)) for name, make in OPTIMIZERS.items()),
)
