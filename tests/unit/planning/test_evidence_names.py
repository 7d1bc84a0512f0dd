"""Names: lists of which the members are not the same, roots that rules speak of, and numbers of a layer's variables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build import checkpoint, entry, filled, plan, problems, program
from dist_restore.core.index import SourceTensor, TargetVariable
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching import by_name as by_name_module
from dist_restore.planning.matching.by_name import by_name
from dist_restore.planning.matching.lists import (
    Lists,
    list_members,
    list_positions,
    rests_on_index,
    template_of_counted,
    template_of_flat,
    template_of_list,
)
from dist_restore.planning.matching.outcome import Conflict, Outcome
from dist_restore.planning.matching.roots import align
from dist_restore.planning.name_table import Side

# ---- Indexes and counters in names -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/0/w", "0/w", "a/12", "7", "a/b/3/c"])
def test_an_index_is_a_part_of_digits_alone(name: str) -> None:
    assert rests_on_index(name)


@pytest.mark.parametrize("name", ["a0/w", "a/b0", "a/0b/c", "", "layer_1/w", "a/1_2"])
def test_other_numbers_are_parts_of_names(name: str) -> None:
    assert not rests_on_index(name)
    assert not [*list_positions(name)]


def test_lists_are_found_at_each_depth() -> None:
    assert [*list_positions("a/blocks/3/b/0")] == [("a/blocks", "3"), ("a/blocks/3/b", "0")]
    assert [*list_positions("0/w")] == []
    assert list_members(["a/0/w", "a/1/w", "a/1/b", "b/w"]) == {"a": frozenset("01")}


def test_templates_leave_numbers_out() -> None:
    assert template_of_list("a/blocks/3/w") == "a/blocks/{}/w"
    assert template_of_list("3/w/4") == "3/w/{}"
    assert template_of_flat("net_block_1_dense_5_kernel") == "net_block_dense_kernel"
    assert template_of_counted("net/dense_2/kernel_1") == ("net/dense/kernel_1", (0, 2))
    assert template_of_counted("dense_1234567890/w") == ("dense/w", (0,))
    assert template_of_counted("dense_123456789/w") == ("dense/w", (123456789,))


# ---- Lists that are not the same -------------------------------------------------------------------------


def lists(ours: str, theirs: str, all_ours: str = "", all_theirs: str = "") -> Lists:
    names = [[f"m/{i}/w" for i in side] for side in (ours, theirs, all_ours or ours, all_theirs or theirs)]
    return Lists(*names)


@pytest.mark.parametrize(
    ("sides", "unequal"),
    [
        (("01", "01"), ""),
        (("01", "012"), "2 members in the model and 3"),
        (("012", "01"), "3 members in the model and 2"),
        (("", "012"), ""),
        (("012", ""), ""),
        (("12", "012", "012", "012"), ""),
        (("012", "12", "012", "012"), ""),
        (("12", "01", "012", "012"), "2 members in the model and 2"),
        (("01", "01", "012", "01"), ""),
        (("01", "12", "012", "12"), "3 members in the model and 2"),
        (("02", "01", "012", "01"), "3 members in the model and 2"),
    ],
)
def test_an_index_is_a_name_where_both_sides_have_the_same(sides: tuple[str, ...], unequal: str) -> None:
    found = lists(*sides)
    assert found.all_equal == (not unequal)
    assert unequal in found.unequal("m/0/w") and bool(found.unequal("m/0/w")) == bool(unequal)
    assert not found.unequal("n/0/w")
    if unequal:
        assert found.unequal("m/0/w") == (
            f"'m' holds {unequal} in the checkpoint, so one was inserted or removed and equal indexes mislead; "
            "a rule must say where"
        )


def test_a_list_beside_one_that_is_not_the_same_stays() -> None:
    source = "m/x/0/w 4\nm/y/0/w 4\nm/y/1/w 4"
    done = plan(source, source + "\nm/x/1/w 4", keep=True)
    assert filled(done).keys() == {"m/y/0/w", "m/y/1/w"}
    assert problems(done)["m/x/0/w"] == "ambiguous"


def test_names_without_an_index_are_better_words_for_a_match() -> None:
    """What a list calls 0 has a name too: then its place is no order."""
    text = "m/x/0/w 4 sem:m/first/w\nm/x/1/w 4 sem:m/second/w"
    assert {e.proof for e in plan(text, text).entries} == {Proof.NAME}
    plain = "m/x/0/w 4\nm/x/1/w 4"
    assert {e.proof for e in plan(plain, plain).entries} == {Proof.ORDER}


# ---- Roots -----------------------------------------------------------------------------------------------


def aligned(source: str, target: str, *settled: tuple[str, str]) -> dict[str, tuple[str, ...]]:
    theirs, ours = checkpoint(source).tensors, program(target).variables
    return dict(align(ours, Side(theirs, theirs), settled).pairs)


def test_roots_are_pairs_of_what_is_the_same_below() -> None:
    assert aligned("net/a/w 4", "model/a/w 4") == {"net": ("model",)}
    assert aligned("a/b/w 4", "model/a/b/w 4") == {"": ("model",)}
    assert aligned("net/a/w 4", "a/w 4") == {"net": ("",)}
    assert aligned("net/a/w 4", "net/a/w 4") == {}
    assert aligned("net/a/w 4", "model/b/w 4") == {}
    assert aligned("x/a/w 4\ny/a/w 4", "m/a/w 4\nn/a/w 4") == {"x": ("m", "n"), "y": ("m", "n")}


def test_names_right_below_a_root_align_only_ones_that_are_the_same_throughout() -> None:
    assert aligned("net/w 4", "model/w 4") == {"net": ("model",)}
    assert aligned("net/w 4\nnet/b 4", "model/w 4") == {}
    assert aligned("net/w 4\nx/w 4", "model/w 4\nmodel/b/c 4") == {}
    assert aligned("net/w 4\nnet/a/w 4", "model/w 4\nmodel/a/w 4") == {"net": ("model",)}
    assert aligned("w 4", "model/w 4") == {"": ("model",)}
    assert aligned("w 4\nb 4", "model/w 4") == {}
    assert aligned("net/w 4\nnet/b 4", "w 4\nb 4") == {"net": ("",)}


def test_automatic_names_prove_no_root() -> None:
    assert aligned("net/dense/w 4 kind:counted", "model/dense/w 4 kind:counted") == {}
    assert aligned("net/a/w 4 kind:positional", "model/a/w 4 kind:positional") == {}
    assert aligned("net/a/w 4", "model/a/w 4 kind:counted\nmodel/b/w 4") == {}


def test_a_root_of_a_namesake_is_no_other_root() -> None:
    assert aligned("b/x/w 4", "a/x/w 4\nb/y/w 4") == {}


def test_nine_roots_are_too_many() -> None:
    def many(count: int) -> str:
        return "\n".join(f"r{i}/a/w 4" for i in range(count))

    assert len(aligned(many(8), "model/a/w 4")) == 8
    assert aligned(many(9), "model/a/w 4") == {}
    assert aligned("net/a/w 4", many(8)) == {"net": tuple(f"r{i}" for i in range(8))}
    assert aligned("net/a/w 4", many(9)) == {}


def test_a_second_root_of_the_same_tensors_is_an_echo() -> None:
    assert aligned("x/a/w 4 sem:y/a/w", "m/a/w 4") == {"x": ("m",)}
    assert aligned("x/a/w 4 sem:y/a/w\nx/b/w 4", "m/a/w 4\nm/b/w 4") == {"x": ("m",)}
    assert aligned("x/a/w 4\ny/b/w 4 sem:x/b/w", "m/a/w 4\nm/b/w 4") == {"x": ("m",)}


def test_a_part_that_fits_as_it_is_leaves_all_roots() -> None:
    assert aligned("m/a/w 4\nnet/b/w 4", "m/a/w 4\nn/b/w 4") == {}
    assert aligned("optimizer/rate 4\nnet/b/w 4", "optimizer/rate 4\nn/b/w 4") == {"net": ("n",)}
    assert aligned("optimizer/rate 4\nnet/b/w 4", "optimizer/rate 4\nb/w 4") == {}


def test_a_root_of_an_optimizer_that_fits_goes_nowhere() -> None:
    own = "optimizer/rate 4\n"
    assert aligned(own + "optimizer/x/w 4\nnet/x/w 4", own + "model/x/w 4") == {"net": ("model",)}
    assert aligned(own + "net/x/w 4", own + "optimizer/x/w 4") == {}


def test_what_rules_say_of_roots_excludes_others() -> None:
    two = "x/a/w 4\ny/a/w 4"
    assert aligned(two, "m/a/w 4", ("m/b", "x/b")) == {"x": ("m",)}
    assert aligned(two, "m/a/w 4", ("m/b", "z/b")) == {}
    assert aligned(two, "m/a/w 4", ("n/b", "x/b")) == {"y": ("m",)}
    assert aligned(two, "a/w 4", ("b", "x/b")) == {"x": ("",)}
    assert aligned("a/b/w 4", "m/a/b/w 4", ("m/c", "c")) == {"": ("m",)}
    assert aligned("a/b/w 4", "m/a/b/w 4", ("n/c", "c")) == {}
    assert aligned("net/a/w 4", "net/a/w 4", ("net/b", "net/b")) == {}
    assert aligned("net/a/w 4\nx/a/w 4", "m/a/w 4", ("x/b", "x/b")) == {"net": ("m",)}


def test_moved_names_say_what_moved_them() -> None:
    done = plan("net/a/w 4\nnet/b/w 4", "a/w 4\nb/w 4")
    assert entry(done, "a/w").evidence == "root 'net' aligned with '(none)'"
    done = plan("a/w 4\nb/w 4", "net/a/w 4\nnet/b/w 4")
    assert entry(done, "net/a/w").evidence == "root '(none)' aligned with 'net'"


def test_a_doubtful_root_names_its_places() -> None:
    done = plan("x/a/w 4\ny/a/w 4", "m/a/w 4", keep=True)
    assert entry(done, "m/a/w").candidates == ("x/a/w", "y/a/w")
    done = plan("x/a/w 4", "m/a/w 4\nn/a/w 4", keep=True)
    assert entry(done, "m/a/w").reason == "its root has several possible places: 'x' as 'm', 'x' as 'n'."
    done = plan("a/b/w 4", "m/a/b/w 4\nn/a/b/w 4", keep=True)
    assert entry(done, "m/a/b/w").reason == "its root has several possible places: '(none)' as 'm', '(none)' as 'n'."


def test_clear_pairs_have_no_rivals() -> None:
    def clear(source: str, target: str) -> list[tuple[str, str]]:
        theirs, ours = checkpoint(source).tensors, program(target).variables
        return align(ours, Side(theirs, theirs), ()).clear_pairs()

    assert clear("net/a/w 4", "model/a/w 4") == [("model", "net")]
    assert clear("x/a/w 4\ny/a/w 4", "m/a/w 4") == []
    assert clear("x/a/w 4", "m/a/w 4\nn/a/w 4") == []


# ---- Flattened names, and names of several ---------------------------------------------------------------


def flat(index: int, name: str) -> str:
    return f"optimizer/trainable_variables/{index} 4 kind:positional flat:{name}"


def test_a_family_of_flattened_names_says_how_many_each_side_has() -> None:
    source = "\n".join(flat(i, f"net_block_{i}_w") for i in range(3))
    done = plan(source, "\n".join(f"model/x{i}/w 4 flat:net_block_{i}_w" for i in range(4)), keep=True)
    assert entry(done, "model/x0/w").reason == (
        "the model holds 4 variables of this family and the checkpoint 3, so one was inserted or removed and equal "
        "numbers mislead."
    )
    assert entry(done, "model/x0/w").candidates == ("optimizer/trainable_variables/0",)


def test_a_family_without_numbers_is_none() -> None:
    source = flat(0, "net_a_w") + "\n" + flat(1, "net_a1_w")
    done = plan(source, "model/a/w 4 flat:net_a_w", keep=True)
    assert filled(done) == {"model/a/w": "optimizer/trainable_variables/0"}
    assert not filled(plan(source, "model/a1/w 4 flat:net_a1_w", keep=True))


def test_flattened_names_that_disagree_say_so_first() -> None:
    source = "\n".join(flat(i, f"net_block_{i}_w") for i in range(2))
    done = plan(source, "model/a1/w 4 flat:net_block_0_w flat:net_block_1_w", keep=True)
    assert entry(done, "model/a1/w").reason == (
        "its names disagree: equal name 'net_block_0_w', which its slots carry points to "
        "'optimizer/trainable_variables/0'; equal name 'net_block_1_w', which its slots carry points to "
        "'optimizer/trainable_variables/1'."
    )


def test_a_name_beside_a_flattened_one_is_enough() -> None:
    source = "model/a0/w 4 flat:net_a_0_w\nmodel/b/w 4 flat:net_a_1_w"
    assert filled(plan(source, "model/a0/w 4 flat:net_a_0_w", keep=True)) == {"model/a0/w": "model/a0/w"}


def test_one_flattened_name_of_a_family_that_is_the_same_is_enough() -> None:
    """What sources have no such names for is not counted at all."""
    source = "model/a0/w 4 sem:x\n" + flat(0, "net_b_0_w")
    assert filled(plan(source, "model/b0/w 4 flat:net_b_0_w", keep=True)) == {
        "model/b0/w": "optimizer/trainable_variables/0"
    }


def test_several_names_of_one_tensor_are_one_claim() -> None:
    source = "model/a/w 4 sem:model/b/w sem:model/c/w\nmodel/d/w 4"
    assert filled(plan(source, "model/z/w 4 sem:model/b/w sem:model/c/w")) == {"model/z/w": "model/a/w"}


def test_those_that_claim_one_source_by_another_name_name_each_other() -> None:
    done = plan("model/a/w 4 sem:model/b/w", "model/a/w 4\nmodel/x/w 4 sem:model/b/w", keep=True)
    assert entry(done, "model/a/w").reason == "'model/x/w' claims the same source by another name."
    assert entry(done, "model/x/w").reason == "'model/a/w' claims the same source by another name."
    assert entry(done, "model/a/w").candidates == ("model/a/w",)


# ---- Names that disagree ---------------------------------------------------------------------------------


def claimed(source: str, target: str) -> Outcome | None:
    ours, theirs = program(target).variables, checkpoint(source).tensors
    other = Side(theirs, theirs)
    return by_name(Side(ours, ours), other, align(ours, other, ())).get(ours[0].name)


def test_of_names_that_disagree_only_those_below_other_roots_leave_the_graphs_a_say() -> None:
    plain = claimed("model/a 4\nmodel/b 5", "model/a 4 sem:model/b\nmodel/c 6")
    assert isinstance(plain, Conflict) and not plain.of_roots
    roots = claimed("old/x/a 4\nold/x/b 5", "model/x/a 4 sem:model/x/b\nmodel/x/c 6")
    assert isinstance(roots, Conflict) and roots.of_roots


# ---- The short way where all names are plain -------------------------------------------------------------

_PLAIN_NAMES = st.lists(st.sampled_from(["a/w", "b/w", "c", "l/0/w", "l/1/w", "l/2/w", "k/0", "k/1"]), unique=True)


@given(_PLAIN_NAMES, _PLAIN_NAMES)
def test_plain_names_find_by_the_short_way_what_they_find_by_the_long_one(mine: list[str], other: list[str]) -> None:
    ours, theirs = (named("\n".join(f"m/{n} 2" for n in names)) for names in (mine, other))
    sides = Side(ours[0], ours[0]), Side(theirs[1], theirs[1])
    alignment = align(ours[0], sides[1], ())
    short = by_name(*sides, alignment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_name_module, "_by_path", lambda *_: None)
        assert by_name(*sides, alignment) == short


def named(text: str) -> tuple[list[TargetVariable], list[SourceTensor]]:
    return [*program(text).variables], [*checkpoint(text).tensors]


def test_a_name_of_one_side_alone_does_not_bar_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_name_module, "_claims", None)  # the long way
    ours, theirs = named("m/l/0/w 2\nm/l/1/w 2\nsave_counter -")[0], named("m/l/0/w 2\nm/l/1/w 2\nold 3")[1]
    side = Side(theirs, theirs)
    found = by_name(Side(ours, ours), side, align(ours, side, ()))
    assert [*found] == ["m/l/0/w", "m/l/1/w"]
