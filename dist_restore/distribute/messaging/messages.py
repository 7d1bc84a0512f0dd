"""What workers say to each other: values as text. Knows no store and no TensorFlow."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import zlib
from collections.abc import Iterable

from dist_restore.core import errors
from dist_restore.core.errors import RestoreError, WorkerError
from dist_restore.distribute.messaging.liveness import BrokenExchangeError

# A plan's JSON shrinks to a tenth at this level, at 150 MB/s and more; the store passes 40 to 100 MB/s.
_COMPRESSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker cannot go on.

    Attributes:
      rank: the worker.
      phase: what it was doing.
      text: what happened.
      kind: class of its exception; empty when its peers say it of a worker that they lost.
      names: the tensors or variables that the exception is about.
      others: workers that failed too.
      is_echo: whether it is but what another worker's failure led to.
    """

    rank: int
    phase: str
    text: str
    kind: str = ""
    names: tuple[str, ...] = ()
    others: tuple[int, ...] = ()
    is_echo: bool = False

    @staticmethod
    def of(error: BaseException, rank: int, phase: str) -> Failure:
        """What an exception says."""
        names = tuple(str(name) for name in getattr(error, "names", ()))
        return Failure(
            rank, phase, str(error), type(error).__name__, names, is_echo=isinstance(error, BrokenExchangeError)
        )

    def and_others(self, others: Iterable[int]) -> Failure:
        """The same, with the ranks of others that failed too."""
        return dataclasses.replace(self, others=tuple(sorted({*others} - {self.rank})))

    def error(self) -> WorkerError:
        """The exception that every worker raises for it.

        Where it was a `RestoreError`, it is one of that class too: who catches `CheckpointNotFoundError` need not know
        how many workers there are.
        """
        also = f" (so did {_workers(self.others)})" if self.others else ""
        what = f"{self.kind}: {self.text}" if self.kind else self.text
        message = f"Worker {self.rank} failed in phase {self.phase!r}{also}: {what}"
        return _error_class(self.kind)(message, rank=self.rank, phase=self.phase, names=self.names)


@functools.cache
def _error_class(kind: str) -> type[WorkerError]:
    original = getattr(errors, kind, None)
    if not (isinstance(original, type) and issubclass(original, RestoreError)) or issubclass(WorkerError, original):
        return WorkerError
    return type("WorkerError", (WorkerError, original), {"__doc__": WorkerError.__doc__})


def _workers(ranks: tuple[int, ...]) -> str:
    listed = ", ".join(str(rank) for rank in ranks[:10])
    return f"worker{'s' if len(ranks) > 1 else ''} {listed}{', ...' if len(ranks) > 10 else ''}"


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One step of the session: payloads, or the failure that ends it.

    Attributes:
      phase: what its sender is doing.
      payloads: one, or from the chief after a gather one for each worker.
      failure: why there is nothing more to come.
    """

    phase: str
    payloads: tuple[bytes, ...] = ()
    failure: Failure | None = None

    def pack(self) -> str:
        """ASCII without NUL, as the store wants it."""
        return json.dumps(
            {
                "phase": self.phase,
                "payloads": [_pack(payload) for payload in self.payloads],
                "failure": dataclasses.asdict(self.failure) if self.failure else None,
            }
        )

    @staticmethod
    def unpack(text: str) -> Message:
        """The inverse of `pack`."""
        fields = json.loads(text)
        failure = fields["failure"]
        if failure is not None:
            failure = Failure(**{**failure, "names": tuple(failure["names"]), "others": tuple(failure["others"])})
        return Message(fields["phase"], tuple(_unpack(payload) for payload in fields["payloads"]), failure)


def _pack(payload: bytes) -> str:
    return base64.b64encode(zlib.compress(payload, _COMPRESSION)).decode("ascii")


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
