"""Files that number a layer's variables, or call layers by class and order only."""

from __future__ import annotations

import msgspec
import pytest

from build import checkpoint, program
from dist_restore.core.index import Alias, AliasKind, Group, Place, SourceTensor, TargetVariable
from dist_restore.core.tensors import TensorSpec
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.by_number import by_number
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome
from dist_restore.planning.name_table import Side
from scenes import live, matched, pairs, stored

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
    assert {o.proof for o in found.values() if isinstance(o, Match)} == {Proof.ORDER}


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


def test_variables_of_no_model_are_left_alone() -> None:
    both = ours(DENSE)
    both[0] = msgspec.structs.replace(both[0], group=Group.OTHER)
    assert not names(counted(both, numbered("a", (4,), (3, 4))))
    assert not names(by_number(Side(both[:1], ours(DENSE)), numbered("a", (4,), (3, 4))))


def test_layers_with_named_variables_say_where_the_root_is() -> None:
    """`model/b` is `net/b`, so that `model/x/a` is `net/x/a`; and they may say that there is one layer more."""
    target = ours("model/x/a/kernel 3x4\nmodel/x/a/bias 4\nmodel/x/b/w 4\nmodel/x/b/z 4")
    source = numbered("net/x/a", (4,), (3, 4))
    assert len(names(counted(target, [*source, *checkpoint("net/x/b/w 4\nnet/x/b/z 4 kind:positional").tensors]))) == 2
    rows = "\n".join(f"model/dense_{i}/kernel 3x4 kind:counted\nmodel/dense_{i}/bias 4 kind:counted" for i in (7, 8))
    two = [*numbered("dense", (4,), (3, 4), kind="counted"), *numbered("dense_1", (4,), (3, 4), kind="counted")]
    more = checkpoint("dense_2/kernel 3x4 kind:positional\ndense_2/bias 4 kind:counted").tensors
    assert names(counted(ours(rows), two)) and not names(counted(ours(rows), [*two, *more]))


def test_a_layers_first_name_counts() -> None:
    source = numbered("a", (4,), (3, 4))
    place = Place((Alias("a", AliasKind.SEMANTIC), Alias("layers/dense", AliasKind.POSITIONAL)), "dense")
    source = [msgspec.structs.replace(t, place=place) for t in source]
    assert len(names(counted(ours(DENSE), source))) == 2


def test_layers_with_named_variables_are_not_spoken_of() -> None:
    """Their list is not the same on both sides; who knows names says so."""
    named_ones = checkpoint("model/x/0/w 4\nmodel/x/1/w 4").tensors
    found = counted(ours(DENSE + "\nmodel/x/0/w 4"), [*numbered("model/a", (4,), (3, 4)), *named_ones])
    assert found.keys() == {"model/a/kernel", "model/a/bias"}


# ---- Numbered variables in a file's groups ---------------------------------------------------------------


def own_order(saved: str, built: str, numbered: str, rules: dict[str, str] | None = None) -> dict[str, str]:
    """A layer of the user's class, of which the program knows how a file would number it; sizes in order."""
    source = "\n".join(f"layers/0/#{i} {size}" for i, size in enumerate(saved.split()))
    target = "\n".join(f"operations/0/{part.replace(':', ' ')}" for part in built.split())
    layer = "layer:tokens kind:tokens"
    program = f"{target}\noperations/0 {layer} numbered:{numbered}"
    done = matched(stored(f"{source}\nlayers/0 {layer}", by_layer=True), live(program), rules)
    return {t.rpartition("/")[2]: s.replace("layers/0/", "") for t, s in pairs(done).items()}


def test_variables_of_one_shape_have_the_order_in_which_the_programs_layer_numbers_its_own() -> None:
    assert own_order("4 4", "a:4 b:4", "b,a") == {"a": "#1 order", "b": "#0 order"}
    assert own_order("4 5 4", "a:4 b:4 c:5", "b,c,a") == {"a": "#2 order", "b": "#0 order", "c": "#1 order"}


@pytest.mark.parametrize(
    ("saved", "built", "numbered"),
    [
        ("4 4", "a:4 b:4", ""),
        ("4 4", "a:4 b:4 c:4", "a,b,c"),
        ("4 4 4", "a:4 b:4", "a,b"),
        ("4 4 5", "a:4 b:4 c:5", "a,c,b"),
        ("4 4", "gamma:4 scale:4", "gamma,scale"),
    ],
    ids=["the order is not known", "one is new", "one is gone", "other shapes at their numbers", "gamma or beta"],
)
def test_an_order_of_other_numbers_or_shapes_says_nothing(saved: str, built: str, numbered: str) -> None:
    assert not own_order(saved, built, numbered)


def test_what_a_rule_settles_leaves_the_other_numbers_in_order_only_where_it_took_its_own_number() -> None:
    assert own_order("4 4 4", "a:4 b:4 c:4", "a,b,c", {"layers/0/#1": "operations/0/b"}) == {
        "a": "#0 order",
        "b": "#1 rule",
        "c": "#2 order",
    }
    assert own_order("4 4 4", "a:4 b:4 c:4", "a,b,c", {"layers/0/#2": "operations/0/b"}) == {"b": "#2 rule"}
