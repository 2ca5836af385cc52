"""The page of a search that is judged by a loss: what was found on patients, all trials, and how to get it again.

A system's own page is a template that extends `search_page.html` and says in its block `judged` what was found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from raymed.evaluation import search_figures
from raymed.evaluation.page import environment
from raymed.evaluation.search_summary import SearchSummary


def render(
    search: SearchSummary,
    package: str = "raymed.evaluation",
    template: str = "search_page.html",
    *,
    val_loss: float,
    caution: str,
    used: str,
    found_by: str,
    settings: Mapping[str, Any],
    refitted: Sequence[str],
    **own: Any,
) -> str:
    """The page as one HTML document. It loads nothing.

    Args:
        package: where the template lies.
        template: its file.
        val_loss: of the winner's best epoch.
        caution: what a reader must not miss.
        used: what was trained and validated on, in words.
        found_by: how the winner was chosen, a sentence.
        settings: the winner's.
        refitted: splits that it was trained again on; none where it was not.
        own: what the template shows besides.
    """
    sign = 1 if search.objective.direction == "min" else -1
    return (
        environment(package)
        .get_template(template)
        .render(
            search=search,
            val_loss=val_loss,
            caution=caution,
            pictures=_pictures(search),
            trials=sorted(search.trials, key=lambda each: math.inf if each.value is None else sign * each.value),
            searched=sorted({name for trial in search.trials for name in trial.params}),
            used=used,
            found_by=found_by,
            settings=json.dumps(settings, ensure_ascii=False, indent=2),
            refitted=refitted,
            **own,
        )
    )


def _pictures(search: SearchSummary) -> list[Markup]:
    """Learning curves, and how the search went; none where no trial came to a value."""
    reached = sum(trial.value is not None for trial in search.trials)
    drawn = search_figures.course(search) if reached else {}
    return [Markup(svg) for name, svg in drawn.items() if name == "curves" or reached > 1]
