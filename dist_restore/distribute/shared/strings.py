"""Values of strings, whose size no schedule knows: the chief reads them, and they travel as text."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import numpy as np

from dist_restore.checkpoints.reader import Source
from dist_restore.core.errors import RestoreError
from dist_restore.engine.units import Unit
from dist_restore.engine.values import Value, Values, read_whole, transform
from dist_restore.planning.entries import PlanEntry
from dist_restore.tf_internals.host_memory import HostBuffer


def is_string(unit: Unit) -> bool:
    """Whether some value of a unit consists of strings."""
    return any(entry.spec.dtype == "string" for entry in unit.entries)


def read_strings(units: Sequence[Unit], source: Source) -> bytes:
    """The values of such units, for other workers. Called by the chief.

    Raises:
      CheckpointCorruptError: the bytes are not what was written.
    """
    texts: list[list[str]] = []
    for unit in units:
        arrays = read_whole(unit, source)
        for entry in unit.entries:
            value = transform(entry, arrays, source, None)
            texts.append([base64.b64encode(bytes(item)).decode("ascii") for item in value.ravel()])
    return json.dumps(texts).encode("ascii")


def parse_strings(units: Sequence[Unit], data: bytes) -> Values:
    """What `read_strings` made, as values to assign."""
    entries = [entry for unit in units for entry in unit.entries]
    texts = json.loads(data)
    if len(texts) != len(entries):
        raise RestoreError(f"internal: {len(texts)} string values came for {len(entries)} variables")
    return [_value(entry, items) for entry, items in zip(entries, texts, strict=True)]


def _value(entry: PlanEntry, items: Sequence[str]) -> Value:
    array = np.empty(entry.spec.elements, object)
    array[:] = [base64.b64decode(item) for item in items]
    return Value(entry, HostBuffer(array.reshape(entry.spec.shape)), None)
