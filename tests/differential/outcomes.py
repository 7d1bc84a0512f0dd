"""One case: what plain TensorFlow makes of a refactor, what the package makes of it, and who is right."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import random
import tempfile
import warnings
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

import dist_restore as dr
from building import Built, build, clear, raw
from dist_restore.targets.targets import find_targets
from formats import native_restore, outline, random_format, save, tensors
from programs import Program, kind_of, naming, random_program
from refactors import DECLARED, UNDECIDABLE, Refactor, random_refactor, refactored
from rules import written_rules

Values = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """What one seed stands for.

    Attributes:
      seed: what it was made from.
      refactor: the program and what became of it.
      form: the file format.
      rules: none, literal, prefix, or pattern.
      late: whether the optimizer of the new program is left unbuilt.
    """

    seed: int
    refactor: Refactor
    form: str
    rules: str
    late: bool


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What happened.

    Attributes:
      case: to what.
      kind: right, marked, quietly_wrong, refused, refused_needless, crashed, unknowable: a new layer is filled that no
        file can tell from the one in whose place it is; or impossible: the library cannot call it, or not write it.
      native: right, wrong or error, of plain TensorFlow.
      wrong: what is wrong, a line for each.
      message: of the error.
      summary: of the plan, for people.
      unseen: whether the new program would write the very same file, but for the values: then order alone can decide.
    """

    case: Case
    kind: str
    native: str
    wrong: tuple[str, ...] = ()
    message: str = ""
    summary: str = ""
    unseen: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """Kinds of the case, for tables."""
        old, new = self.case.refactor.old, self.case.refactor.new
        optimizer = old.optimizer or new.optimizer
        text = (
            f"{optimizer.kind} {optimizer.place}{' ema' * optimizer.ema}{' scaled' * optimizer.scaled}"
            if optimizer
            else "none"
        )
        return {
            "model": kind_of(old),
            "refactor": self.case.refactor.kind,
            "optimizer": text,
            "format": self.case.form,
            "names": naming(old),
            "rules": self.case.rules,
        }


def case_of(seed: int, kind: str = "") -> Case:
    """The case of a seed; with a refactor of this kind where one is given, and without rules."""
    rng = random.Random(seed)
    program = random_program(rng)
    form = random_format(rng, program)
    if not form.startswith("tf ") and program.optimizer and rng.random() < 0.6:
        program = dataclasses.replace(program, optimizer=None)
    if kind:
        while (refactor := refactored(rng, program, kind)) is None:
            program = random_program(rng)
        form = random_format(rng, program)
        return Case(seed, refactor, form, "none", rng.random() < 0.25 and refactor.new.optimizer is not None)
    refactor = random_refactor(rng, program)
    rules = (
        "none"
        if refactor.kind == "identity"
        else rng.choices(("none", "literal", "prefix", "pattern"), (70, 12, 10, 8))[0]
    )
    late = refactor.new.optimizer is not None and rng.random() < 0.25
    return Case(seed, refactor, form, rules, late)


def filled(built: Built, salt: int) -> Values:
    """Gives every variable values of its own, and says which."""
    values = {}
    rng = np.random.default_rng(salt)
    for number, (role, variable) in enumerate(built.variables.items()):
        if variable.dtype.is_integer:
            value = np.full(variable.shape, 1000 * salt % 9973 + number, variable.dtype.as_numpy_dtype)
        else:
            value = rng.uniform(0.1, 1, variable.shape).astype(variable.dtype.as_numpy_dtype)
        variable.assign(value)
        values[role] = value
    return values


def held(built: Built) -> Values:
    """What every variable holds."""
    return {role: variable.numpy() for role, variable in built.variables.items()}


def _key(value: np.ndarray) -> tuple[object, ...]:
    value = np.asarray(value)
    return value.shape, str(value.dtype), value.tobytes()


def stored(values: Values, found: Iterable[np.ndarray]) -> Values:
    """Of the values, those that are in the file; known by themselves, for all differ."""
    keys = {_key(value) for value in found}
    return {role: value for role, value in values.items() if _key(value) in keys}


def run(case: Case) -> Outcome:
    """Runs one case."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return _run(case, pathlib.Path(name))


def _run(case: Case, folder: pathlib.Path) -> Outcome:
    try:
        old = fresh(case.refactor.old)
        values = filled(old, case.seed + 1)
        path = save(old, case.form, folder)
        new = fresh(case.refactor.new, slots=not case.late)
    except Exception as error:
        # The program cannot be called, or Keras cannot write it, such as two layers of one name.
        return Outcome(case, "impossible", "", message=f"{type(error).__name__}: {error}")
    truth = stored(values, tensors(case.form, path))
    before = filled(new, case.seed + 7_000_001)
    outcome = _restored(case, new, path, truth, before)
    native = _native(case, new, path, truth)
    needless = outcome.kind == "refused" and native == "right" and _needs_no_word(case, outcome, new, truth)
    unseen = outcome.kind in ("marked", "quietly_wrong") and _is_unseen(case, path, folder)
    kind = "refused_needless" if needless else outcome.kind
    if unseen and all(text.partition(":")[0] not in truth for text in outcome.wrong):
        kind = "unknowable"
    return dataclasses.replace(outcome, native=native, kind=kind, unseen=unseen)


def _needs_no_word(case: Case, outcome: Outcome, new: Built, truth: Values) -> bool:
    """Whether nothing is new in the program, and nothing has another chosen name, that a person would have to say."""
    steps = set(case.refactor.steps)
    asked = case.late and outcome.message.startswith("UnbuiltModelError")
    undecidable = naming(case.refactor.old) != "chosen" and steps & UNDECIDABLE.keys()
    return not (asked or undecidable or steps & DECLARED) and all(role in truth for role in new.variables)


def _is_unseen(case: Case, path: str, folder: pathlib.Path) -> bool:
    (folder / "new").mkdir()
    other = save(fresh(case.refactor.new), case.form, folder / "new")
    return outline(case.form, path) == outline(case.form, other)


def fresh(program: Program, *, slots: bool = True) -> Built:
    """A program built in a process that has built nothing before."""
    clear()
    return build(program, slots=slots)


def _restored(case: Case, new: Built, path: str, truth: Values, before: Values) -> Outcome:
    try:
        rules = written_rules(case.rules, case.refactor, path, truth, new)
        report = dr.DistributedRestorer(new.root, rules=rules).restore(path)
    except dr.RestoreError as error:
        changed = differences(new, {}, before)
        return Outcome(
            case, "crashed" if changed else "refused", "", tuple(changed), f"{type(error).__name__}: {error}"
        )
    except Exception as error:
        return Outcome(case, "crashed", "", message=f"{type(error).__name__}: {error}")
    if case.late:
        new.add_slots()
    return _judged(case, new, truth, before, report)


def _native(case: Case, new: Built, path: str, truth: Values) -> str:
    """What plain TensorFlow makes of it; on the same objects, for the package leaves no traces on them."""
    if case.late:
        new.add_slots()
    before = filled(new, case.seed + 9_000_001)
    try:
        native_restore(new, case.form, path)
    except Exception:
        return "error"
    return "wrong" if differences(new, truth, before) else "right"


def differences(built: Built, truth: Mapping[str, np.ndarray], before: Values) -> list[str]:
    """The roles that hold something else than they should."""
    wrong = []
    for role, value in held(built).items():
        wanted = truth.get(role, before.get(role))
        if wanted is not None and not np.array_equal(wanted, value):
            wrong.append(role)
    return wrong


def _judged(case: Case, new: Built, truth: Values, before: Values, report: dr.RestoreReport) -> Outcome:
    wrong = differences(new, truth, before)
    lost = [role for role in new.missing if role in truth]
    summary = report.plan.summary()
    if not wrong and not lost:
        return Outcome(case, "right", "", summary=summary)
    names = {id(raw(variable)): name for name, variable in find_targets(new.root).handles}
    entries = {entry.target: entry for entry in report.plan.entries}
    kind, texts = "quietly_wrong" if lost else "right", [f"{role}: the optimizer was built without it" for role in lost]
    for role in wrong:
        entry = entries.get(names.get(id(new.variables[role]), ""))
        verdict = _verdict(entry, case.rules != "none")
        kind = (
            "quietly_wrong" if "quietly_wrong" in (kind, verdict) else "marked" if "marked" in (kind, verdict) else kind
        )
        texts.append(f"{role}: {verdict}; {_told(entry)}; {_origin(new.variables[role], truth, before, role)}")
    return Outcome(case, kind, "", tuple(texts), summary=summary)


def _verdict(entry: dr.PlanEntry | None, ruled: bool) -> str:
    if entry is not None and entry.proof == dr.Proof.ORDER:
        return "marked"
    return "kept" if entry is not None and ruled and entry.status == dr.Status.KEPT else "quietly_wrong"


def _told(entry: dr.PlanEntry | None) -> str:
    if entry is None:
        return "not in the plan"
    how = f"{entry.status.value}, {entry.proof.value}, {entry.evidence or entry.reason}"
    return f"{entry.target} <- {', '.join(entry.sources)} ({how})"


def _origin(variable: tf.Variable, truth: Values, before: Values, role: str) -> str:
    value = variable.numpy()
    if role in before and np.array_equal(before[role], value):
        return "left as it was"
    return f"holds {next((r for r, v in truth.items() if _key(v) == _key(value)), 'something else')}"
