"""How much is done, as those that work say it; who shows it is another matter."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Counts bytes; may be called from any thread."""

    def advance(self, nbytes: int, name: str = "") -> None:
        """Says that so many bytes more are done, and for which tensor."""
        ...
