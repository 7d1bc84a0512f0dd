"""Clusters that one program drives: `tf.distribute.Server` processes, and a client process that runs a function.

    said = run_client(program, {"worker": 2}, path=path)   # program(cluster, path=path) in the client

Nothing that was started outlives the call.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pathlib
import re
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from places import IMPORTS
from warm import Warm

LIMIT_SECONDS = 150.0
_TCP_INFO, _BYTES_ACKED = 11, 120  # linux/tcp.h: tcpi_bytes_acked and, behind it, tcpi_bytes_received


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes since the counters were started: from files by each process, and to and from each server by the client."""

    client_read: int
    server_read: dict[str, int]
    sent: dict[str, int]
    received: dict[str, int]


class Cluster:
    """What the client knows: addresses and process numbers of servers, by `job:task`."""

    def __init__(self, jobs: Mapping[str, list[str]], pids: Mapping[str, int]) -> None:
        self.jobs, self.pids = dict(jobs), dict(pids)

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[Traffic]]:
        """Gives a list that has the traffic of the block once it is left."""
        found: list[Traffic] = []
        before = self._quiet_counters()  # first values of variables may be on their way
        yield found
        after = self._quiet_counters()
        found.append(
            Traffic(
                *(
                    {k: v - b.get(k, 0) for k, v in a.items()} if isinstance(a, dict) else a - b
                    for a, b in zip(after, before, strict=True)
                )
            )
        )

    def _quiet_counters(self) -> tuple[Any, ...]:
        """The counters once nothing has come or gone for a while; after some seconds as they are."""
        last = self._counters()
        for _ in range(20):
            time.sleep(0.3)
            last, before = self._counters(), last
            if last[1:] == before[1:]:
                break
        return last

    def signal(self, name: str, number: int) -> None:
        os.kill(self.pids[name], number)

    def _counters(self) -> tuple[Any, ...]:
        sent, received = dict.fromkeys(self.pids, 0), dict.fromkeys(self.pids, 0)
        owners = self._ports()
        for port, acked, got in _connections():
            if port in owners:
                sent[owners[port]] += acked
                received[owners[port]] += got
        return _read("self"), {name: _read(pid) for name, pid in self.pids.items()}, sent, received

    def _ports(self) -> dict[int, str]:
        """Port of a server's socket -> the server."""
        names = {}
        for name, pid in self.pids.items():
            with contextlib.suppress(OSError):
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        names[os.readlink(f"/proc/{pid}/fd/{fd}")] = name
        found = {}
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            for line in pathlib.Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if (inode := f"socket:[{fields[9]}]") in names:
                    found[int(fields[1].rpartition(":")[2], 16)] = names[inode]
        return found


def _read(pid: object) -> int:
    """What a process has read from files: sockets do not count here."""
    try:
        return int(re.search(r"rchar: (\d+)", pathlib.Path(f"/proc/{pid}/io").read_text())[1])
    except OSError:
        return 0


def _connections() -> Iterator[tuple[int, int, int]]:
    """The port at the other end, bytes sent and bytes received, of each connection of this process."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                with socket.socket(fileno=os.dup(int(fd))) as copy:
                    info = copy.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
                    yield copy.getpeername()[1], *struct.unpack_from("QQ", info, _BYTES_ACKED)


def run_client(
    program: Callable[..., Any],
    jobs: Mapping[str, int],
    *,
    cpus: int = 2,
    folders: Mapping[str, pathlib.Path] | None = None,
    cwd: pathlib.Path | None = None,
    **arguments: object,
) -> Any:
    """Runs `program(cluster, **arguments)` in a client of new servers, and returns what it returned.

    Args:
      program: a function at the top of a module.
      jobs: number of servers by job.
      cpus: logical CPU devices of each server.
      folders: working directory of servers, by `job:task`, and of the client, by `client`.
      cwd: working directory of the others.
      arguments: made JSON.
    """
    from lm.local_cluster import free_ports

    ports = iter(free_ports(sum(jobs.values())))
    spec = {job: [f"localhost:{next(ports)}" for _ in range(count)] for job, count in jobs.items()}
    with tempfile.TemporaryDirectory() as parent, contextlib.ExitStack() as stack:
        out = pathlib.Path(parent)
        places = {name: (folders or {}).get(name, cwd) for name in [*_names(spec), "client"]}
        servers = {}
        for number, name in enumerate(_names(spec)):
            servers[name] = _started(
                stack, out / f"server{number}", places[name], ["server", json.dumps(spec), name, str(cpus)]
            )
        _wait_until_up(servers.values())
        pids = {name: server.pid for name, server in servers.items()}
        what = [str(out / "result"), f"{program.__module__}:{program.__name__}", json.dumps(arguments)]
        client = _started(stack, out / "client", places["client"], ["client", json.dumps([spec, pids]), *what])
        assert client.wait(LIMIT_SECONDS) == 0, client.text[-6000:]
        return json.loads((out / "result").read_text())


def _names(spec: Mapping[str, list[str]]) -> list[str]:
    return [f"{job}:{number}" for job, addresses in spec.items() for number in range(len(addresses))]


def _started(
    stack: contextlib.ExitStack, output: pathlib.Path, folder: pathlib.Path | None, arguments: list[str]
) -> Warm:
    environment = {"PYTHONPATH": os.pathsep.join(IMPORTS), "CUDA_VISIBLE_DEVICES": "-1"}
    process = Warm([__file__, *arguments], output=output, environment=environment, folder=folder)
    stack.callback(process.kill)
    return process


def _wait_until_up(servers: Iterable[Warm]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    for server in servers:
        while "up\n" not in server.text:
            assert server.code is None and time.monotonic() < deadline, server.text[-6000:]
            time.sleep(0.05)


def _serve(spec: str, name: str, cpus: str) -> None:
    import tensorflow as tf

    job, _, task = name.partition(":")
    config = tf.compat.v1.ConfigProto(device_count={"CPU": int(cpus)})
    server = tf.distribute.Server(json.loads(spec), job_name=job, task_index=int(task), config=config)
    print("up", flush=True)
    server.join()


def _drive(cluster: str, path: str, name: str, arguments: str) -> None:
    module, _, function = name.partition(":")
    program = getattr(importlib.import_module(module), function)
    importlib.import_module("dist_restore.restore.restorer")  # what is loaded later counts as read
    said = program(Cluster(*json.loads(cluster)), **json.loads(arguments))
    pathlib.Path(path).write_text(json.dumps(said))


if __name__ == "__main__":
    try:
        {"server": _serve, "client": _drive}[sys.argv[1]](*sys.argv[2:])
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)  # a thread may wait for a server that the test has stopped
