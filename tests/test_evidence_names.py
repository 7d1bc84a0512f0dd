"""Names: lists of which the members are not the same, roots that rules speak of, and numbers of a layer's variables."""

from __future__ import annotations

import msgspec
import pytest

from build import checkpoint, entry, filled, plan, problems, program
from dist_restore.entries import Proof
from dist_restore.resolve.evidence.by_number import by_number
from dist_restore.resolve.evidence.lists import (
    Lists,
    list_members,
    list_positions,
    rests_on_index,
    template_of_counted,
    template_of_flat,
    template_of_list,
)
from dist_restore.resolve.evidence.outcome import Conflict, Match, Outcome
from dist_restore.resolve.evidence.roots import align
from dist_restore.resolve.names import Side
from dist_restore.specs import Alias, AliasKind, Place, SourceTensor, TargetVariable, TensorSpec

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


# ---- Numbered variables ----------------------------------------------------------------------------------


def numbered(layer: str, *shapes: tuple[int, ...], cls: str = "dense", kind: str = "semantic") -> list[SourceTensor]:
    group = f"layers/{layer}/vars"
    place = Place((Alias(layer, AliasKind(kind)),), cls)
    return [
        SourceTensor(
            f"{layer}/vars/{i}" if kind != "positional" else f"{group}/{i}",
            TensorSpec(shape, "float32"), name_kind=AliasKind.POSITIONAL, key=f"{group}/{i}", place=place,
        )
        for i, shape in enumerate(shapes)
    ]  # fmt: skip


def ours(text: str, cls: str = "dense") -> list[TargetVariable]:
    return [msgspec.structs.replace(v, layer_class=cls) for v in program(text).variables]


def counted(target: list[TargetVariable], source: list[SourceTensor]) -> dict[str, Outcome]:
    return by_number(Side(target, target), source)


def names(found: dict[str, Outcome]) -> dict[str, str]:
    return {t: o.source.name for t, o in found.items() if isinstance(o, Match)}


DENSE = "model/a/kernel 3x4\nmodel/a/bias 4"


def test_shapes_that_occur_once_tell_a_layers_variables() -> None:
    found = counted(ours(DENSE), numbered("a", (4,), (3, 4)))
    assert names(found) == {"model/a/kernel": "a/vars/1", "model/a/bias": "a/vars/0"}
    assert {o.evidence for o in found.values() if isinstance(o, Match)} == {
        "place in a layer of equal name, its 2 shapes equal and each there once"
    }


@pytest.mark.parametrize(
    ("target", "source", "words"),
    [
        (ours(DENSE), numbered("a", (4,), (3, 4), cls="conv2d"), "its class there is 'conv2d', here 'dense'"),
        (ours(DENSE + "\nmodel/a/x 5"), numbered("a", (4,), (3, 4)), "the model's has 3"),
        (ours(DENSE), numbered("a", (5,), (3, 4)), "their shapes are not those of the model's"),
        (ours("model/a/x 4\nmodel/a/y 4"), numbered("a", (4,), (4,)), "some of them have one shape"),
        (ours("model/a/gamma 4"), numbered("a", (4,)), "gamma and beta look the same where one of them is left out"),
    ],
)
def test_what_numbers_cannot_tell_is_refused(
    target: list[TargetVariable], source: list[SourceTensor], words: str
) -> None:
    found = counted(target, source)
    assert found.keys() == {v.name for v in target}
    for outcome in found.values():
        assert isinstance(outcome, Conflict) and outcome.candidates == tuple(source)
        assert outcome.reason == (
            f"the file numbers the {len(source)} variables of this layer and does not name them, and {words}; a rule "
            f"for each variable of 'model/a' must say which it is, such as from = \"a/vars/0\""
        )


@pytest.mark.parametrize(("mine", "theirs"), [("", "dense"), ("dense", "")])
def test_a_class_that_one_side_does_not_know_is_no_witness(mine: str, theirs: str) -> None:
    assert names(counted(ours(DENSE, mine), numbered("a", (4,), (3, 4), cls=theirs)))


def test_only_variables_of_models_that_are_open_are_told() -> None:
    both, source = ours(DENSE), numbered("a", (4,), (3, 4))
    assert names(by_number(Side(both[:1], both), source)) == {"model/a/kernel": "a/vars/1"}
    assert not by_number(Side([], both), source)
    assert not by_number(Side(both, both), checkpoint("x 4").tensors)
    others = [msgspec.structs.replace(v, group=program("optimizer/x 4").variables[0].group) for v in both]
    assert not counted(others, source)
    kept = [*both, *ours("model/a/seed 2")]
    kept[-1] = msgspec.structs.replace(kept[-1], keep_reason="never saved")
    assert len(names(counted(kept, source))) == 2


def test_layers_with_automatic_names_are_in_order() -> None:
    rows = "\n".join(f"model/dense_{i}/kernel 3x4 kind:counted\nmodel/dense_{i}/bias 4 kind:counted" for i in (7, 8))
    source = [*numbered("dense", (4,), (3, 4), kind="counted"), *numbered("dense_1", (4,), (3, 4), kind="counted")]
    found = counted(ours(rows), source)
    assert (
        names(found)["model/dense_7/bias"] == "dense/vars/0" and names(found)["model/dense_8/bias"] == "dense_1/vars/0"
    )
    assert {o.proof for o in found.values() if isinstance(o, Match)} == {Proof.ORDER}
    assert not names(counted(ours(rows), source[:2]))


def ordered(*places: int, names: tuple[str, ...] = (), kind: str = "counted", sizes: tuple[int, ...] = ()) -> str:
    rows = []
    for index, place in enumerate(places):
        name, size = names[index] if names else f"dense_{index + 7}", sizes[index] if sizes else 4
        rows += [
            f"model/{name}/{own} {shape}{size} kind:{kind} pos:model/_operations/{place}/{own}"
            for own, shape in (("kernel", "3x"), ("bias", ""))
        ]
    return "\n".join(rows)


def named(layer: str, size: int = 4, last: str = "bias") -> list[SourceTensor]:
    """A layer that the file calls by class and order only, with the variables' own names."""
    place = Place((Alias(f"layers/{layer}", AliasKind.POSITIONAL),), "dense")
    return [
        SourceTensor(
            f"layers/{layer}/{own}", TensorSpec(shape, "float32"), name_kind=AliasKind.POSITIONAL,
            key=f"layers/{layer}/vars/{i}", place=place,
        )
        for i, (own, shape) in enumerate([("kernel", (3, size)), (last, (size,))])
    ]  # fmt: skip


TWO = [*named("dense"), *named("dense_1")]


def test_layers_that_a_file_calls_by_class_are_in_order() -> None:
    found = counted(ours(ordered(1, 3)), [*TWO[2:], *TWO[:2]])
    assert names(found) == {
        f"model/dense_{i + 7}/{n}": f"layers/dense{'_1' * i}/{n}" for i in (0, 1) for n in ("kernel", "bias")
    }
    assert {(o.proof, o.evidence) for o in found.values() if isinstance(o, Match)} == {
        (Proof.ORDER, "order of layers of one class, all 2 of equal shapes and with automatic names")
    }
    found = counted(ours(ordered(1, 3, sizes=(4, 5))), [*named("dense"), *named("dense_1", 5)])
    assert {o.proof for o in found.values() if isinstance(o, Match)} == {Proof.STRUCTURE}


@pytest.mark.parametrize(
    ("target", "source", "words"),
    [
        (ordered(1), TWO, "the model has 1 layers of a class of which the file has 2"),
        (ordered(1, 2, 3), TWO, "the model has 3 layers of a class of which the file has 2"),
        (ordered(1, 2, kind="semantic"), TWO, "names of their own"),
        (ordered(1, 2).replace("_operations", "blocks"), TWO, "no members of a functional model"),
        (ordered(1, 2).replace("model/_operations/", "model/_operations/0/_operations/"), TWO, "no members of"),
        (ordered(2, 1), TWO, "the model's automatic names count in another order than its layers have"),
        (
            ordered(1, 2, names=("dense_7", "dense_7")).replace("7/kernel", "7/w", 1).replace("7/bias", "7/b", 1),
            TWO,
            "",
        ),
        (ordered(1, 2, sizes=(5, 4)), [*named("dense"), *named("dense_1", 5)], "the variables of the layers are not"),
        (ordered(1, 2), [*named("dense", last="beta"), *named("dense_1", last="beta")], "the variables of the layers"),
    ],
)
def test_order_of_a_class_that_something_is_against_is_refused(
    target: str, source: list[SourceTensor], words: str
) -> None:
    found = counted(ours(target), source)
    assert not names(found)
    reasons = {o.reason for o in found.values() if isinstance(o, Conflict)}
    assert len(reasons) == 1 and words in reasons.pop()
    assert {o.candidates for o in found.values() if isinstance(o, Conflict)} == {tuple(source)}


def test_one_class_that_is_refused_refuses_all() -> None:
    """An added layer of one class moves the others in no way that could be seen; a removed one is like it."""
    target = [*ours(ordered(1, 2)), *ours("model/conv/kernel 3 kind:counted", "conv2d")]
    found = counted(target, TWO)
    assert not names(found) and len(found) == 4
    assert all("of which the file has" in o.reason for o in found.values() if isinstance(o, Conflict))


def test_places_are_numbers_and_edges_of_keras_2_count() -> None:
    assert names(counted(ours(ordered(2, 10)), TWO))["model/dense_7/bias"] == "layers/dense/bias"
    old = ordered(2, 10).replace("_operations/", "layer-")
    assert names(counted(ours(old), TWO))["model/dense_8/bias"] == "layers/dense_1/bias"
    ten = [*named("dense_10"), *named("dense_9")]
    assert names(counted(ours(ordered(0, 1)), ten))["model/dense_7/bias"] == "layers/dense_9/bias"
