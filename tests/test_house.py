"""The picture of the house in docs/design.md: rooms import one another as it is drawn, and each has its section."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

from sentences import nodes_of

ROOT = Path(__file__).parent.parent
DESIGN = ROOT.joinpath("docs", "design.md").read_text("utf-8")
PICTURE = re.search(r"^```mermaid\n(.*?)^```$", DESIGN, re.MULTILINE | re.DOTALL)
assert PICTURE
ARROWS = set(re.findall(r"^ *(\w+) --> (\w+)$", PICTURE[1], re.MULTILINE))
DOTTED = set(re.findall(r"^ *(\w+) -\..*\.-> (\w+)$", PICTURE[1], re.MULTILINE))
SHARED = set(re.findall(r"\w+", PICTURE[1].split("[what every room may use]")[1])) - {"end"}


def room_of(module: str) -> str:
    """Of a module of raymed, "raymed.data.plan" for one."""
    return module.split(".")[1]


@cache
def imports() -> dict[tuple[str, str], str]:
    """Every pair of rooms of which one imports the other, with a line that does."""
    pairs: dict[tuple[str, str], str] = {}
    for path in sorted([*ROOT.joinpath("raymed").rglob("*.py"), *ROOT.joinpath("jobs").glob("*.py")]):
        inside = path.relative_to(ROOT).with_suffix("").parts
        room = "jobs" if inside[0] == "jobs" else room_of(".".join(inside))
        for node in nodes_of(path):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"raymed.{alias.name}" for alias in node.names] if node.module == "raymed" else [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for other in {room_of(name) for name in names if name.startswith("raymed.")} - {room, "__version__"}:
                pairs[room, other] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return pairs


def reached(room: str) -> set[str]:
    """The rooms to which arrows lead from one, over others too."""
    ends: set[str] = set()
    ahead = [room]
    while ahead:
        start = ahead.pop()
        further = {end for begin, end in ARROWS if begin == start} - ends
        ends |= further
        ahead += further
    return ends


def test_no_room_imports_another_but_along_the_arrows() -> None:
    strangers = {
        f"{where}: {room} imports {other}"
        for (room, other), where in imports().items()
        if other not in reached(room) and (room, other) not in DOTTED and (other not in SHARED or room in SHARED)
    }
    assert not strangers, "draw the arrow in docs/design.md, or better, do without the import"


def test_no_arrow_is_drawn_for_nothing() -> None:
    assert (ARROWS | DOTTED) - set(imports()) == set()


def test_arrows_that_lead_on_lead_round_no_circle() -> None:
    assert [room for room, _ in ARROWS if room in reached(room)] == []


def test_every_room_is_drawn_and_has_a_section() -> None:
    rooms = {path.parent.name for path in ROOT.joinpath("raymed").glob("*/__init__.py")}
    drawn = {end for pair in ARROWS | DOTTED for end in pair} | SHARED
    assert rooms <= drawn
    assert rooms <= set(re.findall(r"^### `raymed/(\w+)/`$", DESIGN, re.MULTILINE))


def test_every_file_that_a_section_names_is_there() -> None:
    """In its room, or below."""
    for room, section in re.findall(r"^### `raymed/(\w+)/`\n(.*?)(?=^##)", DESIGN, re.MULTILINE | re.DOTALL):
        files = {path.name for path in ROOT.joinpath("raymed", room).rglob("*.py")}
        assert set(re.findall(r"`(\w+\.py)`", section)) <= files, room


def test_no_two_modules_of_tests_and_benchmarks_share_a_name() -> None:
    """They are imported without a package: of two, the one that a process met first would answer for both."""
    loose = [path for room in ("tests", "benchmarks") for path in ROOT.joinpath(room).rglob("*.py")]
    names = Counter(path.stem for path in loose if not path.with_name("__init__.py").exists() and path.name != "run.py")
    assert [name for name, count in names.items() if count > 1] == []
