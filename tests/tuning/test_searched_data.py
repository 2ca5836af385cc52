"""A search over settings of phantom patients: each trial has the data that its settings describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from raymed.data.phantom import PhantomSettings
from raymed.errors import UserError
from raymed.systems.options import SearchOptions
from raymed.systems.toy.options import ToyOptions
from raymed.tuning.search import Search
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension

SMALL = PhantomSettings(patients=12, size=32, slices=(1, 1))
DIFFICULTY, LR = "phantom.difficulty", "train.lr"


@dataclass(frozen=True, kw_only=True)
class SearchedToy(ToyOptions, SearchOptions):
    """Options of a toy search."""


def search(storage: Path, data: str | None = None, **space: Dimension) -> Search:
    options = SearchedToy(
        storage=str(storage),
        data=data,
        phantom=SMALL,
        search=SearchSettings(
            space={LR: Dimension(1e-4, 1e-2), **{f"phantom.{name}": each for name, each in space.items()}}
        ),
        dry_run=True,
    )
    return options.open_search(options.prepared(), options.budget)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_each_trial_has_the_data_that_its_settings_describe(tmp_path: Path) -> None:
    searched = search(tmp_path, difficulty=Dimension(choices=(0.5, 0.9)), seed=Dimension(choices=(0, 1)))
    assert searched.defaults == {LR: 1e-3, DIFFICULTY: 0.5, "phantom.seed": 0}, "the first trial is as configured"
    params = [{LR: 1e-3, DIFFICULTY: each, "phantom.seed": seed} for each in (0.5, 0.9) for seed in (0, 1)]
    specs = [searched.run_spec(number, each) for number, each in enumerate(params)]
    assert specs[0].data == searched.template.data
    assert len({spec.data for spec in specs}) == len({spec.data_digest for spec in specs}) == 4
    assert {spec.data for spec in searched.specs} == {spec.data for spec in specs}, "all are read once, before the search"
    for spec in specs:
        assert spec.open_data().digest == spec.data_digest
        assert spec.train.lr == 1e-3
    with pytest.raises(UserError, match=r"phantom\.difficulty decides data .*: give choices, not a range"):
        search(tmp_path, difficulty=Dimension(0.0, 1.0))
    with pytest.raises(UserError, match=r"phantom\.difficulty are settings of phantom patients, which the data named here"):
        search(tmp_path, data=specs[0].data, difficulty=Dimension(choices=(0.5, 0.9)))
    with pytest.raises(UserError, match="choose among patients, size, slices, difficulty, seed"):
        search(tmp_path, dificulty=Dimension(choices=(0.5, 0.9)))
