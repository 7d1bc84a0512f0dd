r"""Starts a cluster on this machine: each worker runs the given command, and knows of the others by TF_CONFIG.

    python scripts/launch_local.py --workers=2 -- python scripts/train_lm.py --strategy=multiworker --steps=40

Every line that a worker prints comes out with its rank in front. When one fails, the others have --grace seconds to end
by themselves and say why; then they are ended. The exit code is that of the worker that failed first (128 more than
the number, for a signal), or 0. Ctrl-C is passed on to all, and ends what has not ended --grace seconds later; a
second one ends all at once.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from absl import app, flags

from lm.local_cluster import LocalCluster

_WORKERS = flags.DEFINE_integer("workers", 2, "How many workers the cluster has.", lower_bound=1, upper_bound=64)
_GRACE = flags.DEFINE_float(
    "grace",
    10.0,
    "Seconds that workers have to end by themselves, after one of them failed or Ctrl-C was pressed.",
    lower_bound=0.0,
)

_STDERR_DIR = flags.DEFINE_string(
    "stderr_dir",
    None,
    "Directory for what workers write to stderr, where TensorFlow says much: worker0.stderr and so on. Not given: it "
    "comes out with the rest.",
)

# For whoever reads our output slowly: with 1 s, last lines were lost on a busy machine. It is not for ever because
# something that left a worker's process group may still hold its pipe.
DRAIN_SECONDS = 60.0
_OUTPUT = threading.Lock()


def main(argv: Sequence[str]) -> int:
    command = list(argv[1:])
    if not command:
        raise app.UsageError("a command is missing: launch_local.py --workers=2 -- python train.py --its_flags")
    # Else what a worker says last is lost with it.
    environment = {"PYTHONUNBUFFERED": "1"}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with LocalCluster(command, _WORKERS.value, environment, _STDERR_DIR.value) as cluster:
            pumps = [_start_pump(rank, process.stdout) for rank, process in enumerate(cluster.processes)]
            code = _supervise(cluster)
        _drain(pumps)
        return code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        sys.exit(f"launch_local: cannot start {command[0]!r}: {error}")


def _supervise(cluster: LocalCluster) -> int:
    """Waits for the workers; what is left of them when this returns is to be killed."""
    try:
        cluster.wait(any_failure=True)
        failed = [(rank, code) for rank, code in enumerate(cluster.codes) if code]
        if not failed:
            return 0
        rank, code = failed[0]
        _say(f"worker {rank} failed with {f'code {code}' if code > 0 else signal.Signals(-code).name}")
        _give_time(cluster)
        return code if code > 0 else 128 - code
    except KeyboardInterrupt:
        cluster.signal(signal.SIGINT)
        _give_time(cluster)
        return 130


def _give_time(cluster: LocalCluster) -> None:
    if not cluster.wait(_GRACE.value):
        left = ", ".join(str(rank) for rank, code in enumerate(cluster.codes) if code is None)
        _say(f"ending what did not end by itself in {_GRACE.value:g} s: {left}")


def _drain(pumps: Sequence[threading.Thread]) -> None:
    """Lets all that workers printed come out."""
    limit = time.monotonic() + DRAIN_SECONDS
    for pump in pumps:
        pump.join(max(0.0, limit - time.monotonic()))


def _say(text: str) -> None:
    print(f"launch_local: {text}", file=sys.stderr, flush=True)


def _start_pump(rank: int, pipe: IO[bytes] | None) -> threading.Thread:
    thread = threading.Thread(target=_pump, args=(f"[{rank}] ".encode(), pipe), daemon=True)
    thread.start()
    return thread


def _pump(prefix: bytes, pipe: IO[bytes]) -> None:
    """Passes on whole lines."""
    for line in pipe:
        # A full buffer is written in parts, and lets other threads in between: on a busy machine lines did mix.
        with _OUTPUT:
            sys.stdout.buffer.write(prefix + line.rstrip(b"\r\n") + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    app.run(main)
