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


def test_scopes_that_tensorflow_does_not_know_are_in_the_slots_names_alone() -> None:
    made = graph(["net_x_a_kernel_momentum", "net_y_a_kernel_momentum"], ["_momentums"], ("net/kernel", "net/kernel"))
    assert slots(made) == {
        "net_x_a_kernel_momentum": "optimizer/momentum/model/0/kernel",
        "net_y_a_kernel_momentum": "optimizer/momentum/model/1/kernel",
    }


def test_a_variable_of_tensorflows_own_is_called_with_its_number() -> None:
    made = graph(["scale_0_momentum", "net_a_kernel_momentum"], ["_momentums"], ("scale", "net/a/kernel"))
    assert slots(made)["scale_0_momentum"] == "optimizer/momentum/model/0/kernel"


def test_where_some_have_no_slots_names_tell_the_others() -> None:
    made = graph(["net_b_kernel_momentum"], ["_momentums"])
    assert slots(made) == {"net_b_kernel_momentum": "optimizer/momentum/model/1/kernel"}
    assert not slots(graph(["w_momentum"], ["_momentums"], ("w", "w")))
    assert not slots(graph(["w_momentum", "w_momentum"], ["_momentums"], ("w", "x", "y")))


def test_what_slots_of_one_role_call_an_owner_tells_those_of_another() -> None:
    names = ["net_x_kernel_momentum", "net_y_bias_momentum", "net_y_bias_velocity"]
    made = slots(graph(names, ["_momentums", "_velocities"], ("net/kernel", "net/bias")))
    assert made["net_y_bias_velocity"] == "optimizer/velocity/model/1/kernel"


def test_a_longer_ending_is_the_one_that_is_meant() -> None:
    names = [f"w_{role}" for role in ("accumulator", "gradient_accumulator")]
    made = slots(graph(names, ["_accumulators", "_accumulated_gradients"], ("w",)))
    assert made["w_gradient_accumulator"] == "optimizer/accumulated_gradient/model/0/kernel"


@pytest.mark.parametrize(
    ("names", "lists"),
    [
        (["net_a_kernel_momentum"], []),  # no list of such slots
        (["net_a_kernel_norm"], ["_momentums"]),
        (["net_c_kernel_momentum"], ["_momentums"]),
        (["net_a_bias_momentum", "net_b_bias_momentum"], ["_momentums"]),
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
