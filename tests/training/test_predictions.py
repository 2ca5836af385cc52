"""What a network says of validation rows, arrays as well as texts and pictures."""

import numpy as np
import pytest

from raymed.errors import RunError
from raymed.storage.folder import Folder
from raymed.training.checkpoint import OUTPUTS, PREDICTIONS, seal
from raymed.training.predictions import in_order, read_predictions, write_predictions


def said(*rows: int) -> tuple[list[int], dict[str, object]]:
    """A micro-batch: each row's own number as an array, as a text, and as a picture of its own size."""
    pictures = [np.full((2 + row, 3, 3), row, np.uint8) for row in rows]
    arrays = np.array([[row, -row] for row in rows], np.float32)
    return list(rows), {"logits": arrays, "report": [f"Zeile {row}\n肺炎\0" for row in rows], "drawn": pictures}


def test_rows_of_all_workers_come_in_their_order_whatever_a_value_is():
    together = in_order([said(4, 0), said(3), said(2, 1)])
    assert together["logits"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert together["report"] == [f"Zeile {row}\n肺炎\0" for row in range(5)]
    assert [picture.shape for picture in together["drawn"]] == [(2 + row, 3, 3) for row in range(5)]
    assert all((picture == row).all() for row, picture in enumerate(together["drawn"]))


def test_what_is_written_beside_a_checkpoint_reads_back_as_it_was(tmp_path):
    predictions = in_order([said(1, 0)]) | {"row": np.array([7, 9]), "grey": [np.eye(3, dtype=np.uint8)] * 2}
    write_predictions(tmp_path, predictions)
    seal(tmp_path, 0, 1)
    again = read_predictions(Folder.at(tmp_path))
    assert again.keys() == predictions.keys() and again["report"] == predictions["report"]
    for name in ("logits", "row", "drawn", "grey"):
        for here, there in zip(again[name], predictions[name], strict=True):
            assert np.array_equal(here, there) and here.dtype == there.dtype, name


def test_arrays_alone_need_no_second_file_and_a_damaged_one_is_not_believed(tmp_path):
    write_predictions(tmp_path, {"row": np.arange(2)})
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS]
    write_predictions(tmp_path, {"report": ["a", "b"]})
    seal(tmp_path, 0, 1)
    (tmp_path / OUTPUTS).write_bytes(b"PAR1")
    with pytest.raises(RunError, match=f"{OUTPUTS} is damaged"):
        read_predictions(Folder.at(tmp_path))


def test_a_row_without_a_prediction_is_an_error_and_shifts_nobody_else_s():
    rows, predictions = said(3, 4)
    with pytest.raises(RunError, match=r"2 rows got predictions of .*'report': 1"):
        in_order([said(0), (rows, predictions | {"report": ["one"]})])
