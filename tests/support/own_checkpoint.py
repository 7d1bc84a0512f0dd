"""One property: a program reads the checkpoint that the same program wrote.

Three copies of a network are built one after the other, so that automatic names have other counters in each. The first
is saved, plain TensorFlow or Keras restores the second, dist_restore the third. Nothing here walks objects the way
`dist_restore` does: variables are compared by their position in the library's own lists and in TensorFlow's walk.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import tensorflow as tf

import dist_restore as dr
from dist_restore.tf_internals.keras_variables import KerasVariable
from live import raw, scramble, value

# All networks in all modes, which takes far longer than a change should have to wait.
EVERYTHING = os.environ.get("DIST_RESTORE_LIBRARIES") == "all"


def nothing() -> None:
    """What a program does that has no state to create later."""


def in_a_checkpoint(program: Program, directory: pathlib.Path) -> str:
    """Saves as TensorFlow does."""
    return program.root.save(os.fspath(directory / "ckpt"))


def by_tensorflow(program: Program, path: str) -> None:
    """Restores as TensorFlow does; what does not exist yet is filled when it is created."""
    program.root.restore(path)


@dataclass(frozen=True)
class Program:
    """What a user has: an object to checkpoint, and its variables in the library's own order.

    `finish` creates what the first step of training would (slots); `listed` may only be complete after it.
    """

    root: tf.train.Checkpoint
    listed: Callable[[], Sequence[object]]
    finish: Callable[[], None] = nothing
    model: object = None

    def variables(self) -> list[object]:
        """Those of the library's lists, then what else TensorFlow's walk reaches (metrics, counters, wrappers)."""
        return list({id(raw(v)): v for v in (*self.listed(), *reachable(self.root))}.values())


def reachable(root: tf.train.Checkpoint) -> Iterator[object]:
    """Every variable of the object graph; a checkpoint's counter exists once it was asked for."""
    assert root.save_counter is not None
    for item in tf.train.TrackableView(root).descendants():
        if isinstance(item, (tf.Variable, KerasVariable)):
            yield item


# What the refusal says of variables that Keras 3 holds in a plain list.
_NEVER_SAVED = "tf.train.Checkpoint never saves this variable by itself"


@dataclass(frozen=True)
class Mode:
    """A way to make a program of a network; `built` says that its live slots exist before the restore."""

    name: str
    start: Callable[[object], Program]
    built: bool = False
    save: Callable[[Program, pathlib.Path], str] = in_a_checkpoint
    natively: Callable[[Program, str], None] = by_tensorflow


def assert_reads_its_own(networks: Sequence[object], mode: Mode) -> None:
    """What plain TensorFlow fills is filled, exactly; every other variable keeps its value or gets its own."""
    try:
        old, plain, new = (mode.start(network) for network in networks)
    except ValueError as error:
        pytest.skip(f"the library cannot build it so: {str(error)[:100]}")
    old.finish()
    scramble(old.variables(), seed=0)
    with tempfile.TemporaryDirectory() as directory:
        path = mode.save(old, pathlib.Path(directory))
        expected = [value(v) for v in old.variables()]
        reached = natively_reached(plain, mode, path, expected)
        before = live_values(new, mode, seed=2)
        try:
            dr.DistributedRestorer(new.root).restore(path)
        except dr.UnmatchedError as error:
            if _NEVER_SAVED in str(error) and not all(reached):
                pytest.skip("TensorFlow saves and restores a part of it only, which is refused by name")
            raise
    new.finish()
    assert any(reached), "plain TensorFlow restores nothing of this"
    assert not (bad := differences(new.variables(), expected, reached, before)), summary(bad, len(expected))


def natively_reached(program: Program, mode: Mode, path: str, expected: Sequence[np.ndarray]) -> list[bool]:
    """For each variable: does TensorFlow's or Keras' own restore give it what was saved."""
    live_values(program, mode, seed=1)
    mode.natively(program, path)
    program.finish()
    return [same(v, array) for v, array in zip(program.variables(), expected, strict=True)]


def live_values(program: Program, mode: Mode, seed: int) -> dict[int, np.ndarray]:
    """Values that no other copy has, by the identity of the variable."""
    if mode.built:
        program.finish()
    scramble(program.variables(), seed=seed)
    return {id(raw(v)): value(v) for v in program.variables()}


def differences(
    variables: Sequence[object],
    expected: Sequence[np.ndarray],
    reached: Sequence[bool],
    before: dict[int, np.ndarray],
) -> list[str]:
    """Variables that do not hold what was saved, nor (where TensorFlow restores nothing either) their own value."""
    bad = []
    for index, (variable, array, native) in enumerate(zip(variables, expected, reached, strict=True)):
        kept = before.get(id(raw(variable)))
        if same(variable, array) or (not native and (kept is None or same(variable, kept))):
            continue
        bad.append(f"{index}: {getattr(variable, 'path', variable.name)} {variable.shape}")
    return bad


def summary(bad: Sequence[str], count: int) -> str:
    """The first few names, and how many there are."""
    return f"WRONG: {len(bad)} of {count} variables do not hold what was saved: " + "; ".join(bad[:5])


def same(variable: object, array: np.ndarray) -> bool:
    """Equal bit by bit."""
    found = value(variable)
    return found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()
