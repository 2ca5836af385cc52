"""Judge image retrieval: how often the pictures of a gallery that are nearest to a query show the query's class.

    python jobs/evaluate_retrieval.py --gallery runs/gallery --queries runs/queries
    python jobs/evaluate_retrieval.py --gallery runs/gallery --queries runs/queries --retrieval.expand 5
    python jobs/evaluate_retrieval.py --query_features queries.npz --gallery_features gallery.npz --top_k 1 3 5

Features are those of jobs/extract_features.py, or an npz with features and image_paths. Where they hold several layers, all
are judged. Pictures of the query's own patient are never neighbours. The result is a table, metrics in MLflow, a CSV of all
neighbours, and a sheet of queries with theirs, right and wrong marked. A CPU will do.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, field

from raymed.errors import UserError
from raymed.evaluation.retrieval import Retrieval, judge
from raymed.evaluation.retrieval_sheet import render, sheet_lines
from raymed.evaluation.retrieval_summary import class_table, neighbour_table, remarks, table
from raymed.job import Alias, JobOptions, Outcome, run
from raymed.retrieval.features import Features
from raymed.retrieval.gallery import Gallery, Neighbours, RetrievalSettings
from raymed.tracking import Tracker

log = logging.getLogger("raymed")

GUIDE = {"query-features": Alias("queries"), "gallery-features": Alias("gallery")}


@dataclass(frozen=True, kw_only=True)
class EvaluateRetrieval(JobOptions):
    """Options of judging retrieval.

    Attributes:
        gallery: Features that are searched: a folder of jobs/extract_features.py, or an npz.
        queries: Features that are asked about.
        top_k: Which Top-k and mAP@k.
        retrieval: How the gallery is searched.
        bootstrap: Resamples of patients behind each interval.
        shown: Queries on the sheet.
    """

    gallery: str
    queries: str
    top_k: list[int] = field(default_factory=lambda: [1, 3, 5])
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    bootstrap: int = 1000
    shown: int = 40


def main(options: EvaluateRetrieval) -> Outcome:
    log.info("加载查询集特征... %s", options.queries)
    queries = Features.open(options.queries)
    log.info("加载候选集特征... %s", options.gallery)
    features = Features.open(options.gallery)
    queries.require_like(features)
    log.info("查询集: (%d, %d), 候选集: (%d, %d)", len(queries), queries.width, len(features), features.width)
    if options.dry_run:
        return Outcome(f"would judge layers {features.layers} of {len(queries)} queries", {"queries": len(queries)})
    ks = sorted(set(options.top_k))
    if not ks or ks[0] < 1:
        raise UserError(f"--top-k {options.top_k}: give numbers from 1 up, such as --top-k 1 3 5")
    judged: dict[int, Retrieval] = {}
    found: dict[int, Neighbours] = {}
    for layer in features.layers:
        gallery = Gallery(features, layer, options.retrieval)
        log.info("构建 FAISS 索引... layer %d: %s", layer, gallery.index.path)
        log.info("执行检索...")
        found[layer] = gallery.search(queries, ks[-1])
        judged[layer] = judge(gallery, queries, found[layer], ks, options.bootstrap, options.seed)
    best = max(judged.values(), key=lambda each: (each.top[ks[0]].value, each.mean_average_precision[ks[-1]].value))
    notes = remarks(gallery, queries, found[best.layer], best)
    made = [(each.digest, each.manifest and (each.manifest.model, each.manifest.settings)) for each in (queries, features)]
    described = repr((options.retrieval, ks, made, options.bootstrap, options.seed))
    name = f"retrieval-{hashlib.blake2b(described.encode(), digest_size=3).hexdigest()}"
    folder = options.folder.child(name)
    sheet = render(
        name, list(judged.values()), best, sheet_lines(queries, features, found[best.layer], options.shown), notes
    )
    folder.write("sheet.html", sheet.encode())
    folder.write("neighbours.csv", neighbour_table(queries, features, found[best.layer]).to_csv(index=False).encode())
    track(options, name, gallery, queries, list(judged.values()), best, sheet)
    lines = [*notes, *table(list(judged.values()), best), *class_table(best)]
    lines += [f"Top-{k} 准确率: {best.top[k].value:.4f} ({best.hits[k]}/{best.queries})" for k in ks]
    lines += [f"sheet: {folder.uri}/sheet.html"]
    data = {"name": name, "best": best.layer, "layers": [asdict(each) for each in judged.values()], "notes": notes}
    return Outcome("\n".join(lines), data | {"sheet": f"{folder.uri}/sheet.html"})


def track(
    options: EvaluateRetrieval,
    name: str,
    gallery: Gallery,
    queries: Features,
    judged: list[Retrieval],
    best: Retrieval,
    sheet: str,
) -> None:
    """Record it in MLflow; the same evaluation again finds its run."""
    tracker = Tracker.open(options.tracking, "raymed-retrieval")
    params = {"retrieval": asdict(options.retrieval), "layer": best.layer, "top_k": list(best.top)}
    tags = {"raymed.index": gallery.index.path}
    for role, each in (("gallery", gallery.features), ("queries", queries)):
        tags[f"raymed.{role}"] = each.name
        if each.manifest is not None:
            params |= {f"{role}_model": each.manifest.model, "features": each.manifest.settings}
    run_id = tracker.run(name, name, tags=tags, params=params)
    for role, each in (("gallery", gallery.features), ("queries", queries)):
        tracker.input(run_id, role, each.digest, each.name, role)
    layers = {f"layer_{each.layer}_{figure}": value for each in judged for figure, value in each.flat().items()}
    tracker.metrics(run_id, best.flat() | (layers if len(judged) > 1 else {}))
    tracker.text(run_id, sheet, "sheet.html")
    tracker.finish(run_id, "FINISHED")


if __name__ == "__main__":
    run(EvaluateRetrieval, main, aliases=GUIDE)
