"""Where a run pauses and ends, whatever it counts by and wherever it is cut off."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from raymed.training.best import Best
from raymed.training.checkpoint import Progress
from raymed.training.course import Course
from raymed.training.settings import TrainSettings

LENGTHS = (5, 4, 6, 5, 4, 6)  # steps of each epoch, as drawn packs make them


@dataclass
class Walk:
    """A run's way, without a network: each validation's step and epoch, and the steps that were saved between them."""

    validations: list[tuple[int, float]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)

    def go(self, train: TrainSettings, stop_after: int = 0, progress: Progress | None = None, cut: int = 0) -> Progress:
        """To the end, or until step `cut` is done."""
        progress = progress or Progress()
        course = Course(train, stop_after, progress)
        while not course.is_finished:
            while True:
                end = course.pause(LENGTHS[progress.epoch])
                while progress.step < end:
                    progress.step, progress.global_step = progress.step + 1, progress.global_step + 1
                    progress.sums = {"loss": (1.0, 1.0)}
                    if course.checkpoint_is_due and progress.step < end:
                        self.saved.append(progress.global_step)
                    if progress.global_step == cut:
                        return progress
                if course.validation_is_due:
                    break
                course.next_epoch()
            course.validated()
            self.validations.append((progress.global_step, round(course.epoch, 3)))
        return progress


EPOCHS = [(5, 1), (9, 2), (15, 3)]
KINDS = {
    "epochs": (TrainSettings(epochs=3, checkpoint_steps=4), 0, EPOCHS, [4, 8, 12]),
    "steps: the last epoch is cut": (TrainSettings(epochs=1, steps=11), 0, [(5, 1), (9, 2), (11, 3)], []),
    "validations counted by steps": (
        TrainSettings(epochs=3, validate_steps=4, checkpoint_steps=3), 0, [(4, 0.8), (8, 1.75), (12, 2.5), (15, 3)], [3, 6]
    ),
    "both": (TrainSettings(steps=17, validate_steps=7), 0, [(7, 1.5), (14, 2.833), (17, 3.4)], []),
    "a refit's epochs": (TrainSettings(epochs=6), 3, EPOCHS, []),
    "a refit's steps": (TrainSettings(epochs=6, validate_steps=6), 8, [(6, 1.25), (8, 1.75)], []),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_validated_saved_and_ended_where_its_settings_say(kind: str) -> None:
    train, stop_after, validations, saved = KINDS[kind]
    walk = Walk()
    walk.go(train, stop_after)
    assert walk.validations == validations
    assert walk.saved[: len(saved)] == saved


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_cut_off_after_any_step_validates_where_it_would_have(kind: str) -> None:
    train, stop_after, validations, _ = KINDS[kind]
    for cut in range(1, validations[-1][0] + 1):
        walk = Walk()
        progress = walk.go(train, stop_after, cut=cut)
        walk.go(train, stop_after, progress)
        assert walk.validations == validations, cut


@pytest.mark.parametrize(("patience", "waited", "over"), [(0, 9, False), (3, 2, False), (3, 3, True), (3, 4, True)])
def test_a_run_stops_after_exactly_as_many_validations_without_a_better_one(patience: int, waited: int, over: bool) -> None:
    progress = Progress(epoch=9, best=Best(waited=waited))
    assert Course(TrainSettings(epochs=50, patience=patience), 0, progress).is_finished is over


def test_what_validations_are_counted_by_is_a_metric_and_a_word() -> None:
    assert (TrainSettings().counted, TrainSettings(steps=9).noun) == ("epoch", "epoch")
    assert (TrainSettings(validate_steps=5).counted, TrainSettings(validate_steps=5).noun) == ("global_step", "step")
