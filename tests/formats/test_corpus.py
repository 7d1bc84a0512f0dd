"""Real checkpoints of refactored models, with a known answer for every variable (`corpus/README.md`)."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

import build
from dist_restore.checkpoints.tf.checkpoint import TfCheckpoint
from dist_restore.core.index import Alias, AliasKind, Group, OptimizerInfo, Slot, TargetIndex, TargetVariable
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops import apply
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.planner import Options, resolve
from dist_restore.planning.rules.rule_set import RuleSet
from places import CORPUS

PAIRS = sorted(path.name for path in CORPUS.glob("d*"))
# How many targets names alone settle, so that a loss is seen; the rest is reported, never guessed.
FILLED_BY_NAMES = {
    "d01_flat_to_nested": 6,
    "d03_separate_to_fused": 138,
    "d06a_block_inserted_named": 210,
    "d06b_block_inserted_index_shifts": 6,
    "d10a_synonyms": 0,
    "d10b_synonyms_adam": 0,
}


def load(pair: str, name: str) -> object:
    return json.loads((CORPUS / pair / name).read_text())


@functools.cache
def source(pair: str) -> TfCheckpoint:
    return TfCheckpoint(str(CORPUS / pair / "source.ckpt"))


def target(pair: str) -> TargetIndex:
    rows = load(pair, "target.json")
    assert isinstance(rows, list)
    variables = tuple(map(variable, rows))
    roles = tuple(sorted({v.slot.role for v in variables if v.slot}))
    optimizers = (OptimizerInfo("optimizer", "adam", "adam", roles),) if roles else ()
    return TargetIndex(variables, optimizers)


def variable(row: dict[str, str]) -> TargetVariable:
    kind, path = row.get("kind", "model"), row.get("keras_path", "")
    aliases = (Alias(path, AliasKind.SEMANTIC), Alias(path.replace("/", "_"), AliasKind.FLAT)) if path else ()
    slot = Slot(row["role"], row["owner"], "optimizer") if kind == "slot" else None
    group = Group.MODEL if kind == "model" else Group.OPTIMIZER
    spec = TensorSpec(tuple(map(int, row["shape"])), row["dtype"])
    return TargetVariable(row["name"], spec, aliases, AliasKind.SEMANTIC, group, slot)


@functools.cache
def resolved(pair: str, *, ruled: bool) -> RestorePlan:
    rules = RuleSet.load(CORPUS / "rules" / f"{pair}.toml") if ruled else RuleSet()
    return resolve(source(pair).index(), target(pair), rules, Options())


def keys(pair: str, plan: RestorePlan) -> dict[str, list[str]]:
    """Target -> the raw keys of its sources, for all that is filled."""
    table = {t.name: t.key for t in source(pair).index().tensors}
    return {name: [table[s] for s in sources] for name, sources in plan.mapping().items()}


def truth(pair: str) -> dict[str, list[str]]:
    rows = load(pair, "truth.json")
    assert isinstance(rows, dict)
    return {name: row["keys"] for name, row in rows.items() if row is not None}


def expected(pair: str) -> dict[str, np.ndarray]:
    """Reads a safetensors file: the length of a JSON header, the header, the bytes."""
    data = (CORPUS / pair / "expected.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    dtypes = {"F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
    arrays = {}
    for name, row in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = row["data_offsets"]
            arrays[name] = np.frombuffer(data[start + first : start + last], dtypes[row["dtype"]]).reshape(row["shape"])
    return arrays


def test_all_pairs_are_here() -> None:
    assert list(FILLED_BY_NAMES) == PAIRS


@pytest.mark.parametrize("pair", PAIRS)
def test_without_rules_nothing_is_filled_wrongly(pair: str) -> None:
    plan = resolved(pair, ruled=False)
    found, right = keys(pair, plan), truth(pair)
    assert found.items() <= right.items()
    assert len(found) == FILLED_BY_NAMES[pair]
    assert len(plan.problems) == len(plan.entries) - len(found)


@pytest.mark.parametrize("pair", PAIRS)
def test_with_its_rules_every_variable_comes_from_where_it_should(pair: str) -> None:
    plan = resolved(pair, ruled=True)
    assert keys(pair, plan) == truth(pair)
    assert plan.problems == ()
    assert {e.status.value for e in plan.entries if not e.filled} <= {"kept"}


@pytest.mark.parametrize("pair", PAIRS)
def test_with_its_rules_every_value_is_exact(pair: str) -> None:
    plan, right = resolved(pair, ruled=True), expected(pair)
    assert plan.mapping().keys() == right.keys()
    for entry in plan.entries:
        if entry.filled:
            value = apply(entry.ops, [source(pair).read(name) for name in entry.sources])
            assert value.dtype == right[entry.target].dtype
            assert np.array_equal(value, right[entry.target]), entry.target


def test_a_list_in_which_a_block_was_inserted_is_ambiguous_as_a_whole() -> None:
    plan = resolved("d06b_block_inserted_index_shifts", ruled=False)
    found = {e.target: e.status.value for e in plan.entries}
    assert {status for name, status in found.items() if name.startswith("blocks/")} == {"ambiguous"}
    assert {status for name, status in found.items() if not name.startswith("blocks/")} == {"renamed"}


@pytest.mark.parametrize("pair", PAIRS)
def test_suggestions_can_be_pasted_and_fill_nothing_wrongly(pair: str) -> None:
    rules = RuleSet.from_toml(resolved(pair, ruled=False).suggestions)
    plan = resolve(source(pair).index(), target(pair), rules, Options())
    assert keys(pair, plan).items() <= truth(pair).items()
    kept = {e.target for e in plan.entries if e.status.value == "kept"}
    assert not kept & truth(pair).keys()


def test_the_guesses_restore_what_was_only_nested_once_somebody_takes_them() -> None:
    """The few rules for a flat model made nested, and its slots with it; its root is new, so that names prove none."""
    pair = "d01_flat_to_nested"
    rules = RuleSet.from_toml(build.taken(resolved(pair, ruled=False).suggestions))
    assert len(rules.rules) < 15
    plan = resolve(source(pair).index(), target(pair), rules, Options())
    assert len(plan.mapping()) > 0.9 * len(truth(pair))
