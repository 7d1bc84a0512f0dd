r"""A folder as it is seen through storage of a limited rate, which several machines share.

    with mounted(folder, rate=150e6, burst=1e6) as storage:
        ...                      # read-only, at storage.path
        storage.served()         # bytes that have left it, by file

A read-only FUSE file system in a process of its own passes reads on to the folder, after each has waited for its bytes
in one token bucket: however many processes read, at most `burst + rate * seconds` bytes leave.

It is mounted with direct_io: every read() of every process goes to the server, and what is read twice is served twice.
Without it the kernel would keep what the first worker read, and give it to the other workers of this machine for
nothing; workers on machines of their own have no such cache in common. Reads ahead do not happen either, so that the
bytes served are the bytes asked for. The folder's own files stay in the page cache, behind the bucket: their disk
plays no part.

The server ends, and with it the mount, as soon as its standard input does: also when whoever started it was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO

START_SECONDS = 20.0
STOP_SECONDS = 10.0


class UnavailableError(RuntimeError):
    """This machine cannot mount it; the message says why."""


class TokenBucket:
    """Lets at most `burst + rate * seconds` bytes pass; those who wait are served in the order in which they came.

    Args:
      rate: bytes a second; infinity is no limit.
      burst: bytes that may pass at once, after as much idle time as they take.
      clock: monotonic seconds.
      sleep: waits so many seconds.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate, self._burst, self._clock, self._sleep = rate, burst, clock, sleep
        self._lock = threading.Lock()
        self._free_at = clock() - burst / rate  # when all that was taken will have passed at the rate alone

    def take(self, size: int) -> float:
        """Waits until so many bytes may pass; returns when that is, on the bucket's clock."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - self._burst / self._rate) + size / self._rate
            due = self._free_at
        while (now := self._clock()) < due:
            self._sleep(due - now)
        return now


class PassThrough:
    """What the server does; mfusepy calls these by their names, from several threads.

    Only the plain files of one folder are there. What is not defined here is refused (ENOSYS), and the kernel refuses
    what would write before it comes here, as the mount is read-only.
    """

    use_ns = True

    def __init__(self, folder: str, bucket: TokenBucket) -> None:
        self._folder, self._bucket = folder, bucket
        self._lock = threading.Lock()
        self._served: Counter[str] = Counter()
        self._began: float | None = None
        self._ended = 0.0

    def init_with_config(self, connection: object, config: object) -> None:
        """Says that the kernel has answered."""
        print(json.dumps({"mounted": True}), flush=True)

    def getattr(self, path: str, handle: int | None = None) -> dict[str, int]:
        """Size, times and so on of the folder or a file of it."""
        found = os.lstat(self._real(path))
        if path != "/" and not stat.S_ISREG(found.st_mode):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return {
            "st_mode": found.st_mode & ~0o222,
            "st_nlink": found.st_nlink,
            "st_size": found.st_size,
            "st_uid": found.st_uid,
            "st_gid": found.st_gid,
            "st_mtime": found.st_mtime_ns,
        }

    def readdir(self, path: str, handle: int) -> list[str]:
        """The names of the files."""
        return [".", "..", *(entry.name for entry in os.scandir(self._folder) if entry.is_file(follow_symlinks=False))]

    def open(self, path: str, flags: int) -> int:
        """Opens a file for reading."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return os.open(self._real(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        """Reads, and waits until so many bytes may leave."""
        began = time.monotonic()
        data = os.pread(handle, size, offset)
        ended = self._bucket.take(len(data))
        with self._lock:
            self._served[path.lstrip("/")] += len(data)
            self._began = began if self._began is None else min(self._began, began)
            self._ended = max(self._ended, ended)
        return data

    def release(self, path: str, handle: int) -> int:
        """Closes a file."""
        os.close(handle)
        return 0

    def served(self) -> dict[str, object]:
        """Bytes by file, and the seconds from the first read to the last on the bucket's clock."""
        with self._lock:
            seconds = 0.0 if self._began is None else self._ended - self._began
            return {"bytes": dict(self._served), "seconds": seconds}

    def _real(self, path: str) -> str:
        return os.path.join(self._folder, path.lstrip("/"))


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """What has left the storage since it was mounted: bytes by file, and from the first read to the last in seconds."""

    files: dict[str, int]
    seconds: float

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())


class Storage:
    """A mounted storage.

    Attributes:
      path: where it is mounted.
    """

    def __init__(self, path: str, server: subprocess.Popen[str]) -> None:
        self.path, self._server = path, server

    def served(self) -> Served:
        """Asks the server what it has served."""
        stdin, stdout = _pipes(self._server)
        stdin.write("served\n")
        stdin.flush()
        found = json.loads(stdout.readline())
        return Served(found["bytes"], found["seconds"])


@contextlib.contextmanager
def mounted(folder: str | os.PathLike[str], rate: float, burst: float) -> Iterator[Storage]:
    """Mounts a folder's files read-only while the block runs.

    Args:
      folder: whose files are served; folders in it are not.
      rate: bytes a second for all readers together; infinity for no limit.
      burst: bytes that may leave at once.

    Raises:
      UnavailableError: FUSE, libfuse or mfusepy is not there, or mounting is not allowed.
    """
    if not os.path.exists("/dev/fuse"):
        raise UnavailableError("there is no /dev/fuse on this machine")
    with tempfile.TemporaryDirectory(prefix="limited_storage_") as path:
        command = [sys.executable, __file__, os.path.realpath(folder), path, repr(rate), repr(burst)]
        # A session of its own: Ctrl-C reaches whoever mounted it, who ends it when all readers have ended.
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _await_mount(server)
            yield Storage(path, server)
        finally:
            _stop(server, path)


def rate_of(storage: Storage, readers: int) -> float:
    """Bytes a second that so many threads get, of which each reads all files once."""
    paths = [entry.path for entry in os.scandir(storage.path)]
    before, start = storage.served().total, time.perf_counter()
    threads = [threading.Thread(target=_read, args=(paths,)) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (storage.served().total - before) / (time.perf_counter() - start)


def _read(paths: list[str]) -> None:
    buffer = bytearray(8 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _await_mount(server: subprocess.Popen[str]) -> None:
    """Waits for the server's first line, which it prints once the kernel talks to it."""
    watchdog = threading.Timer(START_SECONDS, server.kill)
    watchdog.start()
    _, stdout = _pipes(server)
    line = stdout.readline()
    watchdog.cancel()
    if not line:
        server.wait()
        said = server.stderr.read().strip() if server.stderr else ""
        raise UnavailableError(said.splitlines()[-1] if said else f"no mount within {START_SECONDS:g} s")


def _stop(server: subprocess.Popen[str], path: str) -> None:
    """Ends the server, by force if it must be, and leaves nothing mounted."""
    stdin, _ = _pipes(server)
    with contextlib.suppress(BrokenPipeError):
        stdin.close()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    if path in mounts():
        # Detached: it goes at once, whoever still has a file of it open.
        subprocess.run(["fusermount3", "-u", "-z", path], check=False) if os.geteuid() else _detach(path)


def _detach(path: str) -> None:
    subprocess.run(["umount", "--lazy", path], check=False)


def mounts() -> list[str]:
    """Where something is mounted on this machine."""
    return [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]


def _pipes(server: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert server.stdin is not None and server.stdout is not None
    return server.stdin, server.stdout


def _answer(served: Callable[[], dict[str, object]]) -> None:
    """Answers what comes in at standard input; at its end, ends the main thread's loop, which unmounts."""
    for _ in sys.stdin:
        print(json.dumps(served()), flush=True)
    # libfuse's own handler; sent to the main thread, because the signal must interrupt what that waits for.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def serve(folder: str, path: str, rate: float, burst: float) -> None:
    """The server's program."""
    try:
        import mfusepy
    except (ImportError, OSError, AttributeError) as error:
        sys.exit(f"mfusepy or libfuse is missing (pip install '.[bench]', and libfuse3 of the system): {error}")
    files = PassThrough(folder, TokenBucket(rate, burst))
    threading.Thread(target=_answer, args=(files.served,), daemon=True).start()
    mfusepy.FUSE(files, path, foreground=True, ro=True, direct_io=True, default_permissions=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
