"""Label tables: what they accept, and that nothing unknown passes."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymed.data.labels import LabelTable
from raymed.errors import UserError

LUNG = LabelTable.open("lung")


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "table.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def test_packaged_lung_table_has_the_four_classes_in_order() -> None:
    assert LUNG.codes == ["0", "1", "2", "3"]
    assert LUNG.names == ["normal", "bacterial", "viral", "pneumocystis"]
    assert [row.names["zh"] for row in LUNG.classes] == ["正常肺部", "细菌性肺炎", "病毒性肺炎", "孢子虫肺炎"]
    assert LUNG.titles[1] == "Bacterial pneumonia / 细菌性肺炎"
    assert LabelTable.of(["a", "b"]).titles == ["a", "b"]


@pytest.mark.parametrize(
    ("label", "index"), [("0", 0), ("NORMAL", 0), (" viral ", 2), ("孢子虫肺炎", 3), ("Bacterial pneumonia", 1), ("PCP", 3)]
)
def test_codes_names_languages_and_aliases_all_name_the_class(label: str, index: int) -> None:
    assert LUNG.index_of(label) == index


def test_ignored_is_none_and_unknown_is_an_error(tmp_path: Path) -> None:
    table = LabelTable.from_dict({**LUNG.to_dict(), "ignore": ["cap"]})
    assert table.index_of("CAP") is None
    with pytest.raises(KeyError):
        table.index_of("asthma")


def test_check_names_every_unknown_label_with_its_count_at_once() -> None:
    with pytest.raises(UserError) as caught:
        LUNG.check({"cap": 28, "normal": 25, "asthma": 3})
    message = str(caught.value)
    assert "'cap' (28)" in message and "'asthma' (3)" in message and "ignore" in message and "aliases" in message
    assert "'normal'" not in message
    LUNG.check({"normal": 1, "3": 2})


def test_file_round_trips_through_dict(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "classes:\n- {code: 0, name: ok, names: {zh: 好}, aliases: [fine]}\n- {code: 1, name: bad}\nignore: [unsure]\n",
    )
    table = LabelTable.open(path)
    assert table.codes == ["0", "1"] and table.index_of("好") == 0 and table.index_of("unsure") is None
    assert LabelTable.from_dict(table.to_dict()) == table


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("classes: [", "YAML"),
        ("", "classes"),
        ("- 1\n- 2\n", "classes"),
        ("classes: []", "at least two"),
        ("classes: [{code: 0, name: a}]", "at least two"),
        ("classes: [{code: 0, name: a}, {code: 0, name: b}]", "'0'"),
        ("classes: [{code: 0, name: a, aliases: [x]}, {code: 1, name: b, aliases: [X]}]", "'X'"),
        ("classes: [{code: 0, name: a}, {code: 1, name: b}]\nignore: [A]", "ignore"),
        ("classes: [{code: 0, name: a}, {code: 1, name: b}]\nignored: [c]", "ignored"),
        ("classes: [{code: 0, name: a, alias: [q]}, {code: 1, name: b}]", "alias"),
        ("classes: [{code: 0, name: a}, {code: 1}]", "classes[1].name"),
        ("classes: [{code: 0, name: a}, {code: 1, name: no}]", "classes[1].name"),
        ("classes: [{code: 0, name: a, aliases: x}, {code: 1, name: b}]", "classes[0].aliases"),
        ("classes: [{code: 0, name: a, names: [x]}, {code: 1, name: b}]", "classes[0].names"),
        ("classes: [1, 2]", "classes[0]"),
    ],
)
def test_wrong_table_is_an_error_that_names_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        LabelTable.open(path)
    assert path in str(caught.value) and named in str(caught.value)


def test_table_that_is_not_there_or_not_utf8_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lung"):
        LabelTable.open("liver")
    path = tmp_path / "gbk.yaml"
    path.write_bytes("classes: [{code: 0, name: 正常}]".encode("gbk"))
    with pytest.raises(UserError, match="UTF-8"):
        LabelTable.open(str(path))


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["classes", "ignore", "code", "name", "names", "aliases", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(yaml_values)
def test_any_content_is_a_table_or_a_clear_error(content: object) -> None:
    try:
        table = LabelTable.from_dict(content)  # type: ignore[arg-type]
    except UserError:
        return
    assert LabelTable.from_dict(table.to_dict()) == table
