"""Reports prepared: read from CSV files, their slices chosen and brought to one size, split by patient, put into shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from raymed.data.image import ImageError, ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.prepare import PrepareResult, curate, expected_split, plain_settings
from raymed.data.pseudonyms import Pseudonyms
from raymed.data.settings import CurationSettings
from raymed.data.shards import Content
from raymed.data.sources import Refusal, Slice, Study
from raymed.data.split import SplitSettings
from raymed.data.survey import Survey
from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.paths import local_path
from raymed.systems.mamba_vlm.radfm import CaptionSettings, list_reports
from raymed.systems.mamba_vlm.report_files import ReportFiles
from raymed.systems.mamba_vlm.slices import Pictures, Reading, SliceSettings, read_pictures

ENCODER = "encoder.json"  # of an imported encoder: among others what its plans say of intensities


@dataclass(frozen=True)
class ReportSettings(CaptionSettings, CurationSettings):
    """How reports and their pictures become prepared data.

    Attributes:
        image: size and resizing of the pictures; image.window is used with --normalize window.
        split: shares of train/val/test patients, where one CSV is divided.
        slices: which slices of a volume are seen.
        normalize: how values become grey levels: each slice's own least and greatest (minmax), Hounsfield units through a
            window (window), or as the encoder was trained (plans); auto takes plans where --encoder is given, else minmax.
        encoder: folder of an imported nnU-Net encoder (jobs/import_nnunet.py).
    """

    image: ImageSettings = field(default_factory=lambda: ImageSettings(size=512))
    split: SplitSettings = field(default_factory=lambda: SplitSettings("75/15/15", folds=0))
    slices: SliceSettings = field(default_factory=SliceSettings)
    normalize: Literal["auto", "minmax", "window", "plans"] = "auto"
    encoder: str | None = None

    @property
    def intensity(self) -> Intensity:
        """What the bytes of a prepared picture will mean.

        Raises:
            UserError: plans are asked for and no encoder is named, or its folder does not hold them.
        """
        if self.normalize in ("minmax", "window") or (self.normalize == "auto" and self.encoder is None):
            return Intensity()
        if self.encoder is None:
            raise UserError("normalize is plans: name the imported encoder with --encoder (jobs/import_nnunet.py)")
        path = local_path(self.encoder, Path.cwd()) / ENCODER
        if not path.is_file():
            raise UserError(f"{path} is missing: --encoder takes the folder that jobs/import_nnunet.py wrote")
        try:
            return Intensity.of_plans(json.loads(path.read_text("utf-8"))["intensity"], str(path))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged; import the checkpoint again") from error

    @property
    def reading(self) -> Reading:
        """What decides about the pictures."""
        intensity = self.intensity
        image = self.image if self.normalize == "window" else replace(self.image, window=intensity.window)
        return Reading(image, self.slices, self.orientation, hounsfield=intensity.scheme == "plans")


@dataclass(frozen=True)
class LoadReports:
    """The reports about a picture: it is read once for all of them."""

    root: Path
    settings: Reading

    @property
    def row_bytes(self) -> int:
        return self.settings.slices.count * self.settings.image.size**2

    def __call__(self, study: Study) -> Iterator[tuple[Slice, Content | Refusal]]:
        read: dict[str | None, Pictures | str] = {}  # by the mask
        for report in study.slices:
            if report.mask not in read:
                read[report.mask] = self._read(report)
            pictures = read[report.mask]
            if isinstance(pictures, str):
                yield report, Refusal(report.id, report.where, study.patient, pictures)
            else:
                known = replace(report, geometry=pictures.geometry, modality=pictures.modality)
                yield known, Content(pictures.images, report.messages)

    def _read(self, report: Slice) -> Pictures | str:
        """The pictures, or why there are none."""
        try:
            return read_pictures(self.root / report.path, self.root / report.mask if report.mask else None, self.settings)
        except ImageError as error:
            return str(error)


def survey_reports(files: ReportFiles, settings: ReportSettings) -> Survey:
    """What CSV files hold, every line checked. Opens no picture and writes nothing.

    Raises:
        UserError: everything that is wrong with them.
    """
    listing = list_reports(files.by_split, settings, settings.read_prompts(), files.roots)
    found = Survey(listing, LabelTable(()), listing.studies, {})
    expected_split(found, settings)
    return found


def prepare_reports(files: ReportFiles, out: str, settings: ReportSettings) -> PrepareResult:
    """Bring the folder `out` in line with CSV files: new and changed reports are read, removed ones leave.

    Raises:
        UserError: lines are wrong, a patient is in two files, too many reports are unusable, or two patients share identical
            pixels. What stood in `out` before is then untouched.
    """
    intensity, reading = settings.intensity, settings.reading
    found = survey_reports(files, settings)
    folder = Folder.at(out)
    load = LoadReports(found.listing.root, reading)
    more = {
        "slices": asdict(reading.slices),
        "orientation": reading.orientation,
        "intensity": asdict(intensity),
        "question": settings.question,
        "prompts": list(settings.read_prompts()),
    }
    settings = replace(settings, image=reading.image)
    if settings.pseudonymise:
        pseudonyms = Pseudonyms.open(settings.pseudonymise, folder)
        found, settings = pseudonyms.rename(found), replace(settings, pseudonymise=pseudonyms.key_name)
    described = plain_settings(settings, CurationSettings) | more
    return curate(found, load, folder, settings, described, ("image", "slices", "orientation"))
