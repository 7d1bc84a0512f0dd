"""Rules and plans run backwards: names, ops, slots; what has no way back says so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dist_restore as dr
import live
from dist_restore.core.index import CheckpointIndex, OptimizerInfo, Slot, SourceTensor
from dist_restore.core.tensors import TensorSpec
from dist_restore.ops import apply
from dist_restore.planning.entries import PlanEntry
from dist_restore.planning.inverse_plan import inverse_of_plan
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.planner import Options, resolve
from dist_restore.planning.rules.rule_set import RuleSet
from dist_restore.planning.sides import as_targets
from places import ROOT

Arrays = dict[str, np.ndarray]
ADAM = (OptimizerInfo("optimizer", "adam", "adam", ("momentum", "velocity")),)


def rule(from_: object, to: object, *ops: dict[str, object]) -> dict[str, object]:
    return {"from": from_, "to": to, "ops": list(ops)}


def rule_set(*rules: dict[str, object], **slots: str) -> RuleSet:
    return RuleSet.of({"rule": list(rules), "slots": slots})


# ---- By text alone -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (rule("a/{rest}", "b/{rest}"), rule("b/{rest}", "a/{rest}")),
        (rule("a/{i}/w", "b/{i+1}/w"), rule("b/{i+1}/w", "a/{i}/w")),
        (rule("a", "b", {"transpose": {"perm": [2, 0, 1]}}), rule("b", "a", {"transpose": {"perm": [1, 2, 0]}})),
        (rule("a", "b", {"scale": {"by": 0.25}}), rule("b", "a", {"scale": {"by": 4.0}})),
        (rule("a", "b", {"cast": {"dtype": "float16"}}), rule("b", "a")),
        (
            rule(["a", "b"], "c", {"concat": {"axis": -1}}, {"transpose": {"perm": [1, 0]}}),
            rule("c", ["a", "b"], {"transpose": {"perm": [1, 0]}}, {"split": {"axis": -1}}),
        ),
        (rule("c", ["a", "b"], {"unstack": {"axis": 0}}), rule(["a", "b"], "c", {"stack": {"axis": 0}})),
        (
            rule("a", "b", {"pad": {"before": [1, 0], "after": [0, 0], "fill": "keep"}}),
            rule("b", "a", {"slice": {"begin": [1, 0], "size": [-1, -1]}}),
        ),
        (
            rule("a", "b", {"permute_heads": {"heads": 2, "layout": "half_to_interleaved"}}),
            rule("b", "a", {"permute_heads": {"heads": 2, "layout": "interleaved_to_half"}}),
        ),
        ({"keep": "a/{rest}"}, {"drop": "a/{rest}"}),
        ({"drop": "a/{rest}", "optional": True}, {"keep": "a/{rest}", "optional": True}),
    ],
)
def test_each_rule_has_its_inverse(there: dict[str, object], back: dict[str, object]) -> None:
    assert rule_set(there).inverse() == rule_set(back)
    assert RuleSet.from_toml(rule_set(there).inverse().to_toml()) == rule_set(back)


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        (rule("a/{i//2}/w", "b/{i}/w"), "does not tell what {i} is"),
        (rule("a/{i}/w", "b/{i//2}/w"), "does not tell what {i} is"),
        (rule("a/{i}/w", "b/{0*i}/w"), "does not tell what {i} is"),
        (rule("a/{x}/w", "b/w"), "does not tell what {x} is"),
        (rule("a", ["b", "c"]), "one source fills several targets"),
        (rule(["a", "b"], "c", {"mean": {}}), "not joined by one concat or stack"),
        (rule("a", "b", {"slice": {"begin": [0], "size": [2]}}), "slice"),
        (rule("a", "b", {"reshape": {"shape": [2, 3]}}), "reshape needs shapes"),
        (rule("a", "b", {"pad": {"before": [0], "after": [1], "fill": "zeros"}}), "pad needs shapes"),
        (rule("a", "b", {"scale": {"by": 3.0}}), "rounds"),
        (rule("a", "b", {"cast": {"dtype": "float16", "lossy": True}}), "lossy"),
        ({**rule("a(.*)", r"b\1"), "regex": True}, "regular expressions"),
    ],
)
def test_what_has_no_inverse_says_which_rule_and_why(there: dict[str, object], reason: str) -> None:
    rules = rule_set(rule("x", "y"), there)
    with pytest.raises(dr.RuleError, match=r"^rule 2 ") as caught:
        rules.inverse()
    assert "has no inverse" in str(caught.value) and reason in str(caught.value)


def test_slot_roles_change_sides() -> None:
    assert rule_set(rule("a", "b"), velocity="momentum").inverse().slots == (("momentum", "velocity"),)


def test_the_demos_rules_lead_back_and_forth() -> None:
    rules = RuleSet.load(ROOT / "configs" / "rules" / "lm_v1_to_v2.toml")
    back = rules.inverse()
    assert back.rules[0].ops == RuleSet.of({"rule": [rule("a", ["b", "c"], {"split": {"axis": -1}})]}).rules[0].ops
    # Concat becomes split becomes concat: nothing is lost on the way.
    assert RuleSet.from_toml(back.to_toml()).inverse().rules == rules.rules


# ---- With all shapes at hand -------------------------------------------------------------------------------


def checkpoint_of(shapes: dict[str, tuple[tuple[int, ...], str]]) -> CheckpointIndex:
    tensors = [SourceTensor(name, TensorSpec(*spec)) for name, spec in shapes.items()]
    for role in ("momentum", "velocity"):
        for name, (shape, _) in shapes.items():
            slot = Slot(role, name, "optimizer")
            tensors.append(SourceTensor(f"optimizer/{role}/{name}", TensorSpec(shape, "float32"), slot=slot))
    return CheckpointIndex("ckpt", "tf2", tuple(sorted(tensors, key=lambda t: t.name)), ADAM)


def carry_out(plan: RestorePlan, arrays: Arrays) -> Arrays:
    assert not plan.problems
    return {e.target: _made(e, arrays) for e in plan.entries}


def _made(entry: PlanEntry, arrays: Arrays) -> np.ndarray:
    return np.array(apply(entry.ops, [arrays[name] for name in entry.sources]))


Way = tuple[dict[str, object], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]


@st.composite
def ways(draw: st.DrawFn, number: int) -> Way:
    """A rule with an inverse, and the shapes of its sources and targets."""
    a, b = draw(st.integers(1, 4)), 2 * draw(st.integers(1, 3))
    old, new = f"old{number}", f"new{number}"
    scale = {"scale": {"by": draw(st.sampled_from([0.5, 4.0, -2.0]))}}
    turn = {"transpose": {"perm": [1, 0]}}
    if draw(st.booleans()):
        parts = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
        names = [f"{old}/{i}" for i in range(len(parts))]
        shapes = {name: (a, n) for name, n in zip(names, parts, strict=True)}
        if draw(st.booleans()):
            return rule(names, new, {"concat": {"axis": -1}}, turn, scale), shapes, {new: (sum(parts), a)}
        split = {"split": {"axis": 0, "sizes": parts}}
        pieces = {f"{new}/{i}": (n, a) for i, n in enumerate(parts)}
        return rule(old, list(pieces), turn, split, scale), {old: (a, sum(parts))}, pieces
    op, shape = draw(
        st.sampled_from(
            [
                (turn, (b, a)),
                ({"reshape": {"shape": [2, -1]}}, (2, a * b // 2)),
                ({"pad": {"before": [1, 0], "after": [0, 2], "fill": "zeros"}}, (a + 1, b + 2)),
                ({"permute_heads": {"heads": 1, "layout": "interleaved_to_half"}}, (a, b)),
                (scale, (a, b)),
            ]
        )
    )
    return rule(old, new, op), {old: (a, b)}, {new: shape}


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 4), st.sampled_from(["float32", "float64"]))
def test_there_and_back_again_gives_every_bit(data: st.DataObject, count: int, dtype: str) -> None:
    found = [data.draw(ways(number)) for number in range(count)]
    rules = rule_set(*(way[0] for way in found))
    old = checkpoint_of({n: (s, "float32") for way in found for n, s in way[1].items()})
    new = checkpoint_of({n: (s, dtype) for way in found for n, s in way[2].items()})
    there = resolve(old, as_targets(new), rules, Options())
    back = resolve(new, as_targets(old), inverse_of_plan(there, rules), Options())
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays = {t.name: generator.uniform(0.5, 2, t.spec.shape).astype(np.float32) for t in old.tensors}
    again = carry_out(back, carry_out(there, arrays))
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype and again[name].tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(
    ("there", "old", "new", "reason"),
    [
        (rule("a", "b", {"slice": {"begin": [0], "size": [2]}}), {"a": (3,)}, {"b": (2,)}, "loses something"),
        (rule("a", "b", {"scale": {"by": 0.3}}), {"a": (3,)}, {"b": (3,)}, "rounds"),
        (rule("a", ["b", "c"]), {"a": (3,)}, {"b": (3,), "c": (3,)}, "copies"),
        (rule("a", "b", {"split": {"axis": 0, "sizes": [3]}}), {"a": (3,)}, {"b": (3,)}, ""),
        (rule("a", "b", {"tile": {"multiples": [2]}}), {"a": (3,)}, {"b": (6,)}, "loses something"),
    ],
)
def test_a_plan_without_a_way_back_says_where(
    there: dict[str, object], old: dict[str, tuple[int, ...]], new: dict[str, tuple[int, ...]], reason: str
) -> None:
    sources, targets = (checkpoint_of({n: (s, "float32") for n, s in shapes.items()}) for shapes in (old, new))
    plan = resolve(sources, as_targets(targets), rule_set(there), Options())
    if not reason:
        assert inverse_of_plan(plan, rule_set(there)).rules
        return
    with pytest.raises(dr.RuleError) as caught:
        inverse_of_plan(plan, rule_set(there))
    assert reason in str(caught.value) and "'b'" in str(caught.value)


def test_a_tensor_that_went_two_ways_has_no_way_back() -> None:
    rules = rule_set(rule("a", "b"), rule("a", "c", {"transpose": {"perm": [1, 0]}}))
    old, new = (checkpoint_of({n: ((2, 2), "float32") for n in names}) for names in ("a", "bc"))
    with pytest.raises(dr.RuleError, match="copies"):
        inverse_of_plan(resolve(old, as_targets(new), rules, Options()), rules)


def test_what_was_dropped_on_the_way_there_is_kept_on_the_way_back() -> None:
    rules = rule_set(rule("a", "b"), {"drop": "x"})
    old, new = (checkpoint_of({n: ((2,), "float32") for n in names}) for names in ("ax", "b"))
    back = inverse_of_plan(resolve(old, as_targets(new), rules, Options()), rules)
    plan = resolve(new, as_targets(old), back, Options())
    assert not plan.problems
    assert live.entry(plan, "x").status is dr.Status.KEPT
    assert live.entry(plan, "a").sources == ("b",)
