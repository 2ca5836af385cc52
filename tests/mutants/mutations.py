"""Small mistakes that somebody might make in a module, each of which a test should notice."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
CALLED = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
    "sum": "mean",
    "mean": "sum",
}


@dataclass(frozen=True)
class Mutant:
    """A module with one mistake.

    Attributes:
        line: where it is.
        before: the code as it was.
        after: and as it is now.
        tree: the whole module.
    """

    line: int
    before: str
    after: str
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """One after the other, from the first line to the last; annotations, docstrings and texts of errors stay as they are."""
    whole = ast.parse(source)
    skipped = {id(node) for owner in ast.walk(whole) for untested in _untested(owner) for node in ast.walk(untested)}
    nodes = list(ast.walk(whole))
    for place, node in enumerate(nodes):
        if id(node) in skipped:
            continue
        for change in _changes(node):
            tree = copy.deepcopy(whole)  # is walked in the same order
            changed = list(ast.walk(tree))[place]
            before = _shown(changed)
            change(changed)
            yield Mutant(getattr(node, "lineno", 0), before, _shown(changed), ast.fix_missing_locations(tree))


def _untested(node: ast.AST) -> list[ast.AST]:
    """Parts of a node in which no mistake is made."""
    if isinstance(node, ast.arg):
        return [node.annotation] if node.annotation else []
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    if isinstance(node, ast.FunctionDef):
        return [*node.decorator_list, *([node.returns] if node.returns else [])]
    if isinstance(node, ast.ClassDef):
        return [*node.decorator_list]
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Assert)):
        return [node]
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return [node]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return [node]
    if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log."):
        return [node]
    return []


def _changes(node: ast.AST) -> Iterator[Callable[[ast.AST], None]]:
    """What may be done to a copy of the node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        yield lambda copied: copied.ops.__setitem__(0, COMPARED[type(copied.ops[0])]())  # type: ignore[attr-defined]
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in COMPUTED:
        yield lambda copied: setattr(copied, "op", COMPUTED[type(copied.op)]())  # type: ignore[attr-defined]
    elif isinstance(node, ast.BoolOp):
        yield lambda copied: setattr(copied, "op", ast.Or() if isinstance(copied.op, ast.And) else ast.And())  # type: ignore[attr-defined]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda copied: setattr(copied, "op", ast.UAdd()) or setattr(copied, "operand", _bool(copied.operand))  # type: ignore[attr-defined, func-returns-value]
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda copied: setattr(copied, "value", not copied.value)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield lambda copied: setattr(copied, "value", copied.value + 1)  # type: ignore[attr-defined]
    elif isinstance(node, ast.Call) and _name(node.func) in CALLED:
        yield lambda copied: _rename(copied.func)  # type: ignore[attr-defined]
    elif isinstance(node, ast.IfExp):
        yield lambda copied: setattr(copied, "test", ast.Constant(True))
        yield lambda copied: setattr(copied, "test", ast.Constant(False))
    elif isinstance(node, ast.If):
        yield lambda copied: setattr(copied, "test", ast.Constant(False))
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield lambda copied: setattr(copied, "ifs", [])


def _shown(node: ast.AST) -> str:
    return f"if {ast.unparse(node.test)}" if isinstance(node, (ast.If, ast.IfExp)) else ast.unparse(node)


def _bool(operand: ast.expr) -> ast.expr:
    return ast.Call(ast.Name("bool", ast.Load()), [operand], [])


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _rename(function: ast.expr) -> None:
    if isinstance(function, ast.Attribute):
        function.attr = CALLED[function.attr]
    elif isinstance(function, ast.Name):
        function.id = CALLED[function.id]
