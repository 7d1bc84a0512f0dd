"""The launch script: what it trains is repeatable, and a refactored model goes on as if nothing had happened."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterable

import numpy as np
import pytest
import tensorflow as tf

from lm import data, loss_log
from lm.compare import compare
from lm.interrupt import StopRequest
from lm.sizes import Sizes
from lm.state import State, build
from lm.training import steps
from places import ROOT
from warm import run_script

RULES = ROOT / "configs" / "rules" / "lm_v1_to_v2.toml"
# Scripts see the package whether it is installed or not, as the tests do.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
SMALL = Sizes(layers=2, width=16, heads=2, context=16)
SMALL_FLAGS = ["--layers=2", "--width=16", "--heads=2", "--context=16", "--batch_size=8", "--log_every=1"]

# Which layer of a version-2 block came from which of version 1; q, k and v apart.
_BLOCK = {"proj": "attention/out", "up": "mlp/up", "down": "mlp/down", "ln1": "attention_norm", "ln2": "mlp_norm"}
_TOP = {
    "token_embedding": "embed/tokens",
    "position_embedding": "embed/positions",
    "final_norm": "output_norm",
    "head": "lm_head",
}


def command(*flags: str) -> list[str]:
    return [str(ROOT / "scripts" / "train_lm.py"), *SMALL_FLAGS, *flags]


def train(*flags: str, code: int = 0) -> str:
    """Runs the script to its end and returns all that it printed."""
    done = run_script(command(*flags), environment=ENVIRONMENT)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def batches(first: int, last: int, seed: int = 0) -> tf.data.Dataset:
    return data.batches(
        data.read_corpus(), context=SMALL.context, batch_size=8, seed=seed, first_step=first, last_step=last
    )


def carried(state: State) -> dict[str, list[tf.Variable]]:
    """Returns each weight with its two moments, by Keras's path of the weight."""
    optimizer = state.optimizer
    triples = zip(state.model.trainable_variables, optimizer._momentums, optimizer._velocities, strict=True)
    return {weight.path.removeprefix("lm/"): [weight, *moments] for weight, *moments in triples}


def new_name(old: str) -> str:
    """Returns version 2's name of one of version 1's weights that is not part of q, k or v."""
    first, *rest = old.split("/")
    if first in _TOP:
        return "/".join([_TOP[first], *rest])
    return "/".join([first, _BLOCK[rest[0]], *rest[1:]])


def values_for_v2(old: dict[str, list[tf.Variable]]) -> dict[str, list[np.ndarray]]:
    """The refactor by hand, without dist_restore."""
    new: dict[str, list[np.ndarray]] = {}
    for name, variables in old.items():
        block, layer, *part = name.split("/")
        if layer == "q":
            thirds = [old["/".join([block, third, *part])] for third in "qkv"]
            fused = [np.concatenate([v.numpy() for v in same], -1) for same in zip(*thirds, strict=True)]
            new["/".join([block, "attention/qkv", *part])] = fused
        elif layer not in ("k", "v"):
            new[new_name(name)] = [v.numpy() for v in variables]
    return new


def refactor_by_hand(old: State, new: State, *, moments: bool) -> None:
    values, targets = values_for_v2(carried(old)), carried(new)
    assert values.keys() == targets.keys()
    for name, variables in targets.items():
        for variable, value in zip(variables if moments else variables[:1], values[name], strict=False):
            variable.assign(value)
    new.step.assign(old.step)
    new.optimizer.iterations.assign(old.optimizer.iterations)


def run(state: State, first: int, last: int) -> dict[int, float]:
    done = steps(state, tf.distribute.get_strategy(), batches(first, last), StopRequest())
    return {step.number: step.loss for step in done}


def tokens_of(dataset: Iterable[tf.Tensor]) -> np.ndarray:
    return np.stack([batch.numpy() for batch in dataset])


def test_both_versions_compute_the_same_function() -> None:
    old, new = build(1, SMALL, seed=1), build(2, SMALL, seed=2)
    refactor_by_hand(old, new, moments=False)
    tokens = tokens_of(batches(0, 1))[0][:, :-1]
    np.testing.assert_allclose(old.model(tokens), new.model(tokens), rtol=1e-5, atol=1e-5)


def test_the_tolerance_shows_lost_moments() -> None:
    old, whole, without = build(1, SMALL), build(2, SMALL), build(2, SMALL)
    run(old, 0, 5)
    refactor_by_hand(old, whole, moments=True)
    refactor_by_hand(old, without, moments=False)
    never = run(old, 5, 10)
    assert compare(never, run(whole, 5, 10), 6, 10).worst < 1e-5
    assert compare(never, run(without, 5, 10), 6, 10).worst > 1e-4


def test_a_model_sees_no_later_byte() -> None:
    model = build(2, SMALL).model
    tokens = tokens_of(batches(0, 1))[0][:, :-1]
    changed = tokens.copy()
    changed[:, -1] += 1
    np.testing.assert_array_equal(model(tokens)[:, :-1], model(changed)[:, :-1])


def test_a_resumed_run_sees_the_same_batches() -> None:
    whole = tokens_of(batches(0, 6))
    assert whole.shape == (6, 8, SMALL.context + 1)
    np.testing.assert_array_equal(whole, tokens_of(batches(0, 6)))
    np.testing.assert_array_equal(whole[4:], tokens_of(batches(4, 6)))
    assert not np.array_equal(whole, tokens_of(batches(0, 6, seed=1)))


def test_batches_are_cut_from_the_text() -> None:
    text = data.read_corpus()
    for example in tokens_of(batches(0, 2)).reshape(-1, SMALL.context + 1):
        assert bytes(example.tolist()) in text


def test_a_missing_step_is_no_agreement() -> None:
    with pytest.raises(KeyError):
        compare({1: 1.0, 2: 1.0}, {1: 1.0}, 1, 2)
    assert compare({1: 1.0}, {1: float("nan")}, 1, 1).worst == float("inf")
    assert compare({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.2}, 1, 2).worst == pytest.approx(0.1)


def refactor_flags(tmp_path: pathlib.Path, devices: list[str]) -> list[str]:
    """Trains version 1 and returns the flags with which version 2 goes on from half way."""
    v1, v2 = tmp_path / "v1", tmp_path / "v2"
    train(*devices, "--steps=20", "--checkpoint_every=10", f"--checkpoint_dir={v1}", f"--loss_log={v1}.jsonl")
    return [
        *devices,
        "--model_version=2",
        f"--checkpoint_dir={v2}",
        f"--loss_log={v2}.jsonl",
        f"--restore_from={v1 / 'ckpt-10'}",
        f"--rules={RULES}",
    ]


def worst_difference(tmp_path: pathlib.Path) -> float:
    return compare(loss_log.read(tmp_path / "v1.jsonl"), loss_log.read(tmp_path / "v2.jsonl"), 11, 20).worst


@pytest.mark.slow
@pytest.mark.parametrize("devices", [["--strategy=default"], ["--strategy=mirrored", "--replicas=4", "--layers=1"]])
def test_losses_go_on_where_version_1_was(tmp_path: pathlib.Path, devices: list[str]) -> None:
    train(*refactor_flags(tmp_path, devices), "--steps=20")
    assert worst_difference(tmp_path) <= 1e-5


@pytest.mark.slow
def test_rules_are_one_shot(tmp_path: pathlib.Path) -> None:
    refactored = refactor_flags(tmp_path, ["--strategy=mirrored", "--replicas=2"])
    train(*refactored, "--steps=15")
    # The same command again: from here on it is the run's own checkpoint that counts.
    assert "the run's own checkpoint" in train(*refactored, "--steps=20")
    assert worst_difference(tmp_path) <= 1e-5


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: pathlib.Path) -> None:
    """With blocks in a list, which `tf.train.Checkpoint` alone would not restore."""
    own = ["--model_version=2", f"--loss_log={tmp_path}/parts", f"--checkpoint_dir={tmp_path}/own"]
    train("--model_version=2", "--steps=12", f"--loss_log={tmp_path}/whole")
    train(*own, "--steps=6")
    train(*own, "--steps=12")
    assert loss_log.read(tmp_path / "parts") == loss_log.read(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_that_can_be_resumed(tmp_path: pathlib.Path) -> None:
    flags = [f"--checkpoint_dir={tmp_path}/own", f"--loss_log={tmp_path}/log"]
    with subprocess.Popen(
        [sys.executable, *command(*flags, "--steps=1000000")], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if re.match(r"step +5 ", line):
                running.send_signal(signal.SIGINT)
                break
        said = running.stdout.read()
    assert running.returncode == 128 + signal.SIGINT
    match = re.search(r"stopped after step (\d+): saved .*ckpt-(\d+)", said)
    assert match and match[1] == match[2], said
    step = int(match[1])
    train(*flags, f"--steps={step + 2}")
    assert sorted(loss_log.read(tmp_path / "log")) == list(range(1, step + 3))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--restore=required"], "nothing|no --restore_from"),
        (["--restore_from={tmp}/nowhere"], "nowhere"),
        (["--rules=rules.toml"], "--restore_from, which is not given"),
        (["--restore=never", "--checkpoint_dir={tmp}/used"], "another run's checkpoints"),
        (["--strategy=mirrored", "--replicas=3"], "cannot be divided over 3 replicas"),
        (["--width=15"], "multiple of heads"),
        (["--strategy=multiworker"], "nothing says who the workers are"),
        (["--strategy=tpu", "--tpu=local"], "no TPU answers for --tpu=local"),
    ],
)
def test_a_run_that_would_go_wrong_does_not_start(tmp_path: pathlib.Path, flags: list[str], message: str) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "ckpt-1.index").touch()
    said = train("--steps=1", *(flag.format(tmp=tmp_path) for flag in flags), code=1)
    assert re.search(message, said) and "Traceback" not in said, said


def test_if_present_says_that_it_starts_from_scratch(tmp_path: pathlib.Path) -> None:
    said = train("--steps=1", "--restore=if_present", f"--restore_from={tmp_path}/nowhere")
    assert f"training from scratch: nothing at {tmp_path}/nowhere" in said


def test_if_present_does_not_hide_a_damaged_checkpoint(tmp_path: pathlib.Path) -> None:
    (tmp_path / "ckpt-1.index").write_bytes(b"not an index")
    said = train("--steps=1", "--restore=if_present", f"--restore_from={tmp_path}/ckpt-1", code=1)
    assert "train_lm: Checkpoint" in said and "Traceback" not in said, said
