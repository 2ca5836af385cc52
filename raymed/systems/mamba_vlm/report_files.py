"""Which CSV files reports are in, by flags or by a ``paths.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from raymed.errors import UserError
from raymed.systems.mamba_vlm.paths import Paths, local_path, read_paths
from raymed.systems.mamba_vlm.radfm import WHOLE

if TYPE_CHECKING:
    from raymed.systems.mamba_vlm.report_settings import ReportSettings


@dataclass(frozen=True)
class ReportFiles:
    """Where the reports are.

    Attributes:
        by_split: the CSV of each split, or one that is divided by patient.
        roots: folders that pictures may lie in besides those of the files.
    """

    by_split: dict[str, Path]
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportFileOptions:
    """Which files.

    Attributes:
        source: a CSV of reports, or a JSON or JSONL of instructions, that is divided by patient.
        train_csv: a CSV of the reports to learn from; with it, the files are the split.
        val_csv: a CSV of the reports to validate on.
        test_csv: a CSV of the reports to test on.
        paths: a YAML file with caption_csv_train, caption_csv_val and further keys, in place of these flags.
    """

    source: str | None = None
    train_csv: str | None = None
    val_csv: str | None = None
    test_csv: str | None = None
    paths: str | None = None

    def files(self, settings: ReportSettings) -> tuple[ReportFiles, ReportSettings]:
        """The files, and the settings with what the YAML file adds to them; flags come before it.

        Raises:
            UserError: no file is named, one file and two, train without val, or an encoder that was not imported.
        """
        paths = read_paths(self.paths) if self.paths else Paths()
        flags = {"train": self.train_csv, "val": self.val_csv, "test": self.test_csv}
        named = {split: local_path(text, Path.cwd()) for split, text in flags.items() if text}
        if self.source:
            if named:
                raise UserError(
                    "--source is one CSV that is divided, --train-csv and --val-csv are divided already: give either"
                )
            by_split = {WHOLE: local_path(self.source, Path.cwd())}
        else:
            stated = {"train": paths.caption_csv_train, "val": paths.caption_csv_val}
            by_split = {split: path for split, path in stated.items() if path} | named
            if not by_split:
                raise UserError("no reports: give --source REPORTS.csv, or --train-csv and --val-csv, or --paths paths.yaml")
            if lacking := {"train", "val"} - by_split.keys():
                raise UserError(f"a CSV for {lacking.pop()} is missing: give both, or one with --source, which is divided")
        roots = tuple(path for path in (paths.nnunet_raw, paths.nnunet_preprocessed) if path)
        return ReportFiles(by_split, roots), _completed(settings, paths)


def _completed(settings: ReportSettings, paths: Paths) -> ReportSettings:
    if paths.caption_prompt_json and settings.prompts is None:
        settings = replace(settings, prompts=str(paths.caption_prompt_json))
    encoder = paths.nnunet_encoder_checkpoint
    if encoder is None or settings.encoder is not None or settings.normalize in ("minmax", "window"):
        return settings
    if not encoder.is_dir():
        raise UserError(
            f"{encoder} is an nnU-Net checkpoint: what its plans say of intensities is not known before it is imported. Run "
            f"python jobs/import_nnunet.py {encoder} --out DIR and give --encoder DIR; or pass --normalize minmax"
        )
    return replace(settings, encoder=str(encoder))
