"""Results of configurations are kept in their folders and ranked on the same patients."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raymed.evaluation.patients import Patients
from raymed.systems.clip.result import Result, rank, write_ranking

CLASSES = ["正常", "肺炎"]


def result(name: str, sharpness: float, patients: int = 20, config: int = 1) -> Result:
    """A model that gives each patient's class the same probability, but for three."""
    labels = np.arange(patients) % 2
    logits = sharpness * np.where(np.arange(patients) < 3, -1, 1)[:, None] * (2 * np.eye(2)[labels] - 1)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ids = np.array([f"p{number:02d}" for number in range(patients)], dtype=object)
    judged = Patients(ids, labels, probabilities, np.full(patients, 2), np.full(patients, "", object))
    return Result(name, {"epochs": config, "version": "1"}, {"epochs": 2}, CLASSES, judged, {str(each): 1 for each in ids})


def test_what_is_written_is_found_again_by_the_same_settings_alone(tmp_path: Path) -> None:
    written = result("a", 1.0)
    written.write(tmp_path)
    found = Result.read(tmp_path, "a", {"epochs": 1, "version": "2"})
    assert found is not None and found.figures == {"epochs": 2} and found.folds == written.folds
    assert found.patients.ids.tolist() == written.patients.ids.tolist()
    assert found.patients.probabilities == pytest.approx(written.patients.probabilities, abs=1e-6)
    assert Result.read(tmp_path, "a", {"epochs": 2, "version": "1"}) is None
    assert Result.read(tmp_path, "b", written.config) is None
    (tmp_path / "a" / "result.json").write_text("{", "utf-8")
    assert Result.read(tmp_path, "a", written.config) is None, "cut short by a full disk"


def test_a_finished_configuration_is_trained_again_where_its_encoder_was_exchanged_and_not_where_it_was_moved(
    tmp_path: Path,
) -> None:
    def config(path: str, held: str | None) -> dict[str, Any]:
        known = {"pretrained": {path: held}} if held else {}
        return {"text_encoder": path, "recipe": {"model": {"text_encoder": path}}} | known

    def found(stored: dict[str, Any], now: dict[str, Any]) -> bool:
        replace(result("a", 3.0), config=stored).write(tmp_path)
        return Result.read(tmp_path, "a", now) is not None

    assert found(config("/a", "one"), config("/b", "one"))
    assert not found(config("/a", "one"), config("/a", "two"))
    assert found(config("/a", None), config("/a", "one")), "of before: the same path"
    assert not found(config("/a", None), config("/b", "one"))


def test_the_lowest_loss_is_first_and_the_others_are_compared_with_it_patient_by_patient(tmp_path: Path) -> None:
    worse, better = result("worse", 0.2), result("better", 1.0)
    first, second = rank([worse, better])
    assert (first.name, first.more_loss) == ("better", None)
    assert second.more_loss is not None and second.more_loss.low is not None and second.more_loss.value > 0
    assert second.more_accurate is not None and second.more_accurate.value == 0, "the same three are wrong"
    lines = write_ranking(tmp_path, [worse, better], ["entry 3: no such key"])
    assert lines[1].startswith("  better: loss")
    content = json.loads((tmp_path / "multi_summary.json").read_text("utf-8"))
    assert [each["name"] for each in content["ranking"]] == ["better", "worse"]
    assert content["not_trained"] == ["entry 3: no such key"]
    assert pd.read_csv(tmp_path / "multi_summary.csv")["name"].tolist() == ["better", "worse"]


def test_configurations_that_were_judged_on_other_patients_are_not_compared() -> None:
    _, other = rank([result("all", 1.0), replace(result("fewer", 0.5, patients=10))])
    assert other.more_loss is None and "against the first" not in str(other)
