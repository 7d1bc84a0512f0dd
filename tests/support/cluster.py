"""Real clusters for tests: one process a worker, each of which runs a function of a test module.

    outcomes = run_cluster(program, workers=3, phase="read")   # program(strategy, phase="read") on every worker

A worker that has not ended when so many have as should (it is stopped, or stuck) is killed, and has no code. Nothing
that was started outlives the call.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pathlib
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from places import IMPORTS

# Starting takes TensorFlow 5 s on an idle core; here several do it at once, beside other tests.
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
    from lm.local_cluster import LocalCluster

    with tempfile.TemporaryDirectory() as folder:
        what = [f"{program.__module__}:{program.__name__}", json.dumps(arguments)]
        paths = [pathlib.Path(folder, str(rank)) for rank in range(workers)]
        with LocalCluster(
            lambda rank: [sys.executable, __file__, str(paths[rank]), *what], workers, _environment()
        ) as c:
            outputs = [_Output(process.stdout) for process in c.processes]
            deadline = time.monotonic() + limit
            while c.codes.count(None) > workers - (survivors or workers) and time.monotonic() < deadline:
                time.sleep(0.05)
            codes = c.codes
        return [_outcome(*parts) for parts in zip(codes, paths, outputs, strict=True)]


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(IMPORTS), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "1"}


class _Output:
    """Reads a pipe to its end, so that nobody waits for a full one."""

    def __init__(self, pipe: Any) -> None:
        self._text = b""
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe: Any) -> None:
        self._text = pipe.read()

    def text(self) -> str:
        self._thread.join(10)
        return self._text.decode(errors="replace")


def _outcome(code: int | None, path: pathlib.Path, output: _Output) -> Outcome:
    said = json.loads(path.read_text()) if path.exists() else {}
    return Outcome(code, said.get("value"), said.get("error"), said.get("seconds", 0.0), output.text())


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
