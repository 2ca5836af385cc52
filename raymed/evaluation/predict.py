"""Predictions outside training: plain torch, in order, each row or patient once.

Two ways in, one network: rows of prepared data, to judge a model; and studies as people have them (folders, a CSV, DICOM,
NIfTI), to use it. The second goes through the same windowing, resizing and choice of slices as training did, which is why
these settings travel with a model (`Inference`). With several workers, Ray actors hold the network and the driver no pixels.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from raymed.data.acquisition import Acquisition
from raymed.data.image import ImageSettings, recorded
from raymed.data.labels import LabelTable
from raymed.data.places import Places
from raymed.data.plan import Series, SliceSettings, choose
from raymed.data.prepared import Prepared
from raymed.data.record import Image, Record, records_from
from raymed.data.sources import Listing, Refusal, Slice, Study, load_study
from raymed.data.sources.listing import by_reason
from raymed.errors import RunError, UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.known_patients import KnownPatients
from raymed.evaluation.patients import softmax
from raymed.recipes.recipe import Recipe

log = logging.getLogger("raymed")

CHUNK_BYTES = 64 << 20  # of pixels that one task holds at once
COLUMNS = ("id", "patient", "study", "position", "label", "source")
RETRIES = 2  # of a task whose worker died
PERIOD = 60.0  # seconds between two lines while workers are waited for

Model = tuple[Recipe, nn.Module]
Found = tuple[Record, Slice]
"""A record to predict on, and what its file says of it."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Inference:
    """What turns a patient's pictures into a decision, besides the network. Kept beside the weights as JSON.

    Attributes:
        name: what the column `model` of predictions says.
        labels: the classes, in the order of the network's outputs.
        image: windowing and resizing.
        slices: which slices of a study are looked at.
        temperature: what makes probabilities mean what they say, by the number of slices.
        data: digest of the prepared data that the model was trained on.
        calibrated_slices: the fewest slices that a temperature of an earlier raymed was fitted on; 0 of one that knows the
            number of slices, or where that was not noted.
        known: the patients that trained and chose it; None of a model that was registered before that was noted.
        acquisition: modality and size of the pictures that it was trained on.
    """

    name: str
    labels: LabelTable
    image: ImageSettings
    slices: SliceSettings
    temperature: Temperature
    data: str
    calibrated_slices: int = 0
    known: KnownPatients | None = None
    acquisition: Acquisition = field(default_factory=Acquisition)

    def to_json(self) -> str:
        values = {
            "name": self.name,
            "labels": self.labels.to_dict(),
            "image": recorded(self.image),
            "slices": asdict(self.slices),
            "temperature": asdict(self.temperature),
            "data": self.data,
            "calibrated_slices": self.calibrated_slices,
            "known": self.known and self.known.to_dict(),
            "acquisition": asdict(self.acquisition),
        }
        return json.dumps(values, ensure_ascii=False, indent=2)

    @classmethod
    def read(cls, path: Path) -> Inference:
        """Raises: UserError: the file is not what `to_json` wrote."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                name=values["name"],
                labels=LabelTable.from_dict(values["labels"]),
                image=ImageSettings.from_dict(values["image"]),
                slices=SliceSettings.read(values["slices"]),
                temperature=Temperature.read(values["temperature"]),
                data=values["data"],
                calibrated_slices=int(values.get("calibrated_slices", 0)),
                known=KnownPatients.read(values["known"]) if values.get("known") else None,
                acquisition=Acquisition.read(values["acquisition"]) if "acquisition" in values else Acquisition(),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} does not describe a model of this raymed: {error!r}. Register the model again"
            ) from error


@dataclass(frozen=True)
class PatientPrediction:
    """What a model says about one patient.

    Attributes:
        patient: patient id.
        probabilities: of the classes, in the label table's order; None where no slice could be used.
        slices: how many slices the probabilities rest on.
        notes: slices that could not be used, a few of each reason.
        unlike: in what the pictures differ from those that the model was trained on.
    """

    patient: str
    probabilities: tuple[float, ...] | None
    slices: int
    notes: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()


class Predictor:
    """A network on this process's device."""

    def __init__(self, model: Model, micro_batch: int) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.recipe, self.micro_batch = model[0], micro_batch
        self.module = model[1].to(self.device).eval()
        if self.device.type == "cuda":  # TF32, as PyTorch has it for convolutions: finer than the bf16 of training
            torch.set_float32_matmul_precision("high")

    def logits(self, records: Sequence[Record]) -> np.ndarray:
        """Logits float32 [records, classes]."""
        parts = []
        for start in range(0, len(records), self.micro_batch):
            batch = self.recipe.encode(records[start : start + self.micro_batch], None)
            with torch.no_grad():
                logits = self.recipe.predict(self.module, batch.to(self.device))["logits"]
            parts.append(logits.cpu().numpy())
        return np.concatenate(parts)

    def rows(self, places: Places) -> np.ndarray:
        """Logits of prepared records, float32 [records, classes]."""
        return self.logits(records_from(places.read()))

    def patient(
        self, patient: str, found: Sequence[Found], inference: Inference, notes: Sequence[str] = ()
    ) -> PatientPrediction:
        """The mean class probabilities of the slices that training would have chosen from these."""
        records = [record for record, _ in found]
        if not records:
            return PatientPrediction(patient, None, 0, ("no usable slice", *notes))
        studies = np.unique([record.study for record in records], return_inverse=True)[1]
        positions = np.array([record.position for record in records])
        series = Series(np.zeros_like(studies), studies, positions, lambda place: records[place].study)
        chosen = choose(series, inference.slices)
        logits = self.logits([records[row] for row in chosen])
        if not np.isfinite(logits).all():
            raise RunError(f"the model's output for patient {patient} is not a number: choose another model")
        temperature, slices = inference.temperature, len(chosen)
        pooled = softmax(logits, temperature.logits).mean(axis=0, keepdims=True)
        means = temperature.scale(pooled, np.array([slices]))[0]
        unlike = inference.acquisition.unlike(Acquisition.of_slices(piece for _, piece in found))
        if (several := len(set(studies.tolist()))) > 1:
            notes = [_together(several, {piece.date for _, piece in found}), *notes]
        if slices < inference.calibrated_slices:
            notes = [
                f"{slices} slices; the temperature was fitted on patients with {inference.calibrated_slices} or more: "
                "the probabilities may be too sure",
                *notes,
            ]
        return PatientPrediction(patient, tuple(means.tolist()), slices, tuple(notes), unlike)


def chosen_rows(prepared: Prepared, split: str, fold: int | None, slices: SliceSettings, seed: int = 0) -> np.ndarray:
    """Row numbers of the slices of a split that a model looks at, ascending."""
    return slices.choose(prepared, prepared.rows(split, fold), seed, None)


def predict_rows(
    model: Model, prepared: Prepared, rows: np.ndarray, micro_batch: int = 32, workers: int = 1
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits float32 [rows, classes] of prepared rows in their order, and the index columns `COLUMNS` of the same rows.

    Args:
        rows: row numbers of the index, int64 [rows].
        workers: 1 predicts in this process; more start as many Ray actors.

    Raises:
        UserError: there are no rows, or the model was made for other pictures or classes.
    """
    if not len(rows):
        raise UserError(f"there is nothing to predict: the chosen part of {prepared.folder.uri} holds no rows")
    chunk = max(micro_batch, CHUNK_BYTES // (3 * prepared.size**2))
    places = (prepared.places(rows[start : start + chunk]) for start in range(0, len(rows), chunk))
    parts = list(_spread(model, micro_batch, workers, places, lambda predictor, part: predictor.rows(part)))
    logits = np.concatenate(parts)
    if len(logits) != len(rows):
        raise RunError(f"{len(rows)} rows were asked for and {len(logits)} predicted")
    return logits, prepared.columns(rows, COLUMNS)


def predict_studies(
    model: Model, listing: Listing, inference: Inference, micro_batch: int = 32, workers: int = 1
) -> Iterator[PatientPrediction]:
    """One prediction per patient of a listing, in the order of patient ids.

    Slices that cannot be read are in the patient's notes, and a patient without a usable one gets no probabilities.
    Refusals that name no patient are left to the caller (`listing.refusals`).
    """
    studies: dict[str, list[Study]] = {}
    refused: dict[str, list[Refusal]] = {}
    for study in listing.studies:
        studies.setdefault(study.patient, []).append(study)
    for refusal in listing.refusals:
        if refusal.patient is not None:
            refused.setdefault(refusal.patient, []).append(refusal)
    root, patients = listing.root, sorted(studies.keys() | refused.keys())
    items = ((each, studies.get(each, []), refused.get(each, []), listing.about.get(each, ())) for each in patients)

    def predict(predictor: Predictor, item: tuple[str, list[Study], list[Refusal], Sequence[str]]) -> PatientPrediction:
        patient, series, refusals, about = item
        found, lost = [], list(refusals)
        for study in series:
            for slice_, loaded in load_study(root, study, inference.image):
                if isinstance(loaded, Refusal):
                    lost.append(loaded)
                else:
                    record = to_record(slice_.id, patient, study.study, slice_.position, loaded, study.source)
                    found.append((record, slice_))
        return predictor.patient(patient, found, inference, [*about, *reasons(lost)])

    return _spread(model, micro_batch, workers, items, predict)


def _together(several: int, dates: set[str]) -> str:
    """What a person should know of a decision on several series; the days between them, and never a date."""
    days = []
    for date in dates:
        with suppress(ValueError):
            days.append(datetime.strptime(date, "%Y%m%d").toordinal())
    apart = f", taken {max(days) - min(days)} days apart" if len(days) > 1 else ""
    return (
        f"decided on {several} series together{apart}: to decide on one alone, name its folder or its files as images of "
        "the patient (in a CSV: image, patient_id)"
    )


def to_record(id: str, patient: str, study: str, position: int, pixels: np.ndarray, source: str = "") -> Record:
    """A record without a label around one picture, uint8 [size, size, channels]."""
    return Record(id, patient, study, position, None, source, (Image("input", 0, pixels),), ())


def reasons(refusals: Iterable[Refusal]) -> list[str]:
    """What a person should know of refusals: a few of each kind, because a spreadsheet breaks a cell of 32767 characters."""
    return by_reason((refusal.where, refusal.reason) for refusal in refusals)


def table(predictions: Iterable[PatientPrediction], inference: Inference) -> list[dict[str, Any]]:
    """One line per patient: patient_id, decision, shown_as (what readers are shown of it, in the language that was asked
    for, else in all of the label table), p_<class> ..., slices, model, note. No decision without a usable slice."""
    names, titles = inference.labels.names, inference.labels.titles
    lines = []
    for each in predictions:
        known, unlike = each.probabilities, [f"unlike the training pictures: {how}" for how in each.unlike]
        best = None if known is None else int(np.argmax(known))
        decision = (
            {"decision": None, "shown_as": None} if best is None else {"decision": names[best], "shown_as": titles[best]}
        )
        lines.append(
            {"patient_id": each.patient, **decision}
            | {f"p_{name}": known[place] if known is not None else None for place, name in enumerate(names)}
            | {"slices": each.slices, "model": inference.name, "note": "; ".join([*unlike, *each.notes])}
        )
    return lines


def _spread(
    model: Model, micro_batch: int, workers: int, items: Iterable[Item], predict: Callable[[Predictor, Item], Any]
) -> Iterator[Any]:
    """`predict` of each item, in order: by Ray actors, or by a single worker here, unless the GPUs are elsewhere.

    Raises:
        UserError: there are more workers than the cluster has CPUs or GPUs for.
    """
    if workers == 1 and not _gpus_are_elsewhere():
        predictor = Predictor(model, micro_batch)
        yield from (predict(predictor, item) for item in items)
        return
    import ray  # here, so that a served model does without it
    from ray.util import ActorPool

    from raymed.cluster import connection as cluster

    cluster.connect()
    have = ray.cluster_resources()
    kind = "GPU" if have.get("GPU", 0) else "CPU"
    if workers > have.get(kind, 0):
        raise UserError(f"{workers} workers need a {kind} each and the cluster has {have.get(kind, 0):.0f}: lower --workers")
    stored = ray.put(model)  # once; every actor takes its copy from there, on whatever node it is
    limits = {"num_cpus": 1, "num_gpus": int(kind == "GPU"), "max_restarts": RETRIES, "max_task_retries": RETRIES}
    actors: list[Any] = [ray.remote(_Worker).options(**limits).remote(stored, micro_batch) for _ in range(workers)]
    pool: Any = ActorPool(actors)
    try:
        _wait(actors, f"{'a GPU and ' if kind == 'GPU' else ''}a CPU")
        yield from pool.map(lambda actor, item: actor.run.remote(predict, item), items)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | RunError):
            raise error.cause from None  # as it would be raised here, without the actor's traceback in the message
        raise
    finally:
        for actor in actors:
            ray.kill(actor)


def _wait(actors: Sequence[Any], wanted: str) -> None:
    """Wait until one of these actors is there, and say so once a minute: others may hold all that the cluster has."""
    import ray

    from raymed.cluster.autoscaler import machines_to_come

    beginnings = [actor.begins.remote() for actor in actors]
    while not ray.wait(beginnings, timeout=PERIOD)[0]:
        words = f"predicting waits for {wanted}: {len(actors)} wanted, and others hold all that the cluster has"
        log.info("%s", "; ".join(filter(None, [words, machines_to_come()])))


def _gpus_are_elsewhere() -> bool:
    """Whether other machines of this process's cluster have GPUs, and its own, such as a head, has none."""
    ray: Any = sys.modules.get("ray")  # a process that has not imported it is in no cluster
    is_joined = ray is not None and ray.is_initialized()
    return is_joined and not torch.cuda.is_available() and ray.cluster_resources().get("GPU", 0) > 0


class _Worker:
    def __init__(self, model: Model, micro_batch: int) -> None:
        torch.set_num_threads(1)  # one CPU each, as asked of Ray
        self.predictor = Predictor(model, micro_batch)

    def begins(self) -> None:
        """Answered once it is there."""

    def run(self, predict: Callable[[Predictor, Any], Any], item: Any) -> Any:
        return predict(self.predictor, item)
