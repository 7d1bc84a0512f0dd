"""Order alone: automatic counters in files without a graph, and places in an optimizer's list."""

from __future__ import annotations

import pytest

from build import checkpoint, entry, filled, plan, problems, program
from dist_restore.automatic_names import Vocabulary
from dist_restore.entries import Proof
from dist_restore.plan import RestorePlan
from dist_restore.resolve.evidence.by_optimizer_list import by_optimizer_list
from dist_restore.resolve.evidence.outcome import Conflict, Match, Outcome

# ---- Counters --------------------------------------------------------------------------------------------


def layers(*names: str, root: str = "model/", sizes: tuple[int, ...] = (), words: str = "") -> str:
    rows = []
    for index, name in enumerate(names):
        size = sizes[index] if sizes else 4
        rows += [f"{root}{name}/kernel 3x{size} kind:counted {words}", f"{root}{name}/bias {size} kind:counted {words}"]
    return "\n".join(rows)


def proofs(done: RestorePlan) -> dict[str, str]:
    return {e.target.split("/")[-2]: e.proof.value for e in done.entries if e.sources}


def sources(done: RestorePlan) -> dict[str, str]:
    return {t.split("/")[-2]: s.split("/")[-2] for t, s in filled(done).items() if t.endswith("bias")}


def test_layers_are_compared_as_wholes_in_the_order_of_their_counters() -> None:
    done = plan(layers("dense_10", "dense", "dense_2"), layers("dense_5", "dense_6", "dense_12"))
    assert sources(done) == {"dense_5": "dense", "dense_6": "dense_2", "dense_12": "dense_10"}
    assert set(proofs(done).values()) == {"order"}
    assert entry(done, "model/dense_6/bias").evidence == "order of automatic names, 2 of 3, all shapes equal"


def test_layers_unlike_all_others_are_structure() -> None:
    sizes = (4, 4, 5)
    done = plan(
        layers("dense", "dense_1", "dense_2", sizes=sizes), layers("dense_5", "dense_6", "dense_7", sizes=sizes)
    )
    assert proofs(done) == {"dense_5": "order", "dense_6": "order", "dense_7": "structure"}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (layers("dense", "dense_1"), layers("dense_5", "dense_6", "dense_7")),
        (layers("dense", "dense_1", "dense_2"), layers("dense_5", "dense_6")),
        (layers("dense", "dense_1", sizes=(4, 5)), layers("dense_5", "dense_6", sizes=(5, 4))),
        (layers("dense", "dense_1").replace("bias", "beta"), layers("dense_5", "dense_6")),
    ],
)
def test_layers_that_are_not_the_same_are_refused_with_those_of_their_variables(source: str, target: str) -> None:
    done = plan(source, target, keep=True)
    assert not filled(done)
    assert problems(done)["model/dense_5/kernel"] == "ambiguous"
    found = entry(done, "model/dense_5/kernel")
    assert all(c.endswith("/kernel") for c in found.candidates) and len(found.candidates) >= 2
    ours, theirs = len(target.splitlines()) // 2, len(source.splitlines()) // 2
    assert found.reason == (
        "its layer has an automatic name, so only the order could tell: the model has "
        f"{ours} layers of this name and the checkpoint {theirs}, or their shapes differ."
    )


def test_a_variable_that_no_layer_of_the_checkpoint_has_is_unmatched() -> None:
    done = plan(layers("dense").replace("bias", "beta"), layers("dense_5"), keep=False)
    assert problems(done) == {"model/dense_5/kernel": "ambiguous", "model/dense_5/bias": "unmatched"}


def test_classes_are_counted_by_themselves() -> None:
    done = plan(layers("dense", "conv2d"), layers("conv2d_7", "dense_5"))
    assert sources(done) == {"conv2d_7": "conv2d", "dense_5": "dense"}
    assert set(proofs(done).values()) == {"structure"}


def test_a_file_of_weights_alone_has_no_root() -> None:
    done = plan(layers("dense", "dense_1", root=""), layers("dense_5", "dense_6"))
    assert sources(done) == {"dense_5": "dense", "dense_6": "dense_1"}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (layers("dense", root=""), layers("dense_5", root="a/") + "\n" + layers("dense_6", root="b/")),
        (layers("dense", root="") + "\nmodel/x 4", layers("dense_5")),
        (layers("dense", root="net/"), layers("dense_5", root="")),
    ],
)
def test_a_root_is_missing_only_where_there_is_one_and_the_file_has_none(source: str, target: str) -> None:
    assert not filled(plan(source, target, keep=True))


def test_variables_of_the_root_itself_leave_it_where_it_is() -> None:
    assert not filled(plan(layers("dense", root=""), layers("dense_5") + "\nmodel/step 4", keep=True))


def test_what_other_variables_use_is_not_counted() -> None:
    source, target = layers("dense", "dense_1"), layers("dense_5")
    done = plan(source + "\nmodel/dense_1/x 4", target, '[[rule]]\ndrop = "model/dense/{rest}"', keep=True)
    assert problems(done)["model/dense_5/bias"] == "ambiguous"
    done = plan(source, target, '[[rule]]\ndrop = "model/dense/{rest}"', keep=True)
    assert sources(done) == {"dense_5": "dense_1"}


@pytest.mark.parametrize("way", ["operations", "layers"])
def test_another_order_of_the_layers_vetoes(way: str) -> None:
    def side(first: int, *places: int) -> str:
        names = [f"dense_{first}", f"dense_{first + 1}"]
        return "\n".join(layers(n, words=f"pos:model/_{way}/{p}/x") for n, p in zip(names, places, strict=True))

    assert sources(plan(side(1, 0, 5), side(7, 1, 2))) == {"dense_7": "dense_1", "dense_8": "dense_2"}
    done = plan(side(1, 0, 5), side(7, 2, 1), keep=True)
    assert not filled(done)
    assert entry(done, "model/dense_7/bias").reason == (
        "its layer has an automatic name, and automatic names count in another order than the layers have."
    )
    # What knows no other order, or has one place for two, has that of its counters.
    assert sources(plan(layers("dense", "dense_1"), side(7, 1, 2)))
    assert not sources(plan(layers("dense", "dense_1"), side(7, 2, 1), keep=True))
    assert sources(plan(side(1, 3, 3), side(7, 1, 2)))
    assert not sources(plan(side(1, 3, 3), side(7, 2, 1), keep=True))
    assert not sources(plan(side(1, 2, 10), side(7, 10, 2), keep=True))


def test_places_in_nested_models_are_compared_part_by_part() -> None:
    def side(names: str, *places: str) -> str:
        return "\n".join(layers(n, words=f"pos:{p}/w") for n, p in zip(names.split(), places, strict=True))

    good = side("dense dense_1", "m/_operations/1/_layers/9", "m/_operations/2/_layers/0")
    assert sources(plan(good, side("dense_5 dense_6", "layer-0/layer-3", "layer-1/layer-2")))
    assert not sources(plan(good, side("dense_5 dense_6", "layer-1/layer-3", "layer-0/layer-9"), keep=True))


def test_groups_of_a_file_of_weights_are_an_order() -> None:
    def side(*groups: str) -> str:
        rows = [
            f"model/{name}/{own} 4 kind:counted pos:{group}/vars/0"
            for name, group in zip(("dense_3", "dense_4"), groups, strict=True)
            for own in ("kernel", "bias")
        ]
        return "\n".join(rows)

    assert sources(plan(side("layers/dense", "layers/dense_1"), layers("dense_7", "dense_8").replace("3x", "")))
    assert not sources(
        plan(side("layers/dense_1", "layers/dense"), layers("dense_7", "dense_8").replace("3x", ""), keep=True)
    )
    assert not sources(
        plan(side("layers/dense_10", "layers/dense_9"), layers("dense_7", "dense_8").replace("3x", ""), keep=True)
    )


def test_an_order_vetoes_twins_only() -> None:
    def side(*places: int) -> str:
        rows = [layers(f"dense_{i}", sizes=(3 + i,), words=f"pos:layer-{p}/w") for i, p in enumerate(places, 1)]
        return "\n".join(rows)

    done = plan(side(1, 2), side(2, 1).replace("dense_2", "dense_9").replace("dense_1", "dense_8"))
    assert sources(done) == {"dense_8": "dense_1", "dense_9": "dense_2"}


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


def test_order_in_a_list_is_structure_where_shapes_tell_all_apart() -> None:
    done = by_list(nameless("4", "4", "5"), trained("m/a", "m/b", "m/c", shapes=("4", "4", "5")))
    assert [e.proof for e in done.entries] == [Proof.ORDER, Proof.ORDER, Proof.STRUCTURE]
    assert entry(done, "m/a").evidence == (
        "position among the optimizer's 3 variables, all shapes equal and no name against it"
    )


def test_flat_names_tell_nameless_ones_apart_but_for_their_counters() -> None:
    flat = ("dense_w", "dense_1_w", "stem_w")
    done = by_list(nameless("4", "4", "4", flat=flat), trained("m/a", "m/b", "m/c"))
    assert [e.proof for e in done.entries] == [Proof.ORDER, Proof.ORDER, Proof.STRUCTURE]


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
def test_automatic_names_in_a_list_must_agree(theirs: tuple[str, str], ours: tuple[str, str], is_filled: bool) -> None:
    target = "\n".join(
        f"m/{n} 4 pos:optimizer/trainable_variables/{i} cnt:{flat}"
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
