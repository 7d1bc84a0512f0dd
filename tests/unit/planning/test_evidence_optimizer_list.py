"""Places in an optimizer's list, for what has no path of its own."""

from __future__ import annotations

import pytest

from build import checkpoint, entry, filled, plan, program
from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.by_optimizer_list import by_optimizer_list
from dist_restore.planning.matching.outcome import Conflict, Match, Outcome
from dist_restore.planning.plan import RestorePlan

# ---- Places in an optimizer's list -----------------------------------------------------------------------

ADAM = {"optimizer": "adam"}


def nameless(*shapes: str, flat: tuple[str, ...] = (), first: int = 0, optimizer: str = "optimizer") -> str:
    return "\n".join(
        f"{optimizer}/trainable_variables/{first + i} {shape} kind:positional{f' flat:{flat[i]}' if flat else ''}"
        for i, shape in enumerate(shapes)
    )


def trained(*names: str, shapes: tuple[str, ...] = (), first: int = 0, words: str = "") -> str:
    return "\n".join(
        f"{n} {shapes[i] if shapes else 4} pos:optimizer/trainable_variables/{first + i} {words}"
        for i, n in enumerate(names)
    )


def by_list(source: str, target: str, rules: object = None, **families: str) -> RestorePlan:
    ours = {"optimizer": families.get("ours", "adam")}
    return plan(
        checkpoint(source, (families.get("theirs") and {"optimizer": families["theirs"]}) or ADAM),
        program(target, ours),
        rules,
        keep=True,
    )  # type: ignore[arg-type]


def test_a_place_in_an_optimizers_list_is_order_whatever_the_shapes() -> None:
    done = by_list(nameless("4", "4", "5"), trained("m/a", "m/b", "m/c", shapes=("4", "4", "5")))
    assert [e.proof for e in done.entries] == [Proof.ORDER] * 3
    assert entry(done, "m/a").evidence == (
        "position among the optimizer's 3 variables, all shapes equal and no name against it"
    )


def test_flat_names_tell_nameless_ones_apart_but_for_their_counters() -> None:
    flat = ("dense_w", "dense_1_w", "stem_w")
    done = by_list(nameless("4", "4", "4", flat=flat), trained("m/a", "m/b", "m/c"))
    assert [e.proof for e in done.entries] == [Proof.ORDER] * 3


def test_what_has_names_lies_between() -> None:
    source = f"{trained('m/x')}\n{nameless('4', first=1)}\n{trained('m/y', first=2)}\n{nameless('5', first=3)}"
    target = trained("m/x", "m/a", "m/y", "m/b", shapes=("4", "4", "4", "5"))
    assert filled(by_list(source, target)) == {
        "m/a": "optimizer/trainable_variables/1",
        "m/b": "optimizer/trainable_variables/3",
        "m/x": "m/x",
        "m/y": "m/y",
    }
    moved = trained("m/a", "m/x", "m/b", "m/y", shapes=("4", "4", "5", "4"))
    assert filled(by_list(source, moved)).keys() == {"m/x", "m/y"}


def test_only_what_tensorflow_does_not_save_is_looked_for_where_there_is_such() -> None:
    target = trained("m/new") + "\n" + trained("m/a", "m/b", first=1, words="note:never_saved")
    done = by_list(nameless("4", "4"), target)
    assert filled(done) == {f"m/{n}": f"optimizer/trainable_variables/{i}" for i, n in enumerate("ab")}


def test_conflicts_show_the_same_place_first_then_equal_shapes() -> None:
    done = by_list(nameless("4", "5", "4"), trained("m/a", "m/b", shapes=("4", "4")))
    places = "optimizer/trainable_variables/"
    assert entry(done, "m/b").candidates == (f"{places}1", f"{places}0", f"{places}2")
    assert entry(done, "m/a").candidates == (f"{places}0", f"{places}2")
    assert entry(done, "m/a").reason == (
        "the checkpoint names it by position only: 3 variables without a name, and the model has 2."
    )


def test_eight_candidates_are_shown() -> None:
    theirs, ours = checkpoint(nameless(*["4"] * 12), ADAM), program(trained("m/a", "m/b"), ADAM)
    free = frozenset(t.name for t in theirs.tensors)
    found = by_optimizer_list(ours, theirs, {}, frozenset({"m/a", "m/b"}), free, Vocabulary())["m/b"]
    assert isinstance(found, Conflict) and len(found.candidates) == 8


def test_shapes_that_differ_say_from_where_on() -> None:
    done = by_list(nameless("4", "5", "4"), trained("m/a", "m/b", "m/c", shapes=("4", "4", "5")))
    assert "and the shapes differ from 'm/b' on" in entry(done, "m/c").reason


def test_a_list_of_which_some_members_are_not_trained_says_nothing() -> None:
    target = trained("m/blocks/0/w", "m/blocks/1/w") + "\nm/blocks/2/w 4"
    done = by_list(nameless("4", "4"), target)
    assert "the optimizer trains only some members of its list" in entry(done, "m/blocks/0/w").reason
    assert filled(by_list(nameless("4", "4"), trained("m/blocks/0/w", "m/blocks/1/w")))
    assert filled(by_list(nameless("4", "4"), trained("m/a", "m/b") + "\nm/blocks/2/w 4"))


@pytest.mark.parametrize(
    ("theirs", "ours", "is_filled"),
    [
        (("net_dense_1_w", "net_dense_2_w"), ("dense_5_w", "dense_6_w"), True),
        (("net_dense_1_w", "net_dense_2_w"), ("dense_6_w", "dense_5_w"), False),
        (("net_dense_2_w", "net_dense_1_w"), ("dense_6_w", "dense_5_w"), True),
        (("dense_9_w", "dense_10_w"), ("dense_5_w", "dense_6_w"), True),
        (("dense_1_w", "conv2d_w"), ("dense_5_w", "conv2d_4_w"), True),
        (("dense_1_w", "conv2d_w"), ("conv2d_5_w", "dense_4_w"), False),
        (("x_w", "dense_w"), ("y_w", "dense_1_w"), False),
    ],
)
@pytest.mark.parametrize("kind", ["cnt", "flat"])
def test_automatic_names_in_a_list_must_agree(
    theirs: tuple[str, str], ours: tuple[str, str], is_filled: bool, kind: str
) -> None:
    target = "\n".join(
        f"m/{n} 4 pos:optimizer/trainable_variables/{i} {kind}:{flat}"
        for i, (n, flat) in enumerate(zip("ab", ours, strict=True))
    )
    done = by_list(nameless("4", "4", flat=theirs), target)
    assert bool(filled(done)) == is_filled


def test_a_rule_that_takes_one_leaves_the_rest_in_order() -> None:
    source, target = nameless("4", "4", "4"), trained("m/a", "m/b", "m/c")
    done = by_list(source, target, {"optimizer/trainable_variables/1": "m/b"})
    assert filled(done)["m/a"].endswith("/0") and filled(done)["m/c"].endswith("/2")
    done = by_list(source, target, {"optimizer/trainable_variables/0": "m/c"})
    assert filled(done) == {"m/c": "optimizer/trainable_variables/0"}
    assert "names say that others have moved" in entry(done, "m/a").reason


def test_optimizers_belong_together_by_name_or_where_there_is_one_each() -> None:
    source, target = nameless("4", optimizer="opt"), trained("m/a")
    assert filled(plan(checkpoint(source, {"opt": "adam"}), program(target, ADAM), keep=True)) == {
        "m/a": "opt/trainable_variables/0"
    }
    more = nameless("5", optimizer="other")
    found = plan(checkpoint(f"{source}\n{more}", {"opt": "adam", "other": "adam"}), program(target, ADAM), keep=True)
    assert not filled(found)
    own = nameless("4")
    found = plan(checkpoint(f"{own}\n{more}", {"optimizer": "adam", "other": "adam"}), program(target, ADAM), keep=True)
    assert filled(found) == {"m/a": "optimizer/trainable_variables/0"}
    # One that trains nothing is not counted.
    found = plan(checkpoint(source, {"opt": "adam", "idle": "adam"}), program(target, ADAM), keep=True)
    assert filled(found) == {"m/a": "opt/trainable_variables/0"}


def test_an_optimizer_may_be_the_root_itself() -> None:
    source = "trainable_variables/0 4 kind:positional"
    done = plan(checkpoint(source, {"": "adam"}), program("m/a 4 pos:trainable_variables/0", {"": "adam"}), keep=True)
    assert filled(done) == {"m/a": "trainable_variables/0"}


# ---- State without names ---------------------------------------------------------------------------------

STATE = "model/w 4 pos:optimizer/trainable_variables/0\n" + "\n".join(
    f"optimizer/variables/{i} {n} kind:positional" for i, n in enumerate((4, 2))
)


def states(source: str, target: str, ours: str = "adam", theirs: str = "adam") -> dict[str, str]:
    done = plan(checkpoint(source, {"optimizer": theirs}), program(target, {"optimizer": ours}), keep=True)
    return {t: e.proof.value for t in filled(done) if (e := entry(done, t)).target.startswith("optimizer")}


def test_state_is_compared_place_by_place_and_is_order() -> None:
    assert states(STATE, STATE) == {f"optimizer/variables/{i}": "order" for i in range(2)}


@pytest.mark.parametrize(
    ("ours", "theirs", "is_filled"),
    [
        ("adam:mine", "adam:yours", True),
        ("adam:mine", "sgd:mine", True),
        (":mine", ":mine", True),
        (":", ":", False),
        ("adam:mine", "sgd:yours", False),
        ("adam:x", ":x", True),
    ],
)
def test_state_needs_an_optimizer_of_the_same_class_or_name(ours: str, theirs: str, is_filled: bool) -> None:
    assert bool(states(STATE, STATE, ours, theirs)) == is_filled


@pytest.mark.parametrize(
    "source",
    [
        STATE.replace("variables/1 2", "variables/1 3"),
        STATE.replace("variables/1 2", "variables/2 2"),
        STATE + "\noptimizer/variables/2 2 kind:positional",
        STATE.replace("variables/1 2", "variables/1 2 int32"),
        STATE.replace("variables/1 2 kind:positional", "variables/1 2"),
        STATE.replace("trainable_variables/0", "trainable_variables/1"),
        STATE.replace("model/w 4", "model/v 4"),
    ],
)
def test_state_of_optimizers_that_differ_in_anything_is_not_filled(source: str) -> None:
    assert "optimizer/variables/0" not in states(source, STATE)


def test_state_of_owners_in_another_order_is_not_filled() -> None:
    def side(*owners: str) -> str:
        return "\n".join([trained(*owners), *STATE.splitlines()[1:]])

    assert states(side("model/v", "model/w"), side("model/v", "model/w"))
    assert not states(side("model/v", "model/w"), side("model/w", "model/v"))


def test_state_with_names_is_not_compared_by_place() -> None:
    def side(name: str) -> str:
        return f"{STATE}\noptimizer/{name} 3 pos:optimizer/variables/2"

    assert states(side("a"), side("b")).keys() == {"optimizer/variables/0", "optimizer/variables/1"}


def test_state_that_rules_decided_is_left_alone() -> None:
    done = plan(checkpoint(STATE, ADAM), program(STATE, ADAM), '[[rule]]\nkeep = "optimizer/variables/0"', keep=True)
    assert filled(done).keys() == {"model/w", "optimizer/variables/1"}


def test_nothing_is_found_without_optimizers_or_what_is_open() -> None:
    theirs, ours = checkpoint(nameless("4"), ADAM), program(trained("m/a"), ADAM)
    free, words = frozenset(t.name for t in theirs.tensors), Vocabulary()
    assert by_optimizer_list(ours, theirs, {}, frozenset({"m/a"}), free, words)
    assert not by_optimizer_list(ours, theirs, {}, frozenset(), free, words)
    assert not by_optimizer_list(ours, theirs, {}, frozenset({"m/a"}), frozenset(), words)
    assert not by_optimizer_list(program(trained("m/a")), theirs, {}, frozenset({"m/a"}), free, words)
    assert not by_optimizer_list(ours, checkpoint(nameless("4")), {}, frozenset({"m/a"}), free, words)


def test_a_conflict_says_nothing_of_the_order() -> None:
    theirs, ours = checkpoint(nameless("4", "4"), ADAM), program(trained("m/a", "m/b", "m/c"), ADAM)
    found: dict[str, Outcome] = {"m/b": Conflict((theirs.tensors[0],), "doubt")}
    done = by_optimizer_list(
        ours, theirs, found, frozenset({"m/a", "m/c"}), frozenset(t.name for t in theirs.tensors), Vocabulary()
    )
    assert [o.source.name[-1] for o in done.values() if isinstance(o, Match)] == ["0", "1"]
