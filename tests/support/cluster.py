"""Real clusters for tests: one process a worker, each of which runs a function of a test module.

    outcomes = run_cluster(program, workers=3, phase="read")   # program(strategy, phase="read") on every worker

A worker that has not ended when so many have as should (it is stopped, or stuck) is killed, and has no code. Nothing
that was started outlives the call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

from places import IMPORTS
from warm import Warm

LIMIT_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one worker ended.

    Attributes:
      code: exit code, negative for a signal; None when it had to be killed.
      value: what the program returned.
      error: class, message, rank and phase of what it raised.
      seconds: when it said so, on a clock that all share.
      output: all that it printed.
    """

    code: int | None
    value: Any
    error: dict[str, Any] | None
    seconds: float
    output: str


def run_cluster(
    program: Callable[..., Any],
    workers: int,
    *,
    survivors: int | None = None,
    limit: float = LIMIT_SECONDS,
    **arguments: object,
) -> list[Outcome]:
    """Runs `program(strategy, **arguments)` on every worker of a new cluster.

    Args:
      program: a function at the top of a module; what it returns is made JSON.
      workers: how many.
      survivors: how many must end by themselves; all by default.
      limit: seconds for all.
      arguments: what the program gets besides the strategy; made JSON.
    """
    from lm.local_cluster import free_ports

    addresses = [f"localhost:{port}" for port in free_ports(workers)]
    what = [f"{program.__module__}:{program.__name__}", json.dumps(arguments)]
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = pathlib.Path(name)
        started = [_start(folder, rank, addresses, what) for rank in range(workers)]
        for process in started:
            stack.callback(process.kill)
        deadline = time.monotonic() + limit
        while _running(started) > workers - (survivors or workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        codes = [process.code for process in started]
        for process in started:
            process.kill()
        return [_outcome(code, folder / str(rank), started[rank].text) for rank, code in enumerate(codes)]


def _start(folder: pathlib.Path, rank: int, addresses: list[str], what: list[str]) -> Warm:
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
    environment = {"TF_CONFIG": json.dumps(task), "PYTHONPATH": os.pathsep.join(IMPORTS), "CUDA_VISIBLE_DEVICES": "-1"}
    return Warm(
        [__file__, os.fspath(folder / str(rank)), *what], output=folder / f"{rank}.output", environment=environment
    )


def _running(started: list[Warm]) -> int:
    return sum(process.code is None for process in started)


def _outcome(code: int | None, path: pathlib.Path, output: str) -> Outcome:
    said = json.loads(path.read_text()) if path.exists() else {}
    return Outcome(code, said.get("value"), said.get("error"), said.get("seconds", 0.0), output)


def _main(path: str, name: str, arguments: str) -> int:
    """What a worker does."""
    import tensorflow as tf

    module, function = name.split(":")
    program = getattr(importlib.import_module(module), function)
    try:
        said = {"value": program(tf.distribute.MultiWorkerMirroredStrategy(), **json.loads(arguments))}
    except BaseException as error:
        traceback.print_exc()
        said = {"error": describe(error)}
    said["seconds"] = time.monotonic()
    pathlib.Path(path).write_text(json.dumps(said))
    return int("error" in said)


def describe(error: BaseException) -> dict[str, Any]:
    """An exception as JSON."""
    return {
        "kind": type(error).__name__,
        "text": str(error),
        "rank": getattr(error, "rank", None),
        "phase": getattr(error, "phase", None),
        "cause": type(error.__cause__).__name__,
    }


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
