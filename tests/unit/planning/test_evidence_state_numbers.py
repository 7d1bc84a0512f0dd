"""Numbers of an optimizer's state in files that name nothing of it: when they tell what a tensor is, and when not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from build import checkpoint, program
from dist_restore.core.index import CheckpointIndex, SourceTensor, TargetIndex
from dist_restore.naming.optimizer_classes import KERAS_3
from dist_restore.planning.entries import Proof
from dist_restore.planning.matching.by_state_number import NumberedSlots, StateNumbers
from dist_restore.planning.matching.outcome import Match

ADAM = {"optimizer": "adam"}
WEIGHTS = "model/a/w 4 pos:optimizer/trainable_variables/0\nmodel/b/w 5 pos:optimizer/trainable_variables/1"
STATE = """
optimizer/iterations - int64 pos:optimizer/variables/0
optimizer/learning_rate - pos:optimizer/variables/1
momentum@model/a/w pos:optimizer/variables/2
velocity@model/a/w pos:optimizer/variables/3
momentum@model/b/w pos:optimizer/variables/4
velocity@model/b/w pos:optimizer/variables/5
"""
NUMBERED = ("- int64", "-", "4", "4", "5", "5")


def ours(state: str = STATE, families: Mapping[str, str] = ADAM, weights: str = WEIGHTS) -> TargetIndex:
    return program(f"{weights}\n{state}", families)


def theirs(*specs: str, families: Mapping[str, str] = ADAM, optimizer: str = "optimizer") -> CheckpointIndex:
    text = "\n".join(f"{optimizer}/vars/{n} {spec} kind:positional" for n, spec in enumerate(specs or NUMBERED))
    return checkpoint(f"{text}\nmodel/a/w 4\nmodel/b/w 5", families)


def numbers(targets: TargetIndex, sources: CheckpointIndex, *pairs: tuple[str, str]) -> StateNumbers:
    return StateNumbers(targets, sources, pairs or [("optimizer", "optimizer")])


def owners(sources: CheckpointIndex, *names: str) -> dict[str, SourceTensor]:
    by_name = {t.name: t for t in sources.tensors}
    return {name: by_name[name] for name in names or ("model/a/w", "model/b/w")}


def found(
    targets: TargetIndex,
    sources: CheckpointIndex,
    ruled: Mapping[str, tuple[str, ...]] | None = None,
    dropped: tuple[str, ...] = (),
    filled: Mapping[str, SourceTensor] | None = None,
) -> dict[str, str | None]:
    """Slot -> its source, or why there is none."""
    slots = NumberedSlots(
        numbers(targets, sources), owners(sources) if filled is None else filled, ruled or {}, dropped
    )
    outcomes = {v.name: slots.find(v) for v in targets.variables if v.slot is not None}
    return {name: one.source.name if isinstance(one, Match) else one for name, one in outcomes.items()}


SLOTS = [
    "optimizer/momentum/model/a/w",
    "optimizer/velocity/model/a/w",
    "optimizer/momentum/model/b/w",
    "optimizer/velocity/model/b/w",
]


def test_slots_have_the_numbers_of_the_programs_own_list_and_that_is_order() -> None:
    assert found(ours(), theirs()) == {name: f"optimizer/vars/{n}" for n, name in enumerate(SLOTS, 2)}
    slots = NumberedSlots(numbers(ours(), theirs()), owners(theirs()), {}, ())
    (one,) = (slots.find(v) for v in ours().variables if v.name == SLOTS[0])
    assert isinstance(one, Match) and one.proof is Proof.ORDER
    assert one.evidence == "number 2 of an optimizer of the same class, which keeps equally many of equal shapes"


def test_counters_have_names_of_their_own_and_their_number_is_structure() -> None:
    done = numbers(ours(), theirs()).match(ours().variables, theirs().tensors)
    assert {name: (m.source.name, m.proof) for name, m in done.items()} == {
        "optimizer/iterations": ("optimizer/vars/0", Proof.STRUCTURE),
        "optimizer/learning_rate": ("optimizer/vars/1", Proof.STRUCTURE),
    }
    taken = [t for t in theirs().tensors if t.name != "optimizer/vars/0"]
    assert "optimizer/iterations" not in numbers(ours(), theirs()).match(ours().variables, taken)


def test_nothing_is_numbered_where_the_checkpoint_names_all() -> None:
    named = checkpoint("optimizer/iterations - int64", ADAM)
    assert not numbers(ours(), named).pairs
    assert not numbers(ours(), named).match(ours().variables, named.tensors)
    assert found(ours(), checkpoint(WEIGHTS, ADAM)) == dict.fromkeys(SLOTS)


def test_state_without_a_name_follows_once_its_owners_are_known() -> None:
    target = ours(STATE + "optimizer/variables/6 4 kind:positional")
    source = theirs(*NUMBERED, "4")
    known = numbers(target, source)
    left = target.variables
    done = known.match_nameless(left, source.tensors, owners(source))
    sources = {name: (match.source.name, match.proof) for name, match in done.items()}
    assert sources == {"optimizer/variables/6": ("optimizer/vars/6", Proof.ORDER)}
    assert "optimizer/variables/6" not in known.match(left, source.tensors)
    assert not known.match_nameless(left, source.tensors, owners(source, "model/a/w"))
    free = [t for t in source.tensors if t.name != "optimizer/vars/6"]
    assert not known.match_nameless(left, free, owners(source))


@pytest.mark.parametrize(
    ("specs", "families", "reason"),
    [
        (NUMBERED, {"optimizer": "rmsprop"}, "of the class 'rmsprop', and the program's is 'adam'"),
        (NUMBERED[:-1], ADAM, "it keeps 5 variables, and the program's 6"),
        ((*NUMBERED, "5"), ADAM, "it keeps 7 variables, and the program's 6"),
        (("- int64", "-", "4", "4", "6", "5"), ADAM, "number 4 is a float32[6], and that of the program"),
        (("-", "-", "4", "4", "5", "5"), ADAM, "number 0 is a float32[], and that of the program, 'optimizer/iter"),
    ],
)
def test_lists_that_are_not_the_same_say_nothing(
    specs: tuple[str, ...], families: Mapping[str, str], reason: str
) -> None:
    source = theirs(*specs, families=families)
    assert all(reason in str(why) for why in found(ours(), source).values())
    known = numbers(ours(), source)
    assert reason in known.trouble("optimizer") and not known.trouble("other")
    assert not known.match(ours().variables, source.tensors)
    assert not known.match_nameless(ours().variables, source.tensors, owners(source))


def test_another_float_is_the_same_state() -> None:
    half = tuple(f"{s} float16" if s.isdigit() else s for s in NUMBERED)
    assert found(ours(), theirs(*half)) == found(ours(), theirs())


def test_a_class_that_nobody_told_is_none() -> None:
    unknown = {"optimizer": ":mine"}
    assert all("of the class 'mine'" in str(why) for why in found(ours(), theirs(families=unknown)).values())


def labelled(index: CheckpointIndex, **changed: object) -> CheckpointIndex:
    infos = tuple(dataclasses.replace(o, **changed) for o in index.optimizers)  # type: ignore[arg-type]
    return dataclasses.replace(index, optimizers=infos)


def test_the_label_tells_the_class_where_it_is_a_classs_own() -> None:
    assert found(ours(), labelled(theirs(), family="", label="adam")) == found(ours(), theirs())
    assert all(
        "class 'my_adam'" in str(w) for w in found(ours(), labelled(theirs(), family="", label="my_adam")).values()
    )


EQUAL = WEIGHTS.replace(" 5 ", " 4 ")


def test_roles_may_lie_in_rows_or_take_turns_where_all_shapes_are_equal() -> None:
    source = theirs("- int64", "-", "4", "4", "4", "4")
    rows = "all shapes are equal either way"
    assert all(rows in str(why) for why in found(ours(weights=EQUAL), source).values())
    settled = labelled(source, structure=(KERAS_3,))
    assert None not in found(ours(weights=EQUAL), settled).values()
    assert not any(rows in str(why) for why in found(ours(weights=EQUAL), settled).values())
    one = STATE.replace("velocity@model/a/w pos:optimizer/variables/3\n", "").replace("variables/4", "variables/3")
    one = "\n".join(line for line in one.split("\n") if "velocity" not in line)
    assert rows not in str(found(ours(one, weights=EQUAL), theirs("- int64", "-", "4", "4")))


def test_what_the_base_class_adds_lies_otherwise_from_release_to_release() -> None:
    base = STATE.replace("momentum", "average").replace("velocity", "accumulated_gradient")
    settled = labelled(theirs("- int64", "-", "4", "4", "4", "4"), structure=(KERAS_3,))
    assert all("either way" in str(why) for why in found(ours(base, weights=EQUAL), settled).values())
    assert not any(
        "either way" in str(why) for why in found(ours(base), labelled(theirs(), structure=(KERAS_3,))).values()
    )


def test_an_owner_that_nothing_fills_as_it_is_leaves_the_numbers_without_meaning() -> None:
    source = theirs()
    done = found(ours(), source, filled=owners(source, "model/a/w"))
    assert all("nothing of it fills 'model/b/w' as it is" in str(why) for why in done.values())


def rowed(index: CheckpointIndex, *row: str) -> CheckpointIndex:
    return labelled(index, rows=(row,))


def test_layers_that_a_file_lists_in_another_order_speak_against_the_numbers() -> None:
    source = theirs()  # keys are key/model/a/w and key/model/b/w
    assert found(ours(), rowed(source, "key/model/a", "key/model/b")) == found(ours(), source)
    assert found(ours(), rowed(source, "key/model/b", "key/model/c")) == found(ours(), source)
    moved = found(ours(), rowed(source, "key/model/b", "key/model/c", "key/model/a"))
    expected = "says that its layers 'key/model/b', 'key/model/a' came in another order"
    assert all(expected in str(why) for why in moved.values()), moved


def test_without_a_list_of_what_is_trained_slots_say_it() -> None:
    weights = "model/a/w 4\nmodel/b/w 5"
    source = theirs()
    assert found(ours(weights=weights), source) == found(ours(), source)
    done = found(ours(weights=weights), source, filled=owners(source, "model/a/w"))
    assert all("fills 'model/b/w' as it is" in str(why) for why in done.values())


def test_rules_may_say_what_the_numbers_say_and_nothing_else() -> None:
    source, first = theirs(), SLOTS[0]
    assert found(ours(), source, {first: ("optimizer/vars/2",)}) == found(ours(), source)
    assert found(ours(), source, {"model/a/w": ("model/b/w",)}) == found(ours(), source)
    for other in (("optimizer/vars/3",), ("optimizer/vars/2", "optimizer/vars/3")):
        done = found(ours(), source, {first: other})
        assert all(f"a rule fills {first!r} from another number" in str(why) for why in done.values())


def test_what_rules_drop_fills_nothing() -> None:
    done = found(ours(), theirs(), dropped=("optimizer/vars/3",))
    assert done[SLOTS[1]] == "a rule drops 'optimizer/vars/3'" and done[SLOTS[0]] == "optimizer/vars/2"


def test_a_slot_beside_the_list_has_no_number() -> None:
    known = numbers(ours(), theirs())
    beside = program("model/z/w 4\nmomentum@model/z/w", ADAM).variables[1]
    assert NumberedSlots(known, owners(theirs()), {}, ()).find(beside) == (
        "the checkpoint only numbers the state of its optimizer, and that of this variable is not known here"
    )
    assert NumberedSlots(known, owners(theirs()), {}, ()).find(ours().variables[0]) is None


def test_a_rate_that_has_no_number_is_lacked() -> None:
    kept = [line for line in STATE.strip().split("\n") if "learning_rate" not in line]
    state = "\n".join(f"{line.rpartition('/')[0]}/{n}" for n, line in enumerate(kept))
    target = ours(f"{state}\noptimizer/learning_rate -")
    by_name = {v.name: v for v in target.variables}
    rate, step = by_name["optimizer/learning_rate"], by_name["optimizer/iterations"]
    known = numbers(target, theirs("- int64", "4", "4", "5", "5"))
    assert known.lacks("optimizer", rate) and not known.lacks("optimizer", step) and not known.lacks("other", rate)
    assert not numbers(target, theirs()).lacks("optimizer", rate)  # there is trouble: it keeps another number


WRAPPED = {"optimizer": "lossscaleoptimizer", "optimizer/inner_optimizer": "adam"}


def wrapped(outer: tuple[str, ...], inner: tuple[str, ...]) -> CheckpointIndex:
    rows = [f"optimizer/vars/{n} {s} kind:positional" for n, s in enumerate(outer)]
    rows += [f"optimizer/inner_optimizer/vars/{n} {s} kind:positional" for n, s in enumerate(inner)]
    return checkpoint("\n".join(rows), WRAPPED)


def test_a_wrappers_second_copy_of_what_is_inside_is_no_state_of_its_own() -> None:
    many = ("- int64", "-", *("4",) * 10)
    source = wrapped(("- int32", "-", *many), many)
    known = numbers(ours(), source, ("optimizer", "optimizer/inner_optimizer"))
    copies = {t.name for t in source.tensors if known.is_copy(t)}
    assert copies == {f"optimizer/vars/{n}" for n in range(2, 14)}
    assert not any(map(numbers(ours(), wrapped(("- int32", "-", *many), many[::-1])).is_copy, source.tensors))
    assert not any(map(numbers(ours(), wrapped(many, ())).is_copy, source.tensors))
