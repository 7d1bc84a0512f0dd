"""The loss of every step as JSON lines, in full precision, to compare runs by."""

from __future__ import annotations

import json
import pathlib
from types import TracebackType


def read(path: str | pathlib.Path) -> dict[int, float]:
    """Returns the loss of each step in a file that `LossLog` wrote."""
    rows = (json.loads(line) for line in pathlib.Path(path).read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows}


class LossLog:
    """Writes `{"step": 1, "loss": 5.5452}` lines; a resumed run goes on behind the step that it resumes from."""

    def __init__(self, path: str, first_step: int) -> None:
        target = pathlib.Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        earlier = read(target) if target.exists() else {}
        self._file = target.open("w", buffering=1)
        for step, loss in earlier.items():
            if step <= first_step:
                self.write(step, loss)

    def __enter__(self) -> LossLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, step: int, loss: float) -> None:
        """Adds a line."""
        self._file.write(json.dumps({"step": step, "loss": loss}) + "\n")
