"""What the `config.json` of a `.keras` archive says of its layers: their names, classes and options, by group.

Plain JSON; nothing in it is imported, built or run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping

from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.text import snake_case

_CONTAINERS = frozenset({"Functional", "Sequential", "Model"})
_MAX_DEPTH = 100


@dataclasses.dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer.

    Attributes:
      name: its own.
      layer_class: in snake case.
      options: its config.
      members: of a functional or sequential model: its layers by the name of their group, in the model's order.
      optimizers: of a compiled model: the classes of its optimizer and of those inside, in lower case.
    """

    name: str
    layer_class: str
    options: Mapping[str, object]
    members: Mapping[str, LayerConfig]
    optimizers: tuple[str, ...] = ()


def parse_config(data: bytes, path: str) -> LayerConfig:
    """Reads a model's config.

    Raises:
      CheckpointCorruptError: it is no JSON object, or nests deeper than any model does.
    """
    try:
        return _layer(json.loads(data.decode("utf-8")), 0)
    except (ValueError, RecursionError, AttributeError, TypeError) as error:
        raise CheckpointCorruptError(f"{path}: config.json cannot be read: {str(error)[:200]}") from error


def _layer(value: object, depth: int) -> LayerConfig:
    if not isinstance(value, dict) or depth > _MAX_DEPTH:
        raise ValueError(f"expected the config of a layer, found {type(value).__name__} at depth {depth}")
    options = value.get("config")
    options = options if isinstance(options, dict) else {}
    class_name = str(value.get("class_name", ""))
    members = options.get("layers") if class_name in _CONTAINERS else None
    name = options.get("name", value.get("name", ""))
    found = _members(members, depth + 1) if isinstance(members, list) else {}
    return LayerConfig(str(name), snake_case(class_name), options, found, tuple(_optimizers(value)))


def _optimizers(value: Mapping[str, object]) -> Iterator[str]:
    """Classes from the outside in, for as long as the config says them."""
    compiled = value.get("compile_config")
    inside = compiled.get("optimizer") if isinstance(compiled, dict) else None
    while isinstance(inside, dict) and isinstance(inside.get("class_name"), str):
        yield inside["class_name"].rpartition(">")[2].lower()
        options = inside.get("config")
        inside = options.get("inner_optimizer") if isinstance(options, dict) else None


def _is_operation(value: object) -> bool:
    return isinstance(value, dict) and ".ops." in f"{value.get('module', '')}."


def _members(values: list[object], depth: int) -> dict[str, LayerConfig]:
    """Group names as Keras makes them: the class, and a counter from the second one on.

    An operation (`x + 1` is an `Add` too) is in the config, and no layer: Keras counts it not.
    """
    counts: dict[str, int] = {}
    found: dict[str, LayerConfig] = {}
    for layer in (_layer(value, depth) for value in values if not _is_operation(value)):
        count = counts.get(layer.layer_class, 0)
        counts[layer.layer_class] = count + 1
        found[f"{layer.layer_class}_{count}" if count else layer.layer_class] = layer
    return found
