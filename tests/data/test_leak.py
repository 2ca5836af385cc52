import numpy as np
import pyarrow as pa
import pytest
from calls import calls_of

from raymed.data.leak import guard
from raymed.data.record import INDEX
from raymed.errors import UserError

HASH = bytes(32)


def rows(count: int = 6) -> list[dict[str, object]]:
    """Patients p0.. in train, val, test, train ...; fold 0, 1, -, 0 ...; one picture each."""
    made = []
    for number in range(count):
        split = ("train", "val", "test")[number % 3]
        named = {"id": f"r{number}", "patient": f"p{number}", "study": f"s{number}", "group": f"p{number}"}
        pixels = {"digest": number.to_bytes(16, "big"), "hash": HASH}
        made.append(named | pixels | {"label": 0, "split": split, "fold": None if split == "test" else number % 3 % 2})
    return made


def index(made: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(INDEX.names) | row for row in made], schema=INDEX)


def test_clean_splits_pass_and_are_counted():
    summary = guard(index([*rows(), {**rows()[0], "id": "r6"}]))
    assert summary.patients == {"train": 2, "val": 2, "test": 2}
    assert summary.records == {"train": 3, "val": 2, "test": 2}
    assert "train 2 patients / 3 records" in str(summary)


def test_near_duplicates_are_claimed_to_be_in_one_split_only_where_patients_were_kept_together_for_them():
    assert "near-duplicate" not in str(guard(index(rows()))), "they may be in two splits: near_duplicates is warn"
    together = rows()
    together[3]["group"] = "p0"  # both train
    together += [{**together[3], "id": "r6"}]
    assert "nor is any of 1 groups of patients with near-duplicate pictures" in str(guard(index(together)))


@pytest.mark.parametrize(
    ("key", "words"),
    [("patient", "the patient"), ("study", "the study"), ("group", "near-duplicate group"), ("digest", "identical pixels")],
)
def test_each_kind_of_leak_is_an_error_that_names_both_patients(key: str, words: str):
    made = rows()
    made[5][key] = made[3][key]
    with pytest.raises(UserError, match=words) as error:
        guard(index(made))
    assert f"{made[3]['patient']} (train)" in str(error.value)
    assert f"{made[5]['patient']} (test)" in str(error.value)


def test_a_leak_between_the_train_and_val_of_a_fold_is_found():
    made = rows()
    made[4] |= {"patient": "p3"}  # p3 is in fold 0, row 4 in fold 1
    for row in made:
        row["split"] = "train" if row["split"] != "test" else "test"
    assert guard(index(made)).patients["train"] == 3
    with pytest.raises(UserError, match="p3"):
        guard(index(made), fold=0)


def test_flat_pictures_and_rows_in_no_split_are_not_leaks():
    made = rows()
    made[3]["digest"] = made[5]["digest"]
    made[3]["hash"] = None
    made[5]["hash"] = None
    made[1] |= {"patient": "p0", "split": None}
    guard(index(made))


def test_a_patient_of_flat_pictures_in_two_splits_is_a_leak_all_the_same():
    made = rows()
    made[5] |= {"patient": "p3", "hash": None}
    made[3]["hash"] = None
    with pytest.raises(UserError, match="the patient is in more than one split"):
        guard(index(made))


def test_what_was_proved_is_told_with_the_splits_it_holds_for_and_without_patients_that_nobody_knows():
    assert "(stored splits): no patient, study or picture" in str(guard(index(rows())))
    assert "(fold 0): no patient" in str(guard(index(rows()), fold=0))
    unknown = str(guard(index(rows()), patients_known=False))
    assert "no image is in two splits; whether a patient is, nobody knows" in unknown and "no patient" not in unknown


def test_a_long_list_of_leaks_names_ten_and_counts_the_rest():
    made = rows(60)
    for row in made:
        row["group"] = "same"
    with pytest.raises(UserError, match="and 50 more"):
        guard(index(made))


def many_rows(count):
    numbers = np.arange(count)
    names = np.char.add("p", (numbers // 30).astype(str))
    columns = {name: pa.array(names) for name in ("patient", "study", "group")} | {
        "digest": pa.array([int(n).to_bytes(16, "big") for n in numbers], pa.binary(16)),
        "hash": pa.array([HASH] * count, pa.binary(32)),
        "split": pa.array(np.array(["train", "val", "test"])[numbers // 30 % 3]),
    }
    return pa.table({field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in INDEX}, schema=INDEX)


def test_thirty_thousand_rows_are_proved_in_as_many_calls_as_three_thousand():
    few, many = many_rows(3_000), many_rows(30_000)
    assert guard(many).records["train"] > 9_000
    assert calls_of(lambda: guard(many)) < 1.1 * calls_of(lambda: guard(few)), "a loop over rows takes minutes of a million"
