"""Where a run of several workers learns who they are: TF_CONFIG, or SLURM."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping

import tensorflow as tf

from lm import slurm

Resolver = tf.distribute.cluster_resolver.ClusterResolver

_JOBS = ("chief", "worker")


def find(name: str, *, slurm_port: int = 0) -> Resolver:
    """Returns the cluster that this process belongs to.

    Args:
      name: one of `CLUSTERS`.
      slurm_port: see `slurm.resolver`.

    Raises:
      ValueError: there is no such cluster, or this process has no place in it.
    """
    return CLUSTERS[name](slurm_port)


def _auto(slurm_port: int) -> Resolver:
    if os.environ.get("TF_CONFIG"):
        return _tf_config(slurm_port)
    if slurm.is_step(os.environ):
        return slurm.resolver(os.environ, slurm_port)
    # Never "then train alone": workers that know nothing of each other would all save into one directory.
    raise ValueError(
        "--strategy=multiworker, but nothing says who the workers are: there is no TF_CONFIG (Kubernetes operators and "
        "scripts/launch_local.py set it) and this is no SLURM step (start it with srun). "
        "--cluster=alone trains with this one worker"
    )


def _tf_config(slurm_port: int) -> Resolver:
    del slurm_port
    config = _read_tf_config(os.environ)
    task, cluster = config.get("task"), config.get("cluster")
    if not isinstance(task, dict) or not isinstance(cluster, dict):
        raise ValueError(f"TF_CONFIG must have 'cluster' and 'task': {os.environ['TF_CONFIG']}")
    _check_place(task, cluster)
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def _read_tf_config(environment: Mapping[str, str]) -> dict[str, object]:
    text = environment.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG must be set, and be JSON: {text!r}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"TF_CONFIG must be a JSON object: {text!r}")
    return config


def _check_place(task: Mapping[str, object], cluster: Mapping[str, object]) -> None:
    kind, index = task.get("type"), task.get("index")
    if kind == "evaluator":
        raise ValueError("TF_CONFIG makes this process an evaluator; train_lm only trains: leave that job out")
    strange = sorted(set(cluster) - {*_JOBS, "evaluator"})
    if strange or kind not in _JOBS:
        raise ValueError(
            f"TF_CONFIG names the jobs {', '.join(cluster)}, and this process is of {kind!r}; workers that train "
            f"together are in the jobs {' and '.join(_JOBS)}"
        )
    members = cluster.get(str(kind))
    count = len(members) if isinstance(members, list) else 0
    if not str(index).isdecimal() or int(str(index)) >= count:
        raise ValueError(f"TF_CONFIG makes this process {kind} {index}, and names {count} of that job")


def _slurm(slurm_port: int) -> Resolver:
    return slurm.resolver(os.environ, slurm_port)


def _alone(slurm_port: int) -> Resolver:
    del slurm_port
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({}), num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))}
    )


CLUSTERS: dict[str, Callable[[int], Resolver]] = {
    "auto": _auto,
    "tf_config": _tf_config,
    "slurm": _slurm,
    "alone": _alone,
}
