"""Where the workers of a run lie: on one machine, or on several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.actor import ActorHandle
from ray.train.v2.api.config import ScalingConfig

if TYPE_CHECKING:
    from raymed.training.fit import Resources


class Placement(ScalingConfig):
    """Ray Train's word for a run's workers, which looks anew each time they start whether a machine holds them all.

    Where the only one that did was lost, they would wait for it beside the free cards of others, for ever.
    """

    _each: Resources
    _name: str
    _stop_decisions: ActorHandle | None
    _lay_together = False

    @classmethod
    def of(cls, each: Resources, name: str, stop_decisions: ActorHandle | None) -> Placement:
        """
        Args:
            name: the run's.
            stop_decisions: is told where workers that waited for one machine lie on several.
        """
        placement = cls(
            num_workers=(each.min_workers, each.workers) if each.is_elastic else each.workers,
            use_gpu=each.gpus > 0,
            resources_per_worker={"CPU": each.cpus} | ({"GPU": each.gpus} if each.gpus else {}),
        )
        placement._each, placement._name, placement._stop_decisions = each, name, stop_decisions
        return placement

    @property
    def placement_strategy(self) -> str:
        """Asked for by Ray Train's controller, before each start of the workers."""
        together = self._each.lie_together
        if self._lay_together and not together and self._stop_decisions is not None:
            self._stop_decisions.tell.remote(
                f"no machine that is left holds the {self._each.workers} workers of {self._name}: they go on on several, "
                "and sum their gradients over the network in every step"
            )
        self._lay_together = together
        return "STRICT_PACK" if together else "PACK"

    @placement_strategy.setter
    def placement_strategy(self, usual: str) -> None:
        """Ray's own is not asked."""
