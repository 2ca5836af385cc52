import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from raymed.errors import UserError
from raymed.job.job import JobOptions, parse
from raymed.systems.toy.recipe import ToyRecipe
from raymed.training.settings import TrainSettings
from raymed.training.spec import RunSpec
from raymed.tuning.budget import Budget
from raymed.tuning.search import Search
from raymed.tuning.settings import Halving, SearchSettings
from raymed.tuning.space import Dimension, check_drawn, get_setting, with_setting


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    name: str = "x"
    loss: Inner = field(default_factory=Inner)


def test_a_dotted_name_changes_that_setting_and_nothing_else():
    changed = with_setting(Outer(), "inner.rate", 0.5)
    assert changed == dataclasses.replace(Outer(), inner=Inner(0.5))
    assert get_setting(changed, "inner.rate") == 0.5


def test_a_setting_of_an_earlier_record_is_found_under_the_name_it_has_now():
    changed = with_setting(Outer(), "loss_settings.rate", 0.5)
    assert changed.loss.rate == get_setting(changed, "loss_settings.rate") == 0.5


@pytest.mark.parametrize("path", ["inner.rat", "outer", "name.rate"])
def test_a_setting_that_nobody_reads_is_an_error_that_lists_what_there_is(path):
    with pytest.raises(UserError, match="choose among"):
        get_setting(Outer(), path)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"low": 1.0}, {"low": 2.0, "high": 1.0}, {"low": 0.0, "high": 1.0, "log": True}, {"low": 0, "choices": (1,)}],
)
def test_a_dimension_that_cannot_be_drawn_from_is_refused(wrong):
    with pytest.raises(UserError):
        Dimension(**wrong)


@dataclass(frozen=True)
class Slow(Outer):
    def check(self):
        if self.inner.rate > 0.3:
            raise UserError(f"inner.rate is at most 0.3, not {self.inner.rate}")


@pytest.mark.parametrize("drawn", [Dimension(0.0, 0.5), Dimension(choices=(0.1, 0.5))])
def test_a_setting_that_most_trials_would_fail_of_is_refused_before_the_first(drawn):
    with pytest.raises(UserError, match=r"would draw inner\.rate 0\.5, and inner\.rate is at most 0\.3"):
        check_drawn({"inner.rate": drawn}, Slow())
    check_drawn({"inner.rate": Dimension(0.0, 0.3)}, Slow())
    check_drawn({"inner.rate": drawn}, Outer())


def test_whole_numbers_of_a_file_stay_whole(tmp_path):
    @dataclass(frozen=True, kw_only=True)
    class Options(JobOptions):
        """Options.

        Attributes:
            search: How it is searched.
        """

        search: SearchSettings = field(default_factory=SearchSettings)

    (tmp_path / "space.yaml").write_text(
        "search: {space: {a: {low: 8, high: 32}, b: {choices: [8, 16]}, c: {low: 0.0, high: 1.0}, "
        "d: {choices: [true, x, null, 1.5]}}}"
    )
    space = parse(Options, ["--config", str(tmp_path / "space.yaml")]).search.space
    assert [type(space["a"].low), type(space["c"].low)] == [int, float]
    assert [type(each) for each in space["b"].choices] == [int, int]
    assert space["d"].choices == (True, "x", None, 1.5) and space["d"].choices[0] is True


def test_no_configuration_stops_trials_while_they_warm_up():
    """Before the end of the warm-up a loss says more about the warm-up than about the settings."""
    configs = {path.name: yaml.safe_load(path.read_text()) for path in Path("configs").glob("*.yaml")}
    searched = {
        name: config for name, config in configs.items() if "train.warmup" in config.get("search", {}).get("space", {})
    }
    assert len(searched) >= 2
    for name, config in searched.items():
        longest = config["search"]["space"]["train.warmup"]["high"] * config["max_epochs"]
        assert longest <= config["search"]["halving"]["first_rung"], name


@pytest.mark.parametrize(
    ("train", "drawn", "asked", "begins"),
    [
        ({"epochs": 9}, Dimension(0.0, 0.2), 2, 2),
        ({"epochs": 30}, Dimension(0.0, 0.2), 2, 6),
        ({"epochs": 30}, Dimension(choices=(0.0, 0.1)), 2, 3),
        ({"epochs": 30}, Dimension(0.0, 0.2), 0, 0),
        ({"epochs": 30, "validate_steps": 4}, Dimension(0.0, 0.2), 2, 32),
    ],
)
def test_no_trial_is_stopped_while_some_warm_up_however_long_they_are(prepared, tmp_path, train, drawn, asked, begins):
    """README's night asks for 30 epochs of a configuration that was made for 9. Of 150 steps here 30 warm up."""
    recipe = ToyRecipe.for_data(prepared.labels, prepared.size)
    template = RunSpec("run", str(tmp_path), prepared.folder.uri, recipe, TrainSettings(**train))
    settings = SearchSettings(space={"train.warmup": drawn}, halving=Halving(asked))
    search = Search(template, settings, Budget(trials=3), "")
    assert len(template.plan(prepared, 0).batches) == 5
    study = search.open_study()
    study.close()
    assert study.halving.first_rung == begins
    told = f"early from {template.train.noun} {begins} on, not from {template.train.noun} {search.halving.first_rung}:"
    assert (told in search.later_rung(study.warm_up)) == (begins != search.halving.first_rung)
