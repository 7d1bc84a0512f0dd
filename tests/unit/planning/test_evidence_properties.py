"""What holds of the engine for any two graphs: the order of objects means nothing, a layer stays whole."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_restore.core.graph import Scene
from dist_restore.core.index import CheckpointIndex, TargetIndex
from dist_restore.planning.entries import Proof
from scenes import live, matched, stored

NAMES = ["dense", "dense_1", "dense_2", "conv2d", "stem", "head", ""]
CONTAINERS = ["_operations", "blocks"]


@st.composite
def programs(draw: st.DrawFn) -> str:
    """One or two models with rows of layers, some of them alike, and perhaps an optimizer."""
    lines, owners = [], []
    for root in draw(st.sampled_from([["model"], ["net"], ["model", "ema"]])):
        container = draw(st.sampled_from(CONTAINERS))
        names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))
        for place, name in enumerate(names):
            size = draw(st.sampled_from([4, 4, 5]))
            for own in draw(st.sampled_from([["kernel", "bias"], ["kernel"]])):
                full = f"net/{name}/{own}" if name else own
                lines.append(f"{root}/{container}/{place}/{own} {size} {full}")
                owners.append(f"{root}/{container}/{place}/{own}")
    if draw(st.booleans()):
        order = draw(st.permutations(owners))
        lines.append(f"optimizer adam {' '.join(order)}")
    return "\n".join(lines)


def shuffled_scene(scene: Scene, mix: random.Random) -> Scene:
    """Other numbers for the objects, and edges in another order (but those of rows and lists, which are numbered)."""
    numbers = [0, *mix.sample(range(1, len(scene.nodes)), len(scene.nodes) - 1)]
    nodes = [scene.nodes[0]] * len(scene.nodes)
    for index, node in enumerate(scene.nodes):
        edges = [(name, numbers[child]) for name, child in node.edges]
        mix.shuffle(edges)
        nodes[numbers[index]] = msgspec.structs.replace(node, edges=tuple(edges))
    names = {numbers[node]: name for node, name in scene.names.items()}
    return Scene(tuple(nodes), names, tuple(nodes), scene.by_layer)


def shuffled(index: TargetIndex, mix: random.Random) -> TargetIndex:
    assert index.scene is not None
    variables = mix.sample(index.variables, len(index.variables))
    return dataclasses.replace(index, variables=tuple(variables), scene=shuffled_scene(index.scene, mix))


@settings(deadline=None)
@given(programs(), programs(), st.integers(0, 1000))
def test_the_order_of_objects_changes_nothing(source: str, target: str, seed: int) -> None:
    mix, theirs, ours = random.Random(seed), stored(source), live(target)
    assert theirs.scene is not None
    other = dataclasses.replace(theirs, scene=shuffled_scene(theirs.scene, mix))
    assert matched(other, shuffled(ours, mix)).to_json() == matched(theirs, ours).to_json()


def sources(source: CheckpointIndex, target: TargetIndex) -> dict[str, Sequence[str]]:
    return {e.target: e.sources for e in matched(source, target).entries if e.sources}


@settings(deadline=None)
@given(programs(), programs())
def test_without_optimizers_nothing_gets_another_source(source: str, target: str) -> None:
    """Their lists and flat names are witnesses: without them a match is the same, refused, or a place by itself."""
    full = matched(stored(source), live(target))
    less = sources(stored(_without_optimizer(source)), live(_without_optimizer(target)))
    for entry in full.entries:
        if entry.proof is Proof.NAME and entry.target in less:
            assert less[entry.target] == entry.sources


def _without_optimizer(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if " adam " not in line)


@settings(deadline=None)
@given(programs())
def test_a_program_reads_its_own_checkpoint(text: str) -> None:
    """Whatever its names are; twins are order at best."""
    done = matched(text, text)
    assert {e.target: e.sources for e in done.entries} == {e.target: (e.target,) for e in done.entries}


@settings(deadline=None)
@given(programs(), programs())
def test_no_source_fills_two_targets_unless_it_has_both_names(source: str, target: str) -> None:
    done = matched(source, target)
    used = [s for e in done.entries for s in e.sources]
    assert len(set(used)) == len(used)


@settings(deadline=None)
@given(programs(), programs())
def test_layers_stay_whole(source: str, target: str) -> None:
    """Kernel and bias of one layer come from one layer."""
    found: dict[str, set[str]] = {}
    for entry in matched(source, target).entries:
        if entry.sources and not entry.target.startswith("optimizer"):
            found.setdefault(entry.target.rpartition("/")[0], set()).add(entry.sources[0].rpartition("/")[0])
    assert all(len(layers) == 1 for layers in found.values())
