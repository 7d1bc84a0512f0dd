"""From two indexes to a plan, and from a plan's problems to one error."""

from __future__ import annotations

import os

import pytest

from build import checkpoint, entry, filled, plan, problems, program, statuses
from dist_restore.core.errors import (
    AmbiguousMatchError,
    DtypeMismatchError,
    RestoreError,
    RuleError,
    ShapeMismatchError,
    UnmatchedError,
)
from dist_restore.planning.entries import Problem
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.refusal import MAX_LISTED, MAX_SUGGESTED, refuse_problems
from places import GOLDEN

# ---- The plan --------------------------------------------------------------------------------------------


def test_entries_are_sorted_by_target() -> None:
    done = plan("b 1\na 1", "b 1\na 1\nA 1")
    assert [e.target for e in done.entries] == ["A", "a", "b"]


def test_a_plan_knows_what_it_was_made_from_and_for() -> None:
    source, target = checkpoint("a 1"), program("a 1")
    done = plan(source, target)
    assert (done.checkpoint, done.checkpoint_fingerprint) == ("ckpt-1", source.fingerprint)
    assert done.target_fingerprint == target.fingerprint
    assert plan(source, program("a 2")).target_fingerprint != target.fingerprint


@pytest.mark.parametrize(
    ("rules", "status", "evidence"),
    [
        (None, "exact", "equal names"),
        ({"m/a": "m/a"}, "exact", "rule 1"),
        ({"m/b": "m/a"}, "renamed", "rule 1"),
        ('[[rule]]\nfrom = "m/a"\nto = "m/a"\nops = [{ scale = { by = 2.0 } }]', "transformed", "rule 1"),
        ('[[rule]]\nkeep = "m/a"', "kept", "rule 1"),
    ],
)
def test_statuses_say_what_becomes_of_a_target(rules: object, status: str, evidence: str) -> None:
    done = plan("m/a 4\nm/b 4", "m/a 4", rules)  # type: ignore[arg-type]
    assert entry(done, "m/a").status.value == status
    assert entry(done, "m/a").evidence == evidence


def test_a_target_that_is_filled_in_part_is_resized() -> None:
    done = plan("e 4x2", "e 6x2", '[[rule]]\nfrom = "e"\nto = "e"\nops = [{ fit = { fill = "zeros" } }]')
    assert (entry(done, "e").status.value, entry(done, "e").elements) == ("resized", 8)
    assert "4 of 12 elements come from the fill" in entry(done, "e").reason


def test_a_target_without_elements_is_filled() -> None:
    assert statuses(plan("e 0x4", "e 0x4")) == {"e": "exact"}


def test_a_narrowing_cast_is_announced() -> None:
    assert "refused if any value would change" in entry(plan("a 4", "a 4 float16"), "a").reason
    assert "loses nothing" in entry(plan("a 4 float16", "a 4"), "a").reason


def test_what_the_ops_make_must_have_the_targets_shape() -> None:
    rules = '[[rule]]\nfrom = "a"\nto = "a"\nops = [{ transpose = { perm = [1, 0] } }]'
    assert problems(plan("a 2x3", "a 2x3", rules)) == {"a": "shape"}


def test_tensors_of_two_dtypes_that_are_joined_are_a_problem_of_the_plan() -> None:
    rules = '[[rule]]\nfrom = ["a", "b"]\nto = "c"\nops = [{ concat = { axis = 0 } }]'
    assert problems(plan("a 2\nb 2 float16", "c 4", rules)) == {"c": "dtype"}


def test_ops_that_can_never_apply_are_an_error_of_the_rule() -> None:
    rules = '[[rule]]\nfrom = "a"\nto = "b"\nops = [{ split = { axis = 0, sizes = [1, 3] } }]'
    with pytest.raises(RuleError, match="rule 1"):
        plan("a 4", "b 1", rules)


def test_a_program_without_variables_has_an_empty_plan() -> None:
    done = plan("a 1", "")
    assert (done.entries, [u.name for u in done.unused]) == ((), ["a"])


def test_state_that_no_checkpoint_holds_is_kept_with_its_reason() -> None:
    done = plan("m/a 1", "m/a 1\nm/dropout/seed 2 keep:never-saved")
    assert statuses(done)["m/dropout/seed"] == "kept"
    assert entry(done, "m/dropout/seed").reason == "never-saved"


def test_state_that_this_checkpoint_holds_is_restored() -> None:
    assert filled(plan("m/seed 2", "m/seed 2 keep:never-saved")) == {"m/seed": "m/seed"}


def test_what_plain_tensorflow_never_saves_is_said_where_it_is_missing() -> None:
    assert entry(plan("m/a 1", "m/b 1 note:lost-in-a-list"), "m/b").reason.endswith("lost-in-a-list")


def test_keeping_covers_names_that_nothing_fills_and_no_shapes() -> None:
    done = plan("m/a 4\nm/x 1", "m/a 5\nm/b 1\nm/x 1", keep=True)
    assert statuses(done)["m/b"] == "kept"
    assert entry(done, "m/b").evidence == "unmatched=keep"
    assert problems(done) == {"m/a": "shape"}


def test_a_rule_that_used_the_source_of_a_name_is_named() -> None:
    done = plan("m/a 4", "m/a 4\nm/b 4", {"m/a": "m/b"})
    assert "used by rule 1" in entry(done, "m/a").reason
    done = plan("m/a 4\nm/c 1", "m/a 4\nm/c 1", '[[rule]]\ndrop = "m/a"')
    assert "dropped by rule 1" in entry(done, "m/a").reason


def test_every_unused_tensor_has_a_reason() -> None:
    source = "m/a 1\nm/old 1\nm/x 1\nm/z 1\nsave_counter - int64\nmomentum@m/z"
    done = plan(source, "m/a 1", '[[rule]]\ndrop = "m/old"')
    assert {u.name: u.reason for u in done.unused} == {
        "m/old": "dropped by rule 1",
        "m/x": "no variable of the model has this name",
        "m/z": "no variable of the model has this name",
        "optimizer/momentum/m/z": "slot 'momentum' of 'm/z', which no target has",
        "save_counter": "the checkpoint's own counter of saves",
    }


def test_of_what_is_read_in_part_it_is_said_that_it_goes_unchecked() -> None:
    rules = '[[rule]]\nfrom = "e"\nto = "e"\nops = [{ slice = { begin = [0], size = [3] } }]'
    assert entry(plan("e 8", "e 3", rules), "e").unchecked == ("e",)
    assert entry(plan("e 6", "e 3", rules), "e").unchecked == ()
    assert entry(plan("e 8", "e 3", rules, verify_slices=True), "e").unchecked == ()


def test_parts_that_make_a_whole_together_are_checked() -> None:
    rules = '[[rule]]\nfrom = "qkv"\nto = ["q", "k", "v"]\nops = [{ split = { axis = 0 } }]'
    done = plan("qkv 9", "q 3\nk 3\nv 3", rules)
    assert [entry(done, n).unchecked for n in "qkv"] == [(), (), ()]


# ---- The error -------------------------------------------------------------------------------------------

MANY = "\n".join(f"m/blocks_{i}/w 4" for i in range(60))


def example(kind: str) -> RestorePlan:
    if kind == "shape":
        return plan("m/e 10x4\nm/k 4x2\nm/t 2x3", "m/e 12x4\nm/k 4x2\nm/t 3x2\nm/new 7x7")
    if kind == "dtype":
        return plan("m/e 10 int32\nm/s 1 string", "m/e 10\nm/s 1")
    if kind == "ambiguous":
        blocks = [f"m/blocks/{i}/w 4" for i in range(3)]
        return plan("\n".join(blocks[:2]), "\n".join(blocks))
    return plan(
        "m/dense/kernel 4x4\nm/block_0_mlp/w 2\nm/block_1_mlp/w 2",
        "m/fc/dense/kernel 4x4\nm/block_0/mlp/w 2\nm/block_1/mlp/w 2\nm/dense_b/kernel 3x3\nm/lora 9",
    )


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("shape", ShapeMismatchError),
        ("dtype", DtypeMismatchError),
        ("ambiguous", AmbiguousMatchError),
        ("unmatched", UnmatchedError),
    ],
)
def test_the_error_lists_all_problems_and_the_rules_that_mend_them(kind: str, error: type[RestoreError]) -> None:
    done = example(kind)
    with pytest.raises(RestoreError) as caught:
        refuse_problems(done)
    assert type(caught.value) is error
    assert caught.value.names == tuple(e.target for e in done.problems)
    path = GOLDEN / f"refusal_{kind}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(f"{caught.value}\n")
    assert path.read_text() == f"{caught.value}\n"


def test_a_plan_without_problems_is_not_refused() -> None:
    refuse_problems(plan("a 1", "a 1"))


def test_long_lists_are_cut_and_say_so() -> None:
    with pytest.raises(UnmatchedError) as caught:
        refuse_problems(plan("x 4", MANY))
    text = str(caught.value)
    assert text.count("m/blocks_") >= MAX_LISTED
    assert f"and {60 - MAX_LISTED} more" in text
    assert len(text.splitlines()) < MAX_LISTED + MAX_SUGGESTED + 10
    assert len(caught.value.names) == 60


def test_shapes_come_before_all_else() -> None:
    done = plan("m/a 4\nm/b 4\nm/c 4", "m/a 5\nm/b 4 sem:m/c\nm/zz 9")
    assert {e.problem for e in done.problems} == {Problem.SHAPE, Problem.AMBIGUOUS, Problem.UNMATCHED}
    with pytest.raises(ShapeMismatchError) as caught:
        refuse_problems(done)
    assert all(name in str(caught.value) for name in ("m/a", "m/b", "m/zz"))


@pytest.mark.parametrize("source", ["m/x 4", "m/x 4\nsave_counter - int64", ""])
def test_a_restore_that_fills_nothing_is_refused_whatever_was_allowed(source: str) -> None:
    done = plan(source, "m/a 4\nsave_counter - int64 keep:own-counter", keep=True)
    assert done.problems == ()
    with pytest.raises(UnmatchedError, match="fill nothing"):
        refuse_problems(done)


def test_hostile_names_cannot_move_the_cursor() -> None:
    with pytest.raises(UnmatchedError) as caught:
        refuse_problems(plan("m/\x1b[2Jx 4", "m/\x1b[2Jy 4\nm/\u202eabc 4\nm/a\rb 4"))
    assert not {"\x1b", "\u202e", "\r"} & set(str(caught.value))


def test_hostile_names_cannot_move_the_cursor_where_nothing_is_filled() -> None:
    with pytest.raises(UnmatchedError) as caught:
        refuse_problems(plan("m/\x1b[2Jx 4\nm/\u202eabc 4", "m/\x1b[2Jy 4", keep=True))
    assert not {"\x1b", "\u202e", "\r"} & set(str(caught.value))
