"""Slots of optimizers whose lists a checkpoint does not show (Keras 3 up to 3.9): by their names."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from build import Graph
from dist_restore.naming.names import name_graph


def graph(
    names: Sequence[str], lists: Sequence[str], owners: Sequence[str] = ("net/a/kernel", "net/b/kernel")
) -> Graph:
    """A model, and an optimizer whose lists are empty."""
    made = Graph()
    trained = [made.add(f"model/{i}/kernel", owner) for i, owner in enumerate(owners)]
    for edge in lists:
        made.at(f"optimizer/{edge}")
    for number, owner in enumerate(trained):
        made.link(f"optimizer/_trainable_variables/{number}", owner)
    steps = made.add("optimizer/_iterations", "adam/iteration")
    made.link("optimizer/_variables/0", steps)
    for number, name in enumerate(names, 1):
        made.add(f"optimizer/_variables/{number}", f"adam/{name}")
    return made


def slots(made: Graph) -> dict[str, str]:
    leaves, _ = name_graph(made.nodes())
    return {x.leaf.full_name.partition("/")[2]: x.name for x in leaves if x.slot is not None}


BOTH = ("_momentums", "_velocities")


def test_a_name_says_whose_slot_it_is_and_what() -> None:
    names = [f"net_{owner}_kernel_{role}" for owner in "ab" for role in ("momentum", "velocity")]
    assert slots(graph(names, BOTH)) == {
        "net_a_kernel_momentum": "optimizer/momentum/model/0/kernel",
        "net_a_kernel_velocity": "optimizer/velocity/model/0/kernel",
        "net_b_kernel_momentum": "optimizer/momentum/model/1/kernel",
        "net_b_kernel_velocity": "optimizer/velocity/model/1/kernel",
    }


def test_owners_of_one_name_are_told_by_their_order() -> None:
    made = graph(["w_momentum", "w_momentum"], ["_momentums"], ("w", "w"))
    found = {x.leaf.key: x.name for x in name_graph(made.nodes())[0] if x.slot is not None}
    assert found == {
        "optimizer/_variables/1": "optimizer/momentum/model/0/kernel",
        "optimizer/_variables/2": "optimizer/momentum/model/1/kernel",
    }


def test_slots_without_their_owners_name_are_in_the_order_of_what_is_trained() -> None:
    made = graph(
        ["accumulator", "net_a_kernel_linear", "accumulator", "net_b_kernel_linear"], ["_accumulators", "_linears"]
    )
    found = {x.leaf.key[-1]: x.name for x in name_graph(made.nodes())[0] if x.slot is not None}
    assert found == {
        "1": "optimizer/accumulator/model/0/kernel",
        "2": "optimizer/linear/model/0/kernel",
        "3": "optimizer/accumulator/model/1/kernel",
        "4": "optimizer/linear/model/1/kernel",
    }


def test_a_longer_name_is_the_owner_that_is_meant() -> None:
    made = graph(["w_momentum", "w_velocity_momentum"], ["_momentums", "_velocities"], ("w", "w_velocity"))
    assert slots(made) == {
        "w_momentum": "optimizer/momentum/model/0/kernel",
        "w_velocity_momentum": "optimizer/momentum/model/1/kernel",
    }


@pytest.mark.parametrize(
    ("names", "lists"),
    [
        (["net_a_kernel_momentum"], []),  # no list of such slots
        (["net_a_kernel_norm"], ["_momentums"]),
        (["net_c_kernel_momentum"], ["_momentums"]),
        (["net_a_kernel_momentum", "net_a_kernel_momentum"], ["_momentums"]),  # one too many
        (["accumulator"], ["_accumulators"]),  # one too few
        (["net_a_kernelmomentum", "momentum_net_a_kernel"], ["_momentums"]),
    ],
)
def test_names_that_do_not_say_it_make_no_slots(names: list[str], lists: list[str]) -> None:
    assert not slots(graph(names, lists))


def test_words_that_differ_from_the_lists_name_are_known() -> None:
    names = ["net_a_kernel_gradient_accumulator", "net_a_kernel_average"]
    lists = ["_accumulated_gradients", "_model_variables_moving_average"]
    assert set(slots(graph(names, lists)).values()) == {
        "optimizer/accumulated_gradient/model/0/kernel",
        "optimizer/average/model/0/kernel",
    }
    adamax = slots(graph(["net_a_kernel_momentum", "net_a_kernel_norm"], ["_m", "_u"]))
    assert set(adamax.values()) == {"optimizer/m/model/0/kernel", "optimizer/u/model/0/kernel"}
