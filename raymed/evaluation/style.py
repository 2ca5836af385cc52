"""How figures look: colours, fonts, and SVG that follows a page's light or dark colours."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.figure import Figure

from raymed.language import say

INK, MUTED, FAINT, GRID, PAPER = "#1b2430", "#66717e", "#b4bdc8", "#e3e7ec", "#fefefe"
ACCENT, WARNING = "#0072b2", "#d55e00"
SERIES = (
    "#0072b3",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e01",
)  # Okabe & Ito 2008: safe for colour-blind readers
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    FAINT: "faint",
    GRID: "grid",
    PAPER: "paper",
    ACCENT: "accent",
    WARNING: "warning",
} | {colour: f"series-{number}" for number, colour in enumerate(SERIES)}
_CJK = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei",
    "SimHei", "PingFang SC", "Heiti SC", "Droid Sans Fallback",
)  # fmt: skip


@cache
def _families() -> tuple[str, ...]:
    installed = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(name for name in _CJK if name in installed))


@cache
def _characters() -> frozenset[int]:
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in _families()]
    return frozenset().union(*(font.get_charmap() for font in fonts))


def drawable(names: Sequence[str], english: Sequence[str]) -> list[str]:
    """`names` if this machine's fonts have all their characters, else `english`, else numbers in their order."""
    known = _characters()
    for each in (names, english):
        if all(ord(character) in known for name in each for character in name):
            return list(each)
    return [f"class {number}" for number in range(1, len(names) + 1)]


def label(english: str) -> str:
    """Words of a figure in the reader's language, where this machine's fonts have its characters."""
    return drawable([say(english)], [english])[0]


_STYLE: Any = {
    "font.family": list(_families()),
    "font.size": 10,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "lines.solid_capstyle": "round",
}
styled = mpl.rc_context(_STYLE)  # each use as a decorator enters it anew


def as_svg(figure: Figure, label: str) -> str:
    """Inline SVG whose colours are the page's CSS variables (``--ink``, ``--accent``, ``--series-0`` ...).

    Args:
        figure: a figure drawn under `styled`.
        label: what a reader who cannot see it should hear.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the names of parts repeat from figure to figure
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    spoken = html.escape(label, quote=True)
    return re.sub(r"<svg ", f'<svg role="img" aria-label="{spoken}" ', svg, count=1)
