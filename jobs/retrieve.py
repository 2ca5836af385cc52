"""Find the cases most like a picture: nearest pictures of a gallery, with patient, label and distance.

    python jobs/retrieve.py --gallery runs/gallery --input picture.png
    python jobs/retrieve.py --gallery runs/gallery --input picture.png --patient P001 --k 10    # without P001's own
    python jobs/retrieve.py --gallery runs/gallery --input picture.png --sheet cases.html       # to look at

The picture goes through the model, layer and treatment that the gallery's manifest names. A folder, CSV, DICOM or NIfTI asks
about each of its pictures. A CPU will do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raymed.data.sources import SourceSettings
from raymed.job.job import JobOptions, Outcome, run
from raymed.language import say
from raymed.retrieval.settings import RetrievalSettings

SHOWN = ["rank", "distance", "label", "patient", "picture"]


@dataclass(frozen=True, kw_only=True)
class Retrieve(JobOptions):
    """Options of finding similar cases.

    Attributes:
        gallery: Features of jobs/extract_features.py.
        input: A picture; or a folder, CSV, DICOM series or NIfTI volume.
        k: How many cases.
        patient: Whose the picture is, so that this patient's own pictures are left out (default: as the input says).
        model: Where the ViT lies now (default: where the gallery's manifest says).
        layer: Which of the gallery's layers (default: the last).
        sheet: HTML file to write: the pictures, their distances, and patients by numbers instead of names.
        source: How the input is read; labels in it are not looked at.
        retrieval: How the gallery is searched.
    """

    gallery: str
    input: str
    k: int = 5
    patient: str | None = None
    model: str | None = None
    layer: int | None = None
    sheet: str | None = None
    source: SourceSettings = field(default_factory=SourceSettings)
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)


def main(options: Retrieve) -> Outcome:
    from raymed.registry.address import open_tower
    from raymed.retrieval.features import Features
    from raymed.retrieval.gallery import Gallery
    from raymed.retrieval.query import query
    from raymed.retrieval.sheet import write_cases
    from raymed.retrieval.summary import neighbour_table

    features = Features.open(options.gallery)
    layer = features.layers[-1] if options.layer is None else features.require_layer(options.layer)
    gallery = Gallery(features, layer, options.retrieval, keep=True)
    tower = open_tower(options.model or features.require_manifest().model, options.tracking)
    queries, lines = query(Path(options.input).expanduser(), options.source, features, tower, options.patient)
    neighbours = gallery.search(queries, options.k)
    table = neighbour_table(queries, features, neighbours)
    for name, cases in table.groupby("query", sort=False):
        lines.append(f"{name}: the nearest of {len(features)} pictures ({gallery.index.path})")
        for rank, distance, label, patient, picture in cases[SHOWN].itertuples(index=False):
            lines.append(f"  {rank}  {distance:<8.4f} {label or 'no label'}, patient {patient or 'not known'}, {picture}")
    if options.sheet and not options.dry_run:
        lines.append(
            say("sheet: {sheet}", sheet=write_cases(Path(options.sheet).expanduser(), queries, features, neighbours))
        )
    lines.append(f"gallery: {features.name}")
    return Outcome("\n".join(lines), {"cases": table[["query", *SHOWN]].to_dict("records"), "gallery": features.name})


if __name__ == "__main__":
    run(Retrieve, main)
