"""Where a run stands, and where it pauses to validate, to save, and for good: counted in epochs, or in optimizer steps."""

from __future__ import annotations

import math

from raymed.training.checkpoint import Progress
from raymed.training.settings import TrainSettings


class Course:
    """A run's way through its epochs. It moves `progress` only where an epoch ends."""

    def __init__(self, train: TrainSettings, stop_after: int, progress: Progress) -> None:
        """
        Args:
            stop_after: see `RunSpec`.
        """
        self._train, self._stop_after, self._progress = train, stop_after, progress
        self._epoch_steps = 0  # of the epoch under way

    @property
    def point(self) -> int:
        """Where the run stands, as its validations are counted."""
        return self._progress.global_step if self._train.validate_steps else self._progress.epoch

    @property
    def epoch(self) -> float:
        """Epochs trained; a whole number where they are what is counted."""
        return self._progress.epoch + (self._progress.step / self._epoch_steps if self._progress.step else 0)

    @property
    def is_finished(self) -> bool:
        """Whether all is trained and validated, or a better model has been waited for long enough."""
        train, progress = self._train, self._progress
        if progress.sums:  # of steps that no validation has followed yet: a run may be cut off right after its last step
            return False
        trained = progress.global_step >= train.steps if train.steps else progress.epoch >= train.epochs
        patience_over = 0 < train.patience <= progress.best.waited
        return trained or patience_over or 0 < self._stop_after <= self.point

    def pause(self, epoch_steps: int) -> int:
        """The step of the epoch under way, which has so many, up to which it is trained before the next pause."""
        self._epoch_steps = epoch_steps
        return int(min(epoch_steps, self._progress.step + self._steps_left))

    @property
    def validation_is_due(self) -> bool:
        """Whether the pause that was reached is for a validation, and not only the end of an epoch."""
        is_last = not self._train.steps and self._progress.epoch + 1 >= self._train.epochs
        return not self._train.validate_steps or not self._steps_left or is_last

    def validated(self) -> None:
        """The steps since the last validation were validated. Where epochs are counted, theirs is over, cut short or not."""
        self._progress.sums = {}
        if not self._train.validate_steps or self._progress.step == self._epoch_steps:
            self.next_epoch()

    def next_epoch(self) -> None:
        """The epoch under way is over."""
        self._progress.epoch, self._progress.step = self._progress.epoch + 1, 0

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether the steps so far ask for a checkpoint."""
        every = self._train.checkpoint_steps
        return bool(every) and self._progress.global_step % every == 0

    @property
    def _steps_left(self) -> float:
        """Steps to the next validation; infinity where that is at the end of an epoch."""
        every, done = self._train.validate_steps, self._progress.global_step
        left = [end - done for end in (self._train.steps, self._stop_after if every else 0) if end]
        left += [-done % every or (0 if self._progress.sums else every)] if every else []
        return min(left, default=math.inf)
