"""Steps of work on several hosts at once, each host's in order; a host that fails or falls silent ends them all.

Knows hosts and callables; knows no tensors.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from dist_restore.core.errors import RestoreError, WorkerError
from dist_restore.core.phases import during
from dist_restore.core.shortening import shorten
from dist_restore.distribute.messaging.liveness import TICK_SECONDS, in_thread, scaled

# For what is on its way on other hosts when one has failed.
_LAST_SECONDS = 30.0
_GIST = 300
# How lines begin that say where in a graph, or in which call of the network, something went wrong.
_NOISE = ("Detected at", "File ", "Graph execution", "<stack", "[[", "(1)", "(2)", "Additional GRPC", ":UNKNOWN")


class Step(NamedTuple):
    """One call to a host.

    Attributes:
      nbytes: read or sent meanwhile.
      run: blocks until the host has answered.
    """

    nbytes: int
    run: Callable[[], None]


def run_on_hosts(work: Mapping[str, Sequence[Step]], phase: str, timeout: float) -> None:
    """Runs each host's steps in a thread of its own, and waits for all.

    Args:
      work: steps by host.
      phase: for messages.
      timeout: seconds that a host may take for a step, besides one for every 10 MB.

    Raises:
      RestoreError: what a step raised.
      WorkerError: a host is gone, or does not answer; its rank is the host's number in the order of their names.
    """
    lanes = [_Lane(number, host, work[host], phase) for number, host in enumerate(sorted(work))]
    with during(phase):
        try:
            while not all(lane.check(timeout) for lane in lanes):
                running = [lane.future for lane in lanes if not lane.future.done()]
                concurrent.futures.wait(running, TICK_SECONDS, concurrent.futures.FIRST_EXCEPTION)
        finally:
            for lane in lanes:
                lane.stopped = True
            concurrent.futures.wait([lane.future for lane in lanes if not lane.late], _LAST_SECONDS)


class _Lane:
    """One host's steps."""

    def __init__(self, number: int, host: str, steps: Sequence[Step], phase: str) -> None:
        self._number, self._host, self._steps, self._phase = number, host, steps, phase
        self._begun, self._nbytes = time.monotonic(), 0
        self.stopped = self.late = False
        self.future = in_thread(self._run)

    def check(self, timeout: float) -> bool:
        """Whether all steps are done; raises what went wrong."""
        if self.future.done():
            self._raise(self.future.exception())
            return True
        seconds = scaled(timeout, self._nbytes)
        if time.monotonic() - self._begun > seconds:
            self.late = True
            raise self._lost(f"it has not answered for {seconds:.0f} s. Its process is stopped, or its network is")
        return False

    def _run(self) -> None:
        for step in self._steps:
            if self.stopped:
                return
            self._nbytes, self._begun = step.nbytes, time.monotonic()
            step.run()

    def _raise(self, error: BaseException | None) -> None:
        if isinstance(error, tf.errors.OpError):
            raise self._lost(gist(error)) from error
        if error is not None:
            raise error

    def _lost(self, why: str) -> RestoreError:
        return WorkerError(
            f"Host {self._host} failed in phase {self._phase!r}: {why}. Start the hosts again, and restore again.",
            rank=self._number,
            phase=self._phase,
        )


def gist(error: tf.errors.OpError) -> str:
    """What an error of TensorFlow says, without its stack of graph nodes."""
    lines = [line.strip() for line in str(error.message).splitlines()]
    kept = [line for line in lines if line and not line.startswith(_NOISE) and "root error" not in line]
    return f"{type(error).__name__}: {shorten(' '.join(kept), _GIST).rstrip('.')}"
