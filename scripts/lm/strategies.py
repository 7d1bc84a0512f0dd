"""The strategies that `--strategy` names. A new one is one more function in `STRATEGIES`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import tensorflow as tf

from lm import clusters


@dataclasses.dataclass(frozen=True)
class Devices:
    """What the flags say about devices.

    Attributes:
      replicas: how many replicas `mirrored` makes; 0 for all GPUs, or two where there are none. How many each worker
        of `multiworker` makes; 0 for all GPUs, or one where there are none.
      cluster: one of `clusters.CLUSTERS`, for `multiworker`.
      slurm_port: see `slurm.resolver`.
      tpu: name or address of the TPU; `local` for the one of this machine; empty for what the machine says itself.
      tpu_zone: zone of a TPU that is given by its name; empty for this machine's own.
      tpu_project: its project; empty for this machine's own.
    """

    replicas: int = 0
    cluster: str = "auto"
    slurm_port: int = 0
    tpu: str = ""
    tpu_zone: str = ""
    tpu_project: str = ""


def _default(devices: Devices) -> tf.distribute.Strategy:
    return tf.distribute.get_strategy()


def _mirrored(devices: Devices) -> tf.distribute.Strategy:
    gpus = tf.config.list_logical_devices("GPU") if tf.config.list_physical_devices("GPU") else []
    if not gpus:
        return tf.distribute.MirroredStrategy(_logical_cpus(devices.replicas or 2))
    if devices.replicas > len(gpus):
        raise ValueError(f"--replicas={devices.replicas}, but there are {len(gpus)} GPUs")
    return tf.distribute.MirroredStrategy([gpu.name for gpu in gpus[: devices.replicas or len(gpus)]])


def _multiworker(devices: Devices) -> tf.distribute.Strategy:
    resolver = clusters.find(devices.cluster, slurm_port=devices.slurm_port)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and devices.replicas not in (0, len(gpus)):
        raise ValueError(
            f"--replicas={devices.replicas}, but this worker sees {len(gpus)} GPUs, and drives all that it sees: "
            "CUDA_VISIBLE_DEVICES chooses among them"
        )
    if gpus or devices.replicas <= 1:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    # Here and not above, for it imports what TensorFlow does not promise.
    from lm.cpu_workers import CpuWorkers

    return CpuWorkers(resolver, len(_logical_cpus(devices.replicas)))


def _tpu(devices: Devices) -> tf.distribute.Strategy:
    try:
        return tf.distribute.TPUStrategy(_connect(devices))
    except (RuntimeError, OSError, tf.errors.OpError) as error:
        name = devices.tpu or os.environ.get("TPU_NAME", "")
        raise ValueError(f"no TPU answers for --tpu={name}: {str(error).splitlines()[0]}") from error


def _connect(devices: Devices) -> tf.distribute.cluster_resolver.TPUClusterResolver:
    """`local`, names of TPUs and of pod slices, and addresses are all the resolver's own business."""
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
        devices.tpu, devices.tpu_zone or None, devices.tpu_project or None
    )
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return resolver


def _logical_cpus(count: int) -> list[str]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return [f"CPU:{i}" for i in range(count)]


STRATEGIES: dict[str, Callable[[Devices], tf.distribute.Strategy]] = {
    "default": _default,
    "mirrored": _mirrored,
    "multiworker": _multiworker,
    "tpu": _tpu,
}
