"""Reports prepared: read from CSV files, their slices chosen and brought to one size, split by patient, put into shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from raymed.data.image import ImageError
from raymed.data.labels import LabelTable
from raymed.data.prepare import PrepareResult, curate, expected_split, plain_settings
from raymed.data.pseudonyms import Pseudonyms
from raymed.data.settings import CurationSettings
from raymed.data.shards import Content
from raymed.data.sources import Refusal, Slice, Study
from raymed.data.survey import Survey
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.radfm import list_reports
from raymed.systems.mamba_vlm.report_files import ReportFiles
from raymed.systems.mamba_vlm.report_settings import ReportSettings
from raymed.systems.mamba_vlm.slices import Pictures, Reading, read_pictures


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
