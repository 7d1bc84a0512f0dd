"""The storage of a limited rate that benchmarks read from: right bytes, no more than allowed, nothing left mounted."""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.limited_storage import Storage, TokenBucket, UnavailableError, mounted, mounts
from places import ROOT

SIZE = 3_000_001
RATE, BURST = 20e6, 1e6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of one file, a folder inside it, and a link that leads out of it."""
    folder = tmp_path_factory.mktemp("storage")
    (folder / "data").write_bytes(os.urandom(SIZE))
    (folder / "inner").mkdir()
    (folder / "link").symlink_to("/etc/hostname")
    return folder


@pytest.fixture
def storage(folder: pathlib.Path) -> Iterator[Storage]:
    try:
        with mounted(folder, RATE, BURST) as found:
            yield found
    except UnavailableError as error:
        pytest.skip(f"no FUSE file system can be mounted here: {error}")


def test_the_bytes_are_those_of_the_file(storage: Storage, folder: pathlib.Path) -> None:
    expected = (folder / "data").read_bytes()
    path = os.path.join(storage.path, "data")
    assert pathlib.Path(path).read_bytes() == expected
    handle = os.open(path, os.O_RDONLY)
    try:
        for offset, size in [(0, 1), (4095, 2), (1_234_567, 1_111_111), (SIZE - 3, 10), (SIZE, 5)]:
            assert os.pread(handle, size, offset) == expected[offset : offset + size]
    finally:
        os.close(handle)


def test_only_plain_files_of_the_folder_are_there(storage: Storage) -> None:
    assert os.listdir(storage.path) == ["data"]
    for name in ("inner", "link", "nothing"):
        with pytest.raises(FileNotFoundError):
            os.stat(os.path.join(storage.path, name))


def test_what_is_read_twice_is_served_twice_and_within_the_rate(storage: Storage) -> None:
    path = pathlib.Path(storage.path, "data")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        sizes = [len(data) for data in pool.map(lambda _: path.read_bytes(), range(3))]
    served = storage.served()
    assert sizes == [SIZE] * 3 and served.files == {"data": 3 * SIZE}
    assert served.total <= BURST + RATE * served.seconds


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "new").write_bytes(b"x"),
        lambda folder: (folder / "data").open("r+b"),
        lambda folder: (folder / "data").unlink(),
        lambda folder: (folder / "data").rename(folder / "other"),
        lambda folder: os.truncate(folder / "data", 0),
        lambda folder: (folder / "new").mkdir(),
    ],
    ids=["create", "open", "unlink", "rename", "truncate", "mkdir"],
)
def test_changes_are_refused(change: Callable[[pathlib.Path], object], storage: Storage, folder: pathlib.Path) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        change(pathlib.Path(storage.path))
    assert (folder / "data").stat().st_size == SIZE


def test_nothing_stays_mounted_after_an_exception_with_a_file_open(storage: Storage, folder: pathlib.Path) -> None:
    with pytest.raises(ZeroDivisionError), mounted(folder, RATE, BURST) as found:
        file = open(os.path.join(found.path, "data"), "rb")  # noqa: SIM115
        assert found.path in mounts()
        raise ZeroDivisionError
    with contextlib.suppress(OSError):  # flush() has nobody to go to
        file.close()
    assert found.path not in mounts() and not os.path.exists(found.path)


def test_nothing_stays_mounted_when_who_mounted_it_is_killed(storage: Storage, folder: pathlib.Path) -> None:
    program = (
        "import sys, time; from benchmarks.limited_storage import mounted\n"
        "with mounted(sys.argv[1], 1e6, 1e6) as found: print(found.path, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
    ) as owner:
        assert owner.stdout is not None
        path = owner.stdout.readline().strip()
        assert path in mounts()
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while path in mounts() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path not in mounts()
    os.rmdir(path)


class Clock:
    """Seconds that pass only where somebody sleeps, or says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(st.lists(st.tuples(st.integers(0, 5_000), st.floats(0, 3)), min_size=1, max_size=30))
def test_never_more_than_the_burst_and_the_rate_pass_in_any_stretch_of_time(
    requests: list[tuple[int, float]],
) -> None:
    clock = Clock()
    bucket = TokenBucket(1000.0, 2000.0, lambda: clock.now, clock.sleep)
    passed = []
    for size, idle in requests:
        clock.now += idle
        asked = clock.now
        passed.append((asked, bucket.take(size), size))
    for first, (begin, _, _) in enumerate(passed):
        total = 0
        for _, end, size in passed[first:]:
            total += size
            assert total <= 2000.0 + 1000.0 * (end - begin) + 1e-6


def test_a_reader_that_keeps_asking_gets_the_whole_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(1000.0, 2000.0, lambda: clock.now, clock.sleep)
    last = [bucket.take(500) for _ in range(100)][-1]
    assert math.isclose(last - 100.0, (100 * 500 - 2000) / 1000)
