"""What names and object graphs say together, and what is refused when all have spoken."""

from __future__ import annotations

import pytest

from dist_restore.core.index import SourceTensor, TargetVariable
from dist_restore.core.tensors import TensorSpec
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.by_walk import Walked
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome
from dist_restore.planning.matching.verdict import hear, mark_indexes, refuse_other_members, refuse_shared


def tensor(name: str, shape: tuple[int, ...] = (4,), members: tuple[str, ...] = ()) -> SourceTensor:
    return SourceTensor(name, TensorSpec(shape, "float32"), members=members)


def variable(name: str, shape: tuple[int, ...] = (4,), members: tuple[str, ...] = ()) -> TargetVariable:
    return TargetVariable(name, TensorSpec(shape, "float32"), members=members)


A, B, LONG = tensor("a"), tensor("b"), tensor("a", (5,))
HARD, SOFT = Match(A, "equal names", name="m/w"), Match(A, "equal names", name="m/0/w")
DOUBT = Conflict((A,), "names differ")
LISTS = Conflict((A,), "lists differ", of_indexes=True)
UNCLEAR = Conflict((B,), "two are alike")


def place(source: SourceTensor, proof: Proof = Proof.NAME) -> Match:
    return Match(source, "place", proof)


def one(name: Outcome | None, walk: Outcome | None, *, sure: bool = False) -> Outcome | None:
    named = {"w": name} if name is not None else {}
    walked = Walked({"w": walk} if walk is not None else {}, frozenset({"w"} if sure else ()))
    return hear([variable("w")], named, walked).get("w")


# ---- Names and places ------------------------------------------------------------------------------------


@pytest.mark.parametrize("only", [HARD, SOFT, DOUBT, LISTS])
def test_a_single_witness_is_believed(only: Outcome) -> None:
    assert one(only, None) is only
    assert one(None, only) is only
    assert one(None, None) is None


@pytest.mark.parametrize(
    ("name", "walk", "expected"),
    [
        (DOUBT, place(A), DOUBT),
        (DOUBT, UNCLEAR, DOUBT),
        (LISTS, place(B, Proof.ORDER), place(B, Proof.ORDER)),
        (LISTS, UNCLEAR, LISTS),
        (HARD, UNCLEAR, HARD),
        (SOFT, UNCLEAR, UNCLEAR),
        (Match(LONG, "equal names", name="m/0/w"), UNCLEAR, Match(LONG, "equal names", name="m/0/w")),
        (HARD, place(A), HARD),
        (HARD, place(A, Proof.ORDER), HARD),
        (SOFT, place(A), SOFT),
        (SOFT, place(A, Proof.ORDER), Match(A, "equal names", Proof.ORDER)),
        (SOFT, place(A, Proof.STRUCTURE), Match(A, "equal names", Proof.STRUCTURE)),
        (HARD, place(B, Proof.ORDER), HARD),
        (HARD, place(B, Proof.STRUCTURE), HARD),
    ],
)
def test_the_stronger_witness_decides(name: Outcome, walk: Outcome, expected: Outcome) -> None:
    assert one(name, walk) == expected


@pytest.mark.parametrize(
    ("name", "walk"),
    [(HARD, place(B)), (SOFT, place(B)), (SOFT, place(B, Proof.ORDER)), (SOFT, place(B, Proof.STRUCTURE))],
)
def test_two_of_equal_strength_that_disagree_are_a_conflict_of_both(name: Match, walk: Match) -> None:
    found = one(name, walk)
    assert isinstance(found, Conflict) and found.candidates == (A, B)
    assert found.reason == "its name points to 'a' (equal names), and its place in the object graph to 'b'"


@pytest.mark.parametrize("name", [HARD, SOFT, DOUBT, LISTS])
def test_below_a_sure_root_the_walk_decides(name: Outcome) -> None:
    assert one(name, place(B, Proof.ORDER), sure=True) == place(B, Proof.ORDER)
    assert one(DOUBT, UNCLEAR, sure=True) is DOUBT


def test_below_a_sure_root_agreeing_names_keep_their_words() -> None:
    assert one(HARD, place(A, Proof.ORDER), sure=True) is HARD
    assert one(SOFT, place(A, Proof.ORDER), sure=True) == Match(A, "equal names", Proof.ORDER)


# ---- Members of lists ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "is_refused"),
    [
        (("stem",), ("head",), True),
        (("stem", "a"), ("stem", "b"), True),
        (("stem",), ("stem",), False),
        (("stem", "a"), ("stem",), False),
        (("stem",), ("a", "stem"), False),
        ((), ("head",), False),
        (("stem",), (), False),
        ((), (), False),
    ],
)
def test_a_place_in_a_list_of_another_layer_is_refused(
    ours: tuple[str, ...], theirs: tuple[str, ...], is_refused: bool
) -> None:
    match = Match(tensor("a", members=theirs), "place")
    found = refuse_other_members({"w": match, "v": DOUBT}, [variable("w", members=ours), variable("v", members=("x",))])
    assert isinstance(found["w"], Conflict) == is_refused
    assert found["v"] is DOUBT
    if isinstance(found["w"], Conflict):
        names = ", ".join(map(repr, theirs)), ", ".join(map(repr, ours))
        assert found["w"].candidates == (match.source,)
        assert found["w"].reason == (
            f"its place in a list is that of the layer {names[0]} in the file, and of {names[1]} in the model"
        )


def marked(
    sources: list[SourceTensor], targets: list[TargetVariable], known: dict[str, Outcome], unnamed: tuple[str, ...] = ()
) -> list[Proof]:
    found: dict[str, Outcome] = {
        t.name: Match(s, "equal names", name=t.name) for t, s in zip(targets, sources, strict=True)
    }
    outcomes = mark_indexes(found, targets, Walked(known, unnamed=frozenset(unnamed)))
    return [o.proof for t in targets if isinstance(o := outcomes[t.name], Match)]


def test_an_index_among_members_that_are_alike_is_order() -> None:
    targets = [variable("m/0/w"), variable("m/1/w"), variable("m/head/w")]
    assert marked([A, B, B], targets, {}) == [Proof.ORDER, Proof.ORDER, Proof.NAME]


def test_an_index_of_a_member_that_is_like_no_other_is_a_name() -> None:
    assert marked([A, B], [variable("m/0/w"), variable("m/1/w", (5,))], {}) == [Proof.NAME, Proof.NAME]
    assert marked([A, B], [variable("m/0/w"), variable("n/0/w")], {}) == [Proof.NAME, Proof.NAME]


def test_an_index_of_a_layer_whose_name_the_checkpoint_lacks_is_order() -> None:
    """The layer may have been renamed, or replaced by another one."""
    assert marked([A], [variable("m/0/w")], {}, unnamed=("m/0/w",)) == [Proof.ORDER]
    assert marked([A], [variable("m/head/w")], {}, unnamed=("m/head/w",)) == [Proof.NAME]


def test_an_index_of_which_the_graphs_speak_is_theirs_to_judge() -> None:
    targets = [variable("m/0/w"), variable("m/1/w"), variable("m/2/w")]
    assert marked([A, B, B], targets, {"m/0/w": place(A)}) == [Proof.NAME, Proof.ORDER, Proof.ORDER]


def test_an_index_of_a_layer_that_both_sides_call_the_same_is_a_name() -> None:
    targets = [variable(f"m/{i}/w", members=(f"layer{i}",)) for i in range(3)]
    sources = [tensor("a", members=("layer0",)), tensor("b", members=("layer1", "x")), tensor("c")]
    assert marked(sources, targets, {}) == [Proof.NAME, Proof.ORDER, Proof.ORDER]


def test_a_conflict_of_an_index_stays() -> None:
    targets = [variable("m/0/w"), variable("m/1/w")]
    found = mark_indexes({"m/0/w": DOUBT, "m/1/w": Match(B, "equal names", name="m/1/w")}, targets, Walked({}))
    assert found == {"m/0/w": DOUBT, "m/1/w": Match(B, "equal names", name="m/1/w")}


# ---- One source for several ------------------------------------------------------------------------------


def test_what_rests_on_a_place_does_not_share_its_source() -> None:
    found = refuse_shared({"x": place(A, Proof.ORDER), "y": place(A, Proof.STRUCTURE), "z": place(B, Proof.ORDER)})
    assert found["z"] == place(B, Proof.ORDER)
    assert found["x"] == Conflict((A,), "only its place points to 'a', which 'y' gets as well")
    assert found["y"] == Conflict((A,), "only its place points to 'a', which 'x' gets as well")


def test_a_name_keeps_the_source_that_a_place_wants_too() -> None:
    found = refuse_shared({"x": HARD, "y": place(A, Proof.ORDER), "z": HARD, "d": DOUBT})
    assert found["x"] is HARD and found["z"] is HARD and found["d"] is DOUBT
    assert found["y"] == Conflict((A,), "only its place points to 'a', which 'x', 'z' gets as well")
