"""The last pass: replicas that hold something else than what was assigned are found and named, large ones too."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from dist_restore.core.errors import VerificationError
from dist_restore.engine.chunks import PIECE
from dist_restore.engine.verify_pass import verify_replicas
from dist_restore.targets.assigner import Assigned, Assigner, checksum

SIZES = {
    "one task": 1000,
    "exactly a piece": PIECE // 4,
    "a piece and an element": PIECE // 4 + 1,
    "pieces": 3 * PIECE // 4 - 7,
}


def held(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.fixture(params=["default", "mirrored2"])
def strategy(request: pytest.FixtureRequest) -> tf.distribute.Strategy:
    if request.param == "default":
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([d.name for d in tf.config.list_logical_devices("CPU")[:2]])


def components(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    return tuple(getattr(variable, "values", (variable,)))


def assigned(strategy: tf.distribute.Strategy) -> tuple[list[Assigned], dict[str, tf.Variable]]:
    values = {name: held(size, size) for name, size in SIZES.items()}
    with strategy.scope():
        handles = {name: tf.Variable(value) for name, value in values.items()}
    return [
        Assigned(name, (checksum(value),) * len(components(handles[name])), value.nbytes)
        for name, value in values.items()
    ], handles


def test_what_holds_the_assigned_values_passes(strategy: tf.distribute.Strategy) -> None:
    items, handles = assigned(strategy)
    verify_replicas(items, handles, Assigner(strategy))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("place", [0, -1])
def test_one_wrong_element_of_one_replica_is_found(strategy: tf.distribute.Strategy, name: str, place: int) -> None:
    items, handles = assigned(strategy)
    last = components(handles[name])[-1]
    wrong = last.numpy()
    wrong[place] += 1
    last.assign(wrong)
    number = len(components(handles[name])) - 1
    with pytest.raises(VerificationError) as error:
        verify_replicas(items, handles, Assigner(strategy))
    assert error.value.names == (f"{name!r} on replica(s) [{number}]",)
