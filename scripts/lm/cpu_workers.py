"""Workers that drive several logical CPU devices each: MultiWorkerMirroredStrategy itself gives a worker one CPU.

The one place of these scripts that uses private API of TensorFlow; tried on 2.21, and
tests/processes/test_train_lm_cluster.py trains with it. With GPUs, or with one replica a worker, nothing here is
needed.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy as implementation
from tensorflow.python.distribute import collective_util


class CpuWorkers(tf.distribute.MultiWorkerMirroredStrategy):
    """MultiWorkerMirroredStrategy over the same number of logical CPU devices on every worker.

    Args:
      resolver: which cluster.
      replicas: logical CPU devices of this worker; they exist already.
    """

    def __init__(self, resolver: tf.distribute.cluster_resolver.ClusterResolver, replicas: int) -> None:
        tf.distribute.Strategy.__init__(self, _extended(self, resolver, replicas))


def _extended(
    strategy: CpuWorkers, resolver: tf.distribute.cluster_resolver.ClusterResolver, replicas: int
) -> implementation.CollectiveAllReduceExtended:
    class Extended(implementation.CollectiveAllReduceExtended):
        def _initialize_local_devices(
            self, cluster_resolver: object, worker_device: str
        ) -> tuple[tuple[str, ...], str]:
            del cluster_resolver
            return tuple(f"{worker_device}/device:CPU:{i}" for i in range(replicas)), "CPU"

    return Extended(strategy, cluster_resolver=resolver, communication_options=collective_util.Options())
