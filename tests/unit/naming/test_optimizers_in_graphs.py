"""Optimizers of tf_keras and Sonnet, and slots that name their owners themselves, found in object graphs."""

from __future__ import annotations

import pytest

from build import Graph
from dist_restore.core.index import AliasKind, OptimizerInfo
from dist_restore.naming.names import NamedLeaf, name_graph
from dist_restore.naming.optimizers import keras_3_optimizers, state_of_keras_2


def read(graph: Graph) -> tuple[dict[str, NamedLeaf], tuple[OptimizerInfo, ...]]:
    """Storage key -> the named leaf, and the optimizers."""
    leaves, found = name_graph(graph.nodes())
    return {leaf.leaf.key: leaf for leaf in leaves}, found


def slots(graph: Graph) -> dict[str, tuple[str, str, str]]:
    """Key -> (role, owner, optimizer) of what is a slot."""
    found = {key: leaf.slot for key, leaf in read(graph)[0].items()}
    return {key: (s.role, s.owner, s.optimizer) for key, s in found.items() if s is not None}


# ---- Lists whose members are called after their owners: Sonnet's -----------------------------------------


def sonnet(*names: str, label: str = "adam", words: tuple[str, ...] = ("m", "v")) -> Graph:
    graph = Graph()
    for number, name in enumerate(names):
        graph.add(f"net/{number}/w", name)
    for word in words:
        for number, name in enumerate(names):
            graph.add(f"opt/{word}/{number}", f"{label}/{word}/{name}")
    graph.add("opt/step", "step")
    return graph


def test_a_list_whose_members_end_in_names_of_variables_is_an_optimizers() -> None:
    graph = sonnet("net/a/w", "net/b/w")
    assert slots(graph) == {
        "opt/m/0": ("momentum", "net/0/w", "opt"),
        "opt/m/1": ("momentum", "net/1/w", "opt"),
        "opt/v/0": ("velocity", "net/0/w", "opt"),
        "opt/v/1": ("velocity", "net/1/w", "opt"),
    }
    (found,) = read(graph)[1]
    assert (found.name, found.family, found.roles) == ("opt", "adam", ("momentum", "velocity"))


def test_slots_of_variables_with_one_name_belong_to_one_of_them() -> None:
    graph = sonnet("net/a/w", "net/b/w", "net/a/w")
    assert slots(graph).keys() == {"opt/m/1", "opt/v/1"}
    leaf = read(graph)[0]["opt/m/0"]
    assert leaf.kind is AliasKind.POSITIONAL
    (mark,) = marks(graph, "opt/m/0")
    assert [mark] == marks(sonnet("net/c/w", "net/b/w", "net/c/w"), "opt/m/0")  # of the owners' places, not names
    assert [mark] != marks(sonnet("net/b/w", "net/a/w", "net/a/w"), "opt/m/1")


def marks(graph: Graph, key: str) -> list[str]:
    """The aliases that say of which variables a slot may be."""
    return [a.name.partition("@")[2] for a in read(graph)[0][key].aliases if "@" in a.name]


@pytest.mark.parametrize(
    "graph",
    [
        sonnet("net/a/w", words=()),
        sonnet("net/a/w", label="x/y"),  # what is called after nothing that is there
    ],
)
def test_lists_of_anything_else_are_none(graph: Graph) -> None:
    graph.add("opt/other/0", "adam/other/net/z/w")
    assert not [o for o in read(graph)[1] if o.family]


def test_lists_of_two_optimizers_in_one_object_are_none_of_either() -> None:
    graph = sonnet("net/a/w", words=("m",))
    graph.add("opt/v/0", "rmsprop/v/net/a/w")
    assert not slots(graph) and not read(graph)[1]


# ---- The new style of tf_keras ---------------------------------------------------------------------------


def tf_keras(label: str = "Adam", lists: tuple[str, ...] = ("_momentums", "_velocities"), **words: str) -> Graph:
    graph = Graph()
    for name in ("a", "b"):
        graph.add(f"model/{name}/kernel", f"{name}/kernel")
    state = [graph.add("opt/_iterations", "iteration"), graph.add("opt/_learning_rate", "learning_rate")]
    for edge in lists:
        word = words.get(edge.strip("_"), edge.strip("_")[0])
        for number, name in enumerate(("a", "b")):
            state.append(graph.add(f"opt/{edge}/{number}", f"{label}/{word}/{name}/kernel"))
    for index, node in enumerate(state):
        graph.link(f"opt/_variables/{index}", node)
    return graph


def test_slots_of_tf_keras_are_read_by_their_names() -> None:
    graph = tf_keras()
    assert slots(graph) == {
        "opt/_momentums/0": ("momentum", "model/a/kernel", "opt"),
        "opt/_momentums/1": ("momentum", "model/b/kernel", "opt"),
        "opt/_velocities/0": ("velocity", "model/a/kernel", "opt"),
        "opt/_velocities/1": ("velocity", "model/b/kernel", "opt"),
    }
    (found,) = read(graph)[1]
    assert (found.family, found.label, found.roles) == ("adam", "Adam", ("momentum", "velocity"))
    assert found.structure[0] == "keras2"
    assert not keras_3_optimizers(graph.nodes())


def test_what_an_optimizer_of_tf_keras_keeps_is_its_state_but_for_what_hangs_on_it_itself() -> None:
    graph = tf_keras()
    nodes = graph.nodes()
    keys = {nodes[i].leaf.key for i in state_of_keras_2(nodes)}  # type: ignore[union-attr]
    assert keys == {f"opt/{edge}/{n}" for edge in ("_momentums", "_velocities") for n in (0, 1)}
    three = Graph()
    owner = three.add("model/w", "w")
    three.keras_optimizer("opt", "adam", [owner], ["momentum"])
    assert not [*state_of_keras_2(three.nodes())]
    assert keras_3_optimizers(three.nodes()) == [three.at("opt")]


# ---- Slots that the optimizer itself lists ---------------------------------------------------------------


def legacy(*full_names: str, slot: str = "m", own: str = "") -> Graph:
    graph = Graph()
    for number, full_name in enumerate(full_names):
        owner = graph.add(f"model/{number}/w", f"layer{number}/kernel")
        node = graph.add(f"opt/slots/{slot}/{number}", full_name)
        graph.slots.setdefault(graph.at("opt"), []).append((owner, slot, node))
    if own:
        graph.extra[graph.at("opt")] = {"family": own}
    return graph


def test_the_label_is_what_all_slots_begin_with_where_that_says_a_class() -> None:
    (found,) = read(legacy("Adam_1/layer0/kernel/m", "Adam_1/layer1/kernel/m"))[1]
    assert (found.label, found.family) == ("Adam_1", "adam")
    (found,) = read(legacy("Adam/layer0/kernel/m", "Adam_1/layer1/kernel/m"))[1]
    assert (found.label, found.family) == ("adam", "adam")
    (found,) = read(legacy("mine/layer0/kernel/m", "mine/layer1/kernel/m"))[1]
    assert (found.label, found.family) == ("mine", "")


def test_the_live_class_goes_before_what_names_say() -> None:
    (found,) = read(legacy("Adam/layer0/kernel/m", own="nadam"))[1]
    assert (found.label, found.family) == ("Adam", "nadam")


def test_what_only_averages_is_told_by_that() -> None:
    (found,) = read(legacy("anything/layer0/kernel/average", slot="average", own="adam"))[1]
    assert found.family == "exponentialmovingaverage" and found.roles == ("average",)
