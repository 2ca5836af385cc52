import io
import math
import re
import warnings
from collections.abc import Callable

import pytest
from matplotlib.figure import Figure
from search_report import CLASSES, NAMES, patients

from raymed.evaluation import figures, search_figures, style
from raymed.evaluation.metrics import evaluate

JUDGED = evaluate(patients((6, 6, 0, 1), 2.0, 0), CLASSES, bootstrap=5)
assert JUDGED.calibration is not None
CALIBRATION = JUDGED.calibration

DRAWN: dict[str, Callable[[], Figure]] = {
    "learning_curves": lambda: search_figures.learning_curves({0: [(1, 0.9), (2, 0.7)], 1: [(1, 1.1)], 2: []}, 0),
    "no_curve": lambda: search_figures.learning_curves({0: []}, 0),
    "history": lambda: search_figures.history({0: 0.9, 2: 0.7}, {0: True, 2: False}, [1]),
    "importance": lambda: search_figures.importance({"train.learning_rate": 0.9, "a$b_c$": 0.1}),
    "nothing_matters": lambda: search_figures.importance({"a": 0.0}),
    "parallel_coordinates": lambda: search_figures.parallel_coordinates(
        {"lr": [1e-4, 1e-2, 1e-3], "kind": ["a", "b", None], "flag": [True, False, True], "depth": [None, None, 3]},
        [0.5, 0.6, 0.6],
        [True, False, True],
        [False, False, True],
        0,
    ),
    "confusion": lambda: figures.confusion(JUDGED.confusion, NAMES, CLASSES),
    "reliability": lambda: figures.reliability(CALIBRATION),
    "roc": lambda: figures.roc(JUDGED, NAMES),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_can_be_drawn_without_a_missing_glyph_and_their_svg_follows_the_page(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = DRAWN[name]()
        figure.savefig(io.BytesIO(), format="png")
        svg = style.as_svg(figure, 'a "label" <of> it')
    assert svg.startswith("<svg ")
    assert 'aria-label="a &quot;label&quot; &lt;of&gt; it"' in svg
    fixed = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    if name != "confusion":  # its shades lie between two colours; the report has it as a table
        assert not fixed - {"#000000"}, "a colour that dark pages cannot change"
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    assert {one or other for one, other in referred} <= set(re.findall(r' id="([^"]+)"', svg))


def test_names_without_glyphs_fall_back_to_english_and_then_to_numbers() -> None:
    assert style.drawable(("normal", "viral"), ("a", "b")) == ["normal", "viral"]
    assert style.drawable(("\U000f1234", "viral"), ("a", "b")) == ["a", "b"]
    assert style.drawable(("\U000f1234", "viral"), ("\U000f1234", "b")) == ["class 1", "class 2"]


def test_the_confusion_figure_shows_counts_and_shares_of_rows() -> None:
    texts = [text.get_text() for text in figures.confusion(JUDGED.confusion, NAMES, CLASSES).axes[0].texts]
    count = JUDGED.confusion[0][0]
    assert texts[0] == f"{count}\n{count / 6:.0%}"
    assert len(texts) == 16


def test_the_best_curve_is_marked_at_its_lowest_epoch() -> None:
    axes = search_figures.learning_curves({3: [(1, 0.9), (2, 0.4), (3, 0.6)], 4: [(1, 0.8)]}, 3).axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.400"]
    assert axes.texts[0].xy == (2, 0.4)


def test_a_wide_range_is_drawn_on_a_logarithmic_axis_and_a_narrow_one_is_not() -> None:
    heights, _ = search_figures._scale([1e-5, 1e-3, 1e-1])
    assert heights == pytest.approx([0, 0.5, 1])
    heights, ticks = search_figures._scale([0.01, 0.5, None, 1.0])
    assert heights[1] == pytest.approx(0.4949, abs=1e-3)
    assert math.isnan(heights[2])
    assert [text for _, text in ticks] == ["0.01", "0.5", "1"]
