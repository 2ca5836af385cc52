import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymed.data.prepared import Manifest, Prepared, digest_of
from raymed.errors import CommonError, UserError


@pytest.fixture
def copy(prepared: Prepared, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared.folder.path, tmp_path / "copy"))


def test_what_is_not_prepared_data_is_an_error_that_says_what_to_run(tmp_path: Path):
    (tmp_path / "list.csv").touch()
    for path in (tmp_path, tmp_path / "list.csv", tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"no manifest\.json.*prepare_"):
            Prepared.open(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 0}, "format 0"), ({"shards": None, "extra": 1}, "extra"), (None, "not a manifest")],
)
def test_a_manifest_of_another_kind_is_an_error(copy: Path, change: dict[str, object] | None, message: str):
    manifest = json.loads((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").write_text("[]" if change is None else json.dumps(manifest | change), "utf-8")
    with pytest.raises(UserError, match=message):
        Prepared.open(str(copy))


def test_a_manifest_of_an_earlier_raymed_is_read_and_its_splits_are_kept(copy: Path):
    manifest = json.loads((copy / "manifest.json").read_bytes())
    for name in ("left_out", "notes"):
        del manifest[name]
    (copy / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert Prepared.open(str(copy)).manifest.left_out == {}


def test_an_index_that_was_exchanged_is_an_error(copy: Path):
    index = pq.read_table(copy / "index.parquet")
    pq.write_table(index.slice(1), copy / "index.parquet")
    with pytest.raises(UserError, match="not the index"):
        Prepared.open(str(copy))


def test_an_index_of_many_row_groups_is_opened_as_one_chunk(copy: Path):
    """A column of several is copied whole each time that a few of its rows are looked up."""
    index = pq.read_table(copy / "index.parquet")
    pq.write_table(index, copy / "index.parquet", row_group_size=10)
    manifest = json.loads((copy / "manifest.json").read_bytes())
    digest = digest_of((copy / "index.parquet").read_bytes())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"index_digest": digest}), "utf-8")
    opened = Prepared.open(str(copy))
    assert {column.num_chunks for column in opened.index.columns} == {1}
    assert opened.index.equals(index)
    assert Prepared.open(str(copy)).index is opened.index, "a process holds a large index once"


def test_texts_of_an_index_may_be_larger_than_two_gib(prepared: Prepared):
    """Sorting others fails above it, after all pictures were decoded."""
    assert pa.string() not in prepared.index.schema.types


def test_other_data_than_a_run_began_with_are_refused(prepared: Prepared, copy: Path):
    assert Prepared.open(str(copy), prepared.digest).digest == prepared.digest
    manifest = json.loads((copy / "manifest.json").read_bytes())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"digest": "other"}), "utf-8")
    with pytest.raises(CommonError, match=f"holds other, and this run began with {prepared.digest}"):
        Prepared.open(str(copy), prepared.digest)


def test_a_missing_index_is_an_error_that_names_it(copy: Path):
    (copy / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"index\.parquet is missing"):
        Prepared.open(str(copy))


def test_the_manifest_survives_json(prepared: Prepared):
    assert Manifest.from_json(prepared.manifest.to_json(), "here") == prepared.manifest


def test_the_three_splits_are_all_rows_once(prepared: Prepared):
    for fold in (None, 0, 1, 2):
        parts = [prepared.rows(split, fold) for split in ("train", "val", "test")]
        assert sorted(np.concatenate(parts)) == prepared.rows("all").tolist()
        assert all((np.diff(part) > 0).all() for part in parts)


def test_a_fold_moves_val_and_never_test(prepared: Prepared):
    folds = prepared.columns(prepared.rows("val", 1), ["fold", "split"])
    assert set(folds["fold"]) == {1}
    assert set(folds["split"]) == {"train", "val"}
    assert prepared.rows("test", 1).tolist() == prepared.rows("test").tolist()


def test_an_unknown_split_is_an_error(prepared: Prepared):
    with pytest.raises(UserError, match="exam"):
        prepared.rows("exam")


def test_columns_are_numbers_or_objects_with_minus_one_for_no_number(prepared: Prepared):
    columns = prepared.columns(np.array([5, 2]), ["patient", "label", "fold"])
    assert columns["label"].dtype == columns["fold"].dtype == np.int64
    assert columns["patient"].tolist() == [prepared.index["patient"][row].as_py() for row in (5, 2)]
    test = prepared.rows("test")[:1]
    assert prepared.columns(test, ["fold"])["fold"].tolist() == [-1]


def test_records_come_back_in_the_order_asked_also_when_asked_twice(prepared: Prepared):
    rows = np.array([95, 0, 41, 41, 12, 40])
    records = prepared.read(rows)
    assert [record.id for record in records] == [prepared.index["id"][int(row)].as_py() for row in rows]
    assert all(record.images[0].pixels.shape == (28, 28, 1) for record in records)
    assert np.array_equal(records[2].images[0].pixels, records[3].images[0].pixels)
    assert prepared.read([]) == []


def test_a_missing_shard_is_an_error_that_names_it(copy: Path):
    prepared = Prepared.open(str(copy))
    (copy / "shards" / "part-1.parquet").unlink()
    prepared.read(np.arange(3))
    with pytest.raises(UserError, match=r"part-1\.parquet"):
        prepared.read(np.array([50]))
