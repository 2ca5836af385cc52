"""Judge image retrieval: how often the pictures of a gallery that are nearest to a query show the query's class.

    python jobs/evaluate_retrieval.py --gallery runs/gallery --queries runs/queries
    python jobs/evaluate_retrieval.py --gallery runs/gallery --queries runs/queries --retrieval.expand 5
    python jobs/evaluate_retrieval.py --query_features queries.npz --gallery_features gallery.npz --top_k 1 3 5

Features are those of jobs/extract_features.py, or an npz with features and image_paths. Where they hold several layers, all
are judged. Pictures of the query's own patient are never neighbours. The result is a table, metrics in MLflow, a CSV of all
neighbours, and a sheet of queries with theirs, right and wrong marked. A CPU will do.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field

from raymed.job.command_line import Alias
from raymed.job.job import JobOptions, Outcome, run
from raymed.language import say
from raymed.retrieval.settings import RetrievalSettings

log = logging.getLogger("raymed")

GUIDE = {"query-features": Alias("queries"), "gallery-features": Alias("gallery")}


@dataclass(frozen=True, kw_only=True)
class EvaluateRetrieval(JobOptions):
    """Options of judging retrieval.

    Attributes:
        gallery: Features that are searched: a folder of jobs/extract_features.py, or an npz.
        queries: Features that are asked about.
        layer: Which of the gallery's layers (default: all).
        top_k: Which Top-k and mAP@k.
        retrieval: How the gallery is searched.
        bootstrap: Resamples of patients behind each interval.
        shown: Queries on the sheet.
    """

    gallery: str
    queries: str
    layer: int | None = None
    top_k: list[int] = field(default_factory=lambda: [1, 3, 5])
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    bootstrap: int = 1000
    shown: int = 40


def main(options: EvaluateRetrieval) -> Outcome:
    from raymed.retrieval.evaluation import Judging, evaluate
    from raymed.retrieval.features import Features
    from raymed.retrieval.summary import class_table, table
    from raymed.spreadsheet import to_csv
    from raymed.tracking.tracker import Tracker

    judging = Judging(tuple(sorted(set(options.top_k))), options.bootstrap, options.seed)
    log.info("加载查询集特征... %s", options.queries)
    queries = Features.open(options.queries)
    log.info("加载候选集特征... %s", options.gallery)
    gallery = Features.open(options.gallery)
    queries.require_like(gallery)
    layers = gallery.layers if options.layer is None else [gallery.require_layer(options.layer)]
    log.info("查询集: (%d, %d), 候选集: (%d, %d)", len(queries), queries.width, len(gallery), gallery.width)
    if options.dry_run:
        return Outcome(f"would judge layers {layers} of {len(queries)} queries", {"queries": len(queries)})
    found = evaluate(gallery, queries, options.retrieval, layers, judging)
    sheet, folder = found.sheet(options.shown), options.folder.child(found.name)
    folder.write("sheet.html", sheet.encode())
    folder.write("neighbours.csv", to_csv(found.table()))
    found.track(Tracker.open(options.tracking, "raymed-retrieval"), sheet)
    best, where = found.best, f"{folder.uri}/sheet.html"
    lines = [*found.notes, *table(found.judged, best), *class_table(best)]
    lines += [f"Top-{k} 准确率: {best.top[k].value:.4f} ({best.hits[k]}/{best.queries})" for k in judging.ks]
    data = {"name": found.name, "best": best.layer, "layers": [asdict(each) for each in found.judged], "notes": found.notes}
    return Outcome("\n".join([*lines, say("sheet: {sheet}", sheet=where)]), data | {"sheet": where})


if __name__ == "__main__":
    run(EvaluateRetrieval, main, aliases=GUIDE)
