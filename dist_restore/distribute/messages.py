"""What workers say to each other: values as text. Knows no store and no TensorFlow."""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib

from dist_restore.errors import WorkerError

# A plan's JSON shrinks to a tenth at this level, at 150 MB/s and more; the store passes 40 to 100 MB/s.
_COMPRESSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """Why a worker cannot go on.

    Attributes:
      rank: the worker.
      phase: what it was doing.
      text: class and message of its exception, or what its peers saw of it.
      names: the tensors or variables that the exception is about.
      others: workers that failed too.
    """

    rank: int
    phase: str
    text: str
    names: tuple[str, ...] = ()
    others: tuple[int, ...] = ()

    @staticmethod
    def of(error: BaseException, rank: int, phase: str) -> Failure:
        """What an exception says."""
        names = tuple(str(name) for name in getattr(error, "names", ()))
        return Failure(rank, phase, f"{type(error).__name__}: {error}", names)

    def error(self) -> WorkerError:
        """The exception that every worker raises for it."""
        also = f" (so did {_workers(self.others)})" if self.others else ""
        message = f"Worker {self.rank} failed in phase {self.phase!r}{also}: {self.text}"
        return WorkerError(message, rank=self.rank, phase=self.phase, names=self.names)


def _workers(ranks: tuple[int, ...]) -> str:
    listed = ", ".join(str(rank) for rank in ranks[:10])
    return f"worker{'s' if len(ranks) > 1 else ''} {listed}{', ...' if len(ranks) > 10 else ''}"


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One step of the talk: payloads, or the failure that ends it.

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
