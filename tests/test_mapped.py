"""Stretches of files under a lease: exact, never while somebody may change the file, and nothing is left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from dist_restore import DistributedRestorer
from dist_restore.errors import CheckpointCorruptError
from dist_restore.pieces import PIECE, hash_stored
from dist_restore.sources import checksum, mapped, mounts
from dist_restore.sources.open import open_checkpoint

DATA = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
SECONDS = 30.0


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    found = tmp_path_factory.mktemp("mapped") / "data"
    found.write_bytes(DATA)
    if not mapped.may_be_mapped(str(found)):
        pytest.skip(f"no leases on {mounts.file_system(str(found))}, {sys.platform}")
    return found


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def truncating(path: pathlib.Path, size: int) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that cuts a file, and has begun to."""
    code = f"import os; print(flush=True); os.truncate({str(path)!r}, {size})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.wait(SECONDS)


def is_held(handle: int, begin: int = 0, size: int = len(DATA)) -> bool:
    with mapped.stretch(handle, begin, size) as data:
        assert data is None or bytes(data) == DATA[begin : begin + size]
        return data is not None


def wait_for_break(handle: int) -> None:
    """Until somebody waits for the lease of a description."""
    end = time.monotonic() + SECONDS
    while fcntl.fcntl(handle, fcntl.F_GETLEASE) == fcntl.F_RDLCK:
        assert time.monotonic() < end
        time.sleep(0.01)


@given(begin=st.integers(0, len(DATA) - 1), size=st.integers(1, len(DATA)))
def test_a_stretch_has_the_bytes_of_the_file(path: pathlib.Path, begin: int, size: int) -> None:
    size = min(size, len(DATA) - begin)
    with opened(path) as handle, mapped.stretch(handle, begin, size) as data:
        assert data is not None
        assert bytes(data) == DATA[begin : begin + size]
        assert data.readonly


def test_a_stretch_beyond_the_end_is_not_held(path: pathlib.Path) -> None:
    with opened(path) as handle:
        assert not is_held(handle, 1, len(DATA))
        assert is_held(handle, 1, len(DATA) - 1)


@pytest.mark.parametrize("mode", ["rb+", "ab"])
def test_a_file_that_somebody_has_open_for_writing_is_not_held(path: pathlib.Path, mode: str) -> None:
    with opened(path) as handle:
        with path.open(mode):
            assert not is_held(handle)
        assert is_held(handle)


def test_who_cuts_the_file_waits_until_the_stretch_is_left(tmp_path: pathlib.Path, path: pathlib.Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(DATA)
    with opened(copy) as handle, contextlib.ExitStack() as stack:
        with mapped.stretch(handle, 0, len(DATA)) as data:
            process = stack.enter_context(truncating(copy, 10))
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            assert data is not None
            assert bytes(data) == DATA
        process.wait(SECONDS)
        assert copy.stat().st_size == 10
        assert not is_held(handle)


def test_where_somebody_waits_before_the_bytes_are_there_they_are_not_held(
    tmp_path: pathlib.Path, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(DATA)
    leased: list[int] = []
    original_leased = mapped._leased

    @contextlib.contextmanager
    def noting(handle: int) -> Iterator[int]:
        with original_leased(handle) as own:
            leased.append(own)
            yield own

    with contextlib.ExitStack() as stack, opened(copy) as handle:

        def populate(pages: object) -> None:
            stack.enter_context(truncating(copy, 10))
            wait_for_break(leased[0])

        monkeypatch.setattr(mapped, "_leased", noting)
        monkeypatch.setattr(mapped, "_populate", populate)
        assert not is_held(handle)


def test_the_bytes_cannot_be_looked_at_later(path: pathlib.Path) -> None:
    with opened(path) as handle:
        with mapped.stretch(handle, 7, 100) as data:
            assert data is not None
        with pytest.raises(ValueError, match="released"):
            data.tobytes()


def test_an_older_kernel_holds_nothing(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_POPULATE_READ", 9999)
    with opened(path) as handle:
        assert not is_held(handle)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_of_another_user_is_not_held(tmp_path: pathlib.Path, path: pathlib.Path) -> None:
    code = (
        "import os, sys; from dist_restore.sources import mapped\n"
        f"handle = os.open({str(path)!r}, os.O_RDONLY); os.setuid(65534)\n"
        "with mapped.stretch(handle, 0, 10) as data: sys.exit(3 if data is None else 4)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3


def test_nothing_is_left_behind_however_the_block_is_left(path: pathlib.Path) -> None:
    def state() -> tuple[int, int]:
        maps = pathlib.Path("/proc/self/maps").read_text().count(str(path))
        return len(os.listdir("/proc/self/fd")), maps

    with opened(path) as handle:
        before = state()
        assert is_held(handle)
        with pytest.raises(KeyboardInterrupt), mapped.stretch(handle, 0, 10):
            raise KeyboardInterrupt
        with pytest.raises(OSError, match="mine"), mapped.stretch(handle, 0, 10):
            raise OSError("mine")
        with path.open("rb+"):
            assert not is_held(handle)
        assert state() == before


def test_a_fork_does_not_keep_the_lease(tmp_path: pathlib.Path, path: pathlib.Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(DATA)
    child = 0
    with opened(copy) as handle:
        with mapped.stretch(handle, 0, 10):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.read(reading, 1)  # holds the description until it is told
                os._exit(0)
        with truncating(copy, 10) as process:
            process.wait(SECONDS)
        os.write(writing, b"x")
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("kind", ["nfs4", "overlay", "fuse.sshfs", None])
def test_other_file_systems_are_read(kind: str | None, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "file_system", lambda path: kind)
    assert not mapped.may_be_mapped(str(path))


# What uses it.


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    values = np.arange(PIECE // 4 + 12_345, dtype=np.float32)
    path = tmp_path_factory.mktemp("large") / "ckpt"
    return tf.train.Checkpoint(small=tf.Variable(1.0), large=tf.Variable(values)).write(str(path)), values


def data_file(prefix: str) -> pathlib.Path:
    return pathlib.Path(f"{prefix}.data-00000-of-00001")


@pytest.mark.parametrize("written", [False, True])
def test_a_part_has_one_checksum_whether_it_can_be_held_or_not(
    saved: tuple[str, np.ndarray], written: bool, path: pathlib.Path
) -> None:
    prefix, values = saved
    with contextlib.ExitStack() as stack:
        if written:
            stack.enter_context(data_file(prefix).open("rb+"))
        source = stack.enter_context(contextlib.closing(open_checkpoint(prefix)))
        with source.view_stored("large", 4, 40) as data:
            assert (data is None) == written
        before, (begin, size) = source.bytes_read, (12, values.nbytes - 100)
        found = hash_stored(source, "large", begin, size, source.stored("large").offset)
        assert found == checksum.extend(0, values.tobytes()[begin : begin + size])
        assert source.bytes_read - before == size


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_large_tensor_is_checked_before_anything_changes(
    saved: tuple[str, np.ndarray], written: bool, damaged: bool
) -> None:
    prefix, values = saved
    file = data_file(prefix)
    good = file.read_bytes()
    small, large = tf.Variable(0.0), tf.Variable(tf.zeros(values.shape))
    restorer = DistributedRestorer(tf.train.Checkpoint(small=small, large=large))
    try:
        if damaged:
            file.write_bytes(good[:-5000] + bytes([good[-5000] ^ 1]) + good[-4999:])
        with file.open("rb+") if written else contextlib.nullcontext():
            if damaged:
                with pytest.raises(CheckpointCorruptError, match="large"):
                    restorer.restore(prefix)
            else:
                restorer.restore(prefix)
    finally:
        file.write_bytes(good)
    np.testing.assert_array_equal(large.numpy(), np.zeros_like(values) if damaged else values)
    assert float(small.numpy()) == (0.0 if damaged else 1.0)
