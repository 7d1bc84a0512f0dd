"""What is used of TensorFlow's private coordination does what `coordination.py` says. Tried on TF 2.21."""

from __future__ import annotations

import time
from typing import Any

import pytest
import tensorflow as tf

import dist_restore as dr
from cluster import run_cluster
from dist_restore.distribute.messaging.coordination import CoordinationService

TRIED = "2.21"
TASK = "/job:worker/replica:0/task:0"


def use(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    service = CoordinationService([TASK])
    start = time.monotonic()
    absent = service.get("absent", 0.5)
    waited = time.monotonic() - start
    service.set("talk/0/up/0", "first")
    service.set("talk/0/up/0", "second")
    service.set("talk/0/down/0", "{}")
    service.set("empty", "")
    service.set("large", "x" * (20 << 20))
    return {
        "absent": absent,
        "waited": waited,
        "never overwritten": service.get("talk/0/up/0", 5),
        "empty": service.get("empty", 5),
        "large": len(service.get("large", 60) or ""),
        "deleted": [service.delete("talk/0"), service.get("talk/0/up/0", 0.1), service.get("talk/0/down/0", 0.1)],
        "probe": service.probe(0, 5).name,
    }


@pytest.mark.slow
def test_the_service_is_as_it_was_in_the_version_that_was_tried() -> None:
    (outcome,) = run_cluster(use, 1)
    assert outcome.code == 0, outcome.output
    said = outcome.value
    assert 0.5 <= said.pop("waited") < 30
    assert said == {
        "absent": None,
        "never overwritten": "first",
        "empty": "",
        "large": 20 << 20,
        "deleted": [None, None, None],
        "probe": "ALIVE",
    }, f"TensorFlow {tf.__version__} is not what {TRIED} was"


def test_without_a_cluster_there_is_no_service() -> None:
    with pytest.raises(dr.RestoreError, match="was not started"):
        CoordinationService([TASK])
