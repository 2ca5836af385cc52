"""What a search took, and what that cost by the prices that a person stated."""

from __future__ import annotations

from pathlib import Path

import pytest

from raymed.storage.folder import Folder
from raymed.training.fit import Resources
from raymed.tuning.budget import Budget
from raymed.tuning.cost import Cost
from raymed.tuning.journal import Journal
from raymed.tuning.settings import Halving
from raymed.tuning.space import Dimension
from raymed.tuning.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two trials, of which one trained for two hours and one for one."""
    journal = Journal(tmp_path / "study.journal", Folder.at(tmp_path))
    study = Study(journal, "search", {"x": Dimension(0.0, 1.0)}, [{"x": 0.5}], Halving(3, 3), seed=0)
    for number, epochs in enumerate((2, 1)):
        study.ask(Budget(2))
        for epoch in range(1, epochs + 1):
            study.report(
                number, epoch, {"val_loss": 1.0, "best_val_loss": 1.0, "best_epoch": 1, "seconds": 3600.0, "model": ""}
            )
    return study


@pytest.mark.parametrize(
    ("workers", "share", "hours", "paid"), [(1, 1.0, 2.0, 0.90), (2, 1.0, 4.0, 1.80), (1, 0.5, 1.0, 0.45)]
)
def test_each_trial_costs_the_gpus_that_it_really_held(
    workers: int, share: float, hours: float, paid: float, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of a card counts as a share, and two workers as two."""
    monkeypatch.setenv("RAYMED_PRICES", "head=0.50,GPU=0.45,DATE=2026-11-29")
    cost, trials = Cost.stated(Resources(workers, workers, 8, share)), study.trials
    assert [cost.of_trial(trial) for trial in trials] == [
        f"{hours:.2f} h, {paid:.2f}",
        f"{hours / 2:.2f} h, {paid / 2 + 1e-9:.2f}",
    ]
    took = cost.of_search(study)
    assert took["epochs"] == "3" and took["GPU hours"] == f"{1.5 * hours:.2f}"
    assert took["cost"].startswith(
        f"{1.5 * hours * 0.45:.2f} (head 0.5 x 0.00 h, GPU 0.45 x {1.5 * hours:.2f} h; prices of 2026"
    )


def test_nobody_is_told_a_price_that_nobody_stated(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYMED_PRICES", raising=False)
    cost = Cost.stated(Resources(1, 1, 8, 1.0))
    assert cost.of_trial(study.trials[0]) == "2.00 h" and "cost" not in cost.of_search(study)
    monkeypatch.setenv("RAYMED_PRICES", "head=0.50,GPU=0.45")
    on_cpus = Cost.stated(Resources(2, 2, 4, 0.0))
    assert on_cpus.of_search(study)["CPU worker hours"] == "6.00" and "cost" not in on_cpus.of_search(study)
