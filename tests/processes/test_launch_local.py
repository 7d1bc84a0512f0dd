"""`launch_local.py` starts workers together and ends them together, whatever happens to one of them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lm.local_cluster import free_ports
from places import ROOT

SCRIPT = ROOT / "scripts" / "launch_local.py"
LIMIT = 60
# A worker's program: its rank is in `rank`, and what it starts is marked so that it can be found.
BEGIN = "import json, os, signal, subprocess, sys, time; rank = json.loads(os.environ['TF_CONFIG'])['task']['index']; "


def command(program: str, *flags: str) -> list[str]:
    return [sys.executable, str(SCRIPT), *flags, "--", sys.executable, "-c", BEGIN + program]


def launch(program: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(program, *flags), capture_output=True, text=True, timeout=LIMIT, check=False)


@contextlib.contextmanager
def running(program: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """The launcher, once each of two workers has printed a line."""
    with subprocess.Popen(command(program, *flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as p:
        try:
            assert p.stdout is not None
            assert sorted(p.stdout.readline() for _ in range(2)) == ["[0] up\n", "[1] up\n"]
            yield p
        finally:
            p.kill()


def left_over(mark: str) -> list[str]:
    """Processes whose command has a mark in it."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += [str(path)] if mark.encode() in path.read_bytes() else []
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    """What the programs of a test carry in their command; nothing that does is left in the end."""
    text = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    yield text
    limit = time.monotonic() + 10  # The kernel, too, takes its time to end a process.
    while left_over(text) and time.monotonic() < limit:
        time.sleep(0.05)
    assert left_over(text) == []


def test_workers_know_of_each_other_and_their_lines_carry_their_rank() -> None:
    done = launch("print(os.environ['TF_CONFIG']); print('to stderr', file=sys.stderr)", "--workers=3")
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line for line in lines if "to stderr" in line] == [f"[{rank}] to stderr" for rank in range(3)]
    configs = [json.loads(line[4:]) for line in lines if "to stderr" not in line]
    assert [c["task"] for c in configs] == [{"type": "worker", "index": rank} for rank in range(3)]
    assert len({str(c["cluster"]) for c in configs}) == 1
    assert len(set(configs[0]["cluster"]["worker"])) == 3


def test_stderr_can_be_kept_apart(tmp_path: pathlib.Path) -> None:
    done = launch("print('said'); print(f'of {rank}', file=sys.stderr)", f"--stderr_dir={tmp_path / 'new'}")
    assert sorted(done.stdout.splitlines()) == ["[0] said", "[1] said"]
    assert [(tmp_path / "new" / f"worker{rank}.stderr").read_text() for rank in range(2)] == ["of 0\n", "of 1\n"]


def test_lines_of_several_workers_do_not_mix_and_the_last_ones_are_not_lost() -> None:
    done = launch("[print(str(rank) * 5000) for _ in range(200)]; print('end', end='')", "--workers=3")
    assert sorted(set(done.stdout.splitlines())) == sorted(
        line for rank in range(3) for line in (f"[{rank}] end", f"[{rank}] {str(rank) * 5000}")
    )
    assert len(done.stdout.splitlines()) == 3 * 201


def test_a_slow_reader_gets_the_last_lines_too() -> None:
    program = "[print('x' * 5000) for _ in range(8)]; print('end')"
    with subprocess.Popen(command(program, "--workers=3"), stdout=subprocess.PIPE, text=True) as launcher:
        time.sleep(4)  # More than fits into the pipe to here waits in the launcher meanwhile; its workers have ended.
        said, _ = launcher.communicate(timeout=LIMIT)
    assert len(said.splitlines()) == 3 * 9


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit(7)", 7, "worker 1 failed with code 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "worker 1 failed with SIGKILL"),
    ],
)
def test_when_one_fails_all_end_with_its_code(mark: str, end: str, code: int, said: str) -> None:
    sleeper = f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)', '{mark}'])"
    program = f"'{mark}'; {sleeper}; exec('{end}' if rank == 1 else 'time.sleep(1000)')"
    done = launch(program, "--workers=3", "--grace=0.2")
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "in 0.2 s: 0, 2" in done.stderr


def test_the_others_may_say_why_they_end() -> None:
    program = "time.sleep(0 if rank == 1 else 0.5); print('my last words'); sys.exit(3 + rank)"
    done = launch(program, "--workers=2", "--grace=30")
    assert done.returncode == 4
    assert sorted(done.stdout.splitlines()) == ["[0] my last words", "[1] my last words"]


def test_ctrl_c_reaches_all_and_they_may_finish() -> None:
    program = "signal.signal(2, lambda *_: (print('saved'), sys.exit(0))); print('up'); time.sleep(1000)"
    with running(program, "--grace=30") as launcher:
        launcher.send_signal(signal.SIGINT)
        said, _ = launcher.communicate(timeout=LIMIT)
    assert launcher.returncode == 130
    assert sorted(said.splitlines()) == ["[0] saved", "[1] saved"]


@pytest.mark.parametrize("grace", ["0.2", "1000"])
def test_ctrl_c_ends_who_does_not_listen(mark: str, grace: str) -> None:
    program = f"'{mark}'; signal.signal(2, lambda *_: print('no')); print('up'); [time.sleep(1) for _ in range(1000)]"
    with running(program, f"--grace={grace}") as launcher:
        launcher.send_signal(signal.SIGINT)
        assert launcher.stdout is not None and "no" in launcher.stdout.readline()
        if grace == "1000":
            launcher.send_signal(signal.SIGINT)
        launcher.communicate(timeout=LIMIT)
    assert launcher.returncode == 130


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_a_launcher_that_is_killed_leaves_no_workers(mark: str) -> None:
    with running(f"'{mark}'; print('up'); time.sleep(1000)") as launcher:
        launcher.kill()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers=2"], "a command is missing"),
        (["--workers=0", "--", "true"], "--workers"),
        (["--", "/no/such/program"], "cannot start '/no/such/program'"),
        (["--grase=1", "--", "true"], "grase"),
    ],
)
def test_what_cannot_be_started_is_said(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 1
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_help_names_every_flag_and_shows_a_command() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert all(re.search(rf"--{name}:", done.stdout) for name in ("workers", "grace", "stderr_dir"))
    assert "launch_local.py --workers=2 -- python scripts/train_lm.py" in done.stdout


def test_ports_are_all_different() -> None:
    assert len(set(free_ports(50))) == 50
