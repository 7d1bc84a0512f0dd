"""What a process holds."""

from __future__ import annotations

import pathlib


def anonymous() -> int:
    """Bytes of anonymous memory that this process has in RAM."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
