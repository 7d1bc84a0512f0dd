"""What names say against a place in an optimizer's list."""

from __future__ import annotations

import pytest

from build import checkpoint, program
from dist_restore.core.index import Alias, AliasKind, SourceTensor, TargetVariable
from dist_restore.core.tensors import TensorSpec
from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.planning.matching.list_names import Names

SPEC = TensorSpec((4,), "float32")


def variable(name: str, *flat: str, members: tuple[str, ...] = (), counted: bool = False) -> TargetVariable:
    kind = AliasKind.COUNTED if counted else AliasKind.FLAT
    return TargetVariable(name, SPEC, tuple(Alias(f, kind) for f in flat), members=members)


def tensor(name: str, *flat: str) -> SourceTensor:
    return SourceTensor(name, SPEC, tuple(Alias(f, AliasKind.FLAT) for f in flat))


def full(ours: str, theirs: str, *, members: tuple[str, ...] = (), beside: tuple[str, str] = ("", "")) -> str:
    """What the full names of a pair say; `beside` are those of another pair of the same lists."""
    pair, other = (variable("t", members=members), tensor("s")), (variable("t2"), tensor("s2"))
    lists = ([pair[0], other[0]], [pair[1], other[1]]) if any(beside) else ([pair[0]], [pair[1]])
    names = Names(*lists, Vocabulary(), ({"t": ours, "t2": beside[0]}, {"s": theirs, "s2": beside[1]}))
    return names.differ(*pair)


@pytest.mark.parametrize(
    ("ours", "theirs", "is_against"),
    [
        ("enc/pa/kernel", "enc/pa/kernel", False),
        ("x/pb/kernel", "enc/pa/kernel", True),
        ("x/pa/kernel", "enc/pa/kernel", True),
        ("pa/kernel", "enc/pa/kernel", False),  # the model had a name, or has one now
        ("enc/pa/kernel", "pa/kernel", False),
        ("dense_4/kernel", "dense_9/kernel", False),
        ("dense_4/kernel", "enc/kernel", False),  # one has a name, the other none
        ("enc/dense_4/kernel", "enc/dense_9/kernel", False),
        ("enc/dense_4/kernel", "mid/dense_4/kernel", True),
        ("kernel", "enc/kernel", False),
        ("", "enc/kernel", False),
    ],
)
def test_names_that_somebody_gave_to_layers_speak(ours: str, theirs: str, is_against: bool) -> None:
    assert bool(full(ours, theirs, beside=("head/kernel", "head/kernel"))) is is_against


def test_both_names_are_in_the_message() -> None:
    found = full("x/pb/kernel", "enc/pa/kernel", beside=("head/w", "head/w"))
    assert found == "the variable is called 'x/pb/kernel' and the checkpoint's 'enc/pa/kernel'"


def test_the_name_of_the_model_may_change() -> None:
    assert not full("new/pa/kernel", "old/pa/kernel", beside=("new/head/kernel", "old/head/kernel"))
    assert not full("new/pa/kernel", "old/pa/kernel")
    assert full("new/pa/kernel", "old/pb/kernel", beside=("new/head/kernel", "old/head/kernel"))
    assert full("new/pa/kernel", "old/pa/kernel", beside=("new/head/kernel", "head/kernel"))
    assert full("new/pa/kernel", "old/pa/kernel", beside=("head/kernel", "old/head/kernel"))


def test_the_name_of_a_member_of_a_list_is_not_that_of_the_model() -> None:
    assert full("student/fc/kernel", "teacher/fc/kernel", members=("student",))
    assert not full("student/fc/kernel", "teacher/fc/kernel", members=("fc",))


def slots(ours: tuple[str, ...], theirs: str, *, members: tuple[str, ...] = (), beside: str = "head_kernel") -> str:
    """What the names that slots carry say of a pair; `beside` is another one in the checkpoint."""
    pair = variable("t", *ours, members=members), tensor("s", theirs)
    return Names([pair[0]], [pair[1], tensor("s2", beside)], Vocabulary(), ({}, {})).differ(*pair)


@pytest.mark.parametrize(
    ("ours", "theirs", "is_against"),
    [
        (("enc_w", "w"), "enc_w", False),
        (("w",), "enc_w", False),  # the model's own name is missing
        (("new_w", "w"), "enc_w", True),
        (("new_dense_3_w", "dense_3_w"), "enc_dense_w", True),
        (("new_dense_3_w", "dense_3_w"), "functional_2_dense_w", False),  # a name that Keras made up
        (("enc_dense_3_w",), "enc_dense_w", False),
        (("enc_v",), "enc_w", True),
    ],
)
def test_names_that_slots_carry_speak(ours: tuple[str, ...], theirs: str, is_against: bool) -> None:
    assert bool(slots(ours, theirs)) is is_against


def test_the_name_of_the_model_may_change_in_what_slots_carry() -> None:
    assert not slots(("new_w", "w"), "old_w", beside="old_head_w")
    assert slots(("new_w", "w"), "old_w", beside="old_head_w", members=("new",))
    assert slots(("new_w", "w"), "old_w", beside="oldhead_w")
    assert (
        slots(("new_v", "v"), "old_w", beside="old_v") == "the checkpoint's slots call it 'old_w' and the model 'new_v'"
    )


def test_counters_are_compared_in_the_order_of_places() -> None:
    ours = [variable(f"t{i}", f"dense_{n}_w", counted=True) for i, n in enumerate((4, 5, 9))]
    for order, differs in (((1, 2, 3), False), ((1, 3, 2), True)):
        theirs = [tensor(f"s{i}", f"net_dense_{n}_w") for i, n in enumerate(order)]
        names = Names(ours, theirs, Vocabulary(), ({}, {}))
        assert names.count_otherwise(zip(ours, theirs, strict=True)) is differs


def test_a_side_without_a_name_of_a_layer_says_nothing() -> None:
    ours, theirs = program("m/w 4").variables, checkpoint("m/w 4").tensors
    for full in (({"m/w": "stem/head/w"}, {"m/w": "w"}), ({"m/w": "w"}, {"m/w": "stem/head/w"}), ({}, {})):
        assert Names(ours, theirs, Vocabulary(), full).differ(ours[0], theirs[0]) == ""


def test_only_flat_and_counted_names_without_a_separator_are_compared_with_what_slots_carry() -> None:
    theirs = checkpoint("m/w 4 flat:net_stem_w").tensors
    for alias in ("sem:plain", "pos:plain", "cnt:net/other/w"):
        ours = program(f"m/w 4 {alias}").variables
        assert Names(ours, theirs, Vocabulary(), ({}, {})).differ(ours[0], theirs[0]) == ""
    ours = program("m/w 4 sem:net_stem_w flat:net_head_w").variables
    assert Names(ours, theirs, Vocabulary(), ({}, {})).differ(ours[0], theirs[0]) == (
        "the checkpoint's slots call it 'net_stem_w' and the model 'net_head_w'"
    )
