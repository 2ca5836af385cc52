"""Prepare data sets for UniMedVL: check every line, resize pictures for both networks, split by patient, write shards.

    python jobs/prepare_unimedvl.py --out PREPARED                                       # phantom patients
    python jobs/prepare_unimedvl.py --dataset-config-file data.yaml --out PREPARED --tokenizer MODEL
    python jobs/prepare_unimedvl.py --dataset-config-file data.yaml --out PREPARED --registry my_project.datasets
    python jobs/prepare_unimedvl.py --dataset-config-file data.yaml --out PREPARED --dry-run    # checks the lines only

Run it again after adding, changing or removing lines: only what changed is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raymed.data.phantom import PhantomSettings
from raymed.job.job import JobOptions, Outcome, run
from raymed.systems.unimedvl.prepare_settings import SequenceSettings

if TYPE_CHECKING:
    from raymed.systems.unimedvl.mixture_config import MixtureConfig


@dataclass(frozen=True, kw_only=True)
class PrepareUnimedvlOptions(JobOptions, SequenceSettings):
    """Options of preparing data sets for UniMedVL.

    Attributes:
        dataset_config_file: The YAML of data sets; without it, phantom patients are made and used.
        registry: A module of your own that registers classes and data sets; several with commas between them.
        phantom: The phantom patients used without --dataset-config-file.
        out: Folder or URI of the prepared data.
    """

    MATTERS: ClassVar[tuple[str, ...]] = ("dataset_config_file", "out", "registry", "tokenizer", "resize_rule")

    dataset_config_file: str | None = None
    registry: str = ""
    phantom: PhantomSettings = field(default_factory=lambda: PhantomSettings(size=128, difficulty=0.2))
    out: str

    def config(self) -> MixtureConfig:
        """The configuration that is named, or that of the phantoms, which are written."""
        from raymed.systems.unimedvl.mixture_config import MixtureConfig
        from raymed.systems.unimedvl.parquet import with_parquet_as_lines
        from raymed.systems.unimedvl.phantoms import phantom_config

        path = self.dataset_config_file
        file = Path(path).absolute() if path else phantom_config(self.folder, self.phantom)
        return with_parquet_as_lines(MixtureConfig.read(file, self.registry, self.resize_rule), self.folder)


def main(options: PrepareUnimedvlOptions) -> Outcome:
    from raymed.systems.unimedvl.preparation_report import plan, summary
    from raymed.systems.unimedvl.prepare import prepare_sequences, survey_sequences

    config = options.config()
    if options.dry_run:
        return plan(survey_sequences(config, options), options.out)
    return summary(prepare_sequences(config, options.out, options))


if __name__ == "__main__":
    run(PrepareUnimedvlOptions, main)
