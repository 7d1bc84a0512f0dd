"""Rows of layers: which members belong together, and what that rests on."""

from __future__ import annotations

import pytest

from dist_restore.planning.entries import Proof
from scenes import live, matched, pairs, proofs, refused, stored

Sizes = tuple[int, ...]


def row(names: str, sizes: Sizes = (), edge: str = "_operations", root: str = "model", skip: str = "") -> str:
    """A list of layers, each with a kernel and a bias; names in order, sizes of their biases."""
    lines = []
    for index, name in enumerate(names.split()):
        size = sizes[index] if sizes else 4
        for own in ("kernel", "bias"):
            if own != skip:
                shape = f"{size}" if own == "bias" else f"3x{size}"
                lines.append(f"{root}/{edge}/{index}/{own} {shape} net/{name}/{own}")
    return "\n".join(lines)


def biases(done: dict[str, str]) -> dict[str, str]:
    return {t.split("/")[1]: s.replace("/bias", "") for t, s in done.items() if t.endswith("bias")}


# ---- Labels ----------------------------------------------------------------------------------------------


def test_a_chosen_label_pairs_members_whatever_their_places() -> None:
    done = matched(row("stem dense head"), row("head stem dense_7"))
    assert pairs(done)["model/stem/bias"] == "model/stem/bias name"
    assert pairs(done)["model/head/kernel"] == "model/head/kernel name"
    assert pairs(done)["model/dense_7/bias"] == "model/dense/bias order"  # the only one that is left


def test_a_chosen_label_of_two_members_pairs_none_by_itself() -> None:
    source = row("stem/a stem/a", edge="blocks")
    done = matched(source, row("stem/a stem/a", edge="blocks", root="model"))
    assert pairs(done) == {
        f"model/blocks/{i}/{n}": f"model/blocks/{i}/{n} order" for i in (0, 1) for n in ("kernel", "bias")
    }


def test_counted_labels_are_paired_in_order() -> None:
    done = matched(row("dense dense_1 dense_2"), row("dense_5 dense_6 dense_7"))
    assert biases(pairs(done)) == {
        "dense_5": "model/dense order",
        "dense_6": "model/dense_1 order",
        "dense_7": "model/dense_2 order",
    }


def test_counted_labels_of_each_class_are_paired_by_themselves() -> None:
    done = matched(row("dense conv2d dense_1"), row("conv2d_4 dense_8 dense_9"))
    assert biases(pairs(done)) == {
        "conv2d_4": "model/conv2d order",
        "dense_8": "model/dense order",
        "dense_9": "model/dense_1 order",
    }


def test_a_member_unlike_all_others_is_order_as_well() -> None:
    """What took the place of another one may be built alike."""
    done = matched(row("dense dense_1 conv2d", (4, 5, 4)), row("dense_7 dense_8 conv2d_1", (4, 5, 4)))
    assert proofs(done) == {Proof.ORDER}


def test_twins_in_a_row_are_order() -> None:
    done = matched(row("dense dense_1 dense_2", (4, 4, 5)), row("dense_7 dense_8 dense_9", (4, 4, 5)))
    assert biases(pairs(done)) == {
        "dense_7": "model/dense order",
        "dense_8": "model/dense_1 order",
        "dense_9": "model/dense_2 order",
    }
    assert {e.evidence for e in done.entries if e.proof is Proof.ORDER} == {
        "order among layers that nothing else tells apart"
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("dense dense_1 conv2d", "conv2d_1 dense_7 dense_8"),
        ("dense dense_1", "dense_7 dense_8 stem"),
        ("dense dense_1 stem", "dense_7 dense_8"),
    ],
)
def test_there_is_no_structure_where_the_rows_are_not_the_same(theirs: str, ours: str) -> None:
    done = matched(row(theirs, (4, 5, 4)), row(ours, (4, 4, 5) if ours.startswith("conv") else (4, 5, 4)))
    found = {t: p.split()[1] for t, p in biases(pairs(done)).items()}
    assert found["dense_7"] == found["dense_8"] == "order"


@pytest.mark.parametrize(("theirs", "ours"), [(2, 3), (3, 2)])
def test_counts_that_differ_are_unclear(theirs: int, ours: int) -> None:
    names = "dense dense_1 dense_2".split()
    done = matched(row(" ".join(names[:theirs])), row(" ".join(f"dense_{i + 7}" for i in range(ours))))
    assert not pairs(done)
    assert set(refused(done).values()) == {
        f"its layer has an automatic name (dense), so only the order could tell: the model has {ours} of this kind and "
        f"the checkpoint {theirs}, so one was added or removed."
    }
    assert len(refused(done)) == 2 * ours


def test_signatures_that_differ_are_unclear() -> None:
    done = matched("a/b/c/d/e/f/w 9\n" + row("dense dense_1", (4, 5)), row("dense_7 dense_8", (5, 4)))
    assert not pairs(done) and len(refused(done)) == 4
    assert set(refused(done).values()) == {
        "its layer has an automatic name (dense), so only the order could tell, and their shapes or variables differ."
    }


def test_a_single_pair_of_another_signature_is_one_pair_and_its_shapes_are_judged_later() -> None:
    done = matched(row("dense", (4,)), row("dense_7", (5,)))
    assert {e.problem.value for e in done.problems} == {"shape"}
    assert {e.candidates or e.sources for e in done.entries} == {("model/dense/bias",), ("model/dense/kernel",)}


def test_a_layer_that_got_a_bias_keeps_the_kernel_of_its_place() -> None:
    done = matched(row("dense stem", skip="bias"), row("dense_7 stem"))
    assert pairs(done)["model/dense_7/kernel"] == "model/dense/kernel order"
    assert "model/dense_7/bias" not in pairs(done)


def test_two_rows_with_names_that_are_not_the_same_say_which_are_missing() -> None:
    done = matched(row("stem dense"), row("base dense_7"))
    assert pairs(done)["model/dense_7/bias"] == "model/dense/bias order"
    assert "model/base/bias" not in pairs(done)
    assert not refused(done)


def test_names_on_one_side_only_leave_the_order() -> None:
    done = matched(row("dense dense_1"), row("stem dense_7"))
    assert not pairs(done)
    assert {r.rpartition(": ")[2] for r in refused(done).values()} == {
        "the model has 1 of this kind and the checkpoint 2, so one was added or removed."
    }


def test_a_member_with_a_name_that_was_inserted_moves_the_others() -> None:
    """An index in a list is a place: what somebody called the layers outvotes it."""
    found = pairs(matched(row("a b", edge="blocks"), row("a c b", edge="blocks")))
    assert {t: s for t, s in found.items() if t.endswith("bias")} == {
        "model/blocks/0/bias": "model/blocks/0/bias name",
        "model/blocks/2/bias": "model/blocks/1/bias name",
    }


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("stem - head", "stem - base", {"model/blocks/0/w": 0, "model/blocks/1/w": 1, "model/blocks/2/w": 2}),
        ("stem - head", "stem -", {"model/blocks/0/w": 0}),
        ("stem -", "stem - base", {"model/blocks/0/w": 0}),
        ("head - -", "- - base x", {"model/blocks/0/w": 1, "model/blocks/1/w": 2}),
        ("- head", "base stem - -", {}),
        ("- head", "- -", {"model/blocks/0/w": 0, "model/blocks/1/w": 1}),
        ("- -", "base -", {"model/blocks/0/w": 0, "model/blocks/1/w": 1}),
    ],
)
def test_members_without_any_name_are_compared_by_themselves(theirs: str, ours: str, expected: dict[str, int]) -> None:
    """Where both sides have names that are not the same; where one has none, its members may have got them."""

    def side(names: str) -> str:
        full = ["w" if n == "-" else f"{n}/w" for n in names.split()]
        return "\n".join(f"model/blocks/{i}/w 4 {n}" for i, n in enumerate(full)) + "\nmodel/x 4 x"

    found = {t: s.split()[0] for t, s in pairs(matched(side(theirs), side(ours))).items() if t != "model/x"}
    assert found == {t: f"model/blocks/{place}/w" for t, place in expected.items()}


def test_a_layer_in_a_list_whose_name_the_checkpoint_lacks_is_order() -> None:
    """Renamed, or replaced by another one of its shapes: nothing tells."""
    done = pairs(matched(row("a b c", (4, 5, 6), edge="blocks"), row("a b d", (4, 5, 6), edge="blocks")))
    assert {t[13]: s for t, s in done.items() if t.endswith("bias")} == {
        "0": "model/blocks/0/bias name",
        "1": "model/blocks/1/bias name",
        "2": "model/blocks/2/bias order",
    }


# ---- What else knows the order ---------------------------------------------------------------------------


@pytest.mark.parametrize("ours", ["dense_8 dense_7", "dense_1 dense", "dense_10 dense_9"])
def test_counters_in_another_order_than_places_veto_twins(ours: str) -> None:
    done = matched(row("dense dense_1"), row(ours))
    assert not pairs(done)
    assert {r.rpartition(", and ")[2] for r in refused(done).values()} == {
        "automatic names count in another order than their places."
    }


def test_counters_veto_no_members_that_differ_otherwise() -> None:
    done = matched(row("dense dense_1", (4, 5)), row("dense_8 dense_7", (4, 5)))
    assert biases(pairs(done)) == {"dense_8": "model/dense order", "dense_7": "model/dense_1 order"}


def test_counters_that_are_the_same_for_two_say_nothing() -> None:
    done = matched(row("a/dense a/dense", edge="blocks"), row("a/dense_1 a/dense", edge="blocks"))
    assert {p.split()[1] for p in pairs(done).values()} == {"order"}


def test_twins_of_one_label_veto_all_of_it() -> None:
    done = matched(row("dense dense_1 dense_2", (4, 4, 5)), row("dense_8 dense_7 dense_9", (4, 4, 5)))
    assert not pairs(done)


def trained(names: str, order: str, label: str = "adam") -> str:
    paths = [f"model/_operations/{i}/{n}" for i in order.split() for n in ("kernel", "bias")]
    return f"{row(names)}\noptimizer adam {' '.join(paths)} label:{label}"


def test_an_optimizers_list_in_another_order_vetoes_twins() -> None:
    done = matched(trained("dense dense_1", "0 1"), trained("dense_7 dense_8", "1 0"))
    assert not {t: p for t, p in pairs(done).items() if not t.startswith("optimizer")}
    assert any("the optimizer's list has them in another order than their places" in r for r in refused(done).values())


def test_an_optimizers_list_in_the_same_order_is_no_veto() -> None:
    done = matched(trained("dense dense_1", "1 0"), trained("dense_7 dense_8", "1 0"))
    assert biases(pairs(done)) == {"dense_7": "model/dense order", "dense_8": "model/dense_1 order"}


def test_an_optimizers_list_that_only_one_side_has_is_no_veto() -> None:
    done = matched(row("dense dense_1"), trained("dense_7 dense_8", "1 0"))
    assert biases(pairs(done)) == {"dense_7": "model/dense order", "dense_8": "model/dense_1 order"}


def test_an_optimizer_that_trains_one_of_two_is_no_veto() -> None:
    for one in ("0", "1"):
        done = matched(trained("dense dense_1", one), trained("dense_7 dense_8", "0 1"))
        assert biases(pairs(done)) == {"dense_7": "model/dense order", "dense_8": "model/dense_1 order"}


def test_members_that_got_names_are_in_order_with_the_others() -> None:
    def side(*names: str) -> str:
        full = [f"{n}/w" if n else "w" for n in names]
        return "\n".join(f"model/blocks/{i}/w {4 + i} {n}" for i, n in enumerate(full)) + "\nmodel/x 4 x"

    expected = {f"model/blocks/{i}/w": f"model/blocks/{i}/w order" for i in range(3)}
    for theirs, ours in [(("", "", ""), ("", "a", "")), (("", "a", ""), ("", "", ""))]:
        found = pairs(matched(side(*theirs), side(*ours)))
        assert {t: s for t, s in found.items() if t != "model/x"} == expected


# ---- What rules have settled -----------------------------------------------------------------------------

KEEP = '[[rule]]\nkeep = "model/{}/{{rest}}"\n'
DROP = '[[rule]]\ndrop = "model/{}/{{rest}}"\n'
MOVE = '[[rule]]\nfrom = "model/{}/{{rest}}"\nto = "model/{}/{{rest}}"\n'


def test_what_is_kept_leaves_the_rest_in_order() -> None:
    done = matched(row("dense dense_1"), row("dense_7 dense_8 dense_9"), KEEP.format("dense_8"))
    assert biases(pairs(done)) == {"dense_7": "model/dense order", "dense_9": "model/dense_1 order"}


def test_what_is_dropped_leaves_the_rest_in_order() -> None:
    done = matched(row("dense dense_1 dense_2"), row("dense_7 dense_8"), DROP.format("dense"))
    assert biases(pairs(done)) == {"dense_7": "model/dense_1 order", "dense_8": "model/dense_2 order"}


def test_a_layer_that_a_rule_has_moved_leaves_the_rest_in_order() -> None:
    done = matched(row("dense dense_1 dense_2"), row("dense_7 dense_8 dense_9"), MOVE.format("dense_2", "dense_7"))
    assert biases(pairs(done)) == {
        "dense_7": "model/dense_2 rule",
        "dense_8": "model/dense order",
        "dense_9": "model/dense_1 order",
    }


def test_a_rule_for_one_variable_pins_its_whole_layer() -> None:
    rules = {"model/dense_1/kernel": "model/dense_7/kernel"}
    done = matched(row("dense dense_1"), row("dense_7 dense_8"), rules)
    assert biases(pairs(done)) == {"dense_7": "model/dense_1 name", "dense_8": "model/dense order"}


def test_rules_that_mix_two_layers_pin_neither() -> None:
    rules = {"model/dense/kernel": "model/dense_7/kernel", "model/dense_1/bias": "model/dense_7/bias"}
    done = matched(row("dense dense_1"), row("dense_7 dense_8"), rules)
    assert set(pairs(done).values()) == {"model/dense/kernel rule", "model/dense_1/bias rule"}


def test_a_source_of_two_targets_pins_one_layer_only() -> None:
    rules = {"model/dense/kernel": "model/dense_7/kernel"}
    more = '[[rule]]\nfrom = "model/dense/kernel"\nto = ["model/dense_7/kernel", "model/dense_8/kernel"]\n'
    more += "ops = [{ split = { axis = 0, sizes = [2, 1] } }]\n"
    assert (
        biases(pairs(matched(row("dense dense_1"), row("dense_7 dense_8"), rules)))["dense_8"] == "model/dense_1 order"
    )
    done = matched(row("dense dense_1"), row("dense_7 dense_8").replace("3x4", "2x4", 1).replace("3x4", "1x4", 1), more)
    assert all("dense/bias name" not in p for p in pairs(done).values())


def test_what_is_made_of_several_layers_pins_none() -> None:
    rules = """
    [[rule]]
    from = ["model/dense/kernel", "model/dense_1/kernel"]
    to = "model/dense_8/kernel"
    ops = [{ concat = { axis = 0 } }]
    [[rule]]
    keep = "model/dense_7/kernel"
    """
    done = matched(row("dense dense_1"), row("dense_7") + "\n" + _second(row("- dense_8").replace("3x4", "6x4")), rules)
    assert biases(pairs(done)) == {"dense_7": "model/dense order", "dense_8": "model/dense_1 order"}


def _second(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "/1/" in line)


# ---- Files that tell layers by class ---------------------------------------------------------------------


def by_layer(*layers: str, edge: str = "layers", sizes: Sizes = (), vars: str = "kernel bias") -> str:
    """Layers as `NAME:CLASS`; `+` before a name that Keras counted up."""
    lines = []
    for index, layer in enumerate(layers):
        name, _, kind = layer.lstrip("+").partition(":")
        size = sizes[index] if sizes else 4
        lines += [f"{edge}/{index}/{v} {'3x' if v == 'kernel' else ''}{size} {name}/{v}" for v in vars.split()]
        lines.append(f"{edge}/{index} layer:{name} kind:{kind}{' counted' if layer[0] == '+' else ''}")
    return "\n".join(lines)


def program(*layers: str, sizes: Sizes = (), edge: str = "_operations", vars: str = "kernel bias") -> str:
    return by_layer(*layers, edge=edge, sizes=sizes, vars=vars)


def weights(source: str, target: str, rules: str | None = None) -> dict[str, str]:
    done = matched(stored(source, by_layer=True), live(target), rules)
    return {t.removesuffix("/bias"): s.replace("/bias", "") for t, s in pairs(done).items() if t.endswith("bias")}


def test_chosen_names_decide_in_files_of_weights() -> None:
    found = weights(by_layer("stem:dense", "head:dense"), program("head:dense", "stem:dense"))
    assert found == {"head": "layers/1 name", "stem": "layers/0 name"}


def test_layers_of_one_class_without_names_are_in_order() -> None:
    found = weights(by_layer(":dense", ":dense"), program("+dense_7:dense", "+dense_8:dense"))
    assert found == {"dense_7": "layers/0 order", "dense_8": "layers/1 order"}


def test_between_classes_a_file_of_weights_has_no_order() -> None:
    found = weights(
        by_layer(":conv2d", ":dense", sizes=(5, 4)), program("+dense_7:dense", "+conv2d:conv2d", sizes=(4, 5))
    )
    assert found == {"dense_7": "layers/1 order", "conv2d": "layers/0 order"}


def test_counters_veto_twins_in_files_of_weights_too() -> None:
    assert weights(by_layer("+dense_1:dense", "+dense:dense"), program("+dense_7:dense", "+dense_8:dense")) == {}


def test_twins_under_chosen_names_that_the_file_lacks_are_refused() -> None:
    done = matched(stored(by_layer(":dense", ":dense"), by_layer=True), live(program("a:dense", "b:dense")))
    assert not pairs(done)
    assert all(
        r == "its layer has an automatic name (dense), so only the order could tell, and the file calls its layers by "
        "class and order only."
        for r in refused(done).values()
    )
    assert len(refused(done)) == 4


def test_layers_that_differ_need_no_names_in_files_of_weights() -> None:
    found = weights(by_layer(":dense", ":dense", sizes=(4, 5)), program("a:dense", "b:dense", sizes=(4, 5)))
    assert found == {"a": "layers/0 order", "b": "layers/1 order"}


def test_another_count_of_a_class_is_refused_in_files_of_weights() -> None:
    assert weights(by_layer(":dense", ":dense"), program("+dense:dense", "+dense_1:dense", "+dense_2:dense")) == {}
