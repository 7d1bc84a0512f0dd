"""Automatic names in files without a graph: layers as wholes, in the order of their counters."""

from __future__ import annotations

import msgspec
import pytest

from build import checkpoint, entry, filled, plan, problems, program
from dist_restore.core.index import Group
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.by_counter import by_counter
from dist_restore.planning.matching.outcome import Match
from dist_restore.planning.matching.roots import align
from dist_restore.planning.name_table import Side
from dist_restore.planning.plan import RestorePlan

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


def test_layers_unlike_all_others_are_order_as_well() -> None:
    sizes = (4, 4, 5)
    done = plan(
        layers("dense", "dense_1", "dense_2", sizes=sizes), layers("dense_5", "dense_6", "dense_7", sizes=sizes)
    )
    assert proofs(done) == {"dense_5": "order", "dense_6": "order", "dense_7": "order"}


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
    assert set(proofs(done).values()) == {"order"}


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
        return "\n".join(layers(n, words=f"pos:model/_{way}/{p}/x") for n, p in zip(names, places, strict=False))

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
    # Nor does what knows the place of some only.
    assert sources(plan(side(1, 5) + "\n" + layers("dense_2"), side(7, 1, 2)))
    assert not sources(plan(side(1, 1) + "\n" + layers("dense_2"), side(7, 2, 1), keep=True))


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


def test_a_place_is_in_any_of_the_names() -> None:
    def side(first: int, *places: int) -> str:
        rows = [
            layers(f"dense_{first + i}", words=f"pos:model/x pos:operations/7 pos:m/layer-{p}/w")
            for i, p in enumerate(places)
        ]
        return "\n".join(rows)

    assert not sources(plan(side(1, 0, 5), side(7, 2, 1), keep=True))


def by_count(source: str, target: str, group: Group, *others: str) -> dict[str, str]:
    theirs, ours = (
        checkpoint(source).tensors,
        [msgspec.structs.replace(v, group=group) for v in program(target).variables],
    )
    ours += [msgspec.structs.replace(v, group=Group.OTHER) for t in others for v in program(t).variables]
    found = by_counter(ours, {}, theirs, align(ours, Side(theirs, theirs), ()))
    return {t: o.source.name for t, o in found.items() if isinstance(o, Match)}


def test_the_root_of_what_is_no_model_may_be_missing_too() -> None:
    source, target = layers("dense", root=""), layers("dense_5")
    assert len(by_count(source, target, Group.OTHER)) == 2
    assert len(by_count(source, target, Group.MODEL, "step 4")) == 2
    assert len(by_count(source, target, Group.MODEL, "x/dense_7/w 4 kind:counted")) == 0


def test_several_roots_stay_where_they_are() -> None:
    def side(a: str, b: str) -> str:
        return layers(a, root="a/") + "\n" + layers(b, root="b/")

    assert sources(plan(side("dense", "dense_1"), side("dense_7", "dense_5"))) == {
        "dense_7": "dense",
        "dense_5": "dense_1",
    }


LAYERS = "a/layer/w 4 cnt:a/dense_5/w\nb/layer/w 4 cnt:b/dense_6/w"


def test_what_keras_calls_a_variable_counts_where_a_file_has_no_attributes() -> None:
    source = "a/dense_1/w 4 kind:counted\nb/dense_2/w 4 kind:counted"
    done = plan(source, LAYERS, keep=True)
    assert filled(done) == {"a/layer/w": "a/dense_1/w", "b/layer/w": "b/dense_2/w"}
    assert {e.proof for e in done.entries} == {Proof.ORDER}


def test_of_two_layers_below_one_name_one_that_is_missing_leaves_both() -> None:
    source = "a/dense_1/w 4 kind:counted"
    target = "a/x/w 4 cnt:a/dense_5/w\na/y/w 4 cnt:a/dense_6/w"
    assert not filled(plan(source, target, keep=True))
