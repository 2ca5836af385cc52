from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymed.data.record import INDEX
from raymed.data.split import SPLITS, SplitSettings, assign, read_split_file, split_of_rows
from raymed.errors import UserError

SETTINGS = SplitSettings()


def alone(counts: dict[str, int]) -> tuple[list[str], list[str]]:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [f"p{number:04d}" for number in range(len(labels))], labels


def sizes(placed: dict[str, tuple[str, int | None]]) -> list[int]:
    counts = Counter(split for split, _ in placed.values())
    return [counts[split] for split in SPLITS]


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[str], list[int], list[str]]:
    """Patients of up to four classes, some of them in near-duplicate groups of two or three."""
    labels = draw(st.lists(st.integers(0, 3), min_size=1, max_size=80))
    for label in set(labels):
        labels += [label] * 8  # enough for three splits, groups or not
    patients = [f"p{number:03d}" for number in range(len(labels))]
    partners = draw(st.lists(st.tuples(st.integers(0, len(labels) - 1), st.integers(0, len(labels) - 1)), max_size=3))
    groups = list(patients)
    for a, b in partners:
        groups[b] = groups[a]
    return patients, labels, groups


@pytest.mark.parametrize(("count", "expected"), [(200, [143, 29, 28]), (600, [428, 86, 86]), (800, [572, 114, 114])])
def test_the_guides_counts_per_class(count: int, expected: list[int]):
    patients, labels = alone({"viral": count})
    assert sizes(assign(patients, labels, patients, SETTINGS)) == expected


def test_every_class_is_divided_on_its_own():
    patients, labels = alone({"normal": 200, "viral": 7, "rare": 3})
    placed = assign(patients, labels, patients, SETTINGS)
    for name, expected in (("normal", [143, 29, 28]), ("viral", [5, 1, 1]), ("rare", [1, 1, 1])):
        assert sizes({p: placed[p] for p, label in zip(patients, labels, strict=True) if label == name}) == expected


@given(cohorts(), st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_order_of_the_input_does_not_matter(cohort, random, seed):
    rows = list(zip(*cohort, strict=True))
    first = assign(*cohort, SETTINGS, seed)
    random.shuffle(rows)
    assert assign(*map(list, zip(*rows, strict=True)), SETTINGS, seed) == first


@given(cohorts())
def test_near_duplicates_stay_together_and_every_class_is_everywhere(cohort):
    patients, labels, groups = cohort
    placed = assign(patients, labels, groups, SETTINGS)
    assert placed.keys() == set(patients)
    together = defaultdict(set)
    for patient, group in zip(patients, groups, strict=True):
        together[group].add(placed[patient])
    assert all(len({split for split, _ in places}) == 1 for places in together.values())
    assert all(len({fold for _, fold in places}) == 1 for places in together.values())
    assert {(label, placed[p][0]) for p, label in zip(patients, labels, strict=True)} == {
        (label, split) for label in labels for split in SPLITS
    }


@given(cohorts(), st.data())
def test_added_patients_move_nobody(cohort, data):
    patients, labels, _ = cohort
    few = data.draw(st.sets(st.sampled_from(range(len(patients)))))
    early = [number for number in range(len(patients)) if number not in few]
    try:
        before = assign(*([column[n] for n in early] for column in (patients, labels, patients)), SETTINGS)
    except UserError:
        return  # too few patients of a class before the others came
    after = assign(patients, labels, patients, SETTINGS, existing=before)
    assert {patient: after[patient] for patient in before} == before
    assert after.keys() == set(patients)


def test_added_patients_fill_the_splits_towards_their_weights():
    patients, labels = alone({"viral": 200})
    before = assign(patients[:100], labels[:100], patients[:100], SETTINGS)
    assert sizes(assign(patients, labels, patients, SETTINGS, existing=before)) == [143, 29, 28]


def test_a_new_copy_joins_the_split_of_its_original():
    patients, labels = alone({"viral": 30})
    before = assign(patients, labels, patients, SETTINGS)
    for patient in patients[:10]:
        grown = assign([*patients, "new"], [*labels, "viral"], [*patients, patient], SETTINGS, existing=before)
        assert grown["new"] == before[patient]


def test_copies_that_already_stand_apart_are_an_error():
    patients, labels = alone({"viral": 30})
    before = assign(patients, labels, patients, SETTINGS)
    a = next(p for p in patients if before[p][0] == "train")
    b = next(p for p in patients if before[p][0] == "test")
    groups = [a if p == b else p for p in patients]
    with pytest.raises(UserError, match=rf"{min(a, b)}.*{max(a, b)}"):
        assign([*patients, "new"], [*labels, "viral"], [*groups, a], SETTINGS, existing=before)


def test_another_seed_is_another_division():
    patients, labels = alone({"viral": 60})
    assert assign(patients, labels, patients, SETTINGS, seed=1) != assign(patients, labels, patients, SETTINGS, seed=2)


def test_the_same_patients_are_divided_as_they_were_by_earlier_versions():
    patients, labels = alone({"viral": 12})
    placed = assign(patients, labels, patients, SETTINGS)
    assert [SPLITS.index(placed[patient][0]) for patient in patients] == [0, 1, 2, 0, 0, 0, 2, 0, 0, 0, 1, 0]
    assert [placed[patient][1] for patient in patients] == [4, 4, None, 1, 0, 2, None, 0, 3, 3, 2, 1]


def test_patients_of_a_fold_that_is_no_more_get_another():
    patients, labels = alone({"viral": 60})
    before = assign(patients, labels, patients, SplitSettings(folds=6))
    after = assign(patients, labels, patients, SplitSettings(folds=5), existing=before)
    assert {fold for _, fold in after.values()} == {None, 0, 1, 2, 3, 4}
    assert all(after[patient] == before[patient] for patient in patients if before[patient][1] != 5)


def test_folds_cover_train_and_val_evenly_and_leave_test_alone():
    patients, labels = alone({"normal": 100, "viral": 60})
    placed = assign(patients, labels, patients, SETTINGS)
    assert all((fold is None) == (split == "test") for split, fold in placed.values())
    per_fold = Counter((label, placed[p][1]) for p, label in zip(patients, labels, strict=True) if placed[p][0] != "test")
    for name, kept in (("normal", 100 - 14), ("viral", 60 - 8)):
        counts = [per_fold[name, fold] for fold in range(5)]
        assert sum(counts) == kept
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("count", "way"), [(2, "75/25/0"), (1, "0/0/100")])
def test_a_class_with_fewer_patients_than_splits_is_an_error_that_counts_them_and_says_what_is_possible(
    count: int, way: str
):
    patients, labels = alone({"normal": 20, "viral": count})
    with pytest.raises(UserError, match=f"class viral: {count}.*pass --split.weights {way} --split.folds 0"):
        assign(patients, labels, patients, SETTINGS)


@pytest.mark.parametrize(("weights", "expected"), [("0/0/100", [0, 0, 2]), ("1/0/0", [2, 0, 0]), ("1/1/0", [1, 1, 0])])
def test_splits_of_weight_zero_stay_empty_and_ask_for_no_patients(weights: str, expected: list[int]):
    patients, labels = alone({"viral": 2})
    assert sizes(assign(patients, labels, patients, SplitSettings(weights=weights, folds=0))) == expected


@pytest.mark.parametrize("weights", ["75/15", "a/b/c", "0/0/0", "-1/1/1", "", "1/2/3/4"])
def test_weights_that_are_none_are_an_error(weights: str):
    with pytest.raises(UserError, match="weights"):
        SplitSettings(weights=weights).shares()


def test_one_fold_is_an_error():
    with pytest.raises(UserError, match="folds"):
        SplitSettings(folds=1).shares()


def test_a_group_that_swallows_a_class_is_an_error_that_names_the_class():
    patients, labels = alone({"normal": 10, "viral": 4})
    groups = [p if label == "normal" else "all" for p, label in zip(patients, labels, strict=True)]
    with pytest.raises(UserError, match="class viral in"):
        assign(patients, labels, groups, SETTINGS)


def index(rows: list[tuple[str, str | None, int | None]]) -> pa.Table:
    plain = [dict.fromkeys(INDEX.names) | {"patient": p, "split": split, "fold": fold} for p, split, fold in rows]
    return pa.Table.from_pylist(plain, schema=INDEX)


def test_a_fold_turns_train_and_val_over_and_leaves_test_and_unlabelled_rows_alone():
    inside = [("a", "train", 0), ("b", "train", 1), ("c", "val", 0), ("d", "val", 1)]
    table = index([*inside, ("e", "test", None), ("f", None, None)])
    assert split_of_rows(table).tolist() == [0, 0, 1, 1, 2, -1]
    assert split_of_rows(table, 0).tolist() == [1, 0, 1, 0, 2, -1]
    assert split_of_rows(table, 1).tolist() == [0, 1, 0, 1, 2, -1]
    for fold in (2, -1):
        with pytest.raises(UserError, match="2 folds"):
            split_of_rows(table, fold)


@pytest.mark.parametrize("delimiter", [",", ";"])  # as spreadsheets save it
def test_a_split_file_settles_the_splits(tmp_path: Path, delimiter: str):
    path = tmp_path / "splits.csv"
    path.write_text("patient_id,split\na,test\nb,train\n\nother,val\n".replace(",", delimiter), "utf-8")
    given = read_split_file(path, ["a", "b"])
    assert given == {"a": ("test", None), "b": ("train", None)}
    placed = assign(["a", "b"], ["x", "y"], ["a", "b"], SplitSettings(file=str(path), folds=2), existing=given, settled=True)
    assert (placed["a"], placed["b"][0]) == (("test", None), "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient,split\na,test\n", "splits.csv:1: no column 'patient_id'; .* a split file needs both"),
        ("patient_id,split\na,exam\n", "splits.csv:2: split 'exam'"),
        ("patient_id,split\na,test\na,val\n", "splits.csv:3: patient 'a' is in test and in val"),
        ("patient_id,split\na,test,extra\n", "splits.csv:2: 3 cells, but the header has 2"),
        ("patient_id,split\nb,test\n", "no line for 1 patients, for example a"),
    ],
)
def test_a_wrong_split_file_is_an_error_that_says_where(tmp_path: Path, text: str, message: str):
    path = tmp_path / "splits.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match=message):
        read_split_file(path, ["a"])


def test_a_split_file_that_is_no_file_is_an_error_that_says_what_one_holds(tmp_path: Path):
    with pytest.raises(UserError, match="is no regular file: give a CSV with the columns patient_id and split"):
        read_split_file(tmp_path, ["a"])
