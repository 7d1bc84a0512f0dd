"""Whether a file lies on this machine's own storage, behind its page cache, or comes over a network.

What is local is read twice, once to check every byte before anything changes; what is remote is read once.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable

from dist_restore.checkpoints.files import files

# Everything else (nfs, lustre, ceph, fuse, 9p, cifs, virtiofs ...) may be slow, or served by another machine.
_LOCAL = frozenset("apfs btrfs ext2 ext3 ext4 f2fs hfs jfs overlay ramfs reiserfs rootfs tmpfs xfs zfs".split())
_MOUNTS = pathlib.Path("/proc/self/mountinfo")


def is_local(path: str) -> bool:
    """Whether a checkpoint's files are on a local file system; where nobody can tell, they are taken to be."""
    if files.is_remote(path):
        return False
    kind = file_system(os.path.realpath(path))
    return kind is None or kind in _LOCAL


def are_local(paths: Iterable[str]) -> bool:
    """Whether all of a source's files are: a read of some MB then takes milliseconds."""
    return all(map(is_local, paths))


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
