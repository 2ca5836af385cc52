"""What a configuration came to, kept in its folder: it is not trained again, and is ranked beside others."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raymed.evaluation import intervals
from raymed.evaluation.estimate import Estimate
from raymed.evaluation.metrics import difference_interval
from raymed.evaluation.patients import Patients
from raymed.evaluation.scores import overall
from raymed.evaluation.tables import patient_table
from raymed.language import say
from raymed.spreadsheet import to_csv
from raymed.storage.folder import Folder
from raymed.systems.clip.output import write_json
from raymed.systems.clip.resume import is_same

RESULT, PATIENTS, RANKING = "result.json", "patients.csv", "multi_summary"


@dataclass(frozen=True, eq=False)
class Result:
    """A configuration that was trained to its end.

    Attributes:
        name: of its folder.
        config: what its config.json says.
        figures: as the job's summary has them.
        classes: names, in the order of the probabilities.
        patients: what it says of each patient that it was validated on, or, of folds, that was left out of training.
        folds: which fold's network that is, by patient; empty without folds.
    """

    name: str
    config: Mapping[str, Any]
    figures: Mapping[str, Any]
    classes: Sequence[str]
    patients: Patients
    folds: Mapping[str, int]

    def write(self, output: Path) -> None:
        """Into the configuration's folder: each patient as CSV, then what marks it as trained."""
        folder = Folder.at(output / self.name)
        table = patient_table(self.patients, self.classes)
        if self.folds:
            table.insert(1, "fold", [self.folds[str(patient)] for patient in self.patients.ids])
        folder.write(PATIENTS, to_csv(table))
        content = {"config": self.config, "figures": self.figures, "classes": self.classes, "unit": self.patients.unit}
        write_json(output / self.name / RESULT, content)

    @classmethod
    def read(cls, output: Path, name: str, config: Mapping[str, Any]) -> Result | None:
        """What `write` left of the same configuration; None where the folder holds nothing of it."""
        folder = output / name
        try:
            content = json.loads((folder / RESULT).read_text("utf-8"))
            ids = f"{content['unit']}_id"
            table = pd.read_csv(io.BytesIO((folder / PATIENTS).read_bytes()), dtype={ids: str, "source": str})
        except (OSError, ValueError, KeyError):
            return None
        if not is_same(content["config"], config):
            return None
        classes = content["classes"]
        patients = Patients(
            table[ids].to_numpy(dtype=object),
            np.array([classes.index(label) for label in table["label"]]),
            table[[f"p_{each}" for each in classes]].to_numpy(dtype=np.float64),
            table["slices"].to_numpy(dtype=np.int64),
            table["source"].fillna("").to_numpy(dtype=object),
            unit=content["unit"],
        )
        folds = dict(zip(table[ids], table["fold"].tolist(), strict=True)) if "fold" in table else {}
        return cls(name, config, content["figures"], classes, patients, folds)


@dataclass(frozen=True)
class Rank:
    """A configuration among others, by the loss of its patients.

    Attributes:
        name: of its folder.
        patients: how many it was judged on.
        loss: their mean negative log likelihood.
        accuracy: share of them who are given their class; likewise balanced_accuracy.
        more_loss: by how much its loss is above the first one's, over the same patients; None of the first, or where it was
            judged on others.
        more_accurate: by how much its accuracy is.
    """

    name: str
    patients: int
    loss: float
    accuracy: float
    balanced_accuracy: float
    more_loss: Estimate | None = None
    more_accurate: Estimate | None = None

    def __str__(self) -> str:
        own = say(
            "{name}: loss {loss:.4f}, accuracy {accuracy:.3f}, {patients} patients",
            name=self.name,
            loss=self.loss,
            accuracy=self.accuracy,
            patients=self.patients,
        )
        if self.more_loss is None:
            return own
        return say(
            "{own}; against the first: loss {loss} more, accuracy {accuracy} more",
            own=own,
            loss=self.more_loss,
            accuracy=self.more_accurate,
        )


def rank(results: Sequence[Result], seed: int = 0) -> list[Rank]:
    """The configurations by their patients' loss, the lowest first, each compared with the first, patient by patient."""
    figures = {each.name: overall(each.patients.labels, each.patients.probabilities) for each in results}
    ordered = sorted(results, key=lambda each: figures[each.name]["loss"])
    ranks = []
    for each in ordered:
        patients, first = each.patients, ordered[0].patients
        own = figures[each.name]
        same = np.array_equal(patients.ids, first.ids) and np.array_equal(patients.labels, first.labels)
        compared = each is not ordered[0] and same
        right, others = patients.decisions == patients.labels, first.decisions == first.labels
        ranks.append(
            Rank(
                each.name,
                len(patients.ids),
                own["loss"],
                own["accuracy"],
                own["balanced_accuracy"],
                difference_interval(patients, first, seed=seed) if compared else None,
                intervals.difference_of_shares(right, others) if compared else None,
            )
        )
    return ranks


def write_ranking(output: Path, results: Sequence[Result], not_trained: Sequence[str]) -> list[str]:
    """Write ``multi_summary.json`` and ``.csv``; the same as lines for a person, where there is something to compare."""
    ranks = rank(results)
    write_json(output / f"{RANKING}.json", {"ranking": [asdict(each) for each in ranks], "not_trained": list(not_trained)})
    table = pd.json_normalize([asdict(each) for each in ranks], sep="_")
    Folder.at(output).write(f"{RANKING}.csv", to_csv(table))
    head = "ranked by the loss of their patients, who so pick the first, whose figures flatter:"
    return [head, *(f"  {each}" for each in ranks)] if len(ranks) > 1 else []
