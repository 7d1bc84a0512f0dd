"""Measures one piece of work in this process: seconds, processor seconds, peak anonymous memory, bytes read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

INTERVAL = 0.002


def touch(size: int) -> None:
    """Touches memory and gives it back, so that the host has found it before anything is measured."""
    import numpy as np

    np.ones(size, np.uint8)


def warm(paths: list[str]) -> None:
    """Brings files into the page cache."""
    buffer = bytearray(8 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def anonymous() -> int:
    """Bytes of anonymous memory that this process has in RAM; pages of files do not count."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))


def read_bytes() -> int:
    """Bytes that this process has asked the kernel to read, the page cache's included (`rchar`)."""
    with open("/proc/self/io") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("rchar"))


class Peak:
    """Samples anonymous memory while the block runs."""

    def __enter__(self) -> Peak:
        self.before = self.peak = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous())

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.peak = max(self.peak, anonymous())


def measure(work: Callable[[], object], prefix: str = "") -> dict[str, float]:
    """Runs the work once."""
    os.sched_yield()
    read, processor, start = read_bytes(), time.process_time(), time.perf_counter()
    with Peak() as peak:
        work()
        seconds = time.perf_counter() - start
    return {
        f"{prefix}seconds": seconds,
        f"{prefix}cpu": time.process_time() - processor,
        f"{prefix}peak_mb": (peak.peak - peak.before) / 1e6,
        f"{prefix}read_mb": (read_bytes() - read) / 1e6,
    }
