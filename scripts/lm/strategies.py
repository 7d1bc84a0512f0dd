"""The strategies that `--strategy` names. A new one (multi-worker, say) is one more function in `STRATEGIES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Devices:
    """What the flags say about devices.

    Attributes:
      replicas: how many replicas `mirrored` makes; 0 for all GPUs, or two where there are none.
      tpu: name or address of the TPU; empty for the one that belongs to this machine.
    """

    replicas: int = 0
    tpu: str = ""


def _default(devices: Devices) -> tf.distribute.Strategy:
    return tf.distribute.get_strategy()


def _mirrored(devices: Devices) -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if not gpus:
        return tf.distribute.MirroredStrategy(_logical_cpus(devices.replicas or 2))
    if devices.replicas > len(gpus):
        raise ValueError(f"--replicas={devices.replicas}, but there are {len(gpus)} GPUs")
    return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus[: devices.replicas or len(gpus)]])


def _tpu(devices: Devices) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(devices.tpu)
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver)


def _logical_cpus(count: int) -> list[str]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return [f"CPU:{i}" for i in range(count)]


STRATEGIES: dict[str, Callable[[Devices], tf.distribute.Strategy]] = {
    "default": _default,
    "mirrored": _mirrored,
    "tpu": _tpu,
}
