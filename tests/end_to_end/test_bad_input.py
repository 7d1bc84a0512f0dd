"""Bad input: the named error, with the name and the fix, and not one variable changed on any replica."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import trackable_object_graph_pb2

import dist_restore as dr
from conftest import make_strategy
from live import adam, assert_holds, assert_unchanged, entry, net, refuse, restore, save, scramble, snapshot, value

Checkpoint = tf.train.Checkpoint
Graph = trackable_object_graph_pb2.TrackableObjectGraph
GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


class Saved:
    """A checkpoint of a small model with Adam, and another such model under two replicas to restore it into."""

    def __init__(self, directory: pathlib.Path) -> None:
        old = net(a=4, b=4)
        old_adam = adam(old)
        scramble(old, old_adam, seed=1)
        self.path = save(Checkpoint(model=old, optimizer=old_adam), directory)
        self.index = pathlib.Path(f"{self.path}.index")
        self.data = pathlib.Path(f"{self.path}.data-00000-of-00001")
        with make_strategy("mirrored2").scope():
            model = net(a=4, b=4)
            optimizer = adam(model)
        scramble(model, optimizer, seed=2)
        self.root = Checkpoint(model=model, optimizer=optimizer)
        _ = self.root.save_counter


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> Saved:
    return Saved(tmp_path)


# ---- Files -----------------------------------------------------------------------------------------------


def test_a_missing_path_names_what_is_there(saved: Saved) -> None:
    wrong = saved.path.replace("ckpt-1", "ckpt-7")
    refuse(dr.CheckpointNotFoundError, saved.root, wrong, "ckpt-7", "ckpt-1")


def test_an_empty_directory_is_no_checkpoint(saved: Saved, tmp_path: pathlib.Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refuse(dr.CheckpointNotFoundError, saved.root, empty, str(empty))


@pytest.mark.parametrize("keep", [0, 1, 50, 0.5, 0.99])
def test_a_truncated_index_is_corrupt(saved: Saved, keep: float) -> None:
    size = saved.index.stat().st_size
    os.truncate(saved.index, int(keep if keep >= 1 else size * keep))
    refuse(dr.CheckpointCorruptError, saved.root, saved.path, "ckpt-1.index")


@pytest.mark.parametrize("verify", ["none", "checksum", "replicas"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_truncated_data_are_found_before_anything_changes(saved: Saved, keep: float, verify: str) -> None:
    os.truncate(saved.data, int(saved.data.stat().st_size * keep))
    refuse(dr.CheckpointCorruptError, saved.root, saved.path, saved.path, "data file 0", "truncated", verify=verify)


@pytest.mark.parametrize("verify", ["checksum", "replicas"])
@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model/b/_kernel", "model/b/kernel"),
        ("optimizer/_variables/2", "optimizer/momentum/model/a/kernel"),
        ("optimizer/_iterations", "optimizer/iterations"),
    ],
)
def test_a_flipped_bit_changes_nothing(saved: Saved, key: str, name: str, verify: str) -> None:
    stored = tf.train.load_checkpoint(saved.path).get_tensor(key + SUFFIX).tobytes()
    data = bytearray(saved.data.read_bytes())
    place = bytes(data).index(stored)
    data[place + len(stored) // 2] ^= 0x10
    saved.data.write_bytes(data)
    error = refuse(dr.CheckpointCorruptError, saved.root, saved.path, name, "checksum", saved.data.name, verify=verify)
    assert name in error.names


def test_a_flipped_bit_that_no_target_needs_does_no_harm(saved: Saved) -> None:
    stored = tf.train.load_checkpoint(saved.path).get_tensor("optimizer/_variables/2" + SUFFIX).tobytes()
    data = bytearray(saved.data.read_bytes())
    data[bytes(data).index(stored)] ^= 1
    saved.data.write_bytes(data)
    restore(Checkpoint(model=saved.root.model), saved.path)


@pytest.mark.parametrize("place", range(0, 400, 7))
def test_a_flipped_bit_in_the_index_is_never_taken_for_a_checkpoint(saved: Saved, place: int) -> None:
    data = bytearray(saved.index.read_bytes())
    data[place % len(data)] ^= 0x04
    saved.index.write_bytes(data)
    before = snapshot(saved.root)
    try:
        restore(saved.root, saved.path)
    except dr.RestoreError as error:
        assert_unchanged(before)
        assert "ckpt-1" in str(error)
    else:
        # Only bytes that nothing reads may be harmless: the values are right then.
        reader = tf.train.load_checkpoint(saved.path)
        assert_holds(saved.root.model.b.kernel, reader.get_tensor("model/b/_kernel" + SUFFIX))


def test_a_deleted_data_file_is_named(saved: Saved) -> None:
    saved.data.unlink()
    refuse(dr.CheckpointNotFoundError, saved.root, saved.path, ".data-00000-of-00001")


def test_a_deleted_shard_is_named(saved: Saved, tmp_path: pathlib.Path) -> None:
    prefix = sharded(tmp_path, {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)})
    shards = sorted(tmp_path.glob("sharded.data-*-of-00002"))
    assert len(shards) == 2
    shards[1].unlink()
    a, b = tf.Variable(tf.zeros(3)), tf.Variable(tf.zeros(3))
    refuse(dr.CheckpointNotFoundError, {"a": a, "b": b}, prefix, "sharded.data-00001-of-00002")


def sharded(directory: pathlib.Path, tensors: dict[str, np.ndarray]) -> str:
    """A name-based checkpoint with a data file for each tensor."""
    parts = []
    for index, (name, array) in enumerate(tensors.items()):
        parts.append(os.fspath(directory / f"part{index}"))
        tf.raw_ops.SaveV2(prefix=parts[-1], tensor_names=[name], shape_and_slices=[""], tensors=[tf.constant(array)])
    prefix = os.fspath(directory / "sharded")
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=prefix)
    return prefix


def test_a_sharded_checkpoint_that_is_whole_is_restored(tmp_path: pathlib.Path) -> None:
    prefix = sharded(tmp_path, {"a": np.ones(3, np.float32), "b": np.full(3, 2, np.float32)})
    a, b = tf.Variable(tf.zeros(3)), tf.Variable(tf.zeros(3))
    restore({"a": a, "b": b}, prefix)
    assert_holds(b, np.full(3, 2, np.float32))


@pytest.mark.parametrize("suffix", [".pt", ".h5", ".ckpt", ".safetensors", ""])
def test_a_file_of_another_kind_is_refused(saved: Saved, tmp_path: pathlib.Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(b"\x80\x04pickled")
    refuse(dr.UnsupportedFormatError, saved.root, file, f"weights{suffix}")


def test_a_directory_whose_state_names_a_checkpoint_that_is_gone(saved: Saved, tmp_path: pathlib.Path) -> None:
    assert tf.train.latest_checkpoint(os.fspath(tmp_path)) == saved.path
    saved.data.unlink()
    refuse(dr.CheckpointNotFoundError, saved.root, tmp_path, "ckpt-1")


# ---- Object graphs ---------------------------------------------------------------------------------------


def doctored(path: str, change: Callable[[Graph], object], raw: bytes | None = None) -> str:
    """The same tensors under another object graph."""
    reader = tf.train.load_checkpoint(path)
    graph = Graph.FromString(reader.get_tensor(GRAPH_KEY))
    change(graph)
    keys = [k for k in reader.get_variable_to_shape_map() if k != GRAPH_KEY]
    tensors = [tf.constant(reader.get_tensor(k)) for k in keys]
    data = tf.constant(graph.SerializeToString() if raw is None else raw)
    prefix = f"{path}-doctored"
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[*keys, GRAPH_KEY],
        shape_and_slices=[""] * (len(keys) + 1),
        tensors=[*tensors, data],
    )
    return prefix


def leaf(graph: Graph) -> Graph.TrackableObject:
    return next(n for n in graph.nodes if any("b/" in a.checkpoint_key for a in n.attributes))


def edge(graph: Graph) -> Graph.TrackableObject.ObjectReference:
    return graph.nodes[0].children[0]


@pytest.mark.parametrize("number", [10**6, -1, -(2**31)])
def test_a_child_that_does_not_exist_is_corrupt(saved: Saved, number: int) -> None:
    path = doctored(saved.path, lambda g: setattr(edge(g), "node_id", number))
    refuse(dr.CheckpointCorruptError, saved.root, path, "object graph", str(number))


def test_a_slot_variable_that_does_not_exist_is_corrupt(saved: Saved) -> None:
    def change(graph: Graph) -> None:
        graph.nodes[0].slot_variables.add(original_variable_node_id=1, slot_name="m", slot_variable_node_id=10**6)

    path = doctored(saved.path, change)
    refuse(dr.CheckpointCorruptError, saved.root, path, "object graph", str(10**6))


def test_a_key_that_the_index_does_not_have_is_corrupt(saved: Saved) -> None:
    path = doctored(saved.path, lambda g: setattr(leaf(g).attributes[0], "checkpoint_key", "no/such/key"))
    error = refuse(dr.CheckpointCorruptError, saved.root, path, "no/such/key")
    assert error.names


def test_an_object_graph_that_cannot_be_parsed_is_corrupt(saved: Saved) -> None:
    path = doctored(saved.path, lambda g: None, raw=b"\xff\xff not a proto \x00")
    refuse(dr.CheckpointCorruptError, saved.root, path, "object graph")


def test_an_empty_object_graph_fills_nothing(saved: Saved) -> None:
    path = doctored(saved.path, lambda g: g.Clear())
    before = snapshot(saved.root)
    with pytest.raises(dr.RestoreError):
        restore(saved.root, path)
    assert_unchanged(before)


def test_a_cycle_in_the_object_graph_does_no_harm(saved: Saved) -> None:
    def change(graph: Graph) -> None:
        for number in range(1, len(graph.nodes)):
            graph.nodes[number].children.add(node_id=0, local_name="parent")

    restore(saved.root, doctored(saved.path, change))


def test_objects_nested_beyond_reason_are_corrupt(saved: Saved) -> None:
    def change(graph: Graph) -> None:
        node = graph.nodes[0]
        for _ in range(500):
            node.children.add(node_id=len(graph.nodes), local_name="deeper")
            node = graph.nodes.add()

    refuse(dr.CheckpointCorruptError, saved.root, doctored(saved.path, change), "nest")


def test_a_graph_that_crosses_shapes_is_a_shape_mismatch(saved: Saved) -> None:
    def change(graph: Graph) -> None:
        kernel, bias = (
            next(a for n in graph.nodes for a in n.attributes if a.checkpoint_key == f"model/b/{part}{SUFFIX}")
            for part in ("_kernel", "bias")
        )
        kernel.checkpoint_key, bias.checkpoint_key = bias.checkpoint_key, kernel.checkpoint_key

    refuse(dr.ShapeMismatchError, saved.root, doctored(saved.path, change), "model/b/kernel", "model/b/bias", "[4, 4]")


# ---- Rules -----------------------------------------------------------------------------------------------

BAD_TOML = {
    "not toml": ("[[rule]\nfrom=", "TOML"),
    "unknown table": ("[[rules]]\nfrom='a'\nto='b'", "rules"),
    "unknown key": ("[[rule]]\nform='a'\nto='b'", "form"),
    "no to": ("[[rule]]\nfrom='a'", "to"),
    "keep and from": ("[[rule]]\nkeep='a'\nfrom='b'\nto='c'", "keep"),
    "wrong type": ("[[rule]]\nfrom=3\nto='b'", "from"),
    "unknown op": ("[[rule]]\nfrom='a'\nto='b'\nops=[{explode={}}]", "explode"),
    "two ops in one table": ("[[rule]]\nfrom='a'\nto='b'\nops=[{stack={axis=0}, concat={axis=0}}]", "op"),
    "unknown fill": ("[[rule]]\nfrom='a'\nto='b'\nops=[{fit={fill='magic'}}]", "magic"),
    "missing field": ("[[rule]]\nfrom='a'\nto='b'\nops=[{transpose={}}]", "perm"),
    "unpaired brace": ("[[rule]]\nfrom='model/{i'\nto='b'", "brace"),
    "arithmetic": ("[[rule]]\nfrom='model/{i}/x'\nto='model/{i^2}/x'", "i^2"),
    "unknown capture": ("[[rule]]\nfrom='model/{rest}'\nto='model/{other}'", "other"),
    "look-around": ("[[rule]]\nfrom='(?=model)a'\nto='b'\nregex=true", "RE2"),
    "rule is no table": ("rule=[1]", "rule"),
    "optional is text": ("[[rule]]\nfrom='a'\nto='b'\noptional='yes'", "optional"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TOML)
def test_bad_rules_are_named(saved: Saved, tmp_path: pathlib.Path, name: str) -> None:
    text, word = BAD_TOML[name]
    file = tmp_path / "bad_rules.toml"
    file.write_text(text)
    refuse(dr.RuleError, saved.root, saved.path, "bad_rules.toml", word, rules=file)


def test_a_rule_file_that_is_missing_is_named(saved: Saved, tmp_path: pathlib.Path) -> None:
    refuse(dr.RuleError, saved.root, saved.path, "absent.toml", rules=tmp_path / "absent.toml")


def test_a_rule_file_that_is_not_utf8_is_refused(saved: Saved, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes(b'[[rule]]\nfrom = "model/\xe9"\nto = "model/a/kernel"\n')
    refuse(dr.RuleError, saved.root, saved.path, "latin.toml", rules=file)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"model/a/kernle": "model/a/kernel"}, ["kernle", "model/a/kernel"]),
        ({"model/a/kernel": "model/a/kernle"}, ["kernle", "model/a/kernel"]),
        ({"nothing/like/it": "model/a/kernel"}, ["nothing/like/it"]),
    ],
)
def test_a_rule_that_fires_nowhere_has_the_nearest_names(saved: Saved, rules: dict[str, str], words: list[str]) -> None:
    refuse(dr.RuleError, saved.root, saved.path, "rule 1", *words, rules=rules)


@pytest.mark.parametrize("key", ["keep", "drop"])
def test_a_keep_or_drop_that_fires_nowhere_has_the_nearest_names(saved: Saved, key: str) -> None:
    rules = [dr.Rule(**{key: "model/a/kernle"})]
    refuse(dr.RuleError, saved.root, saved.path, "rule 1", "kernle", "model/a/kernel", rules=rules)


def test_an_optional_rule_may_fire_nowhere(saved: Saved) -> None:
    restore(saved.root, saved.path, rules=[dr.Rule(from_="model/x/{rest}", to="model/y/{rest}", optional=True)])


def test_two_rules_for_one_target_are_refused(saved: Saved) -> None:
    rules = [
        dr.Rule(from_="model/a/kernel", to="model/b/kernel"),
        dr.Rule(from_="model/b/kernel", to="model/b/kernel"),
    ]
    refuse(dr.RuleError, saved.root, saved.path, "rule 1", "rule 2", "model/b/kernel", rules=rules)


def test_a_rule_of_which_two_matches_want_one_target_is_refused(saved: Saved) -> None:
    rules = [dr.Rule(from_="model/{layer}/kernel", to="model/a/kernel")]
    refuse(dr.RuleError, saved.root, saved.path, "model/a/kernel", rules=rules)


def test_a_mapped_and_a_kept_target_are_two_rules_for_one(saved: Saved) -> None:
    rules = [dr.Rule(from_="model/a/kernel", to="model/b/kernel"), dr.Rule(keep="model/b/kernel")]
    refuse(dr.RuleError, saved.root, saved.path, "model/b/kernel", rules=rules)


def test_a_slot_role_that_nobody_has_is_refused(saved: Saved) -> None:
    refuse(dr.RuleError, saved.root, saved.path, "speed", "velocity", rules={"slots": {"speed": "momentum"}})


def test_a_regex_that_backtracks_elsewhere_ends_at_once(tmp_path: pathlib.Path) -> None:
    # Python's own engine would need longer than the age of the universe for this name.
    name = "a" * 60 + "!"
    path = save(Checkpoint(**{name: tf.Variable(1.0)}), tmp_path)
    rule = dr.Rule(from_="(a+)+$", to="b", regex=True)
    refuse(dr.RuleError, {"b": tf.Variable(0.0)}, path, "rule 1", "(a+)+$", rules=[rule])


def test_a_regex_of_absurd_size_is_refused(saved: Saved) -> None:
    for pattern in ("a" * 100_000, "((a{1000}){1000}){1000}"):
        refuse(dr.RuleError, saved.root, saved.path, rules=[dr.Rule(from_=pattern, to="b", regex=True)])


# ---- Shapes and dtypes -----------------------------------------------------------------------------------


def test_all_mismatches_are_listed_at_once(tmp_path: pathlib.Path, mirrored2: tf.distribute.Strategy) -> None:
    stored = {
        "a": tf.zeros(3),
        "b": tf.zeros((2, 3)),
        "c": tf.zeros(3, tf.int32),
        "old": tf.zeros(2),
        "same": tf.ones(2),
    }
    path = save(Checkpoint(**{k: tf.Variable(v) for k, v in stored.items()}), tmp_path)
    live = {"a": tf.zeros(4), "b": tf.zeros((3, 2)), "c": tf.zeros(3), "new": tf.zeros(7), "same": tf.zeros(2)}
    with mirrored2.scope():
        root = {k: tf.Variable(v) for k, v in live.items()}
    error = refuse(
        dr.ShapeMismatchError, root, path, "a float32[4]", "[3]", "b float32[3, 2]", "[2, 3]", "c float32[3]", "int32",
        "new float32[7]", "fit", "reshape", "cast", "keep",
    )  # fmt: skip
    assert set(error.names) == {"a", "b", "c", "new"}
    plan = dr.DistributedRestorer(root).plan(path)
    assert {e.target for e in plan.problems} == {"a", "b", "c", "new"}
    assert entry(plan, "same").problem == ""


@pytest.mark.parametrize(("stored", "live"), [("int32", "float32"), ("float32", "int32"), ("string", "float32"),
                                              ("float32", "bool"), ("complex64", "float32")])  # fmt: skip
def test_another_kind_of_dtype_is_refused(tmp_path: pathlib.Path, stored: str, live: str) -> None:
    def zeros(dtype: str) -> tf.Tensor:
        return tf.constant(["x", "y"]) if dtype == "string" else tf.cast(tf.zeros(2), dtype)

    path = save(Checkpoint(w=tf.Variable(zeros(stored)), other=tf.Variable(1.0)), tmp_path)
    root = {"w": tf.Variable(zeros(live)), "other": tf.Variable(0.0)}
    error = refuse(dr.DtypeMismatchError, root, path, "w ", stored, live, "cast")
    assert error.names == ("w",)


def test_an_int64_beyond_int32_is_refused_when_its_value_is_seen(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(step=tf.Variable(2**40, dtype=tf.int64)), tmp_path)
    refuse(dr.DtypeMismatchError, {"step": tf.Variable(0, dtype=tf.int32)}, path, "'step'", str(2**40))


def test_a_shape_that_does_not_fit_is_refused_even_where_unmatched_may_keep(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(model=net(256, a=4, b=4)), tmp_path)
    root = Checkpoint(model=net(512, a=4, b=4))
    refuse(dr.ShapeMismatchError, root, path, "model/a/kernel", "[512, 4]", "[256, 4]", unmatched="keep")


def test_ops_that_do_not_fit_are_refused(saved: Saved) -> None:
    for ops in (
        "{ reshape = { shape = [5, 5] } }",
        "{ transpose = { perm = [0, 1, 2] } }",
        "{ concat = { axis = 9 } }",
    ):
        rules = dr.RuleSet.from_toml(f'[[rule]]\nfrom="model/a/kernel"\nto="model/a/kernel"\nops=[{ops}]')
        before = snapshot(saved.root)
        with pytest.raises((dr.RuleError, dr.ShapeMismatchError), match="model/a/kernel"):
            restore(saved.root, saved.path, rules=rules)
        assert_unchanged(before)


def test_a_restore_that_fills_nothing_is_an_error_though_keeping_is_allowed(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(model=net(a=4)), tmp_path)
    root = {"x": tf.Variable(1.0)}
    refuse(dr.UnmatchedError, root, path, "nothing", "'x'", "model/a/kernel", unmatched="keep")
    refuse(dr.UnmatchedError, root, path, "nothing", rules=[dr.Rule(keep="x")])


def test_a_target_without_variables_is_refused(saved: Saved) -> None:
    for empty in ({}, tf.Module(), {"n": 3}):
        with pytest.raises(dr.RestoreError):
            restore(empty, saved.path)


def test_a_target_that_is_no_target_is_refused(saved: Saved) -> None:
    for wrong in (3, "model", None):
        with pytest.raises((dr.RestoreError, TypeError)):
            restore(wrong, saved.path)


@pytest.mark.parametrize(
    "option",
    [{"matching": "fuzzy"}, {"unmatched": "ignore"}, {"verify": True}, {"reads": "some"}, {"memory_budget": 0},
     {"timeout": 0.0}],
)  # fmt: skip
def test_an_option_that_is_not_known_is_refused_with_those_that_are(option: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        dr.DistributedRestorer({"x": tf.Variable(1.0)}, **option)


# ---- Names -----------------------------------------------------------------------------------------------

HOSTILE = {
    "newline": "line one\nline two",
    "ansi": "\x1b[31mred\x1b[0m",
    "path": "../../etc/passwd",
    "braces": "{i}/{rest}",
    "regex": "(a+)+$[",
    "long": "x" * 10_000,
    "unicode": "模型/\u202eכבד",
    "nul": "a\x00b",
    "suffix": "w/.ATTRIBUTES/VARIABLE_VALUE",
    "html": "<script>alert(1)</script>|`",
    "blank": " ",
}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_name_is_restored_like_any_other(tmp_path: pathlib.Path, name: str) -> None:
    prefix = os.fspath(tmp_path / "hostile")
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=[name, "w"], shape_and_slices=["", ""], tensors=[tf.constant(3.0), tf.constant(5.0)]
    )
    w, other = tf.Variable(0.0), tf.Variable(0.0)
    report = restore({"w": w}, prefix, log_dir=tmp_path / "logs")
    assert_holds(w, np.float32(5.0))
    for text in (report.plan.summary(), report.summary(), str(refusal(other, prefix))):
        assert "\x1b" not in text and "\x00" not in text and "\u202e" not in text
        assert max(map(len, text.splitlines())) < 3000
    assert dr.RestorePlan.from_json(report.plan.to_json()) == report.plan
    assert not (tmp_path.parent / "etc").exists()


def refusal(variable: tf.Variable, prefix: str) -> dr.RestoreError:
    return refuse(dr.UnmatchedError, {"absent": variable}, prefix, "absent")


@pytest.mark.parametrize("key", [key for key in HOSTILE if key != "long"])
def test_a_hostile_name_can_be_mapped_by_a_dict_or_is_refused(tmp_path: pathlib.Path, key: str) -> None:
    name = HOSTILE[key]
    prefix = os.fspath(tmp_path / "hostile")
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=[name], shape_and_slices=[""], tensors=[tf.constant(3.0)])
    w = tf.Variable(0.0)
    try:
        restore({"w": w}, prefix, rules={name: "w"})
    except dr.RuleError as error:
        assert "{" in name and "rule 1" in str(error)  # braces mean captures in a rule
        assert_holds(w, np.float32(0.0))
    else:
        assert_holds(w, np.float32(3.0))


def test_a_name_that_is_not_utf8_does_no_harm(tmp_path: pathlib.Path) -> None:
    prefix = os.fspath(tmp_path / "odd")
    names = [b"\xff\xfe/w", b"w"]
    tensors = [tf.constant(3.0), tf.constant(5.0)]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=["", ""], tensors=tensors)
    w = tf.Variable(0.0)
    report = restore({"w": w}, prefix)
    assert_holds(w, np.float32(5.0))
    assert len(report.plan.unused) == 1
    report.summary().encode("utf-8")
    assert dr.RestorePlan.from_json(report.plan.to_json()) == report.plan
    str(refuse(dr.UnmatchedError, {"absent": tf.Variable(0.0)}, prefix, "absent")).encode("utf-8")


def test_hostile_layer_names_of_a_live_model_are_escaped_in_messages(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(w=tf.Variable(1.0)), tmp_path)
    root = {"w": tf.Variable(0.0), "bad\x1b[31m\nname": tf.Variable(0.0)}
    error = refuse(dr.UnmatchedError, root, path, "\\x1b[31m\\nname")
    assert "\x1b" not in str(error)


def test_thousands_of_names_without_a_match_are_summed_up(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(w=tf.Variable(1.0), **{f"old{i}": tf.Variable(1.0) for i in range(500)}), tmp_path)
    root = {"w": tf.Variable(0.0), **{f"new_{i}": tf.Variable(0.0) for i in range(500)}}
    error = refuse(dr.UnmatchedError, root, path, "500 variable(s)", "new_0", "more")
    assert len(str(error).splitlines()) < 100
    assert len(error.names) == 500


def test_a_string_where_a_number_is_wanted_is_refused(tmp_path: pathlib.Path) -> None:
    path = save(Checkpoint(w=tf.Variable("text")), tmp_path)
    w = tf.Variable(0.0)
    refuse(dr.DtypeMismatchError, {"w": w}, path, "string", "float32")
    assert value(w) == 0.0


def test_a_model_that_is_not_built_is_refused_before_the_path_is_looked_at(tmp_path: pathlib.Path) -> None:
    model = keras.Sequential([keras.layers.Dense(2)], name="late")
    with pytest.raises(dr.UnbuiltModelError, match="late"):
        restore(model, tmp_path / "absent")
