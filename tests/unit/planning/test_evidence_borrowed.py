"""Attributes that a program makes from automatic names, and attributes that somebody chose."""

from __future__ import annotations

import pytest

from scenes import matched, pairs


def layers(*attributes: str, kind: str = "dense", names: tuple[str, ...] = ("dense", "dense_1")) -> str:
    return "\n".join(
        f"model/{attribute}/kernel {4 + i} {name}/kernel\nmodel/{attribute} layer:{name} counted kind:{kind}"
        for i, (attribute, name) in enumerate(zip(attributes, names, strict=True))
    )


def proofs(text: str) -> list[str]:
    return [found.rpartition(" ")[2] for found in pairs(matched(text, text)).values()]


def test_attributes_that_are_called_as_their_layers_are_an_order() -> None:
    assert proofs(layers("dense", "dense_1")) == ["order", "order"]


@pytest.mark.parametrize("attributes", [("stem", "head"), ("dense_1", "dense"), ("dense", "head")])
def test_attributes_that_are_called_otherwise_than_their_layers_are_names(attributes: tuple[str, str]) -> None:
    assert proofs(layers(*attributes)) == ["name", "name"]


def test_one_layer_of_a_class_alone_under_its_own_name_is_named() -> None:
    assert proofs(layers("dense", "other") + "\n" + layers("conv2d", names=("conv2d",), kind="conv2d")) == ["name"] * 3


def test_what_lies_below_such_an_attribute_is_an_order_too_and_what_lies_beside_is_not() -> None:
    def side() -> str:
        inner = "\n".join(f"model/{n}/inner/w {i} {n}/inner/w" for i, n in enumerate(("block", "block_1"), 4))
        own = "\n".join(f"model/{n} layer:{n} counted kind:block" for n in ("block", "block_1"))
        return f"{inner}\n{own}\nmodel/head/w 9 head/w"

    assert pairs(matched(side(), side())) == {
        "model/block/inner/w": "model/block/inner/w order",
        "model/block_1/inner/w": "model/block_1/inner/w order",
        "model/head/w": "model/head/w name",
    }
