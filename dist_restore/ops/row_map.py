"""Which row of a source each row of a target comes from: plain data that a plan carries.

Kept and written as runs, pairs of (first source row or -1, number of rows): a vocabulary that only grew is two pairs,
whatever its size, and what a hostile plan makes us hold is never more than its text.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dist_restore.core.errors import RuleError

# Rows are counted in int32, as plans write them.
MAX_ROWS = (1 << 31) - 1
_FIX = "Make the plan again with restorer.plan(path)"


@dataclasses.dataclass(frozen=True, slots=True)
class RowMap:
    """The source row of each target row, or -1 for a new one.

    Attributes:
      source_rows: how many rows the source has.
      runs: little-endian int32 pairs: first source row (-1: new) and how many follow it; no run could be joined
        with the next.
    """

    source_rows: int
    runs: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.source_rows <= MAX_ROWS or len(self.runs) % 8:
            raise RuleError(f"remap_rows: rows are damaged. {_FIX}.")
        first, count = self._pairs()
        if (count < 1).any() or (first < -1).any() or count.sum() > MAX_ROWS:
            raise RuleError(f"remap_rows: rows hold a run that cannot be. {_FIX}.")
        if ((first >= 0) & (first + count > self.source_rows)).any():
            raise RuleError(f"remap_rows: rows name more than the {self.source_rows} rows of the source. {_FIX}.")
        if _joinable(first, count).any():
            raise RuleError(f"remap_rows: rows are not in their canonical form. {_FIX}.")

    @staticmethod
    def of(rows: Sequence[int] | npt.NDArray[np.int64], source_rows: int) -> RowMap:
        """From one number for each target row.

        Raises:
          RuleError: a number beyond the source, or more rows than int32 counts.
        """
        found = np.asarray(rows, np.int64).reshape(-1)
        if found.size and (found.min() < -1 or found.max() >= source_rows):
            raise RuleError(
                f"remap_rows: expected rows from -1 (new) to {source_rows - 1}, found {found.tolist()[:8]}."
            )
        joined = np.where(found[1:] < 0, found[:-1] < 0, (found[:-1] >= 0) & (found[1:] == found[:-1] + 1))
        starts = np.flatnonzero(np.concatenate([[True] * bool(found.size), ~joined]).astype(bool))
        counts = np.diff(np.append(starts, found.size))
        return RowMap(source_rows, np.stack([found[starts], counts], 1).astype("<i4").tobytes())

    @staticmethod
    def of_tokens(old: Sequence[str], new: Sequence[str]) -> RowMap:
        """From two vocabularies, whose token `i` is that of row `i`.

        Raises:
          RuleError: a token occurs twice in one of them, or none is in both.
        """
        places = _places(old, "old")
        _places(new, "new")
        rows = [places.get(token, -1) for token in new]
        if old and new and max(rows) < 0:
            raise RuleError(
                f"remap_rows: the old vocabulary ({len(old)} tokens) and the new one ({len(new)}) have no token in "
                "common. Check that both are files of tokens, one in each line, of the same kind of tokens."
            )
        return RowMap.of(rows, len(old))

    @staticmethod
    def parse(text: str) -> RowMap:
        """Reads what `text` wrote.

        Raises:
          RuleError: it is something else.
        """
        count, _, data = text.partition(":")
        if not count.isascii() or not count.isdigit() or len(count) > 10:
            raise RuleError(f"remap_rows: rows have no number of source rows. {_FIX}.")
        try:
            found = RowMap(int(count), base64.b64decode(data.encode("ascii"), validate=True))
        except (binascii.Error, UnicodeEncodeError) as error:
            raise RuleError(f"remap_rows: rows are no base64: {error}. {_FIX}.") from error
        if found.text() != text:
            raise RuleError(f"remap_rows: rows are not in their canonical form. {_FIX}.")
        return found

    def text(self) -> str:
        """Source rows and runs, the latter in base64: `5:AAAAAAUAAAA=`."""
        return f"{self.source_rows}:{base64.b64encode(self.runs).decode('ascii')}"

    @property
    def size(self) -> int:
        """Number of target rows."""
        return int(self._pairs()[1].sum())

    @property
    def new(self) -> int:
        """Number of target rows that no source row gives."""
        first, count = self._pairs()
        return int(count[first < 0].sum())

    @property
    def dropped(self) -> int:
        """Number of source rows that no target row takes."""
        first, count = self._pairs()
        kept = first >= 0
        order = np.argsort(first[kept], kind="stable")
        low, high = first[kept][order], (first + count)[kept][order]
        reached = np.maximum.accumulate(high) if high.size else high
        gaps = np.maximum(0, low - np.concatenate([[0], reached])[:-1])
        return self.source_rows - (int(reached[-1]) if reached.size else 0) + int(gaps.sum())

    def rows(self) -> npt.NDArray[np.int64]:
        """One number for each target row; as large as the target, so shapes are to be checked before."""
        first, count = self._pairs()
        inside = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        starts = np.repeat(first, count)
        return np.where(starts < 0, -1, starts + inside)

    def part(self, begin: int, size: int, start: int, source_rows: int) -> RowMap:
        """The target rows `begin` to `begin + size`, for a source of which `source_rows` from `start` on are there."""
        rows = self.rows()[begin : begin + size]
        return RowMap.of(np.where(rows < 0, -1, rows - start), source_rows)

    def inverse(self) -> RowMap | None:
        """The map back, when every source row has exactly one place."""
        rows = self.rows()
        kept = np.flatnonzero(rows >= 0)
        if len(kept) != self.source_rows or self.dropped:
            return None
        back = np.empty(self.source_rows, np.int64)
        back[rows[kept]] = kept
        return RowMap.of(back, len(rows))

    def _pairs(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        pairs = _decoded(self.runs)
        return pairs[:, 0], pairs[:, 1]


@functools.lru_cache(maxsize=8)
def _decoded(runs: bytes) -> npt.NDArray[np.int64]:
    return np.frombuffer(runs, "<i4").astype(np.int64).reshape(-1, 2)


def _joinable(first: npt.NDArray[np.int64], count: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    both_new = (first[:-1] < 0) & (first[1:] < 0)
    follows = (first[:-1] >= 0) & (first[:-1] + count[:-1] == first[1:])
    found: npt.NDArray[np.bool_] = np.logical_or(both_new, follows)
    return found


def _places(tokens: Sequence[str], which: str) -> Mapping[str, int]:
    places = {token: row for row, token in enumerate(tokens)}
    if len(places) < len(tokens):
        # The later of two is in the table. Tokens themselves stay out of messages: a path may name any file.
        row = next(row for row, token in enumerate(tokens) if places[token] != row)
        raise RuleError(
            f"remap_rows: the {which} vocabulary has one token twice, in rows {row} and {places[tokens[row]]} (counted "
            "from 0). Which of the two rows is meant, nothing tells; make each token unique."
        )
    return places
