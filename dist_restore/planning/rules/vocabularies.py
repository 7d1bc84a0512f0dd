"""Vocabulary files of `remap_rows`: found beside the rule file, read with care, turned into rows.

A file holds one token in each line; line `i` is the token of row `i`. Lines end in LF, or all of them in CRLF; a byte
order mark at the beginning is no part of the first token; what follows the last line end is a line unless it is
empty. An empty line is the empty token, as a StringLookup layer's mask token is saved. Anything else in a line,
spaces too, is part of its token. No message shows what a file holds: a rule file from elsewhere may name any file.
"""

from __future__ import annotations

import codecs
import os
import stat

from dist_restore.core.errors import RuleError
from dist_restore.ops import Op, RemapRows, RowMap

# A line of 100 bytes for each of ten million tokens; larger vocabularies are given as tokens.
MAX_VOCABULARY_BYTES = 1 << 30

Tokens = tuple[str, ...]


class Vocabularies:
    """Reads the vocabularies of one rule file, each once."""

    def __init__(self, origin: str) -> None:
        """Remembers where relative paths begin.

        Args:
          origin: path of the rule file; empty for rules that come from no file, where paths must be absolute.
        """
        self._folder = os.path.dirname(os.path.abspath(origin)) if origin else ""
        self._tokens: dict[str, Tokens] = {}
        self._rows: dict[tuple[str | Tokens, str | Tokens], RowMap] = {}

    def read_for(self, ops: tuple[Op, ...]) -> tuple[Op, ...]:
        """The ops, those that name vocabularies with the rows that these give.

        Raises:
          RuleError: a file that cannot be read, is too large, or holds no vocabulary.
        """
        return tuple(op.with_files(self._rows_of) if isinstance(op, RemapRows) else op for op in ops)

    def _rows_of(self, old: str | Tokens, new: str | Tokens) -> RowMap:
        if (old, new) not in self._rows:
            first, second = (v if isinstance(v, tuple) else self._read(v) for v in (old, new))
            self._rows[old, new] = RowMap.of_tokens(first, second)
        return self._rows[old, new]

    def _read(self, name: str) -> Tokens:
        if name not in self._tokens:
            self._tokens[name] = tokens_of(_read_file(self._locate(name), name), name)
        return self._tokens[name]

    def _locate(self, name: str) -> str:
        """The file's path: as the rule says where that is absolute, else inside the rule file's folder."""
        if os.path.isabs(name):
            return name
        if not self._folder:
            raise RuleError(
                f"remap_rows: {name[:200]!r} is a relative path, and these rules come from no file. Give the absolute "
                "path, or the tokens themselves as a list."
            )
        folder = os.path.realpath(self._folder)
        try:
            path = os.path.realpath(os.path.join(folder, name))
        except (OSError, ValueError) as error:  # ValueError: a null byte
            raise _unreadable(name, error) from error
        if os.path.commonpath([folder, path]) != folder:
            raise RuleError(
                f"remap_rows: the vocabulary {name[:200]!r} lies outside the folder of the rule file, {folder!r}. "
                "Move it there, or give its absolute path."
            )
        return path


def tokens_of(data: bytes, name: str) -> Tokens:
    """The tokens of a file, one for each line.

    Args:
      data: the whole file.
      name: of the file, for messages.

    Raises:
      RuleError: it is empty, no UTF-8, or its lines end in several ways.
    """
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RuleError(
            f"remap_rows: the vocabulary {name!r} is no UTF-8, in line {line}. Save it as UTF-8."
        ) from error
    lines = text.split("\n")
    last = lines.pop()
    ends = sum(line.endswith("\r") for line in lines)
    if ends not in (0, len(lines)):
        raise RuleError(
            f"remap_rows: of the {len(lines)} lines of the vocabulary {name!r}, {ends} end in CRLF and the others in "
            "LF. Save it with one kind of line ends, or give the tokens themselves as a list."
        )
    found = [line[:-1] for line in lines] if ends else lines
    if last:
        found.append(last)
    if not found:
        raise RuleError(f"remap_rows: the vocabulary {name!r} is empty. It needs one token in each line.")
    return tuple(found)


def _read_file(path: str, name: str) -> bytes:
    try:
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise RuleError(f"remap_rows: the vocabulary {name[:200]!r} is no regular file.")
            if found.st_size > MAX_VOCABULARY_BYTES:
                raise RuleError(
                    f"remap_rows: the vocabulary {name[:200]!r} has {found.st_size} bytes; at most "
                    f"{MAX_VOCABULARY_BYTES} are read. Is it a file of tokens?"
                )
            return file.read(found.st_size)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> RuleError:
    why = error.strerror if isinstance(error, OSError) else error
    return RuleError(f"remap_rows: the vocabulary {name[:200]!r} cannot be read: {why}.")
