"""Sentences that the code says to a person, as its syntax tree has them: a value in a sentence is a pair of braces."""

from __future__ import annotations

import ast
import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEVELS = ("info", "warning", "error")
RESULTS = ("Outcome", "list[str]", "Iterator[str]", "Iterable[str]", "tuple[str, ...]")  # what a function of lines returns
PATTERNS = ("search", "match", "fullmatch", "sub", "findall", "compile")
_WORDS = re.compile(r"[A-Za-z]{2,}.* .*[A-Za-z]{2,}", re.DOTALL)
_CHINESE = re.compile("[\u4e00-\u9fff]")


def modules() -> list[Path]:
    return sorted([*ROOT.joinpath("raymed").rglob("*.py"), *ROOT.joinpath("jobs").glob("*.py")])


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """All of a file's syntax tree. It is kept, as to walk it takes longer than what is asked of it."""
    return tuple(ast.walk(tree(path)))


def placed(sentence: str) -> str:
    """A sentence whatever its values are called, and however they are written."""
    parts = string.Formatter().parse(sentence)
    return "".join(_escaped(words) + ("{}" if name is not None else "") for words, name, _, _ in parts)


def tells(sentence: str) -> bool:
    """Whether it has words of English: not a name, a command or a sign."""
    return bool(_WORDS.search(sentence)) and not _CHINESE.search(sentence) and not sentence.startswith("python ")


@cache
def errors() -> frozenset[str]:
    """Names of the classes of errors that a person can act on."""
    bases = {
        node.name: {name_of(base) for base in node.bases}
        for path in modules()
        for node in nodes_of(path)
        if isinstance(node, ast.ClassDef)
    }
    found = {"UserError", "RunError"}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return frozenset(found)


def name_of(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


class Module:
    """What a module says.

    Attributes:
        path: of the module.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = [node for node in nodes_of(path) if isinstance(node, ast.FunctionDef)]

    def of_errors(self) -> Iterator[tuple[str, list[str]]]:
        """What each error is made with, as it is written, and its sentences; none where others say it."""
        for call, scope in self._calls(lambda call: name_of(call.func) in errors()):
            if call.args:
                whole = [each for each in self.texts(call.args[0], scope) if each.strip("{} \n")]
                yield ast.unparse(call.args[0]), [*whole, *self._inner(call.args[0], scope, set())]

    def of_log(self) -> Iterator[str]:
        """Messages of the log, and the sentences that fill them; those of messages have `%s` for values."""
        for call, scope in self._calls(_logs):
            first, *others = call.args
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield _escaped(first.value)
            for each in others:
                yield from self._inner(each, scope, set())

    def of_results(self) -> Iterator[str]:
        """Lines of results: all texts of a job, and of functions that return lines."""
        for function in self._functions:
            if self.path.parent.name == "jobs" or (function.returns and ast.unparse(function.returns) in RESULTS):
                for node in function.body[ast.get_docstring(function) is not None :]:
                    yield from self._inner(node, function, set(), follow=False)

    def _calls(self, wanted: Callable[[ast.Call], bool]) -> Iterator[tuple[ast.Call, ast.AST]]:
        """Calls, and the functions that they stand in."""
        for node in nodes_of(self.path):
            if isinstance(node, ast.Call) and wanted(node):
                around = [each for each in self._functions if each.lineno <= node.lineno <= (each.end_lineno or 0)]
                yield node, max(around, key=lambda each: each.lineno, default=tree(self.path))

    def texts(self, node: ast.AST, scope: ast.AST, depth: int = 0) -> list[str]:
        """The texts that an expression may be; a pair of braces for what only a run knows."""
        if depth > 6:
            return ["{}"]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [_escaped(node.value)]
        if isinstance(node, ast.JoinedStr):
            return ["".join(_escaped(each.value) if isinstance(each, ast.Constant) else "{}" for each in node.values)]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            sides = (self.texts(side, scope, depth + 1) for side in (node.left, node.right))
            return ["".join(pair) for pair in product(*sides)]
        if isinstance(node, ast.Call) and name_of(node.func) == "join" and isinstance(node.args[0], ast.List):
            parts = [each.value if isinstance(each, ast.Starred) else each for each in node.args[0].elts]
        elif isinstance(node, ast.Call):
            parts = [each for function in self._named(node) for each in _returned(function)]
        elif isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        else:
            parts = _assigned(scope).get(name_of(node), []) if isinstance(node, ast.Name) else []
        return [text for part in parts for text in self.texts(part, scope, depth + 1)] or ["{}"]

    def _inner(self, node: ast.AST, scope: ast.AST, seen: set[int], follow: bool = True) -> Iterator[str]:
        """Every sentence in an expression and, if they are followed, in what its names and functions stand for."""
        if id(node) in seen:
            return
        seen.add(id(node))
        called = name_of(node.func) if isinstance(node, ast.Call) else ""
        if called in PATTERNS:
            return
        if not follow and (called in errors() or called in LEVELS or isinstance(node, ast.FunctionDef)):
            return
        if isinstance(node, ast.JoinedStr | ast.BinOp) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield from filter(tells, self.texts(node, scope))
        if called in ("say", "label", "removeprefix"):
            parts: list[ast.AST] = [each.value for each in node.keywords]  # type: ignore[attr-defined]
        elif isinstance(node, ast.Dict):
            parts = list(node.values)
        else:  # of what is put together the whole is said, and not its words apart
            parts = [value for each in _added(node) for value in ast.iter_child_nodes(each)]
            if isinstance(node, ast.JoinedStr | ast.BinOp):
                parts = [each for each in parts if not isinstance(each, ast.Constant)]
        if follow and isinstance(node, ast.Name):
            parts += [value for where in (scope, tree(self.path)) for value in _assigned(where).get(node.id, [])]
        if follow and isinstance(node, ast.Call):
            parts += [each for function in self._named(node) for each in _returned(function)]
        for part in parts:
            yield from self._inner(part, scope, seen, follow)

    def _named(self, call: ast.Call) -> list[ast.FunctionDef]:
        return [each for each in self._functions if each.name == name_of(call.func)]


def _logs(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS and "log" in name_of(call.func.value)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _added(node: ast.AST) -> Iterator[ast.AST]:
    """The sides of a sum, and of sums within it; or the expression itself."""
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else ()
    for side in sides:
        yield from _added(side.body) if isinstance(side, ast.IfExp) else _added(side)
    if not sides:
        yield node


def _returned(function: ast.FunctionDef) -> Iterator[ast.AST]:
    for node in ast.walk(function):
        if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
            yield node.value


@cache
def _assigned(scope: ast.AST) -> dict[str, list[ast.expr]]:
    """What names stand for within a function; in a module, its constants."""
    found: dict[str, list[ast.expr]] = defaultdict(list)
    whole = isinstance(scope, ast.Module)
    for node in ast.iter_child_nodes(scope) if whole else ast.walk(scope):
        value, targets = None, list[ast.expr]()
        if isinstance(node, ast.Assign):
            value, targets = node.value, node.targets
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            value, targets = node.value, [node.target]
        elif isinstance(node, ast.For | ast.comprehension):
            value, targets = node.iter, [node.target]
        if value is not None and (not whole or isinstance(value, ast.Constant | ast.JoinedStr)):
            for each in targets:
                found[name_of(each)].append(value)
    return found
