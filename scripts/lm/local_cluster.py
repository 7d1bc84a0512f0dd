"""Several workers of one cluster as processes of this machine: started together, and ended together."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import IO

# Below Linux' range for outgoing connections (32768 and up): none of those takes a port before its server does.
PORTS = range(20000, 32000)
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    free: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(free) == count:
            break
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            free.append(port)
    return free


class LocalCluster:
    """Workers that know of each other by TF_CONFIG, each with a process group of its own.

    Args:
      command: what every worker runs; or what one of them runs, by its rank.
      workers: how many.
      environment: what they get besides this process' environment.
      stderr_dir: directory for what they write to stderr, in `worker0.stderr` and so on; by default it comes with what
        they print.

    Attributes:
      processes: by rank; what they print is a pipe of bytes.
    """

    def __init__(
        self,
        command: Sequence[str] | Callable[[int], Sequence[str]],
        workers: int,
        environment: dict[str, str] | None = None,
        stderr_dir: str | None = None,
    ) -> None:
        self._command, self._environment = command, {**os.environ, **(environment or {})}
        self._stderr_dir = stderr_dir
        self._addresses = [f"localhost:{port}" for port in free_ports(workers)]
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> LocalCluster:
        try:
            for rank in range(len(self._addresses)):
                self.processes.append(self._start(rank))
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def codes(self) -> list[int | None]:
        """How each worker ended: its exit code, or minus a signal's number; None while it runs."""
        return [_code(process) for process in self.processes]

    def wait(self, seconds: float | None = None, *, any_failure: bool = False) -> bool:
        """Waits until all workers have ended, or with `any_failure` one has failed; False if that takes longer."""
        limit = math.inf if seconds is None else time.monotonic() + seconds
        while None in (codes := self.codes) and not (any_failure and any(codes)):
            if time.monotonic() >= limit:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def signal(self, number: int) -> None:
        """Sends a signal to workers, and to all that they started."""
        for process in self.processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def kill(self) -> None:
        """Leaves no process behind."""
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        task = {"cluster": {"worker": self._addresses}, "task": {"type": "worker", "index": rank}}
        with self._stderr(rank) as stderr:
            return subprocess.Popen(
                self._command(rank) if callable(self._command) else self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**self._environment, "TF_CONFIG": json.dumps(task)},
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    def _stderr(self, rank: int) -> contextlib.AbstractContextManager[IO[bytes] | int]:
        if not self._stderr_dir:
            return contextlib.nullcontext(subprocess.STDOUT)
        os.makedirs(self._stderr_dir, exist_ok=True)
        return open(os.path.join(self._stderr_dir, f"worker{rank}.stderr"), "wb")


def _die_with_parent() -> None:
    """So that a launcher that is killed with -9 leaves no workers behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _code(process: subprocess.Popen[bytes]) -> int | None:
    """As `Popen.poll`, but leaves a zombie, so that nobody gets its number before its group was killed."""
    if process.returncode is not None:
        return process.returncode
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
