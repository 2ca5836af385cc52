"""A search over settings of phantom patients: each trial has the data that its settings describe."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_prepared

from raymed.data.phantom import PhantomSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.search import Search
from raymed.tuning.searched_data import SearchedData
from raymed.tuning.settings import SearchSettings
from raymed.tuning.space import Dimension

LR, DIFFICULTY, SEED = "train.lr", "phantom.difficulty", "phantom.seed"
SPACE = {LR: Dimension(1e-4, 1e-2), DIFFICULTY: Dimension(choices=(0.5, 0.9)), SEED: Dimension(choices=(0, 1))}


@pytest.fixture
def prepare(tmp_path: Path):
    """Data of their own for each difficulty and seed, made once."""

    def made(phantom: PhantomSettings) -> Prepared:
        folder = tmp_path / f"{phantom.difficulty}-{phantom.seed}"
        seed = phantom.seed + int(10 * phantom.difficulty)
        return Prepared.open(str(folder)) if folder.exists() else write_prepared(folder, patients=8, slices=1, seed=seed)

    return made


def test_each_trial_has_the_data_that_its_settings_describe(prepare, tmp_path: Path) -> None:
    configured = PhantomSettings(difficulty=0.5)
    prepared = prepare(configured)
    template = RunSpec(
        "search", str(tmp_path / "runs"), prepared.folder.uri, ToyRecipe.for_data(prepared.labels, prepared.size),
        TrainSettings(), data_digest=prepared.digest,
    )  # fmt: skip
    search = Search(template, SearchSettings(SPACE), Budget(4), "", data=SearchedData.of(SPACE, configured, prepare))
    assert search.defaults == {LR: 1e-3, DIFFICULTY: 0.5, SEED: 0}, "the first trial is as configured"
    params = [{LR: 2e-3, DIFFICULTY: each, SEED: seed} for each in (0.5, 0.9) for seed in (0, 1)]
    specs = [search.run_spec(number, each) for number, each in enumerate(params)]
    assert specs[0].data == template.data
    assert len({spec.data for spec in specs}) == len({spec.data_digest for spec in specs}) == 4
    assert [spec.open_data().digest for spec in specs] == [spec.data_digest for spec in specs]
    assert {spec.train.lr for spec in specs} == {2e-3}
    assert [spec.data for spec in search.specs] == [spec.data for spec in specs], "all are read once, before the search"
    with pytest.raises(UserError, match=r"begins with phantom\.seed 7, which search\.space does not hold"):
        Search(template, SearchSettings(SPACE), Budget(4), "", data=SearchedData.of(SPACE, PhantomSettings(seed=7), prepare))


def test_without_such_a_setting_no_data_are_made() -> None:
    assert SearchedData.of({LR: SPACE[LR]}, PhantomSettings(), lambda phantom: pytest.fail("made")) == SearchedData()


@pytest.mark.parametrize(
    ("name", "dimension", "said"),
    [
        (DIFFICULTY, Dimension(0.0, 1.0), r"phantom\.difficulty decides data .*: give choices, not a range"),
        ("phantom.dificulty", Dimension(choices=(0.5, 0.9)), "choose among patients, size, slices, difficulty, seed"),
    ],
)
def test_what_cannot_be_made_beforehand_is_refused(name: str, dimension: Dimension, said: str, prepare) -> None:
    with pytest.raises(UserError, match=said):
        SearchedData.of({name: dimension}, PhantomSettings(), prepare)


def test_data_of_ones_own_do_not_follow_settings_of_phantoms(prepare) -> None:
    own = prepare(PhantomSettings())
    with pytest.raises(UserError, match=r"phantom\.difficulty are settings of phantom patients, which the data named here"):
        SearchedData.of({DIFFICULTY: SPACE[DIFFICULTY]}, PhantomSettings(), lambda phantom: own)
