"""Prepare reports for the Mamba report writer: read CSV files, choose slices, split by patient, write what training reads.

    python jobs/prepare_mamba.py --paths config/paths.yaml --out PREPARED          # the guide's file
    python jobs/prepare_mamba.py --train-csv train.csv --val-csv val.csv --out PREPARED
    python jobs/prepare_mamba.py --source reports.csv --root IMAGES --out PREPARED   # divided by patient

Run it again after adding, changing or removing lines: only what changed is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from raymed.job.job import JobOptions, Outcome, run
from raymed.storage.folder import Folder
from raymed.systems.mamba_vlm.report_files import ReportFileOptions
from raymed.systems.mamba_vlm.report_settings import ReportSettings

if TYPE_CHECKING:
    from raymed.data.prepare import PrepareResult
    from raymed.data.survey import Survey


@dataclass(frozen=True, kw_only=True)
class PrepareMambaOptions(JobOptions, ReportFileOptions, ReportSettings):
    """Options of preparing reports.

    Attributes:
        out: Folder or URI of the prepared data.
    """

    SAID_AS: ClassVar[Mapping[str, str]] = {"source.columns": "columns"}

    out: str


def main(options: PrepareMambaOptions) -> Outcome:
    from raymed.systems.mamba_vlm.reports import prepare_reports, survey_reports

    files, settings = options.files(options)
    if options.dry_run:
        return plan(survey_reports(files, settings), settings, options.out)
    return summary(prepare_reports(files, options.out, settings))


def plan(found: Survey, settings: ReportSettings, out: str) -> Outcome:
    """What would be done."""
    from raymed.data.counts import table
    from raymed.data.prepare import expected_split, require_apart
    from raymed.data.sources.listing import by_reason

    require_apart(found, Folder.at(out))
    patients = expected_split(found, settings)["unlabelled"]
    refusals = found.listing.refusals
    lines = [
        *found.listing.notes,
        *table({"all": patients}),
        f"{found.slices} reports in order; refused already: {len(refusals)}",
        *(f"  {line}" for line in by_reason((refusal.where, refusal.reason) for refusal in refusals)),
        f"dry run: nothing was written to {out}",
    ]
    return Outcome("\n".join(lines), {"reports": found.slices, "patients": patients, "refused": len(refusals)})


def summary(result: PrepareResult) -> Outcome:
    """What was done."""
    from raymed.data.counts import closing, facts, table

    manifest = result.prepared.manifest
    settings = manifest.settings
    lines = [
        *table({"all": manifest.patients["unlabelled"]}),
        *table(manifest.sources, head="reports"),
        f"slices: {settings['slices']['count']} a report; window {settings['image']['window']}",
        f"pictures and volumes: {result.new} read, {result.kept} unchanged",
        f"quarantined: {manifest.quarantined} reports (quarantine.jsonl)",
        *closing(result),
    ]
    return Outcome("\n".join(lines), facts(result))


if __name__ == "__main__":
    run(PrepareMambaOptions, main)
