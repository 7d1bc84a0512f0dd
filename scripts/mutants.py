"""Small changes of a Python file, each of which a test should notice: one operator, constant, branch or argument.

Works on the syntax tree. Left alone are what decides nothing: annotations, decorators, docstrings, the words of
f-strings, imports, asserts and `strict=` of zip.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
from collections.abc import Callable, Iterator

_COMPARE: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "list"}
_ALONE = (ast.Name, ast.Attribute, ast.Subscript)
_Changed = tuple[str, ast.AST]


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One changed file.

    Attributes:
      path: of the file.
      line: where the change is.
      what: the kind of the change.
      tree: the file's syntax with the change.
      diff: the changed lines, before and after.
    """

    path: str
    line: int
    what: str
    tree: ast.Module
    diff: tuple[str, ...]


def mutants_of(path: str, text: str) -> Iterator[Callable[[], Mutant]]:
    """All mutants of a file, each made when it is asked for."""
    tree = ast.parse(text)
    for index, node in enumerate(_deciding(tree)):
        for number, (what, _) in enumerate(_changes(node)):
            yield lambda index=index, number=number, what=what: _make(path, tree, index, number, what)


def _make(path: str, tree: ast.Module, index: int, number: int, what: str) -> Mutant:
    changed = copy.deepcopy(tree)
    old = list(_deciding(changed))[index]
    new = [*_changes(old)][number][1]
    changed = _Replace(old, new).visit(changed)
    ast.fix_missing_locations(changed)
    line = getattr(old.iter if isinstance(old, ast.comprehension) else old, "lineno", 0)
    return Mutant(path, line, what, changed, _diff(tree, changed))


def _diff(old: ast.Module, new: ast.Module) -> tuple[str, ...]:
    before, after = (ast.unparse(tree).splitlines() for tree in (old, new))
    lines = difflib.unified_diff(before, after, lineterm="", n=0)
    return tuple(line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@")


class _Replace(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        """The node, or what stands for it."""
        return ast.copy_location(self._new, node) if node is self._old else self.generic_visit(node)


def _deciding(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that decide something, in the order of the text."""
    for child in _children(node):
        yield child
        yield from _deciding(child)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _is_idle(child):
                yield child


def _is_idle(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.keyword):
        return node.arg == "strict"
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.annotation) == "TypeAlias"
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.JoinedStr | ast.expr_context)


def _changes(node: ast.AST) -> Iterator[_Changed]:
    """What may stand for a node: (kind of change, new node) pairs."""
    for kind, change in _KINDS:
        if isinstance(node, kind):
            yield from change(node)


def _compare(node: ast.Compare) -> Iterator[_Changed]:
    for position, operator in enumerate(node.ops):
        for other in _COMPARE[type(operator)]:
            operators = [*node.ops[:position], other(), *node.ops[position + 1 :]]
            yield "comparison", ast.Compare(node.left, operators, node.comparators)


def _boolean(node: ast.BoolOp) -> Iterator[_Changed]:
    yield "and/or", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    for position in range(len(node.values)):
        left = [*node.values[:position], *node.values[position + 1 :]]
        yield "operand dropped", ast.BoolOp(node.op, left) if len(left) > 1 else left[0]


def _negation(node: ast.UnaryOp) -> Iterator[_Changed]:
    if isinstance(node.op, ast.Not | ast.USub):
        yield "negation removed", node.operand


def _operator(node: ast.BinOp) -> Iterator[_Changed]:
    if type(node.op) in _BINARY:
        yield "operator", ast.BinOp(node.left, _BINARY[type(node.op)](), node.right)


def _constant(node: ast.Constant) -> Iterator[_Changed]:
    if isinstance(node.value, bool):
        yield "constant", ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield from (("off by one", ast.Constant(node.value + step)) for step in (1, -1))
    elif isinstance(node.value, str):
        yield "text", ast.Constant("" if node.value else "mutant")


def _if(node: ast.If) -> Iterator[_Changed]:
    for value in (True, False):
        yield f"condition is {value}", ast.If(ast.Constant(value), node.body, node.orelse)


def _if_expression(node: ast.IfExp) -> Iterator[_Changed]:
    yield "condition is True", node.body
    yield "condition is False", node.orelse


def _filter(node: ast.comprehension) -> Iterator[_Changed]:
    for position in range(len(node.ifs)):
        left = [*node.ifs[:position], *node.ifs[position + 1 :]]
        yield "filter dropped", ast.comprehension(node.target, node.iter, left, node.is_async)


def _call(node: ast.Call) -> Iterator[_Changed]:
    if isinstance(node.func, ast.Name) and node.func.id in _CALLS:
        name = _CALLS[node.func.id]
        yield (
            f"{node.func.id} -> {name}",
            ast.Call(ast.Name(name, ast.Load()), node.args, [] if name == "list" else node.keywords),
        )
    if any(k.arg == "key" for k in node.keywords):
        yield "key dropped", ast.Call(node.func, node.args, [k for k in node.keywords if k.arg != "key"])
    for position in range(len(node.args) - 1):
        first, second = node.args[position : position + 2]
        if isinstance(first, _ALONE) and isinstance(second, _ALONE):
            arguments = [*node.args[:position], second, first, *node.args[position + 2 :]]
            yield "arguments swapped", ast.Call(node.func, arguments, node.keywords)


def _tuple(node: ast.Tuple) -> Iterator[_Changed]:
    if len(node.elts) == 2 and isinstance(node.ctx, ast.Load) and all(isinstance(x, _ALONE) for x in node.elts):
        yield "members swapped", ast.Tuple([node.elts[1], node.elts[0]], node.ctx)


def _statement(node: ast.stmt) -> Iterator[_Changed]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.YieldFrom | ast.Yield):
        yield "yield dropped", ast.Expr(ast.YieldFrom(ast.Tuple([], ast.Load())))
    elif isinstance(node, ast.Expr | ast.AugAssign | ast.Continue | ast.Break):
        yield "statement dropped", ast.Pass()


_KINDS: tuple[tuple[type[ast.AST], Callable[..., Iterator[_Changed]]], ...] = (
    (ast.Compare, _compare),
    (ast.BoolOp, _boolean),
    (ast.UnaryOp, _negation),
    (ast.BinOp, _operator),
    (ast.Constant, _constant),
    (ast.If, _if),
    (ast.IfExp, _if_expression),
    (ast.comprehension, _filter),
    (ast.Call, _call),
    (ast.Tuple, _tuple),
    (ast.stmt, _statement),
)
