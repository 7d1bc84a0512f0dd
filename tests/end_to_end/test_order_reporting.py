"""What rests on order alone says so wherever a restore is described, and can be refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import keras
import msgspec
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from build import checkpoint, entry, filled, problems, program
from dist_restore.core.errors import AmbiguousMatchError
from dist_restore.planning.entries import PlanEntry, Problem, Proof, Status
from dist_restore.planning.order import refuse_order
from dist_restore.planning.plan import RestorePlan
from dist_restore.planning.planner import Options, resolve
from dist_restore.planning.proofs import MAX_FAMILIES, count_proofs, order_note
from dist_restore.planning.refusal import refuse_problems
from dist_restore.planning.rules.rule_set import RuleSet
from dist_restore.report import RestoreReport, markdown, tensorboard
from dist_restore.report.conversion import ConversionReport
from dist_restore.restore.restorer import DistributedRestorer
from live import adam, refuse, restore, save, scramble
from places import GOLDEN


def row(target: str, source: str, proof: Proof, status: Status = Status.RENAMED) -> PlanEntry:
    sources = (source,) if source else ()
    return PlanEntry(target, sources, (), status, "order of automatic names, 1 of 3", "", 4, proof=proof, elements=1)


def crossed() -> RestorePlan:
    """Two blocks whose norms have no names, and what has some."""
    rows = [row(f"m/blocks/{i}/ln_{j}/gamma", f"m/b/{i}/{2 - j}", Proof.ORDER) for i in range(2) for j in range(2)]
    rows.append(row("m/head/kernel", "m/head/kernel", Proof.NAME, Status.EXACT))
    rows.append(row("m/table", "m/embed", Proof.RULE))
    rows.append(row("m/zero", "", Proof.NONE, Status.KEPT))
    return RestorePlan("/run/ckpt-1", "c" * 64, "t" * 64, tuple(rows))


def sure() -> RestorePlan:
    return dataclasses.replace(crossed(), entries=tuple(e for e in crossed().entries if e.proof is not Proof.ORDER))


def report(plan: RestorePlan) -> RestoreReport:
    return RestoreReport(plan=plan, verify="replicas", verified=True)


# ---- Where it is said ------------------------------------------------------------------------------------


def test_the_summary_of_a_plan_ends_with_what_rests_on_order_alone() -> None:
    last = crossed().summary().split("\n\n")[-1]
    assert last + "\n" == (GOLDEN / "order_note.txt").read_text()


def test_the_summary_of_a_report_ends_with_it_too_and_says_it_once() -> None:
    parts = report(crossed()).summary().split("\n\n")
    assert parts[-1] + "\n" == (GOLDEN / "order_note.txt").read_text()
    assert "Verified" in parts[-2]
    assert report(crossed()).summary().count("rest on their order alone") == 1


def test_the_summary_of_a_conversion_ends_with_it_too() -> None:
    done = ConversionReport(crossed(), "/new/ckpt-1", "", (), (), 4, 0.0)
    assert done.summary().endswith(crossed().order_note) and done.summary().count("order alone") == 1


def test_where_nothing_rests_on_order_nothing_is_said() -> None:
    done = ConversionReport(sure(), "/new/ckpt-1", "", (), (), 4, 0.0)
    assert sure().order_note == ""
    for text in (sure().summary(), report(sure()).summary(), done.summary(), markdown.document(sure())):
        assert "order" not in text.replace("order of automatic names", "")
        assert text == text.rstrip()


def test_only_what_is_filled_counts() -> None:
    refused = row("m/a", "m/b", Proof.ORDER, Status.AMBIGUOUS)
    assert order_note([refused]) == ""
    assert count_proofs([refused])["order"] == 0


def test_one_variable_is_said_in_the_singular() -> None:
    assert order_note([row("m/a", "m/b", Proof.ORDER)]).startswith("1 of 1 variables rests on its order alone: m/a;")


def test_the_sentence_is_bounded_whatever_the_names_are() -> None:
    names = [f"m/{'x' * 3000}{chr(97 + i)}/\n\x1b[2J" for i in range(20)]
    note = order_note([row(name, "s", Proof.ORDER) for name in names])
    assert note.startswith("20 of 20 variables") and f"and {20 - MAX_FAMILIES} more;" in " ".join(note.split())
    assert len(note) < 1500 and all(line.isprintable() for line in note.split("\n"))


def test_the_json_counts_every_kind_of_proof() -> None:
    fields = json.loads(report(crossed()).to_json())
    assert fields["proofs"] == {"rule": 1, "name": 1, "structure": 0, "outputs": 0, "order": 4}


def test_the_markdown_has_a_column_and_a_section() -> None:
    lines = markdown.document(crossed()).split("\n")
    head = next(line for line in lines if line.startswith("| status | target"))
    place = head.split(" | ").index("proof")
    rows = [line.split(" | ") for line in lines if line.startswith(("| renamed | m/", "| exact | m/"))]
    assert [cells[place] for cells in rows] == ["order"] * 4 + ["name", "rule"]
    assert "4 of 7 variables rest" in lines[lines.index("## Order") + 2]


def test_tensorboard_has_the_counts_and_the_sentence(tmp_path: pathlib.Path) -> None:
    tensorboard.write(report(crossed()), str(tmp_path))
    found = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    found.Reload()
    tags = {tag for tag in found.Tags()["tensors"] if "proof" in tag or tag == "restore/order"}
    assert tags == {"restore/order", *(f"restore/proof/{p.value}" for p in Proof if p is not Proof.NONE)}
    values = dict(tensorboard.scalars(report(crossed())))
    assert (values["proof/order"], values["proof/name"], values["proof/structure"]) == (4.0, 1.0, 0.0)
    assert dict(tensorboard.texts(report(crossed())))["order"].startswith("4 of 7 variables rest")
    assert "order" not in dict(tensorboard.texts(report(sure())))


# ---- What refuses it -------------------------------------------------------------------------------------


def test_what_rests_on_order_is_refused_with_what_would_decide() -> None:
    plan = dataclasses.replace(crossed(), entries=tuple(refuse_order(crossed().entries)))
    assert set(problems(plan).values()) == {"ambiguous"} and len(problems(plan)) == 4
    refused = entry(plan, "m/blocks/1/ln_0/gamma")
    assert (refused.status, refused.problem, refused.proof) == (Status.AMBIGUOUS, Problem.AMBIGUOUS, Proof.NONE)
    assert (refused.sources, refused.elements, refused.candidates) == ((), 0, ("m/b/1/2",))
    for word in ("order", "a rule", "names on the layers", 'order="accept"', "'m/b/1/2'", "automatic names, 1 of 3"):
        assert word in refused.reason
    with pytest.raises(AmbiguousMatchError, match="m/blocks/0/ln_0/gamma"):
        refuse_problems(plan)


def test_what_rests_on_more_is_left_alone() -> None:
    others = [e for e in crossed().entries if e.proof is not Proof.ORDER]
    assert refuse_order(others) == others


def test_a_resolution_refuses_it_only_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever matched it: here equal names pose as order."""
    monkeypatch.setattr("dist_restore.planning.planner.build_entry", _as_order)
    sources, targets = checkpoint("m/a 4\nmomentum@m/a"), program("m/a 4\nmomentum@m/a")
    accepted = resolve(sources, targets, RuleSet.of(None), Options())
    assert filled(accepted)["m/a"] == "m/a" and accepted.order_note
    for keep in (False, True):
        refused = resolve(sources, targets, RuleSet.of(None), Options(refuse_order=True, keep_unmatched=keep))
        assert problems(refused)["m/a"] == "ambiguous" and not refused.order_note


def _as_order(*args: object) -> PlanEntry:
    from dist_restore.planning.entry_builder import build_entry

    return msgspec.structs.replace(build_entry(*args), proof=Proof.ORDER)  # type: ignore[arg-type]


def test_a_plan_that_was_made_before_is_refused_where_it_rests_on_order(tmp_path: pathlib.Path) -> None:
    old, new = (
        tf.train.Checkpoint(b=[tf.Variable(1.0), tf.Variable(2.0)]),
        tf.train.Checkpoint(b=[tf.Variable(3.0), tf.Variable(4.0)]),
    )
    path = old.save(str(tmp_path / "ck"))
    plan = DistributedRestorer(new).plan(path)
    assert entry(plan, "b/0").proof is Proof.ORDER
    with pytest.raises(AmbiguousMatchError, match="b/0"):
        DistributedRestorer(new, order="refuse").apply(plan, path)
    assert [float(v) for v in new.b] == [3.0, 4.0]
    DistributedRestorer(new).apply(plan, path)
    assert [float(v) for v in new.b] == [1.0, 2.0]


# ---- A program whose layers nothing but their order tells ------------------------------------------------


class Block(keras.layers.Layer):
    """Two norms without names, assigned in one order or the other."""

    def __init__(self, *order: str) -> None:
        super().__init__()
        for attribute in order:
            setattr(self, attribute, keras.layers.LayerNormalization())

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.ln2(self.ln1(x))


class Decoder(keras.Model):
    """Blocks in a list: TensorFlow saves them in the optimizer's list only, where nothing has a name."""

    def __init__(self, *order: str) -> None:
        super().__init__()
        self.blocks = [Block(*order) for _ in range(2)]
        self(tf.zeros((1, 4)))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("now", [("ln1", "ln2"), ("ln2", "ln1")], ids=["its own", "lines exchanged"])
def test_blocks_in_a_list_are_said_to_rest_on_order_and_may_be_refused(
    now: tuple[str, str], tmp_path: pathlib.Path
) -> None:
    """The file is the same for both, so the last words must not be that all is verified."""
    old, new = Decoder("ln1", "ln2"), Decoder(*now)
    scramble(old, seed=1)
    path = save(tf.train.Checkpoint(model=old, optimizer=adam(old)), tmp_path)
    root = tf.train.Checkpoint(model=new, optimizer=adam(new))
    last = " ".join(restore(root, path).summary().split("\n\n")[-1].split())
    assert "rest on their order alone: model/blocks/{0..1}/ln{1..2}/beta, model/blocks/{0..1}/ln{1..2}/gamma" in last
    assert last.endswith("No check of values tells whether an order is right.")
    refuse(AmbiguousMatchError, root, path, "model/blocks/0/ln1/gamma", "nothing but their order", order="refuse")
