"""What every job that searches does with its options."""

from __future__ import annotations

from typing import Any

from raymed.errors import UserError
from raymed.job.job import Outcome
from raymed.systems.options import for_search


def search_and_conclude(options: Any) -> Outcome:
    """Search, judge and register the winner; as a plan, say what that would take.

    Args:
        options: of a system (`SystemOptions`) and of a search (`SearchOptions`).

    Raises:
        UserError: something of the options does not fit.
    """
    if options.refit != "none" and not options.CAN_REFIT:
        raise UserError("--refit is for classifiers, whose test patients say what the winner is worth: leave it out")
    options = for_search(options)  # before the imports, which take seconds

    from raymed.cluster.connection import connect
    from raymed.tuning.estimate import describe
    from raymed.tuning.execution import run_search
    from raymed.tuning.result import conclude_search

    connect(start=not options.dry_run)
    search = options.open_search(options.prepared(), options.budget)
    if options.dry_run:
        return describe(search)
    with search.alone():
        return conclude_search(search, run_search(search), options.refit, options.alias)
