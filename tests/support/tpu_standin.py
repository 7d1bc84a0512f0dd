"""TPUStrategy's own classes without a TPU: its device table is pointed at logical CPU devices.

Tried with TensorFlow 2.21. Creating, assigning, reading and saving variables is TPUStrategy's own code; only
`strategy.run`, which compiles for the hardware, cannot work here.
"""

from __future__ import annotations

import types
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import tpu_strategy as implementation


class _Resolver:
    """Stands in for TPUClusterResolver: one host with some cores."""

    def __init__(self, cores: int) -> None:
        self._cores = cores

    def get_tpu_system_metadata(self) -> types.SimpleNamespace:
        names = [f"/job:localhost/replica:0/task:0/device:TPU:{i}" for i in range(self._cores)]
        devices = [types.SimpleNamespace(name=name) for name in names]
        return types.SimpleNamespace(
            num_cores=self._cores, num_hosts=1, num_of_cores_per_host=self._cores, devices=devices
        )


class _TpuStrategy(tf.distribute.TPUStrategy):
    def __init__(self, replicas: int, policies: bool, devices: Sequence[str] | None) -> None:
        extended = implementation.TPUExtended(self, _Resolver(replicas), use_spmd_for_xla_partitioning=not policies)
        names = devices or [cpu.name for cpu in tf.config.list_logical_devices("CPU")[:replicas]]
        extended._tpu_devices = np.array([[name] for name in names], dtype=object)
        tf.distribute.Strategy.__init__(self, extended)
        self._enable_packed_variable_in_eager_mode = True  # as TPUStrategy does


def tpu_strategy(
    replicas: int = 2, *, policies: bool = True, devices: Sequence[str] | None = None
) -> tf.distribute.TPUStrategy:
    """A TPUStrategy over logical CPU devices.

    Args:
      replicas: how many.
      policies: `True` makes TPUDistributedVariables, as TPUStrategy does by default; `False` TPUMirroredVariables and
        TPUSyncOnReadVariables, as it does with `experimental_spmd_xla_partitioning`.
      devices: full names, to stand for the cores of several hosts; the first logical CPU devices by default.
    """
    return _TpuStrategy(len(devices or ()) or replicas, policies, devices)
