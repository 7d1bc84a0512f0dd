"""Rules that somebody writes who knows what became of every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

import dist_restore as dr
from building import Built, raw
from dist_restore.targets.targets import find_targets
from refactors import Refactor


def written_rules(
    style: str, refactor: Refactor, path: str, truth: Mapping[str, np.ndarray], new: Built
) -> dr.RuleSet | None:
    """The rules for one refactor; None where none are asked for, or none are needed.

    Args:
      style: none; literal (a rule for each variable of the model); prefix (a rule for each layer); pattern (the same,
        and a pattern for the optimizer's path beside them, where it has changed its key).
      refactor: what was done.
      path: of the checkpoint.
      truth: what the checkpoint holds, by role.
      new: the program that restores.
    """
    if style == "none":
        return None
    sources = source_names(path, truth)
    targets = {role: name for role, name in _target_names(new).items() if not _is_state(role)}
    pairs = {name: sources[role] for role, name in targets.items() if role in sources}
    rules = _literal(pairs) if style == "literal" else _prefixes(pairs)
    rules += [dr.Rule(keep=name) for role, name in targets.items() if role not in truth]
    gone = [name for role, name in sources.items() if role not in new.variables and not _is_state(role)]
    rules += [dr.Rule(drop=name) for name in gone]
    if style == "pattern":
        rules += _patterns(refactor)
    return dr.RuleSet(tuple(rules)) if rules else None


def _is_state(role: str) -> bool:
    return "@" in role or role.startswith(("optimizer.", "scale."))


def source_names(path: str, truth: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Role -> the tensor's name, known by its value."""
    source = dr.open_checkpoint(path)
    try:
        names = {}
        for tensor in source.index().tensors:
            if tensor.spec.dtype != "string":
                value = source.read(tensor.name)
                names[value.shape, str(value.dtype), value.tobytes()] = tensor.name
        keys = {role: (v.shape, str(v.dtype), v.tobytes()) for role, v in truth.items()}
        return {role: names[key] for role, key in keys.items() if key in names}
    finally:
        source.close()


def _target_names(new: Built) -> dict[str, str]:
    names = {id(raw(variable)): name for name, variable in find_targets(new.root).handles}
    return {role: names[id(v)] for role, v in new.variables.items() if id(v) in names}


def _literal(pairs: Mapping[str, str]) -> list[dr.Rule]:
    return [dr.Rule(from_=source, to=target) for target, source in pairs.items() if source != target]


def _prefixes(pairs: Mapping[str, str]) -> list[dr.Rule]:
    """A rule for each layer where all its variables go together, else one for each variable."""
    rules: dict[tuple[str, str], dr.Rule] = {}
    for target, source in pairs.items():
        if source == target:
            continue
        old, _, leaf = source.rpartition("/")
        new, _, same = target.rpartition("/")
        together = leaf == same and old and new
        key = (old, new) if together else (source, target)
        rules[key] = (
            dr.Rule(from_=f"{old}/{{rest}}", to=f"{new}/{{rest}}") if together else dr.Rule(from_=source, to=target)
        )
    return list(rules.values())


def _patterns(refactor: Refactor) -> list[dr.Rule]:
    """What people add for the optimizer's path, and where they call all variables otherwise."""
    old, new = refactor.old, refactor.new
    rules = [
        dr.Rule(from_=f"{{rest}}/{a}", to=f"{{rest}}/{b}") for a, b in zip(old.terms, new.terms, strict=True) if a != b
    ]
    given = [p.optimizer.key for p in (old, new) if p.optimizer and p.optimizer.place == "given"]
    if len(given) == 2:
        rules.append(dr.Rule(from_=f"{given[0]}/{{rest}}", to=f"{given[1]}/{{rest}}"))
    return [dataclasses.replace(rule, optional=True) for rule in rules]
