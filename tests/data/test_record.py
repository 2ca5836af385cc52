import numpy as np
import pyarrow as pa
import pytest

from raymed.data.record import FEATURES, RECORD, Message, records_from, with_features
from raymed.errors import RunError


def row(number: int, label: int | None = 1, pictures: int = 1) -> dict[str, object]:
    images = []
    for place in range(pictures):
        pixels = np.full((2 + number, 3, 1 if place == 0 else 3), 10 * number + place, np.uint8)
        height, width, channels = pixels.shape
        shape = {"height": height, "width": width, "channels": channels}
        images.append({"role": "input", "place": place, "pixels": pixels.tobytes(), **shape})
    messages = [{"role": "human", "text": f"<image> {number}"}]
    named = {"id": f"r{number}", "patient": f"p{number}", "study": f"s{number}", "source": "here"}
    return named | {"position": number, "label": label, "images": images, "messages": messages, "cost": 1}


def test_a_row_read_back_is_the_row_that_was_written():
    (record,) = records_from(pa.Table.from_pylist([row(3, label=2, pictures=2)], schema=RECORD))
    assert (record.id, record.patient, record.study, record.position) == ("r3", "p3", "s3", 3)
    assert (record.label, record.source) == (2, "here")
    assert record.messages == (Message("human", "<image> 3"),)
    assert [image.pixels.shape for image in record.images] == [(5, 3, 1), (5, 3, 3)]
    assert [np.unique(image.pixels).tolist() for image in record.images] == [[30], [31]]


def test_a_missing_label_stays_missing():
    (record,) = records_from(pa.Table.from_pylist([row(0, label=None)], schema=RECORD))
    assert record.label is None


def test_slices_and_chunks_of_a_table_keep_rows_and_pictures_together():
    table = pa.Table.from_pylist([row(number, pictures=number % 3) for number in range(6)], schema=RECORD)
    chunked = pa.concat_tables([table.slice(4, 2), table.slice(1, 3)])
    for part, numbers in ((table.slice(2, 3), [2, 3, 4]), (chunked, [4, 5, 1, 2, 3])):
        records = records_from(part)
        assert [record.position for record in records] == numbers
        assert [len(record.images) for record in records] == [number % 3 for number in numbers]
        for record in records:
            assert all((image.pixels == 10 * record.position + image.place).all() for image in record.images)


def test_pixels_are_views_of_the_table_and_not_copies():
    table = pa.Table.from_pylist([row(1)], schema=RECORD)
    buffer = table["images"].chunk(0).values.field("pixels").buffers()[2]
    pixels = records_from(table)[0].images[0].pixels
    assert buffer.address <= pixels.__array_interface__["data"][0] < buffer.address + buffer.size


def test_an_empty_table_has_no_records():
    assert records_from(RECORD.empty_table()) == []


def test_features_stand_in_place_of_pictures_of_which_the_sizes_are_left_and_masks_stay():
    table = pa.Table.from_pylist([row(number, pictures=number) for number in range(4)], schema=RECORD)
    rows = table.to_pylist()
    rows[2]["images"][1]["role"] = "mask"
    table = pa.Table.from_pylist(rows, schema=RECORD)
    made = [np.arange(2 + number, dtype=np.float32).reshape(1, -1) for number in range(4)]
    table = with_features(pa.concat_tables([table.slice(0, 1), table.slice(1)]), made, ["input"])
    for records in (records_from(table), records_from(pa.concat_tables([table.slice(0, 3), table.slice(3)]))):
        assert [record.position for record in records] == [0, 1, 2, 3]
        shapes = [[image.pixels.shape for image in record.images] for record in records]
        assert shapes == [[], [(3, 3, 0)], [(4, 3, 0), (4, 3, 3)], [(5, 3, 0)] * 3]
        assert [image.role for image in records[2].images] == ["input", "mask"]
        assert (records[2].images[1].pixels == 21).all()
        for record, features in zip(records, made, strict=True):
            assert np.array_equal(record.features, features)


def test_a_flipped_bit_of_features_is_an_error_that_names_the_record():
    table = with_features(pa.Table.from_pylist([row(1), row(2)], schema=RECORD), [np.ones(3, np.float32)] * 2, ["input"])
    made = table[FEATURES.name].to_pylist()
    made[1]["values"] = bytes([made[1]["values"][0] ^ 1]) + made[1]["values"][1:]
    place = table.schema.get_field_index(FEATURES.name)
    with pytest.raises(RunError, match=r"features kept of the record r2 are damaged"):
        records_from(table.set_column(place, FEATURES, pa.array(made, FEATURES.type)))
