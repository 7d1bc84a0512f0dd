"""Stretches of a local file as they lie in the page cache, without a copy, while nobody can change them.

A file that somebody cuts short while it is mapped ends the process with SIGBUS. Under a read lease (Linux, fcntl(2),
`F_SETLEASE`) who wants to write to it or to cut it waits until the lease is given back, for 45 s at most
(`/proc/sys/fs/lease-break-time`); a stretch of some MB is held for some ms. Knows descriptors; knows no formats.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import signal
import sys
from collections.abc import Iterator

import numpy as np

from dist_restore.sources import mounts

# Only where whoever writes to a file does it through this machine's kernel. Not overlay: a lease there says nothing
# of who writes to the file below. Not zfs, which copies into the page cache what it has in its own.
_LEASED = frozenset("btrfs ext2 ext3 ext4 f2fs tmpfs xfs".split())
_POPULATE_READ = 22  # MADV_POPULATE_READ, since Linux 5.14: errors where touching a page would be SIGBUS
_SET_SIGNAL = 10  # F_SETSIG, which Python's fcntl does not name


def may_be_mapped(path: str) -> bool:
    """Whether the files there are of a kind that can be leased and mapped; decided from the file system's type."""
    return _LIBC is not None and mounts.file_system(os.path.realpath(path)) in _LEASED


@contextlib.contextmanager
def stretch(handle: int, offset: int, size: int) -> Iterator[memoryview | None]:
    """The bytes of an open file from `offset` on, read-only, to be let go when the block is left.

    May be called by several threads at once: each call has a description of the file, and a lease, of its own.

    Args:
      handle: of a file for which `may_be_mapped` is true.
      offset: of the first byte.
      size: how many bytes, at least one.

    Yields:
      None where they cannot be held: somebody has the file open for writing or waits for it, it is another user's, it
      is shorter, a page cannot be read, or the kernel is older. To read the file says which.
    """
    with contextlib.ExitStack() as stack:
        try:
            data = stack.enter_context(_held(handle, offset, size))
        except OSError:
            data = None
        yield data


@contextlib.contextmanager
def _held(handle: int, offset: int, size: int) -> Iterator[memoryview]:
    with _leased(handle) as own:
        if os.fstat(own).st_size < offset + size:
            raise OSError("shorter")
        begin = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(own, offset + size - begin, prot=mmap.PROT_READ, offset=begin) as pages:
            _populate(pages)
            # That may have taken long; from here on some ms pass, and who waits for the lease waits for longer.
            if fcntl.fcntl(own, fcntl.F_GETLEASE) != fcntl.F_RDLCK:
                raise OSError("somebody waits for the file")
            # Released with the block: who looks at it later gets an error, and no memory that is something else's.
            with memoryview(pages) as whole, whole[offset - begin :] as data:
                yield data


@contextlib.contextmanager
def _leased(handle: int) -> Iterator[int]:
    """Another description of an open file, with a read lease."""
    own = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Who waits for the lease is told by a signal to this process: one that is ignored, for SIGIO would end it.
        fcntl.fcntl(own, _SET_SIGNAL, signal.SIGURG)
        fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        try:
            yield own
        finally:  # closing is not enough: a fork may have the description too
            fcntl.fcntl(own, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(own)


def _populate(pages: mmap.mmap) -> None:
    """Maps all pages, and reads those that are not in the page cache; through ctypes, so that other threads run."""
    assert _LIBC is not None
    address = np.frombuffer(pages, np.uint8).ctypes.data
    if _LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(len(pages)), _POPULATE_READ):
        raise OSError(ctypes.get_errno(), "madvise")


def _libc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(None, use_errno=True)
        library.madvise.restype = ctypes.c_int
    except (OSError, AttributeError):
        return None
    return library


_LIBC = _libc()
