"""From object graphs to names: checkpoints and live objects alike, friendly and hostile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build import Graph
from dist_restore.core.errors import CheckpointCorruptError
from dist_restore.core.graph import LayerName, Leaf, Node
from dist_restore.core.index import AliasKind, OptimizerInfo, Slot
from dist_restore.naming import paths
from dist_restore.naming.names import NamedLeaf, name_graph
from dist_restore.naming.paths import MAX_DEPTH, MAX_PATHS
from dist_restore.naming.slot_roles import degree_of, family_of, role_of_edge, role_of_slot, same_meaning

SEMANTIC, FLAT = AliasKind.SEMANTIC, AliasKind.FLAT
COUNTED, POSITIONAL = AliasKind.COUNTED, AliasKind.POSITIONAL


def named(graph: Graph) -> dict[str, NamedLeaf]:
    """Storage key -> the named leaf."""
    return {leaf.leaf.key: leaf for leaf in name_graph(graph.nodes())[0]}


def names(graph: Graph) -> dict[str, str]:
    return {key: leaf.name for key, leaf in named(graph).items()}


def optimizers(graph: Graph) -> tuple[OptimizerInfo, ...]:
    return name_graph(graph.nodes())[1]


def aliases(leaf: NamedLeaf, kind: AliasKind) -> set[str]:
    return {a.name for a in leaf.aliases if a.kind is kind}


def subclassed() -> Graph:
    """A Keras 3 subclassed model and its Adam: every variable is called `net/kernel`, slots by their owners' paths."""
    graph = Graph()
    first = graph.add("model/dense_1/_kernel", "net/dense_1/kernel")
    second = graph.add("model/head/_kernel", "net/head/kernel")
    graph.add("save_counter", "save_counter")
    graph.keras_optimizer("optimizer", "adam", [first, second], ["momentum", "velocity"])
    return graph


# ---- A model and its optimizer ---------------------------------------------------------------------------


def test_a_variable_is_called_by_its_attributes_without_underscores() -> None:
    found = names(subclassed())
    assert found["model/dense_1/_kernel"] == "model/dense_1/kernel"
    assert found["optimizer/_learning_rate"] == "optimizer/learning_rate"
    assert found["save_counter"] == "save_counter"


def test_a_slot_is_called_by_optimizer_role_and_owner() -> None:
    found = named(subclassed())["optimizer/_velocities/1"]
    assert found.name == "optimizer/velocity/model/head/kernel"
    assert found.slot == Slot("velocity", "model/head/kernel", "optimizer")
    assert {a.kind for a in found.aliases} == {POSITIONAL}
    assert {"optimizer/_variables/5", "adam/net_head_kernel_velocity"} <= aliases(found, POSITIONAL)


def test_the_optimizer_is_described() -> None:
    structure = ("keras3", "_momentums", "_velocities")
    expected = OptimizerInfo("optimizer", "adam", "adam", ("momentum", "velocity"), structure)
    assert optimizers(subclassed()) == (expected,)


def test_an_index_in_the_optimizer_is_positional_and_a_slots_name_gives_a_flat_one() -> None:
    found = named(subclassed())["model/head/_kernel"]
    assert found.kind is SEMANTIC
    assert {"optimizer/trainable_variables/1", "optimizer/_trainable_variables/1"} <= aliases(found, POSITIONAL)
    assert aliases(found, FLAT) == {"net_head_kernel"}
    assert "net/head/kernel" in aliases(found, POSITIONAL)


def test_an_attribute_with_its_underscore_is_a_semantic_name_too() -> None:
    assert "model/head/_kernel" in aliases(named(subclassed())["model/head/_kernel"], SEMANTIC)


def test_key_strings_do_not_count_where_a_path_of_attributes_exists() -> None:
    graph = Graph()
    node = graph.add("optimizer/_trainable_variables/0", "net/block/attn/kernel")
    graph.link("model/encoder/block/attn/_kernel", node)
    assert names(graph) == {"optimizer/_trainable_variables/0": "model/encoder/block/attn/kernel"}


def test_blocks_only_under_the_optimizer_are_positional_with_a_flat_name() -> None:
    graph = Graph()
    owner = graph.add("optimizer/_trainable_variables/0", "net/kernel")
    graph.add("optimizer/_momentums/0", "adam/net_block_1_dense_kernel_momentum")
    graph.link("optimizer/_variables/0", graph.at("optimizer/_momentums/0"))
    found = named(graph)["optimizer/_trainable_variables/0"]
    assert (found.name, found.kind) == ("optimizer/trainable_variables/0", POSITIONAL)
    assert aliases(found, FLAT) == {"net_block_1_dense_kernel"}
    assert named(graph)["optimizer/_momentums/0"].slot == Slot("momentum", found.name, "optimizer")
    assert owner == found.node


def test_slots_whose_names_disagree_give_no_flat_name() -> None:
    graph = Graph()
    graph.add("optimizer/_trainable_variables/0", "net/kernel")
    for role, flat in (("momentum", "a_kernel"), ("velocity", "b_kernel")):
        node = graph.add(f"optimizer/_{role}s/0", f"adam/{flat}_{role}")
        graph.link(f"optimizer/_variables/{node}", node)
    assert aliases(named(graph)["optimizer/_trainable_variables/0"], FLAT) == set()


def test_a_tied_variable_has_both_paths() -> None:
    graph = Graph()
    graph.link("model/head/embeddings", graph.add("model/embed/_embeddings"))
    found = named(graph)["model/embed/_embeddings"]
    assert found.name == "model/head/embeddings"
    assert {"model/embed/embeddings", "model/embed/_embeddings"} <= aliases(found, SEMANTIC)


def test_two_optimizers_have_their_own_slots() -> None:
    graph = Graph()
    a, b = graph.add("model/a/_kernel", "a/kernel"), graph.add("model/b/_kernel", "b/kernel")
    graph.keras_optimizer("opt_a", "adam", [a], ["momentum", "velocity"])
    graph.keras_optimizer("opt_b", "my_opt", [b], ["momentum"])
    found = names(graph)
    assert found["opt_a/_momentums/0"] == "opt_a/momentum/model/a/kernel"
    assert found["opt_b/_momentums/0"] == "opt_b/momentum/model/b/kernel"
    assert [(o.name, o.family, o.label) for o in optimizers(graph)] == [
        ("opt_a", "adam", "adam"),
        ("opt_b", "", "my_opt"),
    ]


def test_a_wrapped_optimizer_is_called_by_its_path() -> None:
    graph = Graph()
    owner = graph.add("model/a/_kernel", "a/kernel")
    graph.keras_optimizer("optimizer", "loss_scale_optimizer", [owner], [])
    graph.keras_optimizer("optimizer/inner_optimizer", "adam", [owner], ["momentum"])
    slot = named(graph)["optimizer/inner_optimizer/_momentums/0"].slot
    assert slot == Slot("momentum", "model/a/kernel", "optimizer/inner_optimizer")
    assert [(o.name, o.roles) for o in optimizers(graph)] == [
        ("optimizer", ()),
        ("optimizer/inner_optimizer", ("momentum",)),
    ]


def test_the_model_of_a_bare_checkpoint_is_the_root() -> None:
    graph = Graph()
    graph.add("root/dense/_kernel")
    graph.add("dense/root/w")
    assert names(graph) == {"root/dense/_kernel": "dense/kernel", "dense/root/w": "dense/root/w"}


# ---- Slots that say so themselves (Keras 2, TF1) ---------------------------------------------------------


def slotted(full_name: str, *slot_names: str) -> Graph:
    graph = Graph()
    owner = graph.add("model/w", "dense/kernel")
    for slot in slot_names:
        node = graph.add(f"model/w/.OPTIMIZER_SLOT/optimizer/{slot}", full_name.format(slot=slot))
        graph._edges[owner].clear()  # such slots hang on no edge that a search follows
        graph.link(f"optimizer/slots/{slot}", node)
        graph.slots.setdefault(graph.at("optimizer"), []).append((owner, slot, node))
    return graph


@pytest.mark.parametrize(
    ("full_name", "slot_names", "family", "roles"),
    [
        ("Adam/dense/kernel/{slot}", ("m", "v"), "adam", ("momentum", "velocity")),
        ("Adam_1/dense/kernel/{slot}", ("m", "v", "vhat"), "adam", ("momentum", "velocity", "velocity_hat")),
        ("Nadam/dense/kernel/{slot}", ("m", "v"), "nadam", ("momentum", "velocity")),
        ("RMSprop/dense/kernel/{slot}", ("rms", "momentum"), "rmsprop", ("momentum", "velocity")),
        ("SGD/dense/kernel/{slot}", ("momentum",), "sgd", ("momentum",)),
        ("dense/kernel/Adam_1", ("m", "v"), "adam", ("momentum", "velocity")),
    ],
)
def test_slot_variables_have_the_roles_of_keras_3(
    full_name: str, slot_names: tuple[str, ...], family: str, roles: tuple[str, ...]
) -> None:
    graph = slotted(full_name, *slot_names)
    (found,) = optimizers(graph)
    assert (found.name, found.family, found.roles) == ("optimizer", family, roles)
    assert {leaf.slot.owner for leaf in named(graph).values() if leaf.slot} == {"model/w"}


@pytest.mark.parametrize("full_name", ["Adamax/dense/kernel/{slot}", "my_opt/dense/kernel/{slot}", "{slot}"])
def test_an_m_and_a_v_are_no_moments_unless_the_class_is_known_to_have_them(full_name: str) -> None:
    (found,) = optimizers(slotted(full_name, "m", "v"))
    assert found.family != "adam"
    assert not {"momentum", "velocity"} & set(found.roles)


# ---- Layers in containers: functional and sequential models ----------------------------------------------


def functional(*layers: tuple[str, str]) -> Graph:
    """(attribute or empty, layer's name) pairs; as the checkpoint of a functional model has them."""
    graph = Graph()
    for index, (attribute, layer) in enumerate(layers):
        node = graph.add(f"model/_operations/{index}/_kernel", f"{layer}/kernel")
        if attribute:
            graph.link(f"model/{attribute}", graph.at(f"model/_operations/{index}"))
        assert node
    return graph


def test_a_layer_of_a_functional_model_is_called_by_its_own_name() -> None:
    assert names(functional(("", "a"), ("", "b"))) == {
        "model/_operations/0/_kernel": "model/a/kernel",
        "model/_operations/1/_kernel": "model/b/kernel",
    }


def test_a_sequential_model_hides_its_functional_one() -> None:
    graph = Graph()
    graph.add("model/_functional/_operations/1/_kernel", "a/kernel")
    assert set(names(graph).values()) == {"model/a/kernel"}


def test_layers_that_share_a_name_keep_their_index() -> None:
    found = named(functional(("", "a"), ("", "a")))
    assert {leaf.name for leaf in found.values()} == {"model/operations/0/kernel", "model/operations/1/kernel"}
    assert {leaf.kind for leaf in found.values()} == {POSITIONAL}


def test_an_attribute_is_preferred_to_a_layers_name() -> None:
    found = named(functional(("head", "dense_1")))["model/_operations/0/_kernel"]
    assert (found.name, found.kind) == ("model/head/kernel", SEMANTIC)
    assert "model/dense_1/kernel" in aliases(found, COUNTED)  # it looks like one that Keras made up


def test_a_layer_name_that_keras_counted_up_is_counted() -> None:
    graph = functional(("", "dense_1"), ("head", "dense_2"))
    for index in range(2):
        graph.extra[graph.at(f"model/_operations/{index}")] = {"layer": LayerName(f"dense_{index + 1}", True)}
    first, second = (named(graph)[f"model/_operations/{i}/_kernel"] for i in range(2))
    assert (first.name, first.kind) == ("model/dense_1/kernel", COUNTED)
    assert (second.name, second.kind) == ("model/head/kernel", SEMANTIC)
    assert "model/dense_2/kernel" in aliases(second, COUNTED)


def test_a_long_path_of_attributes_is_preferred_to_a_counted_name() -> None:
    graph = Graph()
    node = graph.add("model/_layers/0/_kernel", "net/kernel")
    graph.link("model/stages/first/entry/_kernel", node)
    graph.extra[graph.at("model/_layers/0")] = {"layer": LayerName("dense", True)}
    assert named(graph)["model/_layers/0/_kernel"].name == "model/stages/first/entry/kernel"


def test_a_list_that_a_user_made_keeps_its_index() -> None:
    graph = Graph()
    graph.add("model/blocks/3/_kernel", "net/dense/kernel")
    assert names(graph) == {"model/blocks/3/_kernel": "model/blocks/3/kernel"}


def test_keras_2_second_paths_are_no_names() -> None:
    graph = Graph()
    node = graph.add("model/layer_with_weights-0/kernel", "dense/kernel")
    graph.link("model/keras_api/layers/0/kernel", node)
    graph.link("model/dense/kernel", node)
    found = named(graph)["model/layer_with_weights-0/kernel"]
    assert found.name == "model/dense/kernel"
    assert not [a.name for a in found.aliases if "keras_api" in a.name]


# ---- Collisions ------------------------------------------------------------------------------------------


def collision() -> Graph:
    graph = Graph()
    w, private = graph.add("model/w", "w"), graph.add("model/_w", "w")
    graph.keras_optimizer("optimizer", "adam", [w, private], ["momentum"])
    return graph


def test_names_that_only_an_underscore_tells_apart_keep_it() -> None:
    found = names(collision())
    assert (found["model/w"], found["model/_w"]) == ("model/w", "model/_w")


def test_slots_are_called_after_the_final_names_of_their_owners() -> None:
    found = {leaf.leaf.key: leaf.slot for leaf in named(collision()).values() if leaf.slot}
    assert {key: slot.owner for key, slot in found.items()} == {
        "optimizer/_momentums/0": "model/w",
        "optimizer/_momentums/1": "model/_w",
    }


def test_what_underscores_do_not_tell_apart_is_called_by_its_key() -> None:
    nodes = [Node((("a", 1), ("a", 2))), Node(leaf=Leaf("key/1", "")), Node(leaf=Leaf("key/2", ""))]
    assert [leaf.name for leaf in name_graph(nodes)[0]] == ["key/1", "key/2"]


def test_two_variables_that_nothing_tells_apart_are_refused() -> None:
    nodes = [Node((("a", 1), ("a", 2))), Node(leaf=Leaf("key", "")), Node(leaf=Leaf("key", ""))]
    with pytest.raises(CheckpointCorruptError, match="two variables"):
        name_graph(nodes)


# ---- Damaged and hostile graphs --------------------------------------------------------------------------


@pytest.mark.parametrize("child", [-1, 2, 10**9])
def test_an_edge_to_nowhere_is_refused(child: int) -> None:
    with pytest.raises(CheckpointCorruptError, match="object 1"):
        name_graph([Node((("a", 1),)), Node((("b", child),))])


@pytest.mark.parametrize("slot", [(5, "m", 0), (0, "m", -1)])
def test_a_slot_of_nobody_is_refused(slot: tuple[int, str, int]) -> None:
    with pytest.raises(CheckpointCorruptError, match="object 0"):
        name_graph([Node(slots=(slot,))])


def test_objects_nested_deeper_than_any_program_are_refused() -> None:
    graph = Graph()
    graph.add("/".join(["a"] * (MAX_DEPTH + 5)))
    with pytest.raises(CheckpointCorruptError, match="deeper"):
        name_graph(graph.nodes())


def test_a_cycle_is_walked_once() -> None:
    graph = Graph()
    graph.add("model/layer/w")
    graph.link("model/layer/parent", graph.at("model"))
    graph.link("model/layer/self", graph.at("model/layer"))
    assert names(graph) == {"model/layer/w": "model/layer/w"}


def test_a_variable_that_no_edge_reaches_has_no_name() -> None:
    assert name_graph([Node(), Node(leaf=Leaf("key", "w"))]) == ((), ())


def test_a_root_that_is_a_variable_has_its_own_name() -> None:
    assert [x.name for x in name_graph([Node(leaf=Leaf("key", "w"))])[0]] == ["w"]
    assert [x.name for x in name_graph([Node(leaf=Leaf("key", ""))])[0]] == ["key"]


@pytest.mark.parametrize("name", ["", "_", "a/b", "..", "\0", "\udcff", "é" * 1000, "0", "{i}"])
def test_hostile_edge_names_are_names(name: str) -> None:
    found, _ = name_graph([Node(((name, 1), ("b", 2))), Node(leaf=Leaf("key/1", "")), Node(leaf=Leaf("key/2", ""))])
    assert len({leaf.name for leaf in found}) == 2


EDGES = st.lists(st.tuples(st.sampled_from(["a", "_a", "_layers", "_variables", "0"]), st.integers(0, 7)), max_size=6)


@settings(deadline=None)
@given(st.lists(EDGES, min_size=8, max_size=8), st.sets(st.integers(0, 7)))
def test_any_graph_gets_unique_names(edges: list[list[tuple[str, int]]], leaves: set[int]) -> None:
    nodes = [Node(tuple(e), Leaf(f"key/{i}", "x/y") if i in leaves else None) for i, e in enumerate(edges)]
    found, _ = name_graph(nodes)
    assert len({leaf.name for leaf in found}) == len(found)


def random_graph(data: st.DataObject) -> list[Node]:
    """A tree, some more edges, layers and slots: with what `naming` treats apart in its edges' names."""
    name = st.sampled_from(
        [*"abw", "_w", "0", "1", "_operations", "_layers", "_variables", "_functional", "root", "a/b"]
    )
    count = data.draw(st.integers(1, 14))
    edges: list[list[tuple[str, int]]] = [[] for _ in range(count)]
    for child in range(1, count):
        edges[data.draw(st.integers(0, child - 1))].append((data.draw(name), child))
    for parent, child in data.draw(st.lists(st.tuples(*[st.integers(0, count - 1)] * 2), max_size=3)):
        edges[parent].append((data.draw(name), child))
    leaf = st.none() | st.sampled_from(["", "net/kernel", "adam/x_momentum"])
    leaves = data.draw(st.lists(leaf, min_size=count, max_size=count))
    layer = st.none() | st.builds(LayerName, st.sampled_from(["dense", "head"]), st.booleans())
    layers = data.draw(st.lists(layer, min_size=count, max_size=count))
    return [
        Node(tuple(e), None if name is None else Leaf(f"k{i}", name), layer)
        for i, (e, name, layer) in enumerate(zip(edges, leaves, layers, strict=True))
    ]


@settings(max_examples=300)
@given(st.data())
def test_names_in_trees_are_those_that_the_search_finds(data: st.DataObject) -> None:
    """Nodes with one path are named without the search for the best of many; as they would be with it."""
    nodes = random_graph(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "_trees", lambda nodes: frozenset())
        searched = outcome(nodes)
    assert outcome(nodes) == searched


def outcome(nodes: list[Node]) -> object:
    try:
        return name_graph(nodes)
    except CheckpointCorruptError as error:
        return str(error)


class CountedEdges(tuple):
    """Edges that count how often they are walked."""

    walks = 0

    def __iter__(self):  # type: ignore[no-untyped-def]
        CountedEdges.walks += len(self)
        return super().__iter__()


def walks(nodes: list[Node]) -> int:
    CountedEdges.walks = 0
    name_graph([Node(CountedEdges(n.edges), n.leaf, n.layer, n.family, n.slots) for n in nodes])
    return CountedEdges.walks


def test_the_work_grows_with_the_edges_only() -> None:
    """Many parents of one child, each by many ways: the search closes a node after a few visits."""
    count = 3000
    shared = Node(tuple((f"w{i}", count + 1 + i) for i in range(count)))
    parents = [Node((("x", count),)) for _ in range(count - 1)]
    root = Node(tuple((f"p{i}", i) for i in range(1, count)))
    nodes = [root, *parents, shared, *(Node(leaf=Leaf(f"key/{i}", "")) for i in range(count))]
    assert walks(nodes) < 3 * (MAX_PATHS + 6) * count


@pytest.mark.parametrize("edge", ["_layers", "_operations"])
def test_a_container_that_many_hold_is_asked_for_layer_names_once(edge: str) -> None:
    count = 1000
    layers = [Node((("kernel", 2 * count + 2 + i),)) for i in range(count)]
    container = Node(tuple((str(i), count + 2 + i) for i in range(count)))
    holders = [Node(((edge, count + 1),)) for _ in range(count)]
    root = Node(tuple((f"h{i}", 1 + i) for i in range(count)))
    leaves = [Node(leaf=Leaf(f"key/{i}", f"layer_{i}/kernel")) for i in range(count)]
    assert walks([root, *holders, container, *layers, *leaves]) < 100 * count


def test_a_graph_of_a_hundred_thousand_nodes_is_named() -> None:
    count = 50_000
    nodes = [Node(tuple((f"layer_{i}", i) for i in range(1, count)))]
    nodes += [Node((("_kernel", count + i),)) for i in range(count - 1)]
    nodes += [Node(leaf=Leaf(f"key/{i}", "kernel")) for i in range(count - 1)]
    found, _ = name_graph(nodes)
    assert len(found) == count - 1
    assert found[-1].name == f"layer_{count - 1}/kernel"


# ---- Roles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edge", "role"),
    [
        ("_momentums", "momentum"),
        ("momentums", "momentum"),
        ("_velocities", "velocity"),
        ("_velocity_hats", "velocity_hat"),
        ("_accumulators", "accumulator"),
        ("_model_variables_moving_average", "average"),
        ("adam_velocities", "velocity"),
        ("_m", "m"),
        ("_s", "s"),
    ],
)
def test_roles_are_singular(edge: str, role: str) -> None:
    assert role_of_edge(edge) == role


def test_a_slots_own_name_is_no_plural() -> None:
    assert role_of_slot("rms", "") == "rms"


@pytest.mark.parametrize(
    ("label", "family"),
    [("adam", "adam"), ("Adam_12", "adam"), ("RMSprop", "rmsprop"), ("rm_sprop_1", "rmsprop"), ("my_adam", "")],
)
def test_a_default_name_gives_the_class_away(label: str, family: str) -> None:
    assert family_of(label) == family


def test_only_classes_with_the_same_moments_mean_the_same() -> None:
    same = [("adam", "adamw"), ("nadam", "adam"), ("lion", "lion")]
    others = [("rmsprop", "sgd"), ("adam", "adamax"), ("adam", ""), ("adam", "rmsprop")]
    assert all(same_meaning(*pair, "momentum") for pair in same)
    assert not any(same_meaning(*pair, "momentum") for pair in others)
    assert all(same_meaning(*pair, "average") for pair in others)


def test_degrees_say_how_a_slot_scales() -> None:
    assert [degree_of(r, "adam") for r in ("momentum", "velocity", "average", "other")] == [1, 2, -1, None]
    assert degree_of("momentum", "rmsprop") == 0
