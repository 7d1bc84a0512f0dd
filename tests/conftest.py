"""Four logical CPU devices for every test process, set up before TensorFlow starts, and strategies over them."""

from __future__ import annotations

import functools
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import pytest
import tensorflow as tf

from tpu_standin import tpu_strategy

DEVICES = 4
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * DEVICES
)
tf.get_logger().setLevel("ERROR")

STRATEGIES = ("default", "mirrored2", "mirrored4", "tpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files in the order of their own names, whatever their folder.

    Tests of processes mostly wait: among others of which each computes they cost little, and all in a row 10 minutes.
    """
    items.sort(key=lambda item: item.path.name)


@functools.cache
def make_strategy(name: str) -> tf.distribute.Strategy:
    """A strategy by its name in `STRATEGIES`, or `mirrored3`; one of each in a process."""
    if name == "default":
        return tf.distribute.get_strategy()
    if name == "tpu":
        return tpu_strategy(replicas=2)
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(int(name.removeprefix("mirrored")))])


@pytest.fixture(params=STRATEGIES)
def strategy(request: pytest.FixtureRequest) -> tf.distribute.Strategy:
    """Each strategy that one process can drive."""
    return make_strategy(request.param)


@pytest.fixture(params=["default", "mirrored2"])
def trainable(request: pytest.FixtureRequest) -> tf.distribute.Strategy:
    """The strategies of the scenarios: both can also run training steps."""
    return make_strategy(request.param)


@pytest.fixture
def mirrored2() -> tf.distribute.Strategy:
    """Two replicas."""
    return make_strategy("mirrored2")


@pytest.fixture
def mirrored4() -> tf.distribute.Strategy:
    """Four replicas."""
    return make_strategy("mirrored4")


# The same examples in every run: what lands must not depend on luck. To search further, run a test with
# `--hypothesis-profile=default`.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")
