"""Several checkpoints into one model: `{"encoder": path, "decoder": path}`."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tracemalloc

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

import build
import dist_restore as dr
import live
from bundle_fixtures import data_file, flip_bit
from dist_restore.checkpoints.combined import MAX_NAME, join, require_names, split
from dist_restore.checkpoints.tf.checkpoint import TfCheckpoint
from dist_restore.core.index import CheckpointIndex, in_part
from dist_restore.ops import Mean
from dist_restore.report import tensorboard
from format_files import WRITERS, weights_of
from format_files import build as build_net
from lm.paths import describe_paths, parse_paths
from places import ROOT


def test_one_directory_under_several_names_is_refused(tmp_path: pathlib.Path) -> None:
    """It means its latest checkpoint: an average of it with itself would look like one of several."""
    root = tf.train.Checkpoint(table=tf.Variable([1.0, 2.0]))
    manager = tf.train.CheckpointManager(root, str(tmp_path), max_to_keep=3)
    first, second = manager.save(), manager.save()
    directory = str(tmp_path)
    with pytest.raises(dr.CheckpointNotFoundError, match=r"'a', 'b'.*latest checkpoint.*ckpt-2"):
        dr.open_checkpoint({"a": directory, "b": directory})
    dr.open_checkpoint({"a": first, "b": directory}).close()
    dr.open_checkpoint({"a": second, "b": second}).close()  # said in so many words


# ---- Decided from names alone ----------------------------------------------------------------------------


def several(**texts: str) -> CheckpointIndex:
    return join({name: build.checkpoint(text) for name, text in texts.items()})


def test_what_just_one_checkpoint_has_is_taken_from_it() -> None:
    found = build.plan(
        several(a="model/x/kernel 2x3", b="model/y/kernel 3x4"), "model/x/kernel 2x3\nmodel/y/kernel 3x4"
    )
    assert build.filled(found) == {"model/x/kernel": "a:model/x/kernel", "model/y/kernel": "b:model/y/kernel"}
    assert build.statuses(found) == {"model/x/kernel": "exact", "model/y/kernel": "exact"}
    assert build.entry(found, "model/x/kernel").evidence == "equal names, in 'a' alone"
    assert not found.unused


def test_what_several_have_is_ambiguous_with_all_candidates() -> None:
    found = build.plan(several(a="model/x/kernel 2", b="model/x/kernel 2", c="model/y 2"), "model/x/kernel 2")
    entry = build.entry(found, "model/x/kernel")
    assert entry.problem.value == "ambiguous" and not found.mapping()
    assert entry.candidates == ("a:model/x/kernel", "b:model/x/kernel")
    assert "'a', 'b'" in entry.reason and 'from = "a:model/x/kernel"' in entry.reason


def test_a_rule_decides_between_several() -> None:
    sources = several(a="model/x/kernel 2", b="model/x/kernel 2\nmodel/y/kernel 2")
    rules = '[[rule]]\nfrom = "b:model/{rest}"\nto = "model/{rest}"'
    found = build.plan(sources, "model/x/kernel 2\nmodel/y/kernel 2", rules)
    assert build.filled(found) == {"model/x/kernel": "b:model/x/kernel", "model/y/kernel": "b:model/y/kernel"}
    assert dict(found.unused) == {"a:model/x/kernel": "rule 1 fills the variable of this name from another tensor"}


def test_a_drop_decides_between_several() -> None:
    sources = several(a="model/x/kernel 2", b="model/x/kernel 2")
    found = build.plan(sources, "model/x/kernel 2", '[[rule]]\ndrop = "a:{rest}"')
    assert build.filled(found) == {"model/x/kernel": "b:model/x/kernel"}
    assert "dropped by rule 1" in dict(found.unused)["a:model/x/kernel"]


def test_another_shape_is_no_rival_and_no_match() -> None:
    found = build.plan(several(a="model/x/kernel 2", b="model/x/kernel 3"), "model/x/kernel 3")
    assert build.filled(found) == {"model/x/kernel": "b:model/x/kernel"}
    found = build.plan(several(a="model/x/kernel 2", b="model/y 4"), "model/x/kernel 3")
    assert build.problems(found) == {"model/x/kernel": "shape"}
    found = build.plan(several(a="model/x/kernel 2", b="model/x/kernel 4"), "model/x/kernel 3")
    assert build.problems(found) == {"model/x/kernel": "ambiguous"}


def test_the_root_of_each_checkpoint_is_aligned_for_itself() -> None:
    target = "encoder/one/kernel 2x2\nencoder/two/kernel 2x3\ndecoder/three/kernel 3x4\ndecoder/four/kernel 4x4"
    sources = several(a="model/one/kernel 2x2\nmodel/two/kernel 2x3", b="net/three/kernel 3x4\nnet/four/kernel 4x4")
    found = build.plan(sources, target)
    assert build.filled(found)["encoder/one/kernel"] == "a:model/one/kernel"
    assert build.filled(found)["decoder/four/kernel"] == "b:net/four/kernel"
    # The same layout twice: nothing tells which is which, whatever the mapping calls them.
    twins = "model/one/kernel 2x2\nmodel/two/kernel 2x2"
    target = twins.replace("model", "encoder") + "\n" + twins.replace("model", "decoder")
    found = build.plan(several(encoder=twins, decoder=twins), target)
    assert set(build.problems(found).values()) == {"ambiguous"} and not found.mapping()


def test_lists_of_unequal_length_are_asked_about_in_each_checkpoint() -> None:
    three = "\n".join(f"model/blocks/{i}/kernel 2x2" for i in range(3))
    five = "\n".join(f"model/blocks/{i}/kernel 2x2" for i in range(5))
    found = build.plan(several(a=three, b="model/head 2"), f"{five}\nmodel/head 2")
    problems = build.problems(found)
    assert problems["model/blocks/0/kernel"] == "ambiguous" and "model/head" not in problems
    assert "'a'" in build.entry(found, "model/blocks/0/kernel").reason


def test_slots_follow_their_owner_into_its_checkpoint() -> None:
    texts = {
        name: f"model/{layer}/kernel 2x2\nmomentum@model/{layer}/kernel\nvelocity@model/{layer}/kernel"
        for name, layer in (("a", "x"), ("b", "y"))
    }
    program = "\n".join(texts.values())
    found = build.filled(build.plan(several(**texts), program))
    assert found["optimizer/velocity/model/y/kernel"] == "b:optimizer/velocity/model/y/kernel"
    assert found["optimizer/momentum/model/x/kernel"] == "a:optimizer/momentum/model/x/kernel"
    rules = {"a:model/x/kernel": "model/y/kernel", "b:model/y/kernel": "model/x/kernel"}
    found = build.filled(build.plan(several(**texts), program, rules))
    assert found["optimizer/velocity/model/y/kernel"] == "a:optimizer/velocity/model/x/kernel"


def test_the_class_of_each_checkpoints_optimizer_counts() -> None:
    text = "model/{0}/kernel 2x2\nmomentum@model/{0}/kernel"
    parts = {
        "a": build.checkpoint(text.format("x"), {"optimizer": "adam"}),
        "b": build.checkpoint(text.format("y"), {"optimizer": "sgd"}),
    }
    found = build.plan(join(parts), build.program(f"{text.format('x')}\n{text.format('y')}", {"optimizer": "adam"}))
    assert build.problems(found) == {"optimizer/momentum/model/y/kernel": "unmatched"}


def test_the_optimizers_own_state_is_ambiguous_where_both_have_one() -> None:
    text = "optimizer/iterations - int64\nmodel/{0}/kernel 2\nmomentum@model/{0}/kernel"
    sources = several(a=text.format("x"), b=text.format("y"))
    target = f"{text.format('x')}\nmodel/y/kernel 2\nmomentum@model/y/kernel"
    assert build.problems(build.plan(sources, target)) == {"optimizer/iterations": "ambiguous"}
    found = build.plan(sources, target, {"a:optimizer/iterations": "optimizer/iterations"})
    assert not found.problems and build.filled(found)["optimizer/iterations"] == "a:optimizer/iterations"


def test_several_counters_of_saves_are_left_alone() -> None:
    text = "save_counter - int64\nmodel/{0}/kernel 2"
    target = build.program("save_counter - int64 keep:own\nmodel/x/kernel 2\nmodel/y/kernel 2")
    found = build.plan(several(a=text.format("x"), b=text.format("y")), target)
    entry = build.entry(found, "save_counter")
    assert (entry.status.value, entry.sources) == ("kept", ()) and "counts its own saves" in entry.reason
    found = build.plan(several(a=text.format("x"), b="model/y/kernel 2"), target)
    assert build.filled(found)["save_counter"] == "a:save_counter"
    found = build.plan(several(a=text.format("x"), b=text.format("y")), target, {"b:save_counter": "save_counter"})
    assert build.filled(found)["save_counter"] == "b:save_counter"


def test_what_has_a_place_only_is_no_rival_of_what_has_the_name() -> None:
    nameless = "o/tv/0 2 kind:positional pos:optimizer/trainable_variables/0"
    sources = several(a=nameless, b="model/x/kernel 2")
    target = (
        "model/x/kernel 2 pos:optimizer/trainable_variables/0\nmodel/y/kernel 2 pos:optimizer/trainable_variables/1"
    )
    found = build.plan(sources, target)
    assert build.filled(found) == {"model/x/kernel": "b:model/x/kernel"}


MEAN = "ops = [{ mean = { weights = [1, 3] } }]"


def test_an_average_takes_the_same_name_of_each() -> None:
    text = "model/x/kernel 2x2\nmodel/x/bias 2"
    rules = f'[[rule]]\nfrom = ["a:model/{{rest}}", "b:model/{{rest}}"]\nto = "model/{{rest}}"\n{MEAN}'
    found = build.plan(several(a=text, b=text), text, rules)
    assert build.filled(found)["model/x/bias"] == "a:model/x/bias + b:model/x/bias"
    assert set(build.statuses(found).values()) == {"transformed"}
    with pytest.raises(dr.RuleError, match="'b:model/x/bias', which the rule joins it with, is not"):
        build.plan(several(a=text, b="model/x/kernel 2x2"), text, rules)


@pytest.mark.parametrize("role", ["momentum", "velocity"])
def test_slots_of_an_average_are_not_mixed_unasked(role: str) -> None:
    text = f"model/x/kernel 2x2\n{role}@model/x/kernel"
    rules = f'[[rule]]\nfrom = ["a:model/x/kernel", "b:model/x/kernel"]\nto = "model/x/kernel"\n{MEAN}'
    found = build.plan(several(a=text, b=text), text, rules)
    name = f"optimizer/{role}/model/x/kernel"
    assert build.problems(found) == {name: "unmatched"}
    assert f"keep = {name!r}" in build.entry(found, name).reason
    kept = build.plan(several(a=text, b=text), text, f'{rules}\n[[rule]]\nkeep = "optimizer/{{rest}}"')
    assert build.entry(kept, name).status.value == "kept"
    asked = rules.replace("model/x/kernel", name)
    assert build.filled(build.plan(several(a=text, b=text), text, f"{rules}\n{asked}"))[name] == f"a:{name} + b:{name}"


@pytest.mark.parametrize("name", ["enc:model/x", "model/x", "encoders:model/{rest}"])
def test_a_rule_of_an_unknown_checkpoint_is_told_which_there_are(name: str) -> None:
    with pytest.raises(dr.RuleError, match=r"'decoder', 'encoder' \(names in them begin with one of these"):
        build.plan(several(encoder="model/x 2", decoder="model/y 2"), "model/x 2", {name: "model/x"})


def test_captures_work_after_the_prefix() -> None:
    sources = several(encoder="model/layer_0/w 2\nmodel/layer_1/w 2", decoder="model/layer_0/w 2")
    rules = '[[rule]]\nfrom = "encoder:model/layer_{i}/{rest}"\nto = "net/{i+1}/{rest}"'
    found = build.plan(sources, "net/1/w 2\nnet/2/w 2", rules)
    assert build.filled(found) == {"net/1/w": "encoder:model/layer_0/w", "net/2/w": "encoder:model/layer_1/w"}


def test_suggestions_can_be_pasted() -> None:
    target = "model/first/kernel 2x7\nmodel/last/kernel 2x5"
    sources = several(a="model/first/kernels 2x7\nmodel/last_kernel 2x5", b="model/other/thing 2")
    found = build.plan(sources, target)
    assert build.filled(build.plan(sources, target, found.suggestions)) == {"model/last/kernel": "a:model/last_kernel"}
    assert build.filled(build.plan(sources, target, build.taken(found.suggestions))) == {
        "model/first/kernel": "a:model/first/kernels",
        "model/last/kernel": "a:model/last_kernel",
    }


def test_a_plan_carries_the_paths_beside_its_digest() -> None:
    found = build.plan(several(a="model/x 2", b="model/y 2"), "model/x 2")
    assert found.checkpoints == (("a", "ckpt-1"), ("b", "ckpt-1")) and found.checkpoint == "a=ckpt-1, b=ckpt-1"
    again = dr.RestorePlan.from_json(found.to_json())
    assert again == found and again.digest == found.digest
    single = build.plan("model/x 2", "model/x 2")
    assert "checkpoints" not in single.to_json() and dr.RestorePlan.from_json(single.to_json()) == single


def test_the_order_of_the_mapping_does_not_matter() -> None:
    texts = {"a": "model/x 2", "b": "model/y 2", "c-1": "model/x 2"}
    plans = [
        build.plan(several(**{n: texts[n] for n in names}), "model/x 2")
        for names in ("a b c-1", "c-1 b a")
        for names in [names.split()]
    ]
    assert plans[0] == plans[1]


def test_the_report_says_how_much_of_each_is_used() -> None:
    found = build.plan(several(a="model/x 2\nmodel/z 2", b="model/y 2"), "model/x 2")
    assert [tuple(use) for use in found.uses] == [("a", "ckpt-1", 1, 1), ("b", "ckpt-1", 0, 1)]
    assert "from a: 1 of 2 tensors of ckpt-1\nfrom b: 0 of 1 tensors of ckpt-1" in found.summary()
    texts = dict(tensorboard.texts(dr.RestoreReport(plan=found)))
    assert "| a" in texts["checkpoints"] and "a:model/x" in texts["mapping"] and "b:model/y" in texts["unused"]
    single = dr.RestoreReport(plan=build.plan("model/x 2", "model/x 2"))
    assert "checkpoints" not in dict(tensorboard.texts(single)) and "from a" not in single.summary()


_WORD = st.text("abAB01_-", min_size=1, max_size=6)
_OWN = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12) | st.text(":/ab", min_size=1)


@hypothesis.given(st.dictionaries(_WORD, st.sets(_OWN, min_size=1, max_size=4), min_size=1, max_size=4))
def test_names_stay_apart_whatever_colons_they_hold(names: dict[str, set[str]]) -> None:
    require_names(dict.fromkeys(names, "path"))
    spec = build.checkpoint("x 2").tensors[0]
    parts = {}
    for part, own in names.items():
        tensors = [spec.__class__(name, spec.spec) for name in sorted(own)]
        parts[part] = CheckpointIndex(part, "tf1", tuple(tensors))
    joined = join(parts)
    assert {split(t.name) for t in joined.tensors} == {(part, name) for part in names for name in names[part]}
    assert {t.name for t in joined.tensors} == {in_part(part, name) for part in names for name in names[part]}
    assert all(t.own_name == split(t.name)[1] and t.part == split(t.name)[0] for t in joined.tensors)
    assert [t.name for t in joined.tensors] == sorted(t.name for t in joined.tensors)


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "a b", "é", "{i}", "a\n", "x" * (MAX_NAME + 1), "a=b", "a,b"])
def test_names_that_rules_could_not_write_are_refused(name: str) -> None:
    with pytest.raises(dr.RuleError, match="letters, digits, _ and -"):
        require_names({"good": "path", name: "path"})


def test_a_colon_in_a_name_of_a_single_checkpoint_means_nothing() -> None:
    found = build.plan("encoder:model/x 2\nmodel/y 2", "model/x 2\nmodel/y 2")
    assert build.filled(found) == {"model/y": "model/y"}
    found = build.plan("encoder:model/x 2", "model/x 2", {"encoder:model/x": "model/x"})
    assert build.entry(found, "model/x").status.value == "renamed"


# ---- Carried out -----------------------------------------------------------------------------------------

ENCODER_DECODER = {"encoder:model/{rest}": "model/encoder/{rest}", "decoder:model/{rest}": "model/decoder/{rest}"}


def half(seed: int, *, width: int = 4) -> tf.train.Checkpoint:
    """A model and its Adam, with values of their own."""
    model = live.net(width, inner=width, outer=width)
    optimizer = live.adam(model)
    live.scramble(model, optimizer, seed=seed)
    return tf.train.Checkpoint(model=model, optimizer=optimizer)


def whole(strategy: tf.distribute.Strategy) -> tf.train.Checkpoint:
    """A model of two halves, and one Adam for both."""
    with strategy.scope():
        model = live.Net(encoder=live.net(4, inner=4, outer=4), decoder=live.net(4, inner=4, outer=4))
        model(tf.zeros((1, 4)))
        optimizer = live.adam(model)
        live.scramble(model, optimizer, seed=9)
        return tf.train.Checkpoint(model=model, optimizer=optimizer)


def halves(directory: pathlib.Path) -> tuple[dict[str, str], dict[str, tf.train.Checkpoint]]:
    parts = {"encoder": half(1), "decoder": half(2)}
    return {name: live.save(part, directory / name) for name, part in parts.items()}, parts


def test_two_halves_with_their_slots_into_one_model(strategy: tf.distribute.Strategy, tmp_path: pathlib.Path) -> None:
    paths, parts = halves(tmp_path)
    target = whole(strategy)
    live.refuse(dr.AmbiguousMatchError, target, paths, "optimizer/iterations", "decoder:", rules=ENCODER_DECODER)
    rules = {**ENCODER_DECODER, "encoder:optimizer/{rest}": "optimizer/{rest}"}
    report = live.restore(target, paths, rules=rules)
    assert report.verified and report.plan.checkpoints == tuple(sorted(paths.items()))
    for name, part in parts.items():
        ours = getattr(target.model, name)
        live.assert_all_hold(ours.variables, live.values(part.model.variables))
        for mine, theirs in zip(ours.variables, part.model.variables, strict=True):
            for role in ("momentums", "velocities"):
                stored = live.value(live.slot(part.optimizer, role, theirs))
                live.assert_holds(live.slot(target.optimizer, role, mine), stored)
    live.assert_holds(target.optimizer.iterations, parts["encoder"].optimizer.iterations.numpy())
    assert int(target.save_counter) == 0


@pytest.mark.parametrize("other", ["checkpoint", "safetensors", "npz", "weights", "keras", "saved_model"])
def test_formats_can_be_mixed(other: str, tmp_path: pathlib.Path, mirrored2: tf.distribute.Strategy) -> None:
    model, part = build_net(), half(3)
    live.scramble(model, seed=4)
    paths = {"tf": live.save(part, tmp_path / "tf"), "other": os.fspath(WRITERS[other](model, tmp_path))}
    with mirrored2.scope():
        target = {"part": live.net(4, inner=4, outer=4), "net": build_net()}
    live.scramble(target)
    rules = {"tf:model/{rest}": "part/{rest}"}
    if other == "checkpoint":
        rules["other:model/operations/3/first/kernel"] = "net/inner/first/kernel"
    live.restore(target, paths, rules=rules)
    live.assert_all_hold(target["part"].variables, live.values(part.model.variables))
    live.assert_all_hold(target["net"].variables, [weights_of(model)[v.path] for v in target["net"].variables])


def test_a_plan_of_several_is_applied_to_them_alone(tmp_path: pathlib.Path) -> None:
    paths, parts = halves(tmp_path)
    target = whole(tf.distribute.get_strategy())
    rules = {**ENCODER_DECODER, "encoder:optimizer/{rest}": "optimizer/{rest}"}
    restorer = dr.DistributedRestorer(target, rules=rules)
    plan = dr.RestorePlan.from_json(restorer.plan(paths).to_json())
    before = live.snapshot(target)
    crossed = {"encoder": paths["encoder"], "other": paths["decoder"]}
    for other in (paths["encoder"], {"encoder": paths["encoder"]}, crossed):
        with pytest.raises(dr.PlanMismatchError, match="Make it again"):
            restorer.apply(plan, other)
    live.assert_unchanged(before)
    restorer.apply(plan, dict(reversed(paths.items())))
    live.assert_all_hold(target.model.decoder.variables, live.values(parts["decoder"].model.variables))


@pytest.mark.parametrize("missing", ["encoder", "decoder"])
def test_the_one_that_is_missing_is_named(missing: str, tmp_path: pathlib.Path) -> None:
    paths, _ = halves(tmp_path)
    paths[missing] = os.fspath(tmp_path / "nowhere" / "ckpt-1")
    target = whole(tf.distribute.get_strategy())
    live.refuse(dr.CheckpointNotFoundError, target, paths, f"checkpoint {missing!r}: {paths[missing]}")
    with pytest.raises(dr.CheckpointNotFoundError, match=f"checkpoint {missing!r}: "):
        dr.open_checkpoint(paths)
    live.refuse(dr.CheckpointNotFoundError, target, {}, "at least one")
    live.refuse(dr.RuleError, target, {"a:b": paths["encoder"]}, "'a:b'", "letters, digits")
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04")
    pickle = {"good": tmp_path / "x.pt"}
    live.refuse(dr.UnsupportedFormatError, target, pickle, "checkpoint 'good'", "export it to safetensors")


def test_a_damaged_one_is_named_and_nothing_changes(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    paths, _ = halves(tmp_path)
    flip_bit(data_file(paths["decoder"]), 40)
    rules = {**ENCODER_DECODER, "encoder:optimizer/{rest}": "optimizer/{rest}"}
    error = live.refuse(dr.CheckpointCorruptError, whole(trainable), paths, "checkpoint 'decoder'", rules=rules)
    assert all(name.startswith("decoder:") for name in error.names)


def test_directories_mean_their_latest_checkpoints(tmp_path: pathlib.Path) -> None:
    paths, _ = halves(tmp_path)
    folders = {name: tmp_path / name for name in paths}
    with contextlib.closing(dr.open_checkpoint(folders)) as source:
        assert source.index().paths == (paths["decoder"], paths["encoder"])
        assert source.is_proof()
        first, before = source.index().tensors[0], source.bytes_read
        assert first.name.startswith("decoder:") and source.check(first.name) == first.spec.nbytes
        assert source.bytes_read == before + first.spec.nbytes


@pytest.mark.parametrize("large", [False, True])
def test_parts_are_read_as_directly_as_by_themselves(
    large: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large tensors go straight into their variables' memory, neighbours are read at once, in each part."""
    size = 300_000 if large else 30
    variables = {name: tf.Variable(tf.random.normal((size,))) for name in ("a", "b")}
    paths = {n: tf.train.Checkpoint(v=v).write(os.fspath(tmp_path / n)) for n, v in variables.items()}
    targets = {name: tf.Variable(tf.zeros((size,))) for name in "ab"}
    monkeypatch.setattr(TfCheckpoint, "read", lambda *args: pytest.fail("read by Source.read"))
    live.restore(targets, paths, rules={"a:v": "a", "b:v": "b"})
    for name, variable in variables.items():
        live.assert_holds(targets[name], variable.numpy())


def test_a_table_comes_from_the_checkpoint_that_holds_it(tmp_path: pathlib.Path) -> None:
    def table() -> tf.lookup.experimental.MutableHashTable:
        return tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)

    stored, variable = table(), tf.Variable(2.0)
    stored.insert(["a", "b"], [3, 4])
    paths = {
        "words": tf.train.Checkpoint(table=stored).write(os.fspath(tmp_path / "words")),
        "other": tf.train.Checkpoint(v=variable).write(os.fspath(tmp_path / "other")),
    }
    target = tf.train.Checkpoint(table=table(), v=tf.Variable(0.0))
    live.restore(target, paths)
    assert target.table.lookup(tf.constant(["b", "a"])).numpy().tolist() == [4, 3]
    assert float(target.v.numpy()) == 2.0
    twice = {**paths, "other": paths["words"]}
    live.refuse(dr.AmbiguousMatchError, target, twice, "other:table, words:table")


# ---- Averages --------------------------------------------------------------------------------------------


def averaged(arrays: list[np.ndarray], weights: list[float]) -> np.ndarray:
    """In float64, rounded once."""
    total = sum(array.astype(np.float64) * weight for array, weight in zip(arrays, weights, strict=True))
    return (total / sum(weights)).astype(arrays[0].dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("size", [5, 300_001])
def test_an_average_of_checkpoints_is_that_of_their_weights(
    dtype: str, size: int, tmp_path: pathlib.Path, mirrored2: tf.distribute.Strategy
) -> None:
    generator = np.random.default_rng(7)
    values = [tf.cast(generator.normal(size=(size, 2)), dtype) for _ in range(3)]
    paths = {
        f"c{i}": tf.train.Checkpoint(v=tf.Variable(v)).write(os.fspath(tmp_path / str(i))) for i, v in enumerate(values)
    }
    with mirrored2.scope():
        target = {"v": tf.Variable(tf.zeros((size, 2), dtype))}
    rule = dr.Rule(from_=("c0:v", "c1:v", "c2:v"), to="v", ops=(Mean((1.0, 2.0, 5.0)),))
    report = live.restore(target, paths, rules=[rule])
    live.assert_holds(target["v"], averaged([v.numpy() for v in values], [1.0, 2.0, 5.0]))
    assert report.verified


def test_an_average_holds_a_piece_of_each_checkpoint_only(tmp_path: pathlib.Path) -> None:
    """Twenty tensors of 4 MB, with 16 MB for what is in flight: they are never held together."""
    count, size = 20, 1 << 20
    arrays = [np.full(size, i, np.float32) for i in range(count)]
    paths = {}
    for number, array in enumerate(arrays):
        paths[f"c{number}"] = tf.train.Checkpoint(v=tf.Variable(array)).write(os.fspath(tmp_path / str(number)))
    target = {"v": tf.Variable(tf.zeros(size))}
    rule = dr.Rule(from_=tuple(f"{name}:v" for name in paths), to="v", ops=(Mean(),))
    restorer = dr.DistributedRestorer(target, rules=[rule], memory_budget=16 << 20, verify="checksum")
    tracemalloc.start()
    restorer.restore(paths)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 48 << 20  # all at once would be 80 MB, and the result and its temporaries besides
    live.assert_holds(target["v"], np.full(size, 9.5, np.float32))


def test_a_flipped_bit_in_one_of_the_averaged_is_found(tmp_path: pathlib.Path) -> None:
    paths = {n: tf.train.Checkpoint(v=tf.Variable(tf.ones(700_000))).write(os.fspath(tmp_path / n)) for n in "ab"}
    flip_bit(data_file(paths["b"]), 2_000_000)
    rule = dr.Rule(from_=("a:v", "b:v"), to="v", ops=(Mean(),))
    for verify in ("none", "replicas"):
        target = {"v": tf.Variable(tf.zeros(700_000))}
        live.refuse(dr.CheckpointCorruptError, target, paths, "checkpoint 'b'", rules=[rule], verify=verify)


def test_counters_have_no_average(tmp_path: pathlib.Path) -> None:
    counters = {"a": tf.train.Checkpoint(n=tf.Variable(1)), "b": tf.train.Checkpoint(n=tf.Variable(2))}
    paths = {name: counter.write(os.fspath(tmp_path / name)) for name, counter in counters.items()}
    rule = dr.Rule(from_=("a:n", "b:n"), to="n", ops=(Mean(),))
    live.refuse(dr.DtypeMismatchError, {"n": tf.Variable(5)}, paths, "such have no mean", rules=[rule])


def test_an_average_that_the_target_cannot_hold_is_found_before_anything_changes(tmp_path: pathlib.Path) -> None:
    large = np.ones(600_000, np.float32)
    large[-1] = 3e6
    paths = {}
    for name, array in (("a", large), ("b", np.ones_like(large))):
        paths[name] = tf.train.Checkpoint(v=tf.Variable(array)).write(os.fspath(tmp_path / name))
    target = {"v": tf.Variable(tf.zeros(600_000, tf.float16))}
    rule = dr.Rule(from_=("a:v", "b:v"), to="v", ops=(Mean(),))
    error = live.refuse(dr.DtypeMismatchError, target, paths, "'v' float16[600000] from 'a:v' + 'b:v'", rules=[rule])
    assert "No variable had changed" not in str(error)


# ---- Rule files and flags --------------------------------------------------------------------------------

EXAMPLES = ROOT / "configs" / "examples"


def test_the_example_of_two_halves(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    paths, parts = halves(tmp_path)
    target = whole(trainable)
    live.restore(target, paths, rules=EXAMPLES / "encoder_decoder.toml")
    for name, part in parts.items():
        live.assert_all_hold(getattr(target.model, name).variables, live.values(part.model.variables))
    velocity = parts["decoder"].optimizer, parts["decoder"].model.outer.kernel
    stored = live.value(live.slot(velocity[0], "velocities", velocity[1]))
    live.assert_holds(live.slot(target.optimizer, "velocities", target.model.decoder.outer.kernel), stored)


def test_the_example_of_an_average(tmp_path: pathlib.Path, trainable: tf.distribute.Strategy) -> None:
    saved = {name: half(seed) for seed, name in enumerate("abc")}
    paths = {name: live.save(checkpoint, tmp_path / name) for name, checkpoint in saved.items()}
    with trainable.scope():
        target = half(8)
    report = live.restore(target, paths, rules=EXAMPLES / "average_checkpoints.toml")
    each = [live.values(checkpoint.model.variables) for checkpoint in saved.values()]
    expected = [averaged(list(arrays), [1, 1, 2]) for arrays in zip(*each, strict=True)]
    live.assert_all_hold(target.model.variables, expected)
    live.assert_all_hold(live.moments(target.optimizer), live.values(live.moments(saved["c"].optimizer)))
    live.assert_holds(target.optimizer.iterations, saved["c"].optimizer.iterations.numpy())
    assert report.plan.unused and all(u.name.partition(":")[0] in saved for u in report.plan.unused)


def test_one_path_of_a_flag_is_taken_as_it_is() -> None:
    assert parse_paths(["lr=0.1,b=2/ckpt-1"]) == "lr=0.1,b=2/ckpt-1"
    assert parse_paths([]) is None
    several = parse_paths(["a=lr=0.1/ckpt-1", "b=/x,y"])
    assert several == {"a": "lr=0.1/ckpt-1", "b": "/x,y"}
    assert several is not None and describe_paths(several) == "a=lr=0.1/ckpt-1, b=/x,y"


@pytest.mark.parametrize(("values", "text"), [(["a=x", "y"], "name=path"), (["a=x", "a=y"], "two checkpoints 'a'")])
def test_several_paths_of_a_flag_have_names_of_their_own(values: list[str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse_paths(values)
