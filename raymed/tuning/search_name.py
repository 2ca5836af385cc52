"""What a search is called that a person gave no name: after what decides it, so that the same command goes on with it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from raymed.data.image import recorded
from raymed.models.pretrained import by_contents
from raymed.training.spec import RunSpec
from raymed.tuning.settings import SearchSettings

LATER = [("probe", None)]  # of a recipe, at what they were before they could be given


def search_names(specs: Sequence[RunSpec], settings: SearchSettings, searched: Mapping[str, str]) -> list[str]:
    """The name of a search from a template and listed runs, and, where that is another one, what it was called before.

    Pretrained weights count by what they hold. They counted by where they lie, and so do those that a space names still.

    Args:
        settings: with absolute paths in its space.
        searched: what the weights hold that the space names, by their paths.
    """
    # How many machines share the work changes no result.
    runs = [_deciding(dataclasses.replace(spec, workers=1, min_workers=0)) for spec in specs]
    given = dataclasses.replace(settings, concurrent=0, cpus_per_worker=1)
    search, earlier = dataclasses.asdict(dataclasses.replace(given, gpus_per_worker=1.0)), dataclasses.asdict(given)
    digests = sorted({spec.open_data().digest for spec in specs})
    held = {path: fingerprint for spec in specs for path, fingerprint in spec.pretrained.items()}
    weights = [sorted(searched.values())] if searched else []
    described = (
        [by_contents(runs, held), search, digests, *weights],
        [by_contents(runs, held), earlier, digests, *weights],  # when a trial's share of a card still counted
        [runs, earlier, digests],
    )
    return list(dict.fromkeys(f"{specs[0].recipe.name}-{_digest(each)}" for each in described))


def _deciding(spec: RunSpec) -> dict[str, Any]:
    """A run's fields, but for what differs from one search of a name to the next, and for where its first weights lie."""
    left_out = ("generation", "start", "pretrained")
    fields = {name: value for name, value in recorded(spec).items() if name not in left_out}
    fields["recipe"] = {name: value for name, value in fields["recipe"].items() if (name, value) not in LATER}
    return fields | ({"start": (spec.start.digest, spec.start.new)} if spec.start else {})


def _digest(described: Any) -> str:
    return hashlib.blake2b(json.dumps(described, default=str).encode(), digest_size=3).hexdigest()
