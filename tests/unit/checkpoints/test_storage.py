"""Which file systems count as local."""

from __future__ import annotations

import pathlib

import pytest

from dist_restore.checkpoints.files import mounts as storage

MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
40 22 0:40 / /mnt/shared rw,relatime - nfs4 server:/export rw
41 40 0:41 / /mnt/shared/fast rw,relatime shared:7 master:2 - xfs /dev/nvme0 rw
42 22 0:42 / /mnt/with\040space rw - fuse.rclone bucket: ro
43 41 0:43 / /mnt/shared/fast rw - tmpfs tmpfs rw
""".strip()


@pytest.fixture(autouse=True)
def mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTS)
    monkeypatch.setattr(storage, "_MOUNTS", file)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/runs/ckpt-1", "ext4"),
        ("/mnt/shared", "nfs4"),
        ("/mnt/shared/runs/ckpt-1", "nfs4"),
        ("/mnt/sharedness/ckpt-1", "ext4"),
        ("/mnt/shared/fast/ckpt-1", "tmpfs"),
        ("/mnt/with space/ckpt-1", "fuse.rclone"),
    ],
)
def test_the_deepest_mount_that_came_last_holds_a_path(path: str, kind: str) -> None:
    assert storage.file_system(path) == kind


@pytest.mark.parametrize(
    ("path", "local"),
    [("/runs/ckpt-1", True), ("/mnt/shared/ckpt-1", False), ("/mnt/with space/x", False), ("gs://bucket/ckpt", False)],
)
def test_what_comes_over_a_network_is_not_local(path: str, local: bool) -> None:
    assert storage.is_local(path) is local


def test_where_nothing_is_said_files_are_taken_to_be_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_MOUNTS", pathlib.Path("/nowhere/mountinfo"))
    assert storage.is_local("/runs/ckpt-1")
