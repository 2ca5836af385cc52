"""Pages of one self-contained HTML file each: they load nothing, and what comes from data is escaped."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def environment(package: str) -> Environment:
    """Templates of a package, and those that all pages share: `page_head.html` is how each begins, with its title and the
    colours of its parts.

    Args:
        package: where the page's own template lies.
    """
    loader = ChoiceLoader([PackageLoader(package, ""), PackageLoader("raymed.evaluation", "")])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
