"""Data that the trials of a search differ in: those of other phantom patients, all made before it begins."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raymed.data.phantom import PhantomSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.training.spec import RunSpec
from raymed.tuning.space import Space, Value, get_setting, with_setting

PART = "phantom."  # begins the names of these settings


@dataclass(frozen=True)
class SearchedData:
    """Prepared data by the settings that they were made with; none where a search varies no such setting.

    Attributes:
        configured: the searched settings, as configured.
        made: by values of these settings, in their order, the data's URI and digest.
    """

    configured: Mapping[str, Value] = field(default_factory=dict)
    made: Mapping[tuple[Value, ...], tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, space: Space, phantom: PhantomSettings, prepare: Callable[[PhantomSettings], Prepared]) -> SearchedData:
        """Make the data of every combination of the settings of phantom patients that a space names.

        Raises:
            UserError: such a setting is a range, of which there is no end, or the data do not depend on it.
        """
        searched = {name: dimension for name, dimension in space.items() if name.startswith(PART)}
        for name, dimension in searched.items():
            if not dimension.choices:
                raise UserError(f"{name} decides data that are made before the search begins: give choices, not a range")
        configured = {name: get_setting(phantom, name.removeprefix(PART)) for name in searched}
        made = {}
        for values in itertools.product(*(dimension.choices for dimension in searched.values())) if searched else ():
            changed = phantom
            for name, value in zip(searched, values, strict=True):
                changed = with_setting(changed, name.removeprefix(PART), value)
            prepared = prepare(changed)
            made[values] = prepared.folder.uri, prepared.digest
        if len(set(made.values())) < len(made):
            raise UserError(f"{', '.join(searched)} are settings of phantom patients, which the data named here are not")
        return cls(configured, made)

    def put_into(self, spec: RunSpec, params: Mapping[str, Value]) -> RunSpec:
        """A run on the data of a trial's settings."""
        if not self.configured:
            return spec
        data, digest = self.made[tuple(params[name] for name in self.configured)]
        return dataclasses.replace(spec, data=data, data_digest=digest)

    def specs(self, template: RunSpec) -> list[RunSpec]:
        """A run on each of the data; the template itself where there are no others."""
        return [dataclasses.replace(template, data=data, data_digest=digest) for data, digest in self.made.values()] or [
            template
        ]
