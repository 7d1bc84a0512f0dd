"""The workers of a SLURM step, as `srun` describes them to each of its tasks in SLURM_* variables.

TensorFlow's SlurmClusterResolver reads these. What is done here on top of it (TensorFlow 2.21):

- It also shares out GPUs, which without any divides by zero. SLURM does that better (`--gpus-per-task`), so a worker
  takes all GPUs that it sees.
- It sorts hosts as text, so that n10 comes before n9, while SLURM counts tasks in the order of its node list:
  workers would look for each other on the wrong hosts.
- Its ports begin at 8888 in every job, and two jobs may share a node.

Private API of TensorFlow: `_resolve_hostlist`, for the order of the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from lm.local_cluster import PORTS

_VARIABLES = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
_PORTS_PER_JOB = 16
_ENOUGH = 1 << 10


def is_step(environment: Mapping[str, str]) -> bool:
    """Whether `srun` started this process; what `sbatch` itself runs is one process, and no step."""
    return all(name in environment for name in _VARIABLES)


def resolver(environment: Mapping[str, str], port: int) -> tf.distribute.cluster_resolver.ClusterResolver:
    """Returns the step's tasks as workers.

    Args:
      environment: the SLURM_* variables; the same that TensorFlow reads from `os.environ`.
      port: of the first worker on each node, the next has the next; 0 derives one from the job's number.

    Raises:
      ValueError: this is no step of SLURM, or its tasks lie in an order that cannot be known.
    """
    if not is_step(environment):
        missing = ", ".join(name for name in _VARIABLES if name not in environment)
        raise ValueError(f"this is no SLURM step ({missing} not set): start the program with srun")
    try:
        # More "GPUs" than any node has tasks, one each: they only bound how many tasks of a node are listed.
        found = tf.distribute.cluster_resolver.SlurmClusterResolver(
            port_base=port or _port_of_job(environment), gpus_per_node=_ENOUGH, gpus_per_task=1, auto_set_gpu=False
        )
        workers = _in_order_of_tasks(found)
    except RuntimeError as error:
        raise ValueError(f"the SLURM_* variables contradict each other: {error}") from error
    _check_own_node(environment, workers)
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": workers}),
        task_type="worker",
        task_id=found.task_id,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )


def _in_order_of_tasks(found: tf.distribute.cluster_resolver.SlurmClusterResolver) -> list[str]:
    sorted_as_text = found.cluster_spec().as_dict()["worker"]
    place = {host: at for at, host in enumerate(found._resolve_hostlist())}
    # The sort is stable: the ports of a host stay in order.
    return sorted(sorted_as_text, key=lambda worker: place[worker.rpartition(":")[0]])


def _check_own_node(environment: Mapping[str, str], workers: Sequence[str]) -> None:
    """Where tasks are dealt out to nodes in turn (`--distribution=cyclic`), addresses do not follow from counts."""
    task = int(environment["SLURM_PROCID"])
    if task >= len(workers):
        raise ValueError(f"this is task {task} of SLURM, and the step's tasks are {', '.join(workers)}")
    node, expected = environment.get("SLURMD_NODENAME"), workers[task]
    if node and node != expected.rpartition(":")[0]:
        raise ValueError(
            f"task {task} runs on node {node}, but is expected at {expected}: start the tasks with srun "
            "--distribution=block"
        )


def _port_of_job(environment: Mapping[str, str]) -> int:
    slots = len(PORTS) // _PORTS_PER_JOB
    return PORTS[_PORTS_PER_JOB * (int(environment.get("SLURM_JOB_ID", "0")) % slots)]
