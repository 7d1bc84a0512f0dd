"""Which file system holds a path, as Linux says. Knows no checkpoints."""

from __future__ import annotations

import pathlib
import re

_MOUNTS = pathlib.Path("/proc/self/mountinfo")


def file_system(path: str) -> str | None:
    """The type of the file system that holds an absolute path, such as `ext4`; None where `/proc` does not say."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    mounts = [mount for line in lines if (mount := _parse(line))]
    # Of mounts over one another the last one counts.
    held = [(len(point), number, kind) for number, (point, kind) in enumerate(mounts) if _holds(point, path)]
    return max(held)[2] if held else None


def _parse(line: str) -> tuple[str, str] | None:
    """Mount point and type out of a line of mountinfo; see proc(5)."""
    before, separator, after = line.partition(" - ")
    fields = before.split()
    if not separator or len(fields) < 5 or not after.split():
        return None
    point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
    return point, after.split()[0]


def _holds(point: str, path: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")
