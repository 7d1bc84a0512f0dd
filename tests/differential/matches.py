"""What a plan says by role: which variable of the old program each variable of the new one would get."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable

import dist_restore as dr
from dist_restore.targets.targets import find_targets
from formats import save, tensors
from outcomes import filled, fresh, stored
from programs import Block, Leaf, Node, Program
from rules import source_names


@dataclasses.dataclass(frozen=True)
class Match:
    """A plan by role.

    Attributes:
      pairs: target role -> source role, where the plan fills it from one.
      marked: the target roles that rest on their order alone.
      refused: the target roles for which a restore would refuse.
      present: the roles that the file holds.
      error: of the plan, where it raised.
    """

    pairs: dict[str, str]
    marked: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    present: frozenset[str] = frozenset()
    error: str = ""

    @property
    def sure(self) -> dict[str, str]:
        """The pairs that do not rest on their order alone."""
        return {target: source for target, source in self.pairs.items() if target not in self.marked}


def match(old: Program, new: Program, form: str = "tf write") -> Match:
    """Saves the old program, plans a restore into the new one, and tells the plan by role."""
    with tempfile.TemporaryDirectory() as name:
        built = fresh(old)
        values = filled(built, 1)
        path = save(built, form, pathlib.Path(name))
        truth = stored(values, tensors(form, path))
        target = fresh(new)
        filled(target, 7)
        try:
            plan = dr.DistributedRestorer(target.root).plan(path)
            names = {id(variable): name for name, variable in find_targets(target.root).handles}
        except dr.RestoreError as error:
            return Match({}, present=frozenset(truth), refused=frozenset(target.variables), error=str(error))
        roles = {name: role for role, name in source_names(path, truth).items()}
        entries = {entry.target: entry for entry in plan.entries}
        found = {role: entries[names[id(v)]] for role, v in target.variables.items() if id(v) in names}
    return Match(
        {role: roles.get(e.sources[0], e.sources[0]) for role, e in found.items() if e.filled},
        frozenset(role for role, e in found.items() if e.proof == dr.Proof.ORDER),
        frozenset(role for role, e in found.items() if e in plan.problems),
        frozenset(truth),
    )


# ---- Programs that differ in one thing --------------------------------------------------------------------


def changed(program: Program, change: Callable[[Node], Node]) -> Program:
    """The program with every node changed."""

    def new(node: Node) -> Node:
        if isinstance(node, Block):
            node = dataclasses.replace(node, children=tuple(new(child) for child in node.children))
        return change(node)

    models = []
    for key, model in program.models:
        block = new(model)
        assert isinstance(block, Block)
        models.append((key, block))
    return dataclasses.replace(program, models=tuple(models))


def unnamed(program: Program) -> Program:
    """The program with automatic layer names."""
    return changed(program, lambda node: dataclasses.replace(node, name=""))


def renamed(program: Program) -> Program:
    """The program with every chosen name replaced by another one; equal names stay equal."""

    def other(name: str) -> str:
        return f"x_{name[::-1]}" if name else ""

    return changed(program, lambda node: dataclasses.replace(node, name=other(node.name), attr=other(node.attr)))


def with_aside(program: Program) -> Program:
    """The program with another model in its Checkpoint, which is like none of the others."""
    style = "module" if program.library == "module" else "functional"
    leaves = tuple(Leaf(f"aside_{i}", "norm", f"aside_{i}", f"aside_{i}") for i in range(5))
    return dataclasses.replace(
        program, models=(*program.models, ("aside", Block("aside", style, "aside", leaves, "aside")))
    )


def without_optimizer(program: Program) -> Program:
    """The program without slots."""
    return dataclasses.replace(program, optimizer=None)
