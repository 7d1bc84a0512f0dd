"""Names of flat files (safetensors, NumPy archives): a dot is a separator where a name has no slash."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping

from dist_restore.core.index import Alias, AliasKind, SourceTensor
from dist_restore.core.tensors import TensorSpec


def name_tensors(specs: Mapping[str, TensorSpec]) -> tuple[SourceTensor, ...]:
    """Canonical names with slashes; the file's own name is an alias, and the key.

    Where two names would become one (`a.b` beside `a/b`), both stay as they are.
    """
    wanted = {key: slashed(key) for key in specs}
    counts = collections.Counter(wanted.values())
    names = {key: name if counts[name] == 1 else key for key, name in wanted.items()}
    tensors = (_tensor(key, names[key], spec) for key, spec in specs.items())
    return tuple(sorted(tensors, key=lambda t: t.name))


def slashed(key: str) -> str:
    """`model.layers.0.weight` -> `model/layers/0/weight`; names with slashes, or with empty parts, stay."""
    parts = key.split(".")
    return key if "/" in key or not all(parts) else "/".join(parts)


def _tensor(key: str, name: str, spec: TensorSpec) -> SourceTensor:
    aliases = (Alias(key, AliasKind.SEMANTIC),) if key != name else ()
    return SourceTensor(name, spec, aliases, key=key)


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs again, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
