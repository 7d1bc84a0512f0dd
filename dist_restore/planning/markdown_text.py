"""Markdown in which every name is shown literally, whatever is in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dist_restore.core.text import printable

_MARKDOWN_SPECIAL = re.compile(r"[\\`*\[\]<>&|~!#${}]|(?<![^\W_])_|_(?![^\W_])")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table in which every cell shows its text literally, whatever it is."""
    lines = [_markdown_row(header), "|".join(["", *(" --- " for _ in header), ""])]
    return "\n".join([*lines, *(_markdown_row(row) for row in rows)])


def markdown_text(text: str) -> str:
    """The text on one line, so that Markdown renderers show it as it is.

    Character references work where backslashes do not: inside tables, and for `|`, `<` and `&`.
    """
    return _MARKDOWN_SPECIAL.sub(lambda match: f"&#{ord(match[0])};", printable(text))


def markdown_block(text: str) -> str:
    """The text as a fenced code block that nothing inside it can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_text(cell) for cell in cells) + " |"
