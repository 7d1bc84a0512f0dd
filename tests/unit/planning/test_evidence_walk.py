"""The joint walk of both graphs: roots, edges that somebody named, what is the same program throughout."""

from __future__ import annotations

import dataclasses
from typing import TypeVar

import msgspec
import pytest

from dist_restore.core.index import SourceTensor, TargetVariable
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.by_walk import Walked, by_walk, own_words
from dist_restore.planning.matching.outcome import Conflict, Match
from scenes import live, matched, pairs, proofs, refused, stored


def pair(root: str, *names: str, edge: str = "_operations", size: int = 4) -> str:
    """Two layers of two variables each."""
    return "\n".join(
        f"{root}{edge}/{i}/{own} {size} net/{name}/{own}" for i, name in enumerate(names) for own in ("kernel", "bias")
    )


SLOTS = (("momentums", "momentum"), ("velocities", "velocity"))
OLD, NEW = ("dense", "dense_1"), ("dense_7", "dense_8")


# ---- Roots -----------------------------------------------------------------------------------------------


def test_the_only_root_of_either_side_is_the_same_whatever_it_is_called() -> None:
    done = matched(pair("net/", *OLD), pair("model/", *NEW))
    assert pairs(done)["model/dense_8/bias"] == "net/dense_1/bias order"


def test_a_lonely_root_is_structure_at_best() -> None:
    text = "{0}/_layers/a/kernel 4 net/dense/kernel\n{0}/_layers/b/kernel 5 net/conv2d/kernel"
    assert proofs(matched(text.format("net"), text.format("model"))) == {Proof.STRUCTURE}


@pytest.mark.parametrize(("theirs", "ours"), [(("a/", "b/"), ("model/",)), (("net/",), ("a/", "b/"))])
def test_one_root_beside_two_is_not_aligned(theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
    done = matched("\n".join(pair(r, *OLD) for r in theirs), "\n".join(pair(r, *NEW) for r in ours))
    assert not pairs(done)


def test_one_root_beside_two_of_which_one_is_alike_is_not_aligned_either() -> None:
    two = pair("a/", *OLD, size=5) + "\n" + pair("b/", *OLD)
    assert not pairs(matched(two, pair("model/", *NEW)))
    assert not pairs(matched(pair("model/", *NEW), two))


def test_a_lonely_root_of_other_shapes_is_not_aligned() -> None:
    assert not pairs(matched(pair("net/", *OLD), pair("model/", *NEW, size=5)))


def test_where_a_part_fits_as_it_is_the_others_are_not_aligned() -> None:
    done = matched("enc/w 4\n" + pair("old/", *OLD), "enc/w 4\n" + pair("new/", *NEW))
    assert pairs(done) == {"enc/w": "enc/w name"}


def test_an_optimizer_is_no_root_of_a_model() -> None:
    def side(root: str, names: tuple[str, ...]) -> str:
        owners = " ".join(f"{root}/_operations/{i}/{n}" for i in (0, 1) for n in ("kernel", "bias"))
        return f"{pair(root + '/', *names)}\noptimizer adam {owners}"

    assert pairs(matched(side("net", OLD), side("model", NEW)))["model/dense_7/bias"] == "net/dense/bias order"


def test_a_variable_of_the_root_is_no_root_of_a_model() -> None:
    done = matched("step -\n" + pair("net/", *OLD), "steps -\n" + pair("model/", *NEW))
    assert pairs(done)["model/dense_7/bias"] == "net/dense/bias order"


def test_a_root_that_names_have_aligned_is_walked() -> None:
    """`stem` says that `net` is `model`; the rest has no names."""
    done = matched(pair("net/", "stem", *OLD), pair("model/", "stem", *NEW))
    found = pairs(done)
    assert found["model/stem/kernel"] == "net/stem/kernel name"
    assert found["model/dense_8/kernel"] == "net/dense_1/kernel order"


def test_a_model_is_found_in_a_checkpoint_of_the_model_alone() -> None:
    done = matched(pair("", "stem", *OLD), pair("model/", "stem", *NEW))
    assert pairs(done)["model/dense_7/bias"] == "dense/bias order"
    done = matched(pair("model/", "stem", *OLD), pair("", "stem", *NEW))
    assert pairs(done)["dense_7/bias"] == "model/dense/bias order"


def test_equal_paths_are_names() -> None:
    text = "model/enc/{0}/0/w 4 a/w\nmodel/enc/{0}/1/w 4 b/w"
    assert set(pairs(matched(text.format("blocks"), text.format("blocks"))).values()) == {
        "model/enc/blocks/0/w name",
        "model/enc/blocks/1/w name",
    }
    assert not pairs(matched(text.format("blocks"), text.format("stages")))


# ---- Rows inside rows, and ways that meet ----------------------------------------------------------------


def test_rows_inside_rows_are_as_weak_as_the_rows_that_hold_them() -> None:
    """A named edge or label below a member that only its order pairs is order too."""
    text = "\n".join(f"model/blocks/{i}/{n} 4" for i in range(2) for n in ("inner/w", "inner/b", "x/0", "x/1"))
    assert proofs(matched(text, text)) == {Proof.ORDER}


def test_what_is_an_attribute_too_has_its_name() -> None:
    """What is both a member of a list of twins and an attribute is no twin, and neither is the other one then."""
    text = """
    model/blocks/0/w 4
    model/blocks/1/w 4
    model/first -> model/blocks/1
    """
    assert pairs(matched(text, text)) == {
        "model/blocks/0/w": "model/blocks/0/w name",
        "model/first/w": "model/first/w name",
    }


def test_a_source_with_two_names_fills_both() -> None:
    """As with attributes: variables that were one in the file, and are two here."""
    source = "model/a/0/w 4\nmodel/b -> model/a"
    target = "model/a/0/w 4\nmodel/b/0/w 4"
    done = matched(source, target)
    assert pairs(done) == {f"model/{x}/0/w": "model/a/0/w name" for x in "ab"}


def test_members_that_are_gone_leave_the_others() -> None:
    """Layers without variables take no places."""
    source = "model/_operations/0/w 4 net/dense/w\nmodel/_operations/1/w 5 net/dense_1/w"
    target = "model/_operations/3/w 4 net/dense/w\nmodel/_operations/1/w 5 net/dense_1/w"
    assert len(refused(matched(source, target))) == 2
    moved = source.replace("operations/1", "operations/5")
    assert {p.split()[1] for p in pairs(matched(source, moved)).values()} == {"order"}


def test_places_are_numbers() -> None:
    def side(*places: int) -> str:
        return "\n".join(f"model/_operations/{p}/w {3 + i} net/dense_{i + 1}/w" for i, p in enumerate(places))

    assert proofs(matched(side(1, 2, 3), side(2, 9, 10))) == {Proof.ORDER}


# ---- The walk itself -------------------------------------------------------------------------------------


def walked(source: str, target: str, *pins: tuple[str, str], roots: tuple[tuple[str, str], ...] = ()) -> Walked:
    theirs, ours = stored(source), live(target)
    assert theirs.scene is not None and ours.scene is not None
    sources = [t for t in theirs.tensors if t.slot is None]
    targets = [v for v in ours.variables if v.slot is None]
    return by_walk((ours.scene, theirs.scene), targets, sources, pins, roots)


def of(found: Walked) -> dict[str, str]:
    return {t: o.source.name for t, o in found.outcomes.items() if isinstance(o, Match)}


def test_a_pin_pairs_the_members_that_hold_its_variables() -> None:
    found = walked(pair("model/", *OLD), pair("model/", *NEW), ("model/dense_8/kernel", "model/dense/kernel"))
    assert of(found)["model/dense_8/bias"] == "model/dense/bias"
    assert of(found)["model/dense_7/bias"] == "model/dense_1/bias"


@pytest.mark.parametrize("pin", [("model/x", "model/dense/kernel"), ("model/dense_8/kernel", "model/x")])
def test_a_pin_of_what_is_not_there_says_nothing(pin: tuple[str, str]) -> None:
    found = walked(pair("model/", *OLD), pair("model/", *NEW), pin)
    assert of(found)["model/dense_8/bias"] == "model/dense_1/bias"


def test_pins_of_one_member_to_two_say_nothing() -> None:
    pins = [("model/dense_8/kernel", "model/dense/kernel"), ("model/dense_8/bias", "model/dense_1/bias")]
    found = walked(pair("model/", *OLD), pair("model/", *NEW), *pins)
    assert of(found)["model/dense_8/bias"] == "model/dense_1/bias"


def test_pins_of_two_members_to_one_count_for_the_first() -> None:
    pins = [("model/dense_8/kernel", "model/dense/kernel"), ("model/dense_7/bias", "model/dense/bias")]
    found = walked(pair("model/", *OLD), pair("model/", *NEW), *pins)
    assert of(found)["model/dense_7/kernel"] == "model/dense/kernel"
    assert of(found)["model/dense_8/kernel"] == "model/dense_1/kernel"


def test_given_roots_belong_together() -> None:
    two = [pair("a/", *OLD) + "\n" + pair("b/", *OLD), pair("x/", *NEW) + "\n" + pair("y/", *NEW)]
    assert of(walked(*two)) == {}
    found = of(walked(*two, roots=(("x", "b"), ("y", "a"))))
    assert found["x/dense_7/bias"] == "b/dense/bias" and found["y/dense_8/kernel"] == "a/dense_1/kernel"


@pytest.mark.parametrize("roots", [(("x", "q"),), (("q", "a"),), (("", ""),)])
def test_roots_that_are_not_there_are_no_roots(roots: tuple[tuple[str, str], ...]) -> None:
    two = [pair("a/", *OLD) + "\n" + pair("b/", *OLD), pair("x/", *NEW) + "\n" + pair("y/", *NEW)]
    assert of(walked(*two, roots=roots)) == {}


def test_the_root_itself_may_belong_to_a_root() -> None:
    assert of(walked(pair("net/", *OLD), pair("", *NEW), roots=(("", "net"),)))["dense_7/bias"] == "net/dense/bias"
    two = pair("net/", *NEW) + "\n" + pair("ema/", *NEW)
    assert of(walked(pair("", *OLD), two, roots=(("net", ""),)))["net/dense_7/bias"] == "dense/bias"
    assert of(walked(pair("", *OLD), two)) == {}
    assert of(walked(pair("", *OLD), pair("net/", *NEW), roots=(("net", ""),)))["net/dense_7/bias"] == "dense/bias"


def test_a_program_of_equal_structure_and_names_is_sure() -> None:
    found = walked(pair("model/", *OLD), pair("model/", *NEW))
    assert found.sure == {f"model/dense_{i}/{n}" for i in (7, 8) for n in ("kernel", "bias")}
    assert walked(pair("net/", *OLD), pair("model/", *NEW)).sure == found.sure
    assert walked(pair("", *OLD), pair("model/", *NEW)).sure == found.sure
    assert len(walked(pair("model/", *OLD), pair("", *NEW)).sure) == 4


def test_flat_names_that_differ_make_a_program_unsure_where_both_sides_have_them() -> None:
    def side(*names: str) -> str:
        owners = " ".join(f"model/blocks/{i}/w" for i in range(len(names)))
        lines = [f"model/blocks/{i}/w {4 + i} w" for i in range(len(names))]
        slots = [f"o/_{e}/{i} {4 + i} adam/{n}_{r}" for i, n in enumerate(names) for e, r in SLOTS]
        return "\n".join([*lines, f"o adam {owners}", *slots])

    plain = "model/blocks/0/w 4 w\nmodel/blocks/1/w 5 w"
    sure = {f"model/blocks/{i}/w" for i in (0, 1)}
    assert walked(side("dense_1_w", "stem_w"), side("dense_7_w", "stem_w")).sure >= sure
    assert not walked(side("dense_1_w", "stem_w"), side("dense_7_w", "head_w")).sure & sure
    assert not walked(side("dense_1_w", "stem_w"), side("conv2d_w", "stem_w")).sure & sure
    assert walked(plain, side("dense_7_w", "head_w")).sure >= sure
    assert walked(side("dense_7_w", "head_w"), plain).sure >= sure


@pytest.mark.parametrize(
    "target",
    [
        pair("model/", *NEW, size=5),
        pair("model/", "dense_7", "stem"),
        pair("model/", "dense_8", "dense_7"),
        pair("model/", *NEW) + "\nmodel/extra 4 extra",
        pair("model/", *NEW).replace("bias 4", "beta 4"),
    ],
)
def test_a_program_that_differs_in_anything_is_not_sure(target: str) -> None:
    assert not walked(pair("model/", *OLD), target).sure


def test_attributes_under_other_names_make_a_program_unsure() -> None:
    text = "model/a/w 4 {0}/w\nmodel/b/w 4 other/w"
    assert walked(text.format("stem"), text.format("stem")).sure == {"model/a/w", "model/b/w"}
    assert not walked(text.format("stem"), text.format("head")).sure

    def slots(name: str) -> str:
        lists = [f"o/_{e}/0 4 adam/{name}_w_{r}" for e, r in SLOTS]
        return "\n".join(["model/a/w 4 w", "model/b/w 4 x", "o adam model/a/w", *lists])

    assert walked(slots("stem"), slots("stem")).sure >= {"model/a/w", "model/b/w"}
    assert not walked(slots("stem"), slots("head")).sure & {"model/a/w", "model/b/w"}


def test_one_of_two_models_may_be_sure() -> None:
    source = pair("a/", *OLD) + "\n" + pair("b/", *OLD)
    found = walked(source, pair("a/", *NEW) + "\n" + pair("b/", *NEW, size=5))
    assert found.sure == {f"a/dense_{i}/{n}" for i in (7, 8) for n in ("kernel", "bias")}


def adam(text: str, *owners: str, label: str = "adam") -> str:
    return f"{text}\noptimizer adam {' '.join(owners)} label:{label}"


def test_flat_names_that_differ_make_a_program_unsure() -> None:
    source = "model/_operations/0/w 4 w\nmodel/_operations/1/w 5 w"
    owners = ("model/_operations/0/w", "model/_operations/1/w")
    slots = adam(source, *owners)
    assert walked(slots, slots).sure >= {"model/operations/0/w", "model/operations/1/w"}


def test_conflicts_show_what_is_alike_first() -> None:
    """Of equal shape and equal last name; else of equal shape; eight at most."""
    source = "\n".join(
        f"model/_operations/{i}/{n} 4 net/dense_{i + 1}/{n}" for i in range(10) for n in ("kernel", "bias")
    )
    found = walked(source, pair("model/", *NEW)).outcomes["model/dense_7/bias"]
    assert isinstance(found, Conflict)
    assert [c.name for c in found.candidates] == [f"model/dense_{i + 1}/bias" for i in range(8)]
    other = walked(source, pair("model/", *NEW).replace("/bias", "/beta")).outcomes["model/dense_7/beta"]
    assert isinstance(other, Conflict) and len(other.candidates) == 8
    assert other.candidates[0].name == "model/dense_1/kernel"


def test_any_name_of_a_candidate_may_be_alike() -> None:
    source = pair("model/", *OLD, "dense_2") + "\nmodel/_operations/1/beta -> model/_operations/1/bias"
    found = walked(source, pair("model/", *NEW).replace("/bias", "/beta")).outcomes["model/dense_7/beta"]
    assert isinstance(found, Conflict) and [c.name for c in found.candidates] == ["model/dense_1/bias"]


def test_conflicts_without_candidates_are_none() -> None:
    found = walked(pair("model/", *OLD, "dense_2"), pair("model/", *NEW, size=5))
    assert found.outcomes == {}


def test_the_words_of_a_program_are_the_names_that_keras_counted() -> None:
    target = live("model/a/w 4\nmodel/a layer:my_block_2 counted\nmodel/b/w 4\nmodel/b layer:stem_3")
    assert target.scene is not None
    assert [*own_words(target.scene)] == ["my_block"]


def test_a_file_of_one_models_weights_is_the_model_where_there_is_one() -> None:
    source = stored("kernel 4\na/kernel 5\na layer: kind:dense", by_layer=True)
    layer = "{0}/kernel 4\n{0}/b/kernel 5\n{0} layer:x kind:net\n{0}/b layer:b kind:dense"
    assert pairs(matched(source, live(layer.format("model"))))["model/kernel"].startswith("kernel ")
    assert not pairs(matched(source, live(layer.format("model") + "\n" + layer.format("ema"))))
    assert not pairs(matched(source, live("w 7")))


def test_names_of_the_users_own_classes_are_automatic() -> None:
    def side(*names: str) -> str:
        layers = "\n".join(f"model/_operations/{i} layer:{n} counted" for i, n in enumerate(names))
        return f"{pair('model/', *names)}\n{layers}"

    found = walked(pair("model/", "my_block_1", "my_block_2"), side("my_block_3", "my_block_4"))
    assert of(found) == {
        f"model/my_block_{i + 2}/{n}": f"model/my_block_{i}/{n}" for i in (1, 2) for n in ("kernel", "bias")
    }


def test_the_checkpoints_own_counter_takes_no_part() -> None:
    theirs, ours = stored(pair("net/", *OLD) + "\nsave_counter -"), live(pair("model/", *NEW) + "\nsave_counter -")
    theirs = dataclasses.replace(theirs, tensors=tuple(_counter(t) for t in theirs.tensors))
    ours = dataclasses.replace(ours, variables=tuple(_counter(v) for v in ours.variables))
    assert theirs.scene is not None and ours.scene is not None
    found = by_walk((ours.scene, theirs.scene), ours.variables, theirs.tensors, (), ())
    assert "save_counter" not in found.outcomes and len(of(found)) == 4


@pytest.mark.parametrize(("theirs", "ours"), [("", "net/"), ("net/", "")])
def test_a_counter_of_saves_beside_a_bare_model_is_no_part_of_it(theirs: str, ours: str) -> None:
    source, target = stored(pair(theirs, *OLD) + "\nsave_counter -"), live(pair(ours, *NEW) + "\nsave_counter -")
    source = dataclasses.replace(source, tensors=tuple(_counter(t) for t in source.tensors))
    target = dataclasses.replace(target, variables=tuple(_counter(v) for v in target.variables))
    assert len(pairs(matched(source, target), skip=["save_counter"])) == 4


Item = TypeVar("Item", SourceTensor, TargetVariable)


def _counter(item: Item) -> Item:
    return msgspec.structs.replace(item, tracker_only=item.name == "save_counter")
