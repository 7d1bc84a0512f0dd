"""A cluster without processes: workers are threads, the store is a dict. What can happen to a worker is a method."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import numpy as np

from dist_restore.distribute.communicator import Communicator
from dist_restore.distribute.messaging.exchange import Round
from dist_restore.distribute.messaging.protocol import ClusterCommunicator
from dist_restore.distribute.messaging.store import Answer, Unreachable

Result = TypeVar("Result")


class FakeStore:
    """A `Store` as TF's coordination service is one: text without NUL, and every key is written once."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.answers: dict[int, Answer] = {}
        self.hiccups = 0
        self.chief_is_stopped = False
        self.all_others_ended = threading.Event()
        self._changed = threading.Condition()

    def die(self, rank: int, answer: Answer) -> None:
        """What a worker calls to be heard of no more, until all others have ended."""
        self.answers[rank] = answer
        self.all_others_ended.wait()
        raise SystemExit

    def set(self, key: str, value: str) -> None:
        self._maybe_fail()
        assert value.isascii() and "\0" not in value
        while self.chief_is_stopped:
            time.sleep(0.01)
        with self._changed:
            self.values.setdefault(key, value)
            self._changed.notify_all()

    def get(self, key: str, seconds: float) -> str | None:
        self._maybe_fail()
        with self._changed:
            self._changed.wait_for(lambda: key in self.values, min(seconds, 0.05))
            return self.values.get(key)

    def delete(self, key: str) -> None:
        with self._changed:
            self.values = {k: v for k, v in self.values.items() if k != key and not k.startswith(f"{key}/")}

    def probe(self, rank: int, seconds: float) -> Answer:
        return self.answers.get(rank, Answer.ALIVE)

    def _maybe_fail(self) -> None:
        if self.answers.get(0) is Answer.GONE:
            raise Unreachable("connection refused")
        if self.hiccups:
            self.hiccups -= 1
            raise Unreachable("connection reset")


class Rounds:
    """What all workers have sent so far, by round."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._lock = threading.Lock()
        self._sent: dict[int, dict[int, tuple[bool, np.ndarray]]] = {}
        self._waiting: dict[int, list[Future[Round]]] = {}

    def send(self, number: int, rank: int, failed: bool, bucket: np.ndarray) -> Future[Round]:
        future: Future[Round] = Future()
        with self._lock:
            sent = self._sent.setdefault(number, {})
            sent[rank] = (failed, bucket)
            waiting = self._waiting.setdefault(number, [])
            waiting.append(future)
            if len(sent) == self._world_size:
                round_ = Round(tuple(r for r in sorted(sent) if sent[r][0]), {r: sent[r][1] for r in sent})
                for one in waiting:
                    one.set_result(round_)
        return future


class FakeExchange:
    """An `Exchange` between threads."""

    def __init__(self, rank: int, rounds: Rounds) -> None:
        self._rank, self._rounds, self._next = rank, rounds, 0

    def start(self, *, failed: bool, bucket: np.ndarray) -> Future[Round]:
        number, self._next = self._next, self._next + 1
        return self._rounds.send(number, self._rank, failed, bucket)


def in_phase(talk: Communicator, phase: str, work: Callable[[], Result], nbytes: int = 0) -> Result:
    """What `work` gives, which every worker does in a phase."""
    with talk.phase(phase, nbytes):
        result = work()
    return result


def run_workers(
    world_size: int,
    program: Callable[[ClusterCommunicator], Result],
    *,
    store: FakeStore | None = None,
    name: str = "talk/0",
    timeout: float = 5.0,
) -> list[Result | BaseException]:
    """Runs a program on every worker; what each returned or raised, by rank."""
    store = store or FakeStore()
    rounds = Rounds(world_size)
    results: list[Result | BaseException] = [AssertionError("still running")] * world_size

    def run(rank: int) -> None:
        try:
            with ClusterCommunicator(
                store, rank, world_size, name=name, timeout=timeout, exchange=lambda senders: FakeExchange(rank, rounds)
            ) as communicator:
                results[rank] = program(communicator)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    limit = time.monotonic() + 60
    while any(t.is_alive() for rank, t in enumerate(threads) if rank not in store.answers) and time.monotonic() < limit:
        time.sleep(0.01)
    store.all_others_ended.set()
    for thread in threads:
        thread.join(10)
    return results
