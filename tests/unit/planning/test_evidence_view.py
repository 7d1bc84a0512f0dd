"""One side's graph as the walk sees it: rows, transparent steps, optimizers' lists, labels and signatures."""

from __future__ import annotations

import pytest

from dist_restore.core.graph import Node, Scene
from dist_restore.naming.automatic_names import Vocabulary
from dist_restore.naming.names import name_graph
from dist_restore.planning.matching.how import How
from dist_restore.planning.matching.numbers import pair_numbers
from dist_restore.planning.matching.view import Signatures, View
from scenes import read


def view(
    text: str, *, by_layer: bool = False, only: str = "", signatures: Signatures | None = None, everything: str = ""
) -> View:
    """What takes part is all, or what begins with `only`."""
    made = read(text)
    leaves, _ = name_graph(made.nodes)
    names = {leaf.node: leaf.name for leaf in leaves}
    shapes = {leaf.name: made.shapes[leaf.node] for leaf in leaves if leaf.name.startswith(only)}
    whole = tuple(read(everything).nodes) if everything else ()
    scene = Scene(tuple(made.nodes), names, whole)
    return View(scene, shapes, signatures or Signatures(), Vocabulary(), by_layer=by_layer)


def at(found: View, path: str) -> int:
    """The node at a path of edges, of rows by their places."""
    node = 0
    for part in path.split("/"):
        node = found.rows[node][int(part)] if part.isdecimal() else dict(found.kids[node])[part]
    return node


def edges(found: View, path: str = "") -> list[str]:
    return [label for label, _ in found.kids[at(found, path) if path else 0]]


def texts(found: View, path: str) -> list[str]:
    return [found.label(m).text for m in found.rows[at(found, path)]]


# ---- Edges -----------------------------------------------------------------------------------------------


def test_what_has_no_variables_is_left_out() -> None:
    found = view("model/a/w 4\nmodel/drop layer:dropout\nmodel/other/w 4", only="model/a")
    assert edges(found, "model") == ["a"]
    assert found.names == {at(found, "model/a/w"): "model/a/w"}
    assert found.shapes == {at(found, "model/a/w"): (4,)}


def test_names_lose_their_underscores_where_they_stay_different() -> None:
    assert edges(view("_a 4\n__b 4\nc 4")) == ["a", "b", "c"]
    assert edges(view("_a 4\na 4\n_c 4")) == ["_a", "a", "_c"]
    assert edges(view("_ 4\nb 4")) == ["_", "b"]


def test_a_list_is_a_row_in_the_order_of_its_numbers() -> None:
    found = view("m/10/w 4 a/w\nm/9/w 4 b/w\nm/0/w 4 c/w")
    assert texts(found, "m") == ["c", "b", "a"]
    assert not found.kids[at(found, "m")]


def test_a_list_with_a_name_in_it_is_no_row() -> None:
    found = view("m/0/w 4\nm/x/w 4")
    assert edges(found, "m") == ["0", "x"] and not found.rows[at(found, "m")]


def test_numbers_of_other_alphabets_and_sizes_do_not_stop_it() -> None:
    found = view(f"m/{'9' * 30}/w 4 a/w\nm/1/w 4 b/w")
    assert texts(found, "m") == ["b", "a"]
    assert edges(view("m/²/w 4\nm/1/w 4"), "m") == ["²", "1"]


def test_layers_of_keras_2_are_a_row() -> None:
    found = view("m/layer-10/w 4 a/w\nm/layer-2/w 4 b/w\nm/layer_with_weights-0/w 4 c/w\nm/head/w 4")
    assert edges(found, "m") == ["head", "operations"]
    assert texts(found, "m/operations") == ["b", "a"]


def test_layers_with_weights_are_a_row_where_there_are_no_others() -> None:
    found = view("m/layer_with_weights-1/w 4 a/w\nm/layer_with_weights-0/w 4 b/w")
    assert texts(found, "m/operations") == ["b", "a"]


@pytest.mark.parametrize("name", ["layer-x", "layer-1x", "layer", "layers", "player-1", "layer_1"])
def test_what_is_called_alike_is_an_attribute(name: str) -> None:
    assert edges(view(f"m/{name}/w 4\nm/b/w 4"), "m") == [name, "b"]


def test_hidden_models_are_transparent() -> None:
    found = view("m/_functional/_operations/0/w 4 a/w\nm/x/w 4")
    assert edges(found, "m") == ["operations", "x"]


def test_a_root_called_root_is_transparent_and_no_other_is() -> None:
    assert edges(view("root/a/w 4")) == ["a"]
    assert edges(view("m/root/a/w 4"), "m") == ["root"]


def test_hidden_models_are_followed_three_deep() -> None:
    assert edges(view("m/" + "_functional/" * 3 + "a/w 4"), "m") == ["a"]
    found = view("m/" + "_functional/" * 4 + "a/w 4\nm/b/w 4")
    assert edges(found, "m") == ["b"]


@pytest.mark.parametrize("name", ["keras_api", "_tracked", "_inbound_nodes", "_outbound_nodes"])
def test_second_ways_are_left_out(name: str) -> None:
    assert edges(view(f"m/a/w 4\nm/{name} -> m/a"), "m") == ["a"]


LISTS = ["_variables", "_trainable_variables", "_non_trainable_variables", "trainable_variables"]


@pytest.mark.parametrize("name", LISTS)
def test_a_layers_lists_of_variables_are_left_out(name: str) -> None:
    assert edges(view(f"m/w 4\nm/{name}/0 -> m/w\nm layer:dense"), "m") == ["w"]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("mark", ["_iterations", "_learning_rate", "iter"])
def test_an_optimizers_lists_are_left_out(name: str, mark: str) -> None:
    assert edges(view(f"o/{mark} -\no/{name}/0 4"), "o") == [mark.lstrip("_")]


@pytest.mark.parametrize("name", LISTS)
def test_other_objects_may_call_their_own_so(name: str) -> None:
    assert edges(view(f"m/{name}/0/w 4\nm/{name}/1/w 4"), "m") == [name.lstrip("_")]


def test_an_optimizer_is_a_way_to_its_own_state_and_to_optimizers_only() -> None:
    found = view("model/w 4 w\nmodel/b 4 b\no adam model/w\no/inner adam model/b label:sgd\no/helper/x 4")
    assert "inner" in edges(found, "o") and "iterations" in edges(found, "o")
    assert not {"helper", "momentums", "velocities", "trainable_variables"} & {*edges(found, "o")}
    assert found.is_optimizer(at(found, "o")) and not found.is_optimizer(at(found, "model"))


def test_places_in_optimizers_lists_are_an_order() -> None:
    found = view("model/a 4 a\nmodel/b 4 b\no adam model/b model/a")
    a, b = at(found, "model/a"), at(found, "model/b")
    assert found.places[a] == (0, 1) and found.places[b] == (0, 0)
    assert found.places.keys() == {a, b}


def test_what_two_optimizers_train_has_the_place_in_the_first() -> None:
    found = view("model/a 4 a\nmodel/b 4 b\no adam model/b model/a\np adam model/a label:p")
    assert found.places[at(found, "model/a")] == (1, 1)


# ---- Roots, children, what is below ----------------------------------------------------------------------


def test_roots_are_children_of_the_root() -> None:
    found = view("model/a 4\nnet/b 4")
    assert found.root("") == 0 and found.root("net") == at(found, "net") and found.root("x") is None
    assert found.root("a") is None


def test_all_variables_are_below_what_takes_part_or_not() -> None:
    found = view("m/a/w 4\nm/a/b 4\nm/c 4", only="m/a/w")
    m = at(found, "m")
    assert len(found.variables(m)) == 1
    assert len([*found.all_variables(m)]) == 3
    assert [*found.all_variables(at(found, "m/a/w"))] == [at(found, "m/a/w")]


def test_variables_are_in_the_order_of_edges() -> None:
    found = view("m/b 4\nm/a/y 4\nm/a/x 4\nm/c 4")
    assert [found.names[v] for v in found.variables(0)] == ["m/b", "m/a/y", "m/a/x", "m/c"]


def test_circles_end() -> None:
    found = view("m/a/w 4\nm/a/up -> m\nm/b 4")
    assert len(found.variables(0)) == 2 and len([*found.all_variables(0)]) == 2
    assert found.signature(0) == found.signature(0)


# ---- Signatures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [
        ("m/a 4\nm/b 5", "m/b 5\nm/a 4", True),
        ("m/a 4\nm/b 5", "m/a 5\nm/b 4", False),
        ("m/a 4", "m/b 4", False),
        ("m/a 4", "m/a 4\nm/b 4", False),
        ("m/0/w 4\nm/1/w 5", "m/0/w 5\nm/1/w 4", False),
        ("m/0/w 4\nm/1/w 5", "m/3/w 4\nm/7/w 5", True),
        ("m/0/w 4 a/w", "m/0/w 4 b/w", True),
        ("m/a/w 4", "m/a/0 4", False),
        ("m/a/w 4", "m/a/w 2x2", False),
    ],
)
def test_equal_subtrees_have_equal_signatures(one: str, two: str, equal: bool) -> None:
    signatures = Signatures()
    found = [view(text, signatures=signatures).signature(0) for text in (one, two)]
    assert (found[0] == found[1]) == equal


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [
        ("m/kernel 4\nm/bias 5", "m/#0 5\nm/#1 4", True),
        ("m/kernel 4\nm/x/bias 5", "m/#0 5\nm/#1 4", True),
        ("m/kernel 4\nm/bias 5", "m/#0 5\nm/#1 5", False),
        ("m/kernel 4", "m/#0 4\nm/#1 4", False),
    ],
)
def test_in_files_of_weights_a_layers_signature_is_its_shapes(one: str, two: str, equal: bool) -> None:
    signatures = Signatures()
    found = [view(text, signatures=signatures, by_layer=True).signature(0) for text in (one, two)]
    assert (found[0] == found[1]) == equal


# ---- Labels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("net/stem/w net/stem/b", "net/stem"),
        ("stem/w stem/b", "stem"),
        ("stem/a/w stem/b/w", "stem"),
        ("dense_3/w dense_3/b", "dense{}"),
        ("a/w b/w", ""),
        ("w b", ""),
        ("a/x/w a/xy/w", "a"),
    ],
)
def test_a_label_is_what_full_names_have_in_common(names: str, expected: str) -> None:
    lines = "\n".join(f"m/l/{i}/x{i} 4 {n}" for i, n in enumerate(names.split()))
    found = view(f"{lines}\nm/other/w 4 zzz")
    assert found.label(at(found, "m/l")).text == expected


def test_the_models_own_name_is_no_part_of_a_label() -> None:
    found = view("m/a/w 4 net/stem/w\nm/b/w 4 net/head/w\nx/w 4 other/w")
    assert found.label(at(found, "m/a")).text == "stem" and found.label(at(found, "m/b")).text == "head"
    two = view("m/a/w 4 stem/w\nm/a/b 4 stem/b")
    assert two.label(at(two, "m/a")).text == "stem"  # of two variables of one scope that is the layer's own
    three = view("m/a/w 4 net/w\nm/a/b 4 net/b\nm/a/c 4 net/c")
    assert three.label(at(three, "m/a")).text == ""
    mixed = view("m/a/w 4 net/stem/w\nm/b/w 4 head")
    assert mixed.label(at(mixed, "m/a")).text == "net/stem"
    alone = view("m/a/w 4 net/stem/w\nm/c/w 4 net/head/w\nm/b/w 4 net")
    assert alone.label(at(alone, "m/a")).text == "net/stem"


def test_the_root_may_be_the_model() -> None:
    found = view("a/w 4 net/stem/w\nb/w 4 net/head/w\nb/v 4 net/head/v\na/v 4 net/stem/v")
    assert found.label(at(found, "a")).text == "stem"
    row = view("0/w 4 net/dense_2/w\n1/w 4 net/head/w")
    assert [row.label(m).text for m in row.rows[0]] == ["dense{}", "head"]
    assert row.label(row.rows[0][0]).counters == (2,)


def test_flat_names_give_labels_where_full_names_give_none() -> None:
    """Keras 3 calls all variables of a subclassed model `kernel`, or `net/kernel`."""
    lines = ["m/a/w 4 w", "m/a/b 4 b", "m/c/w 4 w"]
    flat = {"m/a/w": "stem_w", "m/a/b": "stem_b", "m/c/w": "dense_2_w"}
    text = "\n".join(lines) + "\no adam m/a/w m/a/b m/c/w"
    for path, name in flat.items():
        place = [*flat].index(path)
        for edge, role in (("_momentums", "momentum"), ("_velocities", "velocity")):
            text += f"\no/{edge}/{place} 4 adam/{name}_{role}"
    found = view(text)
    assert found.label(at(found, "m/a")).text == "stem"
    assert found.label(at(found, "m/c")).text == "dense{}" and found.label(at(found, "m/c")).counters == (2,)
    assert found.flat_name(at(found, "m/a/b")) == "stem_b" and found.flat_name(0) == ""
    assert found.label(at(found, "m")).text == ""


def test_a_flat_name_loses_the_models_name_too() -> None:
    text = "m/a/w 4 net/w\nm/a/b 4 net/b\nm/c/w 4 net/w\no adam m/a/w m/a/b m/c/w"
    for place, name in enumerate(["net_stem_w", "net_stem_b", "net_head_w"]):
        for edge, role in (("_momentums", "momentum"), ("_velocities", "velocity")):
            text += f"\no/{edge}/{place} 4 adam/{name}_{role}"
    found = view(text)
    assert found.label(at(found, "m/a")).text == "stem" and found.label(at(found, "m/c")).text == "head"


def test_full_names_are_those_of_the_graph() -> None:
    found = view("m/a 4 net/a\nm/b 4")
    assert found.full_name(at(found, "m/a")) == "net/a" and found.full_name(at(found, "m/b")) == ""
    assert found.full_name(0) == ""


# ---- By layers -------------------------------------------------------------------------------------------


def test_by_layers_a_label_is_the_layers_own_name() -> None:
    found = view("m/0/w 4 x/w\nm/1/w 4\nm/0 layer:a/b kind:dense\nm/1 layer:dense_2", by_layer=True)
    assert texts(found, "m") == ["a|b", "dense{}"]
    assert found.kind(at(found, "m/0")) == "dense" and found.kind(at(found, "m/1")) == "" and found.kind(0) == ""
    assert found.label(0).text == "" and found.label(at(found, "m/0/w")).text == ""


@pytest.mark.parametrize("name", ["_operations", "layers", "_layers", "operations"])
def test_by_layers_all_lists_of_layers_are_one(name: str) -> None:
    assert edges(view(f"m/{name}/0/w 4", by_layer=True), "m") == ["layers"]


def test_by_layers_attributes_are_a_list_too() -> None:
    text = "m/a/w 4 x/w\nm/b/w 4 y/w\nm/w 4\nm layer:net\nm/a layer:a\nm/b layer:b"
    found = view(text, by_layer=True)
    assert edges(found, "m") == ["a", "b", "w", "layers"] and texts(found, "m/layers") == ["a", "b"]
    assert edges(view(text), "m") == ["a", "b", "w"]
    assert edges(view(text.replace("m layer:net\n", ""), by_layer=True), "m") == ["a", "b", "w"]
    assert edges(view(text + "\nm/_layers/0 -> m/b", by_layer=True), "m") == ["a", "b", "w", "layers"]
    assert texts(view(text + "\nm/_layers/0 -> m/b", by_layer=True), "m/layers") == ["b"]
    assert texts(view(text + "\nm/layer-0 -> m/b", by_layer=True), "m/layers") == ["b"]
    assert "layers" not in edges(view("m/keras_api/w 4\nm/keras_api layer:x\nm layer:net\nm/v 4", by_layer=True), "m")


def test_by_layers_everything_counts() -> None:
    """A file of weights holds what TensorFlow does not track."""
    tracked, whole = "m/a/w 4", "m/a/w 4\nm/b -> m/a"
    assert edges(view(tracked, by_layer=True, everything=whole), "m") == ["a", "b"]
    assert edges(view(tracked, everything=whole), "m") == ["a"]


def test_nodes_that_are_not_reached_do_no_harm() -> None:
    scene = Scene((Node((("a", 1),)), Node(), Node((("b", 1),))), {})
    found = View(scene, {}, Signatures(), Vocabulary())
    assert found.kids == [(), (), ()] and found.variables(0) == ()


# ---- Numbered variables ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ("m/kernel 3x4\nm/bias 4", "m/#0 4\nm/#1 3x4", {"kernel": "m/#1", "bias": "m/#0"}),
        ("m/kernel 3x4\nm/bias 4", "m/kernel 3x4\nm/#1 4", {"bias": "m/#1"}),
        ("m/kernel 4\nm/bias 4", "m/#0 4\nm/#1 4", {}),
        ("m/kernel 3x4\nm/bias 4", "m/#0 4", {}),
        ("m/kernel 3x4", "m/#0 3x4\nm/#1 4", {}),
        ("m/kernel 3x4\nm/bias 4", "m/#0 5\nm/#1 3x4", {}),
        ("m/kernel 3x4\nm/bias 4", "m/kernel 3x4\nm/bias 4", {}),
        ("m/gamma 4", "m/#0 4", {}),
        ("m/beta 4\nm/x 3", "m/#0 4\nm/#1 3", {}),
        ("m/gamma 4\nm/beta 3", "m/#0 4\nm/#1 3", {"gamma": "m/#0", "beta": "m/#1"}),
        ("m/kernel 3x4\nm layer: kind:dense", "m/#0 3x4\nm layer: kind:conv2d", {}),
        ("m/kernel 3x4\nm layer: kind:dense", "m/#0 3x4\nm layer: kind:dense", {"kernel": "m/#0"}),
        ("m/kernel 3x4\nm layer: kind:dense", "m/#0 3x4", {"kernel": "m/#0"}),
        ("m/depthwise_kernel 3x4\nm/bias 4", "m/kernel 3x4\nm/bias 4", {"depthwise_kernel": "m/kernel"}),
        ("m/a 3\nm/b 4\nm layer: kind:dense", "m/#0 4\nm/#1 3\nm layer: kind:dense", {"b": "m/#0", "a": "m/#1"}),
        ("m/kernel 3x4\nm/sub/w 9", "m/#0 3x4\nm/#sub/w 9", {"kernel": "m/#0"}),
    ],
)
def test_numbered_variables_are_told_by_shapes_that_occur_once(
    ours: str, theirs: str, expected: dict[str, str]
) -> None:
    mine, other = view(ours, by_layer=True), view(f"first/x/y/z 1\n{theirs}", by_layer=True)
    found = [*pair_numbers(mine, other, at(mine, "m"), at(other, "m"))]
    assert {label: other.names[node] for label, node, _ in found} == expected
    assert {how for *_, how in found} <= {How.CHOSEN}
