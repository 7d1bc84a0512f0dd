"""Vocabularies: how files are read, what is refused, and the rows that a plan carries."""

from __future__ import annotations

import base64
import json
import os
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build import entry, filled, plan, problems
from dist_restore import ops as t
from dist_restore.core.errors import DtypeMismatchError, PlanMismatchError, RuleError, ShapeMismatchError
from dist_restore.core.tensors import Box, TensorSpec
from dist_restore.ops import Fill, RemapRows, RowMap
from dist_restore.ops.dtypes import spec_of
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.refusal import refuse_problems
from dist_restore.planning.rules import vocabularies
from dist_restore.planning.rules.rule import Rule
from dist_restore.planning.rules.rule_set import RuleSet
from dist_restore.planning.rules.vocabularies import tokens_of

RULES = """
[[rule]]
from = "model/embed"
to = "model/embed"
ops = [{ remap_rows = { old_vocab = "old.txt", new_vocab = "new.txt", new_rows = "keep" } }]
"""


def folder(path: pathlib.Path, old: bytes = b"a\nb\nc\n", new: bytes = b"c\nx\na\nb\n", rules: str = RULES) -> str:
    path.mkdir(exist_ok=True)
    (path / "old.txt").write_bytes(old)
    (path / "new.txt").write_bytes(new)
    (path / "rules.toml").write_text(rules)
    return os.fspath(path / "rules.toml")


def rows_of(rules: RuleSet) -> list[int]:
    (op,) = rules.rules[0].ops
    assert isinstance(op, RemapRows) and op.rows is not None
    return op.rows.rows().tolist()


# ---- Files ------------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_rule_file_and_not_to_where_the_program_runs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "rules")
    folder(tmp_path / "elsewhere", b"wrong\n", b"wrong\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert rows_of(RuleSet.load(path)) == [2, -1, 0, 1]


def test_a_folder_below_and_an_absolute_path_are_read(tmp_path: pathlib.Path) -> None:
    folder(tmp_path / "rules")
    folder(tmp_path / "rules" / "vocab", b"x\na\n")
    text = RULES.replace("old.txt", "vocab/old.txt").replace("new.txt", os.fspath(tmp_path / "rules" / "new.txt"))
    assert rows_of(RuleSet.load(folder(tmp_path / "rules", rules=text))) == [-1, 0, 1, -1]
    assert rows_of(RuleSet.from_toml(text.replace("vocab/old.txt", os.fspath(tmp_path / "rules" / "old.txt")))) == [
        2,
        -1,
        0,
        1,
    ]


@pytest.mark.parametrize("name", ["../old.txt", "sub/../../old.txt", "link.txt"])
def test_a_path_that_leaves_the_folder_is_refused_symbolic_links_included(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "old.txt").write_text("a\nb\nc\n")
    path = folder(tmp_path / "rules", rules=RULES.replace("old.txt", name))
    (tmp_path / "rules" / "sub").mkdir()
    (tmp_path / "rules" / "link.txt").symlink_to(tmp_path / "old.txt")
    with pytest.raises(RuleError, match=r"rule 1.*lies outside the folder of the rule file.*absolute path"):
        RuleSet.load(path)


def test_a_link_within_the_folder_is_followed(tmp_path: pathlib.Path) -> None:
    path = folder(tmp_path / "rules", rules=RULES.replace("old.txt", "link.txt"))
    (tmp_path / "rules" / "link.txt").symlink_to("old.txt")
    assert rows_of(RuleSet.load(path)) == [2, -1, 0, 1]


def test_rules_that_come_from_no_file_cannot_name_relative_ones() -> None:
    for rules in (
        lambda: RuleSet.from_toml(RULES),
        lambda: RuleSet.of([Rule("a", "b", (RemapRows(new_rows=Fill.KEEP, old_vocab="o", new_vocab="n"),))]),
    ):
        with pytest.raises(RuleError, match=r"relative path.*come from no file.*tokens themselves"):
            rules()


def test_what_is_no_regular_file_is_not_opened_for_ever(tmp_path: pathlib.Path) -> None:
    path = folder(tmp_path / "rules", rules=RULES.replace("old.txt", "pipe"))
    os.mkfifo(tmp_path / "rules" / "pipe")
    with pytest.raises(RuleError, match="no regular file"):
        RuleSet.load(path)
    with pytest.raises(RuleError, match="no regular file"):
        RuleSet.load(folder(tmp_path / "other", rules=RULES.replace("old.txt", "/dev/zero")))


@pytest.mark.parametrize("name", ["missing.txt", "sub", "a\\u0000b", "x" * 5000])
def test_a_file_that_cannot_be_read_is_named(tmp_path: pathlib.Path, name: str) -> None:
    path = folder(tmp_path / "rules", rules=RULES.replace("old.txt", name))
    (tmp_path / "rules" / "sub").mkdir()
    with pytest.raises(
        RuleError, match=r"rule 1 of rules.toml: remap_rows: the vocabulary .*(cannot be read|no regular)"
    ):
        RuleSet.load(path)


def test_the_size_of_a_file_is_looked_at_before_it_is_read(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "rules")
    with open(tmp_path / "rules" / "old.txt", "r+b") as file:
        file.truncate(vocabularies.MAX_VOCABULARY_BYTES + 1)  # takes no room on the disk
    with pytest.raises(RuleError, match=r"'old.txt' has 1073741825 bytes; at most 1073741824"):
        RuleSet.load(path)


def test_no_message_shows_what_a_file_holds(tmp_path: pathlib.Path) -> None:
    for old in (b"secret\nsecret\n", b"secret\n\xff\n", b"secret\r\nb\n", b"secret\n"):
        with pytest.raises(RuleError) as caught:
            RuleSet.load(folder(tmp_path / "rules", old))
        assert "secret" not in str(caught.value)


# ---- Lines ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        (b"a\nb\n", ("a", "b")),
        (b"a\nb", ("a", "b")),
        (b"a\r\nb\r\n", ("a", "b")),
        (b"a\r\nb", ("a", "b")),
        (b"\xef\xbb\xbfa\nb\n", ("a", "b")),
        (b"\n[UNK]\na\n", ("", "[UNK]", "a")),
        (b"a\n\n", ("a", "")),
        (b" a\na \n", (" a", "a ")),
        ("ä\u2028\n\u0085\x0b\n".encode(), ("ä\u2028", "\u0085\x0b")),
        ("e\u0301\né\n".encode(), ("e\u0301", "é")),
        (b"\n", ("",)),
    ],
)
def test_a_line_is_a_token_as_it_is(data: bytes, tokens: tuple[str, ...]) -> None:
    assert tokens_of(data, "v.txt") == tokens


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"a\n\xe4\n", "no UTF-8, in line 2"),
        ("a\nb\n".encode("utf-16"), "no UTF-8, in line 1"),
        (b"a\r\nb\nc\n", "of the 3 lines .* 1 end in CRLF"),
    ],
)
def test_what_is_no_list_of_tokens_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(RuleError, match=f"'v.txt' .*{words}|{words}"):
        tokens_of(data, "v.txt")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"])), min_size=1))
def test_every_list_of_tokens_can_be_written_and_read(tokens: list[str]) -> None:
    if tokens[0].startswith("\ufeff"):
        return
    for end in ("\n", "\r\n"):
        assert tokens_of("".join(x + end for x in tokens).encode(), "v") == tuple(tokens)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (["a", "b", "a"], ["a"], "old vocabulary has one token twice, in rows 0 and 2"),
        (["a"], ["b", "", "a", ""], "new vocabulary has one token twice, in rows 1 and 3"),
        (["a", "b"], ["A", "B", "C"], r"old vocabulary \(2 tokens\) and the new one \(3\) have no token in common"),
    ],
)
def test_vocabularies_that_cannot_be_meant_are_refused(old: list[str], new: list[str], words: str) -> None:
    with pytest.raises(RuleError, match=f"remap_rows: .*{words}"):
        RemapRows(new_rows=Fill.KEEP, old_vocab=old, new_vocab=new)


# ---- Tokens from the program --------------------------------------------------------------------------------


def test_tokens_may_be_given_as_they_are() -> None:
    op = RemapRows(new_rows=Fill.MEAN, old_vocab=("a", "b"), new_vocab=["b", "c"], axis=1)
    assert op.rows == RowMap.of((1, -1), 2) and op.old_vocab is op.new_vocab is None
    raw = {"remap_rows": {"old_vocab": ["a", "b"], "new_vocab": ["b", "c"], "axis": 1, "new_rows": "mean"}}
    assert t.parse_op(raw) == op
    toml = RULES.replace('"old.txt"', '["a", "b"]').replace('"new.txt"', '["b", "c"]')
    assert rows_of(RuleSet.from_toml(toml)) == [1, -1]


def test_the_vocabulary_of_a_lookup_layer_is_taken() -> None:
    import keras

    old = keras.layers.StringLookup(vocabulary=["x", "y"], mask_token="")
    new = keras.layers.StringLookup(vocabulary=["y", "z", "x"], mask_token="")
    op = RemapRows(new_rows=Fill.ZEROS, old_vocab=old.get_vocabulary(), new_vocab=new.get_vocabulary())
    assert op.rows is not None and op.rows.rows().tolist() == [0, 1, 3, -1, 2]


def test_a_layer_stands_for_its_vocabulary() -> None:
    import keras

    old = keras.layers.StringLookup(vocabulary=["x", "y"])
    new = keras.layers.TextVectorization(vocabulary=["y", "x"], output_mode="int")
    op = RemapRows(new_rows=Fill.ZEROS, old_vocab=old, new_vocab=new)
    # TextVectorization's row 0 is for padding; StringLookup's row 0 is [UNK].
    assert op.rows is not None and op.rows.rows().tolist() == [-1, 0, 2, 1]
    assert op == RemapRows(new_rows=Fill.ZEROS, old_vocab=["[UNK]", "x", "y"], new_vocab=new.get_vocabulary())
    numbers = [keras.layers.IntegerLookup(vocabulary=v) for v in ([10, 20], [20, 30, 10])]
    op = RemapRows(new_rows=Fill.ZEROS, old_vocab=numbers[0], new_vocab=numbers[1])
    assert op.rows is not None and op.rows.rows().tolist() == [0, 2, -1, 1]


def test_a_layer_and_a_file_go_together(tmp_path: pathlib.Path) -> None:
    import keras

    (tmp_path / "old.txt").write_text("[UNK]\nx\ny\n")
    layer = keras.layers.StringLookup(vocabulary=["y", "x"])
    op = RemapRows(new_rows=Fill.ZEROS, old_vocab=str(tmp_path / "old.txt"), new_vocab=layer)
    assert rows_of(RuleSet.of([Rule("a", "b", (op,))])) == [0, 2, 1]


@pytest.mark.parametrize("tokens", [["a", 1.5], ["a", True], [b"a"]])
def test_a_layer_whose_tokens_are_no_text_is_refused(tokens: list[object]) -> None:
    class Layer:
        def get_vocabulary(self) -> list[object]:
            return tokens

    with pytest.raises(RuleError, match=r"new_vocab must be .*layer with get_vocabulary"):
        RemapRows(new_rows=Fill.KEEP, old_vocab=["a"], new_vocab=Layer())


def test_several_rows_for_unknown_tokens_are_one_token_twice_and_refused() -> None:
    import keras

    layer = keras.layers.StringLookup(vocabulary=["x"], num_oov_indices=2)
    with pytest.raises(RuleError, match="old vocabulary has one token twice, in rows 0 and 1"):
        RemapRows(new_rows=Fill.KEEP, old_vocab=layer, new_vocab=["x"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"old_vocab": "a", "new_rows": "keep"}, "needs old_vocab and new_vocab"),
        ({"old_vocab": [1], "new_vocab": ["a"], "new_rows": "keep"}, "old_vocab must be .* list of strings"),
        ({"old_vocab": 1, "new_vocab": ["a"], "new_rows": "keep"}, "old_vocab must be"),
        ({"old_vocab": "a", "new_vocab": "b"}, "new_rows is missing"),
        ({"old_vocab": "a", "new_vocab": "b", "new_rows": "ones"}, "new_rows must be one of keep, zeros, mean, normal"),
        ({"old_vocab": "a", "new_vocab": "b", "new_rows": "keep", "rows": "1:"}, "'rows' is set by plans only"),
    ],
)
def test_what_is_wrong_in_a_rule_is_named(fields: dict[str, object], words: str) -> None:
    with pytest.raises(RuleError, match=f"remap_rows: .*{words}"):
        t.parse_op({"remap_rows": fields})


def test_files_that_were_never_read_are_refused_when_bound() -> None:
    op = RemapRows(new_rows=Fill.KEEP, old_vocab="o", new_vocab="n")
    with pytest.raises(RuleError, match=r"vocabularies were not read"):
        t.bind((op,), (TensorSpec((2,), "float32"),), TensorSpec((2,), "float32"))


# ---- The rows that a plan carries ---------------------------------------------------------------------------

row_maps = st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(-1, n - 1))))


@settings(max_examples=300, deadline=None)
@given(row_maps)
def test_rows_survive_their_text_and_are_counted(found: tuple[int, list[int]]) -> None:
    size, rows = found
    made = RowMap.of(rows, size)
    assert made.rows().tolist() == rows and made.size == len(rows)
    assert RowMap.parse(made.text()) == made
    assert made.new == rows.count(-1) and made.dropped == size - len(set(rows) - {-1})


def test_a_vocabulary_that_only_grew_takes_two_runs_whatever_its_size() -> None:
    old = [f"t{i}" for i in range(100_000)]
    made = RowMap.of_tokens(old, [*old, "new", "newer"])
    assert made.text() == "100000:" + base64.b64encode(np.array([0, 100_000, -1, 2], "<i4").tobytes()).decode()


def runs(*numbers: int, size: int = 4) -> str:
    return f"{size}:{base64.b64encode(np.array(numbers, '<i4').tobytes()).decode()}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "4:!!!!",
        "4:AAAA",
        "-1:",
        "99999999999:",
        "٤:",
        "04:",
        runs(0, 0),
        runs(0, -1),
        runs(-2, 1),
        runs(3, 2),
        runs(2**31 - 1, 2**31 - 1),
        runs(-1, 2**31 - 1, 0, 1),
        runs(0, 1, 1, 1),
        runs(-1, 1, -1, 1),
        runs(0, 4)[:-1],
        runs(0, 4) + "\n",
        "4:ä",
    ],
)
def test_hostile_rows_are_refused(text: str) -> None:
    raw = {"remap_rows": {"new_rows": "zeros", "axis": 0, "rows": text}}
    with pytest.raises(RuleError, match="remap_rows: rows "):
        t.parse_op(raw, bound=True)


def test_rows_that_say_a_huge_size_take_no_memory() -> None:
    op = t.parse_op({"remap_rows": {"new_rows": "zeros", "rows": runs(-1, 2**31 - 2, 0, 1)}}, bound=True)
    with pytest.raises(RuleError, match="more than 1024 GiB"):
        t.infer((op,), (TensorSpec((4, 1000), "float32"),))
    assert t.infer((op,), (TensorSpec((4,), "float32"),)).shape == (2**31 - 1,)  # compared with the target's shape next


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda b: "3:" + base64.b64encode(b).decode()))
def test_any_text_is_rows_or_a_named_error(text: str) -> None:
    try:
        assert RowMap.parse(text).text() == text
    except RuleError as error:
        assert "remap_rows" in str(error)


# ---- Fills --------------------------------------------------------------------------------------------------

X = np.random.default_rng(3).normal(2.0, 0.5, (200, 3)).astype(np.float32) * [1, 10, 100]


def grown(fill: Fill, axis: int = 0, seed: int = 0, count: int = 500) -> np.ndarray:
    x = X.astype(np.float32)
    rows = RowMap.of([*range(200), *[-1] * count], 200)
    op = RemapRows(new_rows=fill, rows=rows, axis=axis, seed=seed)
    result = t.apply((op,), [x if axis == 0 else x.T.copy()])
    return (result if axis == 0 else result.T)[200:]


@pytest.mark.parametrize("axis", [0, 1])
def test_new_rows_have_the_mean_of_each_column(axis: int) -> None:
    expected = X.astype(np.float32).astype(np.float64).mean(0).astype(np.float32)
    np.testing.assert_allclose(grown(Fill.MEAN, axis), np.broadcast_to(expected, (500, 3)), rtol=1e-6)


def test_new_rows_are_drawn_with_mean_and_deviation_of_each_column_and_are_seeded() -> None:
    drawn = grown(Fill.NORMAL, seed=1)
    np.testing.assert_allclose(drawn.mean(0), X.mean(0), rtol=0.05)
    np.testing.assert_allclose(drawn.std(0), X.std(0), rtol=0.1)
    np.testing.assert_array_equal(drawn, grown(Fill.NORMAL, seed=1))
    assert not np.array_equal(drawn, grown(Fill.NORMAL, seed=2))


def test_a_large_table_is_measured_in_pieces() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 400))
    op = RemapRows(new_rows=Fill.MEAN, rows=RowMap.of([-1, *range(1000), -1], 1000))
    result = t.apply((op,), [x])
    np.testing.assert_allclose(result[[0, -1]], np.stack([x.mean(0)] * 2), rtol=1e-12)
    np.testing.assert_array_equal(result[1:-1], x)


def test_drawn_rows_beyond_the_dtype_are_refused() -> None:
    x = np.array([-60000, 60000], np.float16)
    op = RemapRows(new_rows=Fill.NORMAL, rows=RowMap.of([0, 1, *[-1] * 50], 2))
    assert t.may_refuse((op,), (spec_of(x),))
    with pytest.raises(DtypeMismatchError, match=r"remap_rows: .*does not exist in float16"):
        t.apply((op,), [x])


def test_new_rows_of_strings_are_empty_and_integers_have_no_mean() -> None:
    rows = RowMap.of([1, -1], 2)
    zeros = RemapRows(new_rows=Fill.ZEROS, rows=rows)
    assert t.apply((zeros,), [np.array([b"a", b"bc"])]).tolist() == [b"bc", b""]
    with pytest.raises(RuleError, match="remap_rows: new_rows mean needs floating numbers, found int64"):
        t.infer((RemapRows(new_rows=Fill.MEAN, rows=rows),), (TensorSpec((2,), "int64"),))
    assert t.infer((RemapRows(new_rows=Fill.MEAN, rows=RowMap.of([1, 0], 2)),), (TensorSpec((2,), "int64"),))


def test_only_the_rows_from_the_first_that_is_needed_to_the_last_are_read() -> None:
    x = np.arange(12.0).reshape(6, 2)
    ops = (RemapRows(new_rows=Fill.ZEROS, rows=RowMap.of([4, -1, 2], 6)),)
    (box,) = t.source_boxes(ops, (spec_of(x),))
    assert box == Box((2, 0), (3, 2))
    read = x[box.slices()].copy()
    read[1] = np.nan  # row 3 lies between and is not needed
    assert t.apply_boxed(ops, (spec_of(x),), (box,), [read]).tolist() == [[8, 9], [0, 0], [4, 5]]
    assert t.pull_back(ops, (spec_of(x),), Box((1, 0), (1, 2))) == (None,)
    measured = (RemapRows(new_rows=Fill.MEAN, rows=RowMap.of([4, -1, 2], 6)),)
    assert t.pull_back(measured, (spec_of(x),), Box((1, 0), (2, 2))) == (Box((0, 0), (6, 2)),)
    assert t.pull_back(measured, (spec_of(x),), Box((2, 1), (1, 1))) == (Box((2, 1), (1, 1)),)


# ---- Plans --------------------------------------------------------------------------------------------------

EMBED = "model/embed 3x2\nmomentum@model/embed\nvelocity@model/embed\naverage@model/embed\n"


def grown_plan(tmp_path: pathlib.Path, source: str = EMBED, target: str = EMBED.replace("3x2", "4x2")) -> RestorePlan:
    return plan(source, target, RuleSet.load(folder(tmp_path / "rules")))


def test_slots_follow_with_new_rows_of_zeros_and_averages_that_would_keep_zeros_are_refused(
    tmp_path: pathlib.Path,
) -> None:
    done = grown_plan(tmp_path)
    fills = {name: entry(done, name).ops[0].new_rows.value for name in filled(done)}  # type: ignore[attr-defined]
    assert fills == {
        "model/embed": "keep",
        "optimizer/momentum/model/embed": "zeros",
        "optimizer/velocity/model/embed": "zeros",
    }
    assert problems(done) == {"optimizer/average/model/embed": "unmatched"}
    assert entry(done, "model/embed").elements == 6


def test_a_plan_needs_no_files(tmp_path: pathlib.Path) -> None:
    done = grown_plan(tmp_path)
    for file in (tmp_path / "rules").iterdir():
        file.unlink()
    back = RestorePlan.from_json(done.to_json())
    assert back == done and back.digest == done.digest
    rows = entry(back, "model/embed").ops[0].rows  # type: ignore[attr-defined]
    assert rows.rows().tolist() == [2, -1, 0, 1]
    assert t.describe(entry(done, "model/embed").ops) == "remap_rows 3->4, 1 new (keep)"
    assert "remap_rows 3->4, 1 new (keep)" in done.summary()


def test_a_plan_whose_rows_were_changed_is_refused(tmp_path: pathlib.Path) -> None:
    text = grown_plan(tmp_path).to_json()
    good = RowMap.of([2, -1, 0, 1], 3).text()
    assert text.count(good) == 3
    for bad in (RowMap.of([1, -1, 0, 2], 3).text(), "3:AAAA", runs(0, 9, size=3)):
        with pytest.raises(PlanMismatchError):
            RestorePlan.from_json(text.replace(good, bad))
    fields = json.loads(text)
    fields["entries"][0]["ops"][0]["remap_rows"]["rows"] = [2, -1, 0, 1]
    with pytest.raises(PlanMismatchError, match="rows must be a string"):
        RestorePlan.from_json(json.dumps(fields))


def test_a_vocabulary_of_another_length_than_the_tensor_is_refused_with_both_lengths(tmp_path: pathlib.Path) -> None:
    old = grown_plan(tmp_path, EMBED.replace("3x2", "5x2"))
    reason = entry(old, "model/embed").reason
    assert (
        "expected 3 rows on axis 0, one per token of the old vocabulary 'old.txt', found 5 in float32[5, 2]" in reason
    )
    new = grown_plan(tmp_path, target=EMBED.replace("3x2", "9x2"))
    reason = entry(new, "model/embed").reason
    assert "expected shape [9, 2]" in reason and "remap_rows 3->4" in reason and "make [4, 2]" in reason
    assert problems(old)["model/embed"] == problems(new)["model/embed"] == "shape"


def test_a_changed_vocabulary_without_a_rule_must_be_declared() -> None:
    done = plan("model/embed 3x2", "model/embed 4x2")
    assert problems(done) == {"model/embed": "shape"}
    assert "fit" in entry(done, "model/embed").reason
    with pytest.raises(ShapeMismatchError, match=r"model/embed.*expected shape \[4, 2\]"):
        refuse_problems(done)


def test_kernel_and_bias_are_remapped_along_their_own_axes(tmp_path: pathlib.Path) -> None:
    rules = RULES + RULES.replace("model/embed", "model/kernel").replace("new_rows", "axis = -1, new_rows")
    rules += RULES.replace("model/embed", "model/bias").replace('"keep"', '"mean"')
    source = "model/embed 3x2\nmodel/kernel 2x3\nmodel/bias 3"
    target = "model/embed 4x2\nmodel/kernel 2x4\nmodel/bias 4"
    done = plan(source, target, RuleSet.load(folder(tmp_path / "rules", rules=rules)))
    assert not problems(done)
    assert [entry(done, f"model/{n}").ops[0].axis for n in ("embed", "kernel", "bias")] == [0, 1, 0]  # type: ignore[attr-defined]
    assert {entry(done, f"model/{n}").ops[0].rows for n in ("embed", "kernel", "bias")} == {RowMap.of([2, -1, 0, 1], 3)}  # type: ignore[attr-defined]
