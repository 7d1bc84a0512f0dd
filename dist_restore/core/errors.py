"""The exception tree.

    RestoreError
    ├── CheckpointNotFoundError   no checkpoint at the path, or its data files are gone
    ├── CheckpointCorruptError    truncated, flipped bits, an index or object graph that cannot be read
    ├── UnsupportedFormatError    a file of a kind that is not read (pickles above all)
    ├── RuleError                 bad syntax, a rule that matched nothing, two rules for one target
    ├── UnmatchedError            a target that nothing fills
    ├── AmbiguousMatchError       more than one source would do, and nothing decides
    ├── ShapeMismatchError        the names fit and the shapes do not
    ├── DtypeMismatchError        the dtypes differ in a way that may lose values
    ├── UnbuiltModelError         a model or layer without variables yet
    ├── WorkerError               one worker failed; raised on every worker
    ├── PlanMismatchError         a plan that does not fit this program, this checkpoint or its own digest
    └── VerificationError         a replica does not hold what was assigned

Every message carries the tensor's or file's name, what was expected, what was found, the nearest candidates,
and the rule or flag that would fix it.
"""

from __future__ import annotations


class RestoreError(Exception):
    """Base of everything that dist_restore raises on purpose.

    Attributes:
      names: the tensors or variables that the error is about.
    """

    def __init__(self, message: str, *, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class CheckpointNotFoundError(RestoreError):
    """There is no checkpoint at the path, or one of its data files is missing."""


class CheckpointCorruptError(RestoreError):
    """The checkpoint's bytes are not what its writer wrote."""


class UnsupportedFormatError(RestoreError):
    """The file is of a kind that is not read."""


class RuleError(RestoreError):
    """A rule file that cannot be read, a rule that matched nothing, or rules that contradict each other."""


class UnmatchedError(RestoreError):
    """A target that nothing fills, and that nothing allows to keep its value."""


class AmbiguousMatchError(RestoreError):
    """A target for which more than one source would do."""


class ShapeMismatchError(RestoreError):
    """A target whose source has another shape, and no op that says what to do about it."""


class DtypeMismatchError(RestoreError):
    """A cast that could lose, or does lose, values."""


class UnbuiltModelError(RestoreError):
    """A model or layer that has no variables yet, so that nothing could be restored into it."""


class WorkerError(RestoreError):
    """One worker failed. Raised on every worker.

    Attributes:
      rank: the worker that failed first.
      phase: what it was doing.
    """

    def __init__(self, message: str, *, rank: int, phase: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message, names=names)
        self.rank = rank
        self.phase = phase


class PlanMismatchError(RestoreError):
    """A plan that does not fit: its digest, this program's variables, or this checkpoint."""


class VerificationError(RestoreError):
    """After assignment a replica holds something else than what was assigned."""
