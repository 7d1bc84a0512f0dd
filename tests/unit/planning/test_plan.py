"""The plan as a value: one form, one digest, no damage unnoticed, counts that add up."""

from __future__ import annotations

import dataclasses
import json
import math

import msgspec
import pytest

from build import entry, plan
from dist_restore.core.errors import PlanMismatchError
from dist_restore.core.index import Group
from dist_restore.core.tensors import TensorSpec
from dist_restore.planning.entries import Coverage, PlanEntry, Proof, Status, Tally, Unused
from dist_restore.planning.plan import SCHEMA_VERSION, RestorePlan

RULES = """
[[rule]]
from = ["m/q", "m/k"]
to = "m/qk"
ops = [{ concat = { axis = 0 } }]
[[rule]]
from = "m/old"
to = "m/new"
ops = [{ slice = { begin = [0], size = [1] } }, { fit = { fill = "normal" } }]
"""


def example() -> RestorePlan:
    source = "m/q 2\nm/k 2\nm/old 9\nm/a/w 4\nm/unused 7\nmomentum@m/a/w"
    target = "m/qk 4\nm/new 3\nm/a/w 4 float16\nm/odd 3\nm/mis 5\nmomentum@m/a/w"
    return plan(source + "\nm/mis 6", target, RULES)


def tampered(**changes: object) -> str:
    return json.dumps({**json.loads(example().to_json()), **changes})


def tampered_entry(**changes: object) -> str:
    fields = json.loads(example().to_json())
    fields["entries"][0].update(changes)
    return json.dumps(fields)


# ---- One form --------------------------------------------------------------------------------------------


def test_a_plan_survives_its_json() -> None:
    done = example()
    assert RestorePlan.from_json(done.to_json()) == done
    assert RestorePlan.from_json(done.to_json()).to_json() == done.to_json()


def test_the_json_is_canonical() -> None:
    text = example().to_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text.isascii()
    assert example().to_json() == text


def test_the_digest_is_over_everything_but_where_the_checkpoint_lies() -> None:
    done = example()
    assert len(done.digest) == 64
    assert json.loads(done.to_json())["digest"] == done.digest
    assert dataclasses.replace(done, checkpoint="/mnt/b/ckpt").digest == done.digest
    changes = [
        {"checkpoint_fingerprint": "x"},
        {"target_fingerprint": "x"},
        {"entries": done.entries[1:]},
        {"unused": (Unused("a", "b"),)},
        {"suggestions": "x"},
    ]
    digests = {dataclasses.replace(done, **change).digest for change in changes}  # type: ignore[arg-type]
    assert len(digests | {done.digest}) == len(changes) + 1


ENTRY_CHANGES: dict[str, object] = {
    "target": "x",
    "sources": ("x",),
    "ops": (),
    "status": Status.KEPT,
    "evidence": "x",
    "reason": "x",
    "bytes": 1,
    "spec": TensorSpec((9,), "int8"),
    "source_specs": (),
    "group": Group.OTHER,
    "elements": 99,
    "problem": "dtype",
    "candidates": ("x",),
    "unchecked": ("x",),
    "proof": "order",
}


def test_an_entry_is_a_dataclass_for_those_who_use_it() -> None:
    first = example().entries[0]
    changed = dataclasses.replace(first, reason="another")
    assert (changed.reason, changed.target, type(changed)) == ("another", first.target, PlanEntry)
    assert [f.name for f in dataclasses.fields(first)] == list(PlanEntry.__struct_fields__)
    assert dataclasses.asdict(first)["target"] == first.target
    with pytest.raises(AttributeError):
        first.reason = "another"  # type: ignore[misc]


@pytest.mark.parametrize("field", PlanEntry.__struct_fields__)
def test_every_field_of_an_entry_counts_in_the_digest(field: str) -> None:
    done = example()
    changed = dict(ENTRY_CHANGES, problem=type(done.entries[0].problem).DTYPE, proof=Proof.ORDER)
    first = msgspec.structs.replace(entry(done, "m/new"), **{field: changed[field]})  # type: ignore[arg-type]
    others = tuple(e for e in done.entries if e.target != "m/new")
    before = dataclasses.replace(done, entries=(entry(done, "m/new"), *others))
    assert dataclasses.replace(done, entries=(first, *others)).digest != before.digest


def test_names_of_any_bytes_survive() -> None:
    done = plan("m/\udcff\x00é日 4\nm/😀 4", "m/\udcff\x00é日 4\nm/😀 4")
    assert RestorePlan.from_json(done.to_json()) == done


# ---- Damage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint_fingerprint": "0" * 64},
        {"target_fingerprint": "0" * 64},
        {"suggestions": "[[rule]]"},
        {"unused": []},
        {"entries": []},
        {"digest": "0" * 64},
        {"digest": None},
        {"digest": 1},
        {"schema": SCHEMA_VERSION + 1},
        {"schema": str(SCHEMA_VERSION)},
        {"checkpoint": 3},
        {"checkpoint": None},
        {"entries": {}},
        {"entries": [[]]},
        {"entries": [{}]},
        {"entries": "x"},
        {"unused": [[]]},
        {"unused": [["a"]]},
        {"unused": [["a", "b", "c"]]},
        {"unused": [["a", 1]]},
        {"suggestions": []},
    ],
)
def test_a_changed_plan_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(PlanMismatchError):
        RestorePlan.from_json(tampered(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"target": "x"},
        {"target": 1},
        {"sources": ["x"]},
        {"sources": "x"},
        {"sources": [1]},
        {"ops": [{"cast": {"dtype": "float64"}}]},
        {"ops": [{"explode": {}}]},
        {"ops": [{"concat": {"axis": 10**400}}]},
        {"ops": [1]},
        {"ops": [[]]},
        {"status": "renamed"},
        {"status": "great"},
        {"status": []},
        {"status": {}},
        {"group": "x"},
        {"group": None},
        {"problem": "x"},
        {"bytes": -1},
        {"bytes": 1.0},
        {"bytes": True},
        {"bytes": "1"},
        {"bytes": 10**400},
        {"elements": 10**400},
        {"elements": None},
        {"spec": ["float32"]},
        {"spec": ["float32", [2], 3]},
        {"spec": ["float32", [-2]]},
        {"spec": ["float32", [10**400]]},
        {"spec": [1, [2]]},
        {"spec": {}},
        {"source_specs": [["float32", "x"]]},
        {"candidates": [None]},
        {"unchecked": 5},
        {"evidence": None},
        {"reason": ["x"]},
    ],
)
def test_a_changed_entry_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(PlanMismatchError):
        RestorePlan.from_json(tampered_entry(**changes))


@pytest.mark.parametrize("field", PlanEntry.__struct_fields__)
def test_an_entry_without_one_of_its_fields_is_refused(field: str) -> None:
    fields = json.loads(example().to_json())
    del fields["entries"][0][field]
    with pytest.raises(PlanMismatchError):
        RestorePlan.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[]",
        "null",
        "1",
        "{}",
        '"plan"',
        "[" * 100_000,
        '{"schema":' * 100_000,
        '{"schema":1,"entries":' + "[" * 100_000,
        '{"schema":' + "9" * 10_000 + "}",
        '{"schema":NaN}',
        '{"schema":1e999}',
        "\x00",
        "\ufeff{}",
    ],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanMismatchError):
        RestorePlan.from_json(text)


def test_numbers_that_no_tensor_has_are_refused_though_the_digest_fits() -> None:
    done = example()
    huge = msgspec.structs.replace(done.entries[0], elements=10**400, bytes=10**400)
    with pytest.raises(PlanMismatchError, match="count"):
        RestorePlan.from_json(dataclasses.replace(done, entries=(huge,)).to_json())


# ---- Counts ----------------------------------------------------------------------------------------------


def row(status: Status, elements: int, filled: int, group: Group = Group.MODEL) -> PlanEntry:
    spec = TensorSpec((elements,), "float32")
    return PlanEntry("x", (), (), status, "", "", spec.nbytes, spec=spec, group=group, elements=filled)


COUNTED = Coverage.of(
    [
        row(Status.EXACT, 10, 10),
        row(Status.RESIZED, 10, 3),
        row(Status.KEPT, 5, 0),
        row(Status.EXACT, 4, 4, Group.OPTIMIZER),
        row(Status.UNMATCHED, 1, 0, Group.OPTIMIZER),
    ]
)


def test_coverage_adds_up() -> None:
    assert COUNTED.total() == Tally(5, 30, 120)
    assert COUNTED.filled() == Tally(3, 17, 68)
    assert COUNTED.total(group=Group.MODEL) + COUNTED.total(group=Group.OPTIMIZER) == COUNTED.total()
    assert sum((COUNTED.total(status=s) for s in COUNTED.statuses), Tally()) == COUNTED.total()
    assert COUNTED.filled(group=Group.MODEL, status=Status.RESIZED) == Tally(1, 3, 12)
    assert COUNTED.total(group=Group.OTHER) == Tally()


def test_coverage_as_fractions() -> None:
    assert math.isclose(COUNTED.variables, 3 / 5)
    assert math.isclose(COUNTED.elements, 17 / 30)
    assert math.isclose(COUNTED.bytes, 68 / 120)
    assert COUNTED.groups == (Group.MODEL, Group.OPTIMIZER)


def test_nothing_is_covered_wholly() -> None:
    empty = Coverage.of([])
    assert (empty.variables, empty.elements, empty.bytes, empty.rows) == (1.0, 1.0, 1.0, ())


def test_coverage_does_not_depend_on_order() -> None:
    entries = example().entries
    assert Coverage.of(entries) == Coverage.of(entries[::-1])


def test_the_coverage_of_a_plan_counts_new_elements_as_unfilled() -> None:
    assert example().coverage.filled(status=Status.RESIZED) == Tally(1, 1, 4)


def test_the_summary_names_every_target() -> None:
    text = example().summary()
    for target in ("m/qk", "m/new", "m/a/w", "m/odd", "m/mis", "optimizer/momentum/m/a/w"):
        assert target in text


def test_the_mapping_has_what_is_filled() -> None:
    assert example().mapping() == {
        "m/qk": ("m/q", "m/k"),
        "m/new": ("m/old",),
        "m/a/w": ("m/a/w",),
        "optimizer/momentum/m/a/w": ("optimizer/momentum/m/a/w",),
    }
    assert {e.target for e in example().problems} == {"m/odd", "m/mis"}
