"""What a restore was doing when something went wrong: reading, transforming and assigning overlap.

A step of the stream marks the exceptions that leave it; whoever reports one to the other workers reads the mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

_MARK = "_dist_restore_phase"


@contextmanager
def during(phase: str) -> Iterator[None]:
    """Marks an exception that leaves the block, unless an inner block has."""
    try:
        yield
    except BaseException as error:
        if phase_of(error) is None:
            with suppress(AttributeError):  # a class with slots takes no mark
                setattr(error, _MARK, phase)
        raise


def phase_of(error: BaseException) -> str | None:
    """The phase that an exception came out of; None where nobody marked it."""
    phase = getattr(error, _MARK, None)
    return phase if isinstance(phase, str) else None
