"""What --restore_from says: one checkpoint, or several by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Paths = str | Mapping[str, str]


def parse_paths(values: Sequence[str] | None) -> Paths | None:
    """Reads a flag that may be given several times.

    Args:
      values: once: a path as it is, which may hold any character. Several times: `name=path` each, where the first `=`
        ends the name.

    Raises:
      ValueError: one of several has no name, or two have the same.
    """
    if not values:
        return None
    if len(values) == 1:
        return values[0]
    paths: dict[str, str] = {}
    for value in values:
        name, separator, path = value.partition("=")
        if not separator:
            raise ValueError(
                f"--restore_from={value}: where it is given several times, write name=path, as in encoder={value}"
            )
        if name in paths:
            raise ValueError(f"--restore_from names two checkpoints {name!r}: {paths[name]} and {path}")
        paths[name] = path
    return paths


def describe_paths(paths: Paths) -> str:
    """The paths in one line."""
    return paths if isinstance(paths, str) else ", ".join(f"{name}={path}" for name, path in paths.items())
