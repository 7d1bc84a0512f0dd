"""The same weights in every format, into every kind of target, under every strategy: one list of behaviours."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping

import keras
import numpy as np
import pytest

import dist_restore as dr
from conftest import make_strategy
from dist_restore.ops import Reshape
from format_files import RULES, WRITERS, build, weights_of
from live import assert_holds, refuse, restore, scramble, value
from target_kinds import KINDS, PAIRS, Target

Names = Mapping[str, str]


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return weights_of(_original())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    directory = tmp_path_factory.mktemp("conformance")
    return {name: write(_original(), directory) for name, write in WRITERS.items()}


@pytest.fixture(params=sorted(WRITERS))
def path(request: pytest.FixtureRequest, files: dict[str, pathlib.Path]) -> pathlib.Path:
    return files[request.param]


@pytest.fixture(params=PAIRS, ids="-".join)
def target(request: pytest.FixtureRequest) -> Target:
    kind, strategy = request.param
    with make_strategy(strategy).scope():
        found = KINDS[kind]()
    scramble(found.root, seed=1)
    return found


def _original() -> keras.Model:
    model = build()
    scramble(model, seed=7)
    return model


def rules_for(target: Target, path: pathlib.Path, weights: Names) -> list[dr.Rule]:
    """What is called otherwise in the file or in the target; most pairs need nothing."""
    names = {name: _name_in_file(name, path) for name in weights}
    changed = {n: f"model/{target.renamed.get(n, n)}" for n in weights if n in target.renamed or n in _unsaid(path)}
    shapes = {n: tuple(target.variables[n].shape) for n in changed}
    return [
        dr.Rule(names[n], to, () if shapes[n] == weights[n].shape else (Reshape(shapes[n]),))
        for n, to in changed.items()
    ] + [dr.Rule(keep=pattern) for pattern in target.kept]


def _unsaid(path: pathlib.Path) -> set[str]:
    """What an object graph does not say: how a model inside a functional model is called."""
    return {"inner/first/kernel"} if path.name in RULES else set()


def _name_in_file(name: str, path: pathlib.Path) -> str:
    if name in _unsaid(path):
        return next(iter(RULES[path.name]))
    with contextlib.closing(dr.open_checkpoint(path)) as source:
        names = {n for t in source.index().tensors for n in (t.name, *(a.name for a in t.aliases))}
    return next(n for n in (name, f"model/{name}") if n in names)


def assert_filled(target: Target, weights: Names) -> None:
    assert target.variables.keys() == weights.keys()
    for name, variable in target.variables.items():
        assert_holds(variable, weights[name].reshape(variable.shape))


def test_every_format_fills_every_kind_of_target_on_every_replica(
    path: pathlib.Path, target: Target, weights: dict[str, np.ndarray]
) -> None:
    report = restore(target.root, path, rules=rules_for(target, path, weights))
    assert_filled(target, weights)
    assert report.verified


def test_a_plan_changes_nothing_and_is_carried_out_from_its_json(
    path: pathlib.Path, target: Target, weights: dict[str, np.ndarray]
) -> None:
    before = {name: value(v) for name, v in target.variables.items()}
    restorer = dr.DistributedRestorer(target.root, rules=rules_for(target, path, weights))
    text = restorer.plan(path).to_json()
    for name, variable in target.variables.items():
        assert_holds(variable, before[name])
    restorer.apply(dr.RestorePlan.from_json(text), path)
    assert_filled(target, weights)


def test_a_shape_that_does_not_fit_is_refused_before_anything_changes(
    path: pathlib.Path, target: Target, weights: dict[str, np.ndarray]
) -> None:
    name = f"model/{target.renamed.get('alike/kernel', 'alike/kernel')}"
    wrong = dr.Rule(_name_in_file("wide/kernel", path), name)
    rules = [wrong, *(r for r in rules_for(target, path, weights) if r.targets != (name,))]
    refuse(dr.ShapeMismatchError, target.root, path, "[6, 6]", "[4, 6]", "wide/kernel", rules=rules)
