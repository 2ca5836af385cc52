"""What libraries do not promise is used in raymed/compat/ alone."""

from __future__ import annotations

import ast
from pathlib import Path

from sentences import nodes_of

ROOT = Path(__file__).parents[2]
FILES = sorted(path for room in ("raymed", "jobs") for path in (ROOT / room).rglob("*.py") if path.parent.name != "compat")
OURS = ("self", "cls", "super")
KNOWN = {  # of Python, torch, numpy and transformers, with what they stand for where they are used
    *("_exit", "_run_exitfuncs", "_current_frames", "_replace"),
    *(
        "_parameters",
        "_buffers",
        "_apply",
        "_foreach_lerp_",
        "_foreach_norm",
        "_modules",
        "_is_mkldnn_bf16_supported",
        "_core",
    ),
    *("_attn_implementation", "_from_config", "_init_weights"),
}


def test_private_modules_of_libraries_are_imported_in_compat_alone() -> None:
    found = []
    for path in FILES:
        for node in nodes_of(path):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            private = {name for name in names if any(part.startswith("_") for part in name.split("."))}
            found += [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in private - {"__future__", "_thread"}]
    assert not found, "a private part of a library has a file of its own: raymed/compat/<library>.py"


def test_private_names_of_libraries_are_used_in_compat_alone() -> None:
    """A name that begins with an underscore is a library's where no file of ours defines it."""
    nodes = [(path, node) for path in FILES for node in nodes_of(path)]
    defined = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    set_here = {
        node.attr
        for _, node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OURS
    }
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.attr}"
        for path, node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in KNOWN | defined | set_here
    ]
    assert not found
