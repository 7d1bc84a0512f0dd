"""Matching without rules: what names prove, what they do not, and that order and chance play no part."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build import checkpoint, entry, filled, plan, problems, program, statuses
from dist_restore.core.index import AliasKind, CheckpointIndex, TargetIndex
from dist_restore.planning.plan import RestorePlan

# ---- Equal names -----------------------------------------------------------------------------------------


def test_equal_names_match() -> None:
    done = plan("model/a/w 4\nmodel/b/w 4", "model/b/w 4\nmodel/a/w 4")
    assert filled(done) == {"model/a/w": "model/a/w", "model/b/w": "model/b/w"}
    assert statuses(done) == {"model/a/w": "exact", "model/b/w": "exact"}


def test_an_alias_matches() -> None:
    done = plan("model/a/w 4", "model/x/w 4 sem:model/a/w")
    assert filled(done) == {"model/x/w": "model/a/w"}
    assert entry(done, "model/x/w").evidence == "equal name 'model/a/w'"


def test_equal_names_with_another_shape_are_a_problem_and_no_match() -> None:
    done = plan("model/a/w 4", "model/a/w 5", keep=True)
    assert problems(done) == {"model/a/w": "shape"}
    assert "expected shape [5], found 'model/a/w' [4]" in entry(done, "model/a/w").reason


@pytest.mark.parametrize(
    ("theirs", "ours", "problem", "ops"),
    [
        ("float16", "float32", None, "cast"),
        ("float32", "float16", None, "cast"),
        ("float32", "float32", None, ""),
        ("float32", "int32", "dtype", ""),
        ("string", "float32", "dtype", ""),
    ],
)
def test_dtypes_are_cast_where_that_can_lose_nothing_unseen(
    theirs: str, ours: str, problem: str | None, ops: str
) -> None:
    done = plan(f"model/w 4 {theirs}", f"model/w 4 {ours}")
    assert problems(done) == ({"model/w": problem} if problem else {})
    assert [op.NAME for op in entry(done, "model/w").ops] == ([ops] if ops else [])


def test_a_positional_name_is_no_evidence() -> None:
    source = "optimizer/tv/0 4 kind:positional pos:operations/0/w"
    assert problems(plan(source, "model/a/w 4 pos:operations/0/w")) == {"model/a/w": "unmatched"}
    assert problems(plan("model/b/w 4 pos:operations/0/w", "model/a/w 4 pos:operations/0/w", keep=False)) == {
        "model/a/w": "unmatched"
    }


def test_names_that_disagree_are_a_conflict_with_both_candidates() -> None:
    done = plan("model/a/w 4\nmodel/b/w 4", "model/a/w 4 sem:model/b/w", keep=True)
    assert problems(done) == {"model/a/w": "ambiguous"}
    assert entry(done, "model/a/w").candidates == ("model/a/w", "model/b/w")


def test_an_alias_that_is_the_name_of_another_is_no_alias() -> None:
    """A layer that is called like another's attribute; a model must load its own checkpoint."""
    text = "model/dense/w 4 sem:model/foo/w\nmodel/foo2/w 4 sem:model/dense/w"
    assert filled(plan(text, text)) == {"model/dense/w": "model/dense/w", "model/foo2/w": "model/foo2/w"}


def test_an_alias_that_several_have_is_no_alias() -> None:
    text = "model/a/w 4 sem:model/x/w\nmodel/b/w 4 sem:model/x/w"
    assert filled(plan(text, text)) == {"model/a/w": "model/a/w", "model/b/w": "model/b/w"}
    assert problems(plan(text, "model/x/w 4")) == {"model/x/w": "unmatched"}


def test_names_of_decided_tensors_are_nobody_elses() -> None:
    source = "model/a/w 4\nmodel/b/w 4 sem:model/c/w"
    target = "model/x/w 4\nmodel/a/w 4 sem:model/b/w\nmodel/b/w 4"
    done = plan(source, target, {"model/b/w": "model/x/w"})
    assert filled(done) == {"model/x/w": "model/b/w", "model/a/w": "model/a/w"}


def test_one_tensor_under_two_names_fills_the_two_variables_that_have_them() -> None:
    done = plan("model/embed/w 4 sem:model/head/w", "model/embed/w 4\nmodel/head/w 4")
    assert filled(done) == {"model/embed/w": "model/embed/w", "model/head/w": "model/embed/w"}


def test_two_variables_that_claim_one_tensor_by_another_name_get_nothing() -> None:
    done = plan("model/a/w 4 sem:model/b/w", "model/a/w 4\nmodel/x/w 4 sem:model/b/w", keep=True)
    assert problems(done) == {"model/a/w": "ambiguous", "model/x/w": "ambiguous"}


def test_a_private_attribute_that_gets_a_public_neighbour_is_a_conflict() -> None:
    """Version 1 has `_w`, called `w`; version 2 has both, and `w` is new."""
    done = plan("model/w 4 sem:model/_w", "model/_w 4\nmodel/w 4", keep=True)
    assert problems(done) == {"model/_w": "ambiguous", "model/w": "ambiguous"}


def test_hostile_names_decide_nothing() -> None:
    """Evidence is no text to be searched: a name may say `root` or `slots carry`."""
    done = plan(
        "model/a/w 4 sem:root/slots carry/w".replace(" carry", "_carry"), "model/a/w 4\nx/w 4 sem:root/slots_carry/w"
    )
    assert problems(done) == {"model/a/w": "ambiguous", "x/w": "ambiguous"}


# ---- Roots -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", ["", "model/", "net/"])
@pytest.mark.parametrize("theirs", ["", "model/", "net/"])
def test_a_root_is_aligned(ours: str, theirs: str) -> None:
    done = plan(
        f"{theirs}a/w 4\n{theirs}b/w 4\noptimizer/rate -\nsave_counter - int64",
        f"{ours}a/w 4\n{ours}b/w 4\nsave_counter - int64",
    )
    expected = {f"{ours}{n}/w": f"{theirs}{n}/w" for n in "ab"}
    assert filled(done) == {**expected, "save_counter": "save_counter"}


def test_a_root_with_variables_of_its_own_is_aligned_when_all_is_the_same_below() -> None:
    done = plan("net/w 4\nnet/b 4\noptimizer/rate -", "model/w 4\nmodel/b 4\noptimizer/rate -")
    assert filled(done)["model/w"] == "net/w"
    assert "root 'net' aligned with 'model'" in entry(done, "model/w").evidence


def test_a_renamed_layer_is_no_root() -> None:
    done = plan("a/kernel 4\nold_head/kernel 4", "a/kernel 4\nnew_head/kernel 4")
    assert problems(done) == {"new_head/kernel": "unmatched"}


def test_a_root_of_which_only_some_is_the_same_right_below_is_not_aligned() -> None:
    assert problems(plan("net/w 4\nnet/b 4", "model/w 4\nmodel/c 4")) == {
        "model/w": "unmatched",
        "model/c": "unmatched",
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["student", "teacher"], ["model"]),
        (["net"], ["student", "teacher"]),
        (["student", "teacher"], [""]),
        ([""], ["student", "teacher"]),
    ],
)
def test_a_root_with_two_possible_places_is_ambiguous(theirs: list[str], ours: list[str]) -> None:
    def side(roots: list[str]) -> str:
        return "\n".join(f"{r}/{n}/w 4".lstrip("/") for r in roots for n in "ab")

    done = plan(side(theirs), side(ours), keep=True)
    assert filled(done) == {}
    assert set(problems(done).values()) == {"ambiguous"}


def test_names_that_only_one_of_two_possible_roots_has_are_ambiguous_too() -> None:
    done = plan("student/a/w 4\nteacher/a/w 4\nteacher/b/w 4", "model/a/w 4\nmodel/b/w 4", keep=True)
    assert problems(done) == {"model/a/w": "ambiguous", "model/b/w": "ambiguous"}


def test_two_names_of_one_root_are_one_place() -> None:
    """A Keras file says each layer's attribute, and its path from the model's own name: one tensor, two roots."""
    source = "a/w 4 sem:net/a/w\nb/w 4 sem:net/b/w\noptimizer/0 4"
    done = plan(source, "model/a/w 4\nmodel/b/w 4", keep=True)
    assert filled(done) == {"model/a/w": "a/w", "model/b/w": "b/w"}
    assert not problems(done)


def test_a_second_root_of_which_one_name_means_another_tensor_is_a_second_place() -> None:
    source = "a/w 4 sem:net/b/w\nb/w 4 sem:net/a/w"
    assert set(problems(plan(source, "model/a/w 4\nmodel/b/w 4", keep=True)).values()) == {"ambiguous"}


def test_a_root_that_fits_as_it_is_stays() -> None:
    done = plan("model/a/w 4\nema/a/w 4\nema/b/w 4", "model/a/w 4\nmodel/b/w 4")
    assert filled(done) == {"model/a/w": "model/a/w"}
    assert problems(done) == {"model/b/w": "unmatched"}


def test_a_root_of_which_a_rule_speaks_goes_with_no_other() -> None:
    rules = '[[rule]]\nfrom = "student/a/{rest}"\nto = "model/a/{rest}"'
    done = plan(
        "student/a/w 4\nstudent/b/w 4\nteacher/b/w 4\nteacher/c/w 4", "model/a/w 4\nmodel/b/w 4\nmodel/c/w 4", rules
    )
    assert filled(done) == {"model/a/w": "student/a/w", "model/b/w": "student/b/w"}


@pytest.mark.parametrize("root", ["model/", "net/", ""])
def test_one_rule_does_not_keep_the_root_from_being_aligned(root: str) -> None:
    rules = {"net/x/dense/w": f"{root}x/fc/w"}
    done = plan("net/x/dense/w 4\nnet/x/b/w 4", f"{root}x/fc/w 4\n{root}x/b/w 4", rules)
    assert filled(done) == {f"{root}x/fc/w": "net/x/dense/w", f"{root}x/b/w": "net/x/b/w"}


def test_many_roots_with_equal_insides_are_not_tried_against_each_other() -> None:
    count = 2000
    source = "\n".join(f"old_{i}/x/w 4" for i in range(count))
    target = "\n".join(f"new_{i}/x/w 4" for i in range(count))
    assert filled(plan(source, target)) == {}


# ---- Lists -----------------------------------------------------------------------------------------------


def blocks(count: int, root: str = "model", *extra: str) -> str:
    rows = [f"{root}/blocks/{i}/{n} 4" for i in range(count) for n in ("w", "b")]
    return "\n".join([*rows, f"{root}/head/w 4", *extra])


def test_lists_of_equal_length_match_by_index() -> None:
    assert len(filled(plan(blocks(4), blocks(4)))) == 9


@pytest.mark.parametrize("root", ["model", "net"])
@pytest.mark.parametrize(("theirs", "ours"), [(4, 5), (5, 4)])
def test_lists_of_unequal_length_are_ambiguous_as_a_whole(root: str, theirs: int, ours: int) -> None:
    done = plan(blocks(theirs, root), blocks(ours), keep=True)
    assert filled(done) == {"model/head/w": f"{root}/head/w"}
    assert set(problems(done).values()) == {"ambiguous"}
    reason = entry(done, "model/blocks/0/w").reason
    assert f"{ours} members in the model and {theirs} in the checkpoint" in reason


def test_lists_of_equal_length_with_other_indexes_are_ambiguous() -> None:
    done = plan("model/x/0/w 4\nmodel/x/1/w 4", "model/x/1/w 4\nmodel/x/2/w 4", keep=True)
    assert problems(done) == {"model/x/1/w": "ambiguous", "model/x/2/w": "ambiguous"}


def test_a_list_inside_a_list_is_compared_by_itself() -> None:
    source = "model/x/0/y/0/w 4\nmodel/x/1/y/0/w 4\nmodel/x/1/y/1/w 4"
    target = "model/x/0/y/0/w 4\nmodel/x/1/y/0/w 4"
    done = plan(source, target)
    assert filled(done) == {"model/x/0/y/0/w": "model/x/0/y/0/w"}
    assert problems(done) == {"model/x/1/y/0/w": "ambiguous"}


def test_a_list_is_compared_under_every_name_that_matches_it() -> None:
    done = plan(blocks(3), "model/last/w 4 sem:model/blocks/2/w", keep=True)
    assert problems(done) == {"model/last/w": "ambiguous"}


def test_a_rule_that_says_where_a_block_was_inserted_settles_the_list() -> None:
    rules = """
    [[rule]]
    keep = "model/blocks/1/{rest}"
    [[rule]]
    from = "model/blocks/1/{rest}"
    to = "model/blocks/2/{rest}"
    """
    done = plan(blocks(2), blocks(3), rules)
    assert filled(done) == {
        "model/head/w": "model/head/w",
        **{f"model/blocks/0/{n}": f"model/blocks/0/{n}" for n in "wb"},
        **{f"model/blocks/2/{n}": f"model/blocks/1/{n}" for n in "wb"},
    }


@pytest.mark.parametrize("word", ["keep", "drop"])
def test_keeping_or_dropping_a_member_leaves_equal_lists_equal(word: str) -> None:
    done = plan(blocks(3), blocks(3), f'[[rule]]\n{word} = "model/blocks/1/{{rest}}"')
    assert filled(done)["model/blocks/2/w"] == "model/blocks/2/w"
    assert "model/blocks/1/w" not in filled(done)
    assert "ambiguous" not in problems(done).values()


def test_a_rule_that_moves_a_member_leaves_the_others_ambiguous() -> None:
    done = plan(blocks(3), blocks(3), '[[rule]]\nfrom = "model/blocks/2/{rest}"\nto = "model/blocks/0/{rest}"')
    assert problems(done)["model/blocks/1/w"] == "ambiguous"


def test_dropping_what_was_removed_settles_the_list() -> None:
    done = plan(blocks(4), blocks(3), '[[rule]]\ndrop = "model/blocks/3/{rest}"')
    assert len(filled(done)) == 7


# ---- Names that count ------------------------------------------------------------------------------------


def counted(*numbers: int, shape: str = "4") -> str:
    return "\n".join(f"model/dense{f'_{n}' if n else ''}/w {shape} kind:counted" for n in numbers)


def stored(*numbers: int) -> str:
    return counted(*numbers).replace(" kind:counted", "")


def test_automatic_names_match_by_their_order() -> None:
    done = plan(stored(0, 1, 10, 2), counted(7, 5, 12, 6))
    assert filled(done) == {
        "model/dense_5/w": "model/dense/w",
        "model/dense_6/w": "model/dense_1/w",
        "model/dense_7/w": "model/dense_2/w",
        "model/dense_12/w": "model/dense_10/w",
    }


@pytest.mark.parametrize("numbers", [(0, 1), (0, 1, 2, 3)])
def test_automatic_names_of_unequal_number_are_ambiguous(numbers: tuple[int, ...]) -> None:
    done = plan(stored(*numbers), counted(0, 1, 2), keep=True)
    assert set(problems(done).values()) == {"ambiguous"} and filled(done) == {}


def test_automatic_names_with_other_shapes_are_ambiguous() -> None:
    source = "model/dense/w 4\nmodel/dense_1/w 5"
    target = "model/dense_3/w 5 kind:counted\nmodel/dense_4/w 4 kind:counted"
    assert set(problems(plan(source, target, keep=True)).values()) == {"ambiguous"}


def test_what_a_chosen_name_has_is_not_counted() -> None:
    done = plan("model/dense_1/w 4", "model/dense_1/w 4\nmodel/dense_7/w 4 kind:counted")
    assert filled(done) == {"model/dense_1/w": "model/dense_1/w"}
    assert problems(done) == {"model/dense_7/w": "unmatched"}


# ---- Flattened names -------------------------------------------------------------------------------------


def nameless(index: int, flat: str = "", shape: str = "4") -> str:
    alias = f" flat:{flat}" if flat else ""
    return f"optimizer/trainable_variables/{index} {shape} kind:positional{alias}"


def place(name: str, index: int, words: str = "") -> str:
    return f"{name} 4 pos:optimizer/trainable_variables/{index} {words}"


def test_flattened_names_that_slots_carry_match() -> None:
    done = plan(
        f"{nameless(0, 'net_a_w')}\n{nameless(1, 'net_b_w')}", "model/b/w 4 flat:net_b_w\nmodel/a/w 4 flat:net_a_w"
    )
    assert filled(done) == {
        "model/a/w": "optimizer/trainable_variables/0",
        "model/b/w": "optimizer/trainable_variables/1",
    }
    assert "slots carry" in entry(done, "model/a/w").evidence


def test_a_flattened_name_of_two_tensors_is_none() -> None:
    done = plan(f"{nameless(0, 'net_w')}\n{nameless(1, 'net_w')}", "model/a/w 4 flat:net_w")
    assert problems(done) == {"model/a/w": "unmatched"}


def test_two_variables_of_one_flattened_name_are_ambiguous() -> None:
    done = plan(nameless(0, "net_w"), "model/a/w 4 flat:net_w\nmodel/b/w 4 flat:net_w", keep=True)
    assert set(problems(done).values()) == {"ambiguous"}


def test_flattened_names_of_a_family_of_unequal_number_are_ambiguous() -> None:
    source = "\n".join(nameless(i, f"net_block_{i}_w") for i in range(3))
    target = "\n".join(f"model/blocks/{i}/w 4 flat:net_block_{i}_w" for i in range(4))
    done = plan(source, target, keep=True)
    assert filled(done) == {}
    assert problems(done)["model/blocks/0/w"] == "ambiguous"


def test_several_flattened_names_of_one_variable_count_once() -> None:
    source = "\n".join(nameless(i, f"net_block_{i}_w") for i in range(3))
    target = "\n".join(f"model/blocks/{i}/w 4 flat:net_block_{i}_w flat:net_1_block_{i}_w" for i in range(3))
    assert len(filled(plan(source, target))) == 3


def test_a_semantic_and_a_flattened_name_that_disagree_are_a_conflict() -> None:
    source = f"model/a/w 4\n{nameless(0, 'net_a_w')}"
    assert problems(plan(source, "model/a/w 4 flat:net_a_w", keep=True)) == {"model/a/w": "ambiguous"}


# ---- Places in the optimizer -----------------------------------------------------------------------------

OPTIMIZER = {"optimizer": "adam"}


def by_place(source: str, target: str) -> RestorePlan:
    return plan(checkpoint(source, OPTIMIZER), program(target, OPTIMIZER), keep=True)


def test_variables_without_any_name_match_by_their_place() -> None:
    done = by_place(f"{nameless(0)}\n{nameless(1)}", f"{place('model/x/1', 1)}\n{place('model/x/0', 0)}")
    assert filled(done) == {f"model/x/{i}": f"optimizer/trainable_variables/{i}" for i in range(2)}
    assert "position among the optimizer's 2 variables" in entry(done, "model/x/0").evidence


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ([nameless(0)], [place("m/a", 0), place("m/b", 1)], "the model has 2"),
        ([nameless(0), nameless(1)], [place("m/a", 0)], "2 variables without a name"),
        ([nameless(0), nameless(1, shape="5")], [place("m/a", 0), place("m/b", 1)], "shapes differ"),
        (
            [nameless(0), place("m/a", 1), place("m/c", 2)],
            [place("m/b", 0), place("m/c", 1), place("m/a", 2)],
            "names say that others have moved",
        ),
        ([nameless(0, "net_x_w")], [place("m/a", 0, "flat:net_y_w")], "'net_x_w'"),
    ],
)
def test_places_that_something_is_against_are_ambiguous(source: list[str], target: list[str], words: str) -> None:
    done = by_place("\n".join(source), "\n".join(target))
    reasons = {e.reason for e in done.problems if e.problem.value == "ambiguous"}
    assert [r for r in reasons if words in r]
    assert "optimizer/trainable_variables/0" not in filled(done).values()


def test_a_place_never_outvotes_a_name() -> None:
    done = by_place(place("model/a/w", 0), place("model/b/w", 0))
    assert filled(done) == {} and statuses(done) == {"model/b/w": "kept"}


def test_a_rule_that_moves_a_place_is_heard() -> None:
    source, target = f"{nameless(0)}\n{nameless(1)}", f"{place('m/a', 0)}\n{place('m/b', 1)}"
    rules = {"optimizer/trainable_variables/0": "m/b"}
    done = plan(checkpoint(source, OPTIMIZER), program(target, OPTIMIZER), rules, keep=True)
    assert filled(done) == {"m/b": "optimizer/trainable_variables/0"}


@pytest.mark.parametrize("index", ["²", "9" * 5000, "x", "-1", ""])
def test_hostile_places_are_no_places(index: str) -> None:
    source = f"optimizer/trainable_variables/{index} 4 kind:positional"
    assert filled(by_place(source, place("m/a", 0))) == {}


STATE = """model/w 4 pos:optimizer/trainable_variables/0
optimizer/variables/0 4 kind:positional
optimizer/variables/1 2 kind:positional"""


def test_state_without_names_matches_by_its_place_in_an_optimizer_of_the_same_class() -> None:
    done = by_place(STATE, STATE)
    assert filled(done)["optimizer/variables/1"] == "optimizer/variables/1"


@pytest.mark.parametrize(
    ("source", "family"),
    [
        (STATE, "sgd"),
        (STATE.replace("variables/1 2", "variables/1 3"), "adam"),
        (STATE + "\noptimizer/variables/2 2 kind:positional", "adam"),
        (STATE.replace("model/w", "model/v"), "adam"),
    ],
)
def test_state_without_names_needs_the_same_optimizer_throughout(source: str, family: str) -> None:
    done = plan(checkpoint(source, {"optimizer": family}), program(STATE, OPTIMIZER))
    assert "optimizer/variables/0" not in filled(done)


# ---- Properties ------------------------------------------------------------------------------------------

NAMES = ["model/a/w", "model/b/w", "net/a/w", "a/w", "model/x/0/w", "model/x/1/w", "model/dense_1/w", "model/dense_2/w"]
FLATS = ["a_w", "net_a_w", "x_w"]
KINDS = ["semantic", "counted", "positional"]


@st.composite
def texts(draw: st.DrawFn) -> str:
    rows = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=6)):
        aliases = draw(st.lists(st.sampled_from(NAMES), max_size=2))
        flats = draw(st.lists(st.sampled_from(FLATS), max_size=1))
        words = [f"sem:{a}" for a in aliases if a != name] + [f"flat:{f}" for f in flats]
        kind = draw(st.sampled_from(["semantic"] * 4 + KINDS))
        rows.append(f"{name} {draw(st.sampled_from(['4', '4', '5']))} kind:{kind} {' '.join(words)}")
    return "\n".join(rows)


@settings(deadline=None)
@given(texts(), texts(), st.randoms(use_true_random=False))
def test_the_order_of_the_indexes_changes_nothing(source: str, target: str, random: object) -> None:
    sources, targets = checkpoint(source), program(target)
    expected = plan(sources, targets)
    shuffled = [list(sources.tensors), list(targets.variables)]
    for items in shuffled:
        random.shuffle(items)  # type: ignore[attr-defined]
    again = plan(
        dataclasses.replace(sources, tensors=tuple(sorted(shuffled[0], key=lambda t: t.name))),
        TargetIndex(tuple(shuffled[1])),
    )
    assert again.to_json() == expected.to_json()


def semantic_names(index: CheckpointIndex | TargetIndex) -> dict[str, set[str]]:
    """Name -> the items that have it, canonical names before aliases."""
    items = index.tensors if isinstance(index, CheckpointIndex) else index.variables
    canonical = {i.name for i in items}
    table: dict[str, set[str]] = {i.name: {i.name} for i in items if i.name_kind is AliasKind.SEMANTIC}
    for item in items:
        for alias in item.aliases:
            if alias.kind is AliasKind.SEMANTIC and alias.name not in canonical:
                table.setdefault(alias.name, set()).add(item.name)
    return table


@settings(deadline=None)
@given(texts(), texts())
def test_no_variable_is_filled_by_what_belongs_to_another(source: str, target: str) -> None:
    sources, targets = checkpoint(source), program(target)
    owners, paths = semantic_names(targets), semantic_names(sources)
    for name, (used,) in plan(sources, targets).mapping().items():
        tied = used in paths.get(name, ())  # the tensor has the variable's name too, by another path
        nameless = used not in paths
        assert tied or nameless or name in owners.get(used, {name})


@settings(deadline=None)
@given(texts())
def test_a_program_always_loads_its_own_names(text: str) -> None:
    text = "\n".join(row for row in text.splitlines() if "kind:semantic" in row and "flat:" not in row)
    assert filled(plan(text, text)) == {line.split()[0]: line.split()[0] for line in text.splitlines()}
