"""Processes that have TensorFlow from the start: a server imports it once, and forks each of them.

    process = Warm([script, "an", "argument"], output=path)   # as `python script an argument`, 5 s of a core earlier

A process is one of its own in all that matters: its group, its exit with all that Python does there, its counters.
What was not forked is the order of hashes, which all processes of a server share. Linux only, as the tests are.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

from places import IMPORTS

_PRELOADED = ("tensorflow", "keras", "tf_keras", "dist_restore.restore.restorer", "safetensors.numpy", "h5py")
_START_SECONDS = 120.0
_SCRIPT_SECONDS = 300.0


class Warm:
    """A Python script that runs in a process of its own.

    Args:
      argv: the script and its arguments.
      output: file for all that it prints.
      errors: another file for what it prints to stderr.
      environment: what it gets besides this process' environment.
      folder: its working directory.

    Attributes:
      pid: its number, and that of its group.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        output: pathlib.Path,
        errors: pathlib.Path | None = None,
        environment: Mapping[str, str] | None = None,
        folder: pathlib.Path | None = None,
    ) -> None:
        self._output, self._code, self._ended = output, "", False
        output.touch()
        request = {
            "argv": [*argv],
            "output": os.fspath(output),
            "errors": os.fspath(errors or output),
            "environment": {**os.environ, **(environment or {})},
            "folder": os.fspath(folder or pathlib.Path.cwd()),
        }
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(_server())
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(self._line())

    @property
    def code(self) -> int | None:
        """Its exit code, or minus a signal's number; None while it runs."""
        if not self._ended:
            with contextlib.suppress(BlockingIOError):
                self._connection.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
                self._code, self._ended = self._line(), True
        return int(self._code) if self._ended else None

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self._output.read_text(errors="replace")

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None if it still runs after so long."""
        deadline = time.monotonic() + seconds
        while self.code is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.code

    def kill(self) -> None:
        """Leaves nothing of it behind."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.wait(30)
        self._connection.close()

    def _line(self) -> str:
        """A line of what its keeper says; it sends two: the number, and at the end the code."""
        found = b""
        while not found.endswith(b"\n"):
            part = self._connection.recv(1)
            if not part:
                raise RuntimeError("the server of warm processes has ended")
            found += part
        return found.decode()


def run_script(
    argv: Sequence[str], *, environment: Mapping[str, str] | None = None, folder: pathlib.Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a script to its end, as `subprocess.run` would."""
    with tempfile.TemporaryDirectory() as name:
        output, errors = pathlib.Path(name, "output"), pathlib.Path(name, "errors")
        process = Warm(argv, output=output, errors=errors, environment=environment, folder=folder)
        try:
            code = process.wait(_SCRIPT_SECONDS)
        finally:
            process.kill()
        if code is None:
            raise subprocess.TimeoutExpired([*argv], _SCRIPT_SECONDS, output.read_bytes(), errors.read_bytes())
        return subprocess.CompletedProcess([*argv], code, output.read_text(), errors.read_text())


@functools.cache
def _server() -> str:
    """The address of this process' server, which ends with it."""
    from lm.local_cluster import _die_with_parent

    folder = tempfile.TemporaryDirectory()
    path = os.path.join(folder.name, "warm")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(IMPORTS), "CUDA_VISIBLE_DEVICES": "-1"}
    process = subprocess.Popen(
        [sys.executable, __file__, path], stdin=subprocess.DEVNULL, env=environment, preexec_fn=_die_with_parent
    )
    atexit.register(folder.cleanup)
    atexit.register(process.wait)
    atexit.register(process.kill)
    deadline = time.monotonic() + _START_SECONDS
    while not os.path.exists(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the server of warm processes does not start")
        time.sleep(0.02)
    return path


def _serve(path: str) -> list[str]:
    """The server; in each process that it forks, gives what that is to run."""
    for name in _PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # of keepers nothing need be known
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return _keep(connection)
        connection.close()


def _keep(connection: socket.socket) -> list[str]:
    """Starts a process and says how it ended; does not return but in that process."""
    from lm.local_cluster import _die_with_parent

    _die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(connection.makefile().readline())
    child = os.fork()
    if child == 0:
        _die_with_parent()
        connection.close()
        _enter([request["output"], request["errors"]], request["environment"], request["folder"])
        sys.path[0] = os.path.dirname(os.path.abspath(request["argv"][0]))  # as Python does for a script
        return request["argv"]
    with contextlib.suppress(OSError):
        connection.sendall(f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _enter(outputs: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
    os.setsid()
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


if __name__ == "__main__":
    sys.argv = _serve(sys.argv[1])
    runpy.run_path(sys.argv[0], run_name="__main__")
