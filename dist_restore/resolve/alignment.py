"""Aligning roots: `net/dense/kernel` in the checkpoint is `model/dense/kernel` in the program.

Only where one alignment fits and no other does; a root that already fits as it is stays where it is.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from dist_restore.specs import AliasKind, SourceTensor, TargetVariable

PATH_KINDS = (AliasKind.SEMANTIC, AliasKind.COUNTED)


@dataclasses.dataclass(frozen=True, slots=True)
class Alignment:
    """Source names in the program's terms.

    Attributes:
      names: name in the program's terms -> the source tensors that have it (more than one is a conflict).
      moved: names in `names` that are not the source's own, with what moved them, for `evidence`.
    """

    names: Mapping[str, tuple[SourceTensor, ...]]
    moved: Mapping[str, str]


def align(
    targets: Sequence[TargetVariable], sources: Sequence[SourceTensor], settled: Iterable[tuple[str, str]]
) -> Alignment:
    """Expresses the semantic names of sources in the program's terms.

    Args:
      targets: variables that still want a source.
      sources: tensors that are still free.
      settled: (target name, source name) pairs that rules decided; they tell which roots belong together.

    Returns:
      The names. A root with several possible alignments gets all of them, so that its names conflict.
    """
    own = _source_names(sources)
    wanted = [t.name for t in targets if t.name_kind in PATH_KINDS and not t.tracker_only]
    settled_roots = dict(_settled_roots(settled))
    # A root that fits as it is, or that a rule speaks of, belongs to its namesake and moves nowhere.
    claimed = {_root(name) for name in wanted if name in own} | set(settled_roots.values())
    pairs = _root_pairs(wanted, own, claimed, settled_roots)
    names: dict[str, list[SourceTensor]] = collections.defaultdict(list)
    moved: dict[str, str] = {}
    taken = {source for _, source in pairs if source}
    for name, tensor in own.items():
        if _root(name) not in taken:
            names[name].append(tensor)
        for target_root, source_root in pairs:
            new = _swap_root(name, source_root, target_root) if _root(name) not in claimed else None
            if new is not None and tensor not in names[new]:
                names[new].append(tensor)
                moved[new] = f"root {source_root or '(none)'!r} aligned with {target_root or '(none)'!r}"
    return Alignment({name: tuple(found) for name, found in names.items() if found}, moved)


def _source_names(sources: Sequence[SourceTensor]) -> dict[str, SourceTensor]:
    table: dict[str, SourceTensor] = {}
    for tensor in sources:
        if tensor.name_kind in PATH_KINDS:
            table[tensor.name] = tensor
    for tensor in sources:
        for alias in tensor.aliases:
            if alias.kind in PATH_KINDS:
                table.setdefault(alias.name, tensor)
    return table


def _settled_roots(settled: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    for target, source in settled:
        yield _root(target), _root(source)


def _root(name: str) -> str:
    return name.partition("/")[0]


def _root_pairs(
    wanted: Sequence[str], own: Mapping[str, SourceTensor], claimed: set[str], settled: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """(target root, source root) pairs that differ; an empty root stands for none."""
    free = sorted({_root(name) for name in own} - claimed)
    if not claimed:
        pairs = [("", root) for root in free if any(f"{root}/{name}" in own for name in wanted)]
        if pairs:
            return tuple(pairs)
    pairs = []
    for root in sorted({_root(name) for name in wanted if "/" in name} - claimed - set(settled)):
        rests = [name.partition("/")[2] for name in wanted if name.startswith(f"{root}/")]
        pairs += [(root, r) for r in free if any(f"{r}/{rest}" in own for rest in rests)]
        pairs += [(root, "")] if any(rest in own and _root(rest) not in claimed for rest in rests) else []
    return tuple(pairs)


def _swap_root(name: str, old: str, new: str) -> str | None:
    if old and not name.startswith(f"{old}/"):
        return None
    rest = name[len(old) + 1 :] if old else name
    return f"{new}/{rest}" if new else rest
