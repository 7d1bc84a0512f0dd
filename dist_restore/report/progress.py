"""The progress bar of a long restore: on the standard error stream, and gone when the restore is.

Called by the chief alone. Knows bytes and names, not what is done with them.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

from dist_restore.core.shortening import shorten
from dist_restore.core.text import escape_text

# A restore that takes less than this shows nothing; a flash of a bar tells nobody anything.
DELAY_SECONDS = 1.0

_NAME_WIDTH = 40

# A terminal that was closed, or cannot show a character, is no reason to end a restore half way.
_UNIMPORTANT = contextlib.suppress(OSError, ValueError)


class Progress:
    """Counts bytes. Made by `progress`; may be called from any thread."""

    def __init__(self, bar: tqdm | None) -> None:
        self._bar = bar
        self._lock = threading.Lock()

    def advance(self, nbytes: int, name: str = "") -> None:
        """Says that so many bytes more are done, and for which tensor."""
        if self._bar is None:
            return
        with self._lock, _UNIMPORTANT:
            if name:
                self._bar.set_postfix_str(shorten(escape_text(name), _NAME_WIDTH), refresh=False)
            self._bar.update(nbytes)


@contextlib.contextmanager
def progress(total_bytes: int, enabled: bool | None = None, title: str = "restore") -> Iterator[Progress]:
    """A bar over so many bytes, cleared from the terminal on the way out, be it by an exception or Ctrl-C.

    Args:
      total_bytes: what all calls of `advance` will add up to; 0 when that is unknown.
      enabled: `True` shows the bar from the start, `False` shows none; `None` shows it when the standard error
        stream is a terminal and the work takes longer than `DELAY_SECONDS`.
      title: what is being done, in a word.
    """
    shown = _is_terminal() if enabled is None else enabled
    bar = _bar(total_bytes, title, 0.0 if enabled else DELAY_SECONDS) if shown else None
    try:
        yield Progress(bar)
    finally:
        if bar is not None:
            with _UNIMPORTANT:
                bar.close()


def _bar(total_bytes: int, title: str, delay: float) -> tqdm | None:
    with _UNIMPORTANT:
        return tqdm(
            total=total_bytes or None,
            desc=title,
            delay=delay,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            leave=False,
            dynamic_ncols=True,
            file=sys.stderr,
            disable=False,
        )
    return None


def _is_terminal() -> bool:
    # The stream is None in programs without a console, and may be closed.
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:
        return False
