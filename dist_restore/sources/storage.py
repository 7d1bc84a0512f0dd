"""Whether a file lies on this machine's own storage, behind its page cache, or comes over a network.

What is local is read twice, once to check every byte before anything changes; what is remote is read once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from dist_restore.sources import files, mounts

# Everything else (nfs, lustre, ceph, fuse, 9p, cifs, virtiofs ...) may be slow, or served by another machine.
_LOCAL = frozenset("apfs btrfs ext2 ext3 ext4 f2fs hfs jfs overlay ramfs reiserfs rootfs tmpfs xfs zfs".split())


def is_local(path: str) -> bool:
    """Whether a checkpoint's files are on a local file system; where nobody can tell, they are taken to be."""
    if files.is_remote(path):
        return False
    kind = mounts.file_system(os.path.realpath(path))
    return kind is None or kind in _LOCAL


def are_local(paths: Iterable[str]) -> bool:
    """Whether all of a source's files are: a read of some MB then takes milliseconds."""
    return all(map(is_local, paths))
