"""Pages of one self-contained HTML file each: they load nothing, and what comes from data is escaped."""

from __future__ import annotations

from typing import Any, cast

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from raymed.language import ENGLISH, reworded, spoken, translated


def environment(package: str) -> Environment:
    """Templates of a package, and those that all pages share: `page_head.html` is how each begins, with its title and the
    colours of its parts. Their sentences are in the language that is spoken.

    Args:
        package: where the page's own template lies.
    """
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader("raymed.evaluation", "")])
    environment: Any = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_callables(
        translated, lambda one, many, count: translated(one if count == 1 else many), newstyle=True
    )
    environment.filters["reworded"] = reworded  # what was put together elsewhere, such as notes of the data
    environment.globals["language"] = spoken() or ENGLISH
    return cast(Environment, environment)
