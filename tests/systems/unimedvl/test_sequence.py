"""The order of texts and pictures of every class, what of it is learned, and what may be dropped."""

import json

import numpy as np
import pytest

from raymed.data.record import Message
from raymed.errors import UserError
from raymed.systems.unimedvl.registry import DATASET_REGISTRY
from raymed.systems.unimedvl.samples import Sample, read_sample
from raymed.systems.unimedvl.sequence import (
    REDRAW,
    CondDropout,
    Element,
    from_messages,
    sequence_of,
    text_only,
    to_messages,
)


def line(task: str, human: str, gpt: str | None = None, inputs: int = 0, outputs: int = 0, **more: object) -> Sample:
    turns = [{"from": "human", "value": human}] + ([{"from": "gpt", "value": gpt}] if gpt is not None else [])
    pictures = {
        key: [{"path": f"{key}{place}.png", "height": 8, "width": 8} for place in range(count)]
        for key, count in (("input_img", inputs), ("output_img", outputs))
    }
    return read_sample(json.dumps({"main_task_type": task, "message": turns, **pictures, **more}).encode())


QUESTION = line("image_understanding", "<image>\n\nWhat is it?", "Clear.", 1)
EDIT = line("image_to_image", "<image>\n\nDraw it in blue.", "Here it is. <image>", 1, 1)
DRAWN = line("image_generation", "A lung.", "Here. <image>", 0, 1)
REDRAWN = f"What is it? {REDRAW}"


@pytest.mark.parametrize(
    ("key", "sample", "expected"),
    [
        ("SftJSONLIterableDataset_Ver1", QUESTION, ["vit? 0", "human What is it?", "gpt Clear."]),
        ("vlm_sft", QUESTION, ["vit 0", "human What is it?", "gpt Clear."]),
        ("SftJSONLIterableDataset_TextOnly", line("text_only", "Why?", "So."), ["human Why?", "gpt So."]),
        (
            "SftJSONLIterableDataset_with_VisualReconstruction_Ver1",
            QUESTION,
            ["vit 0", f"human {REDRAWN}", "gpt Clear.", "target 0"],
        ),
        (
            "SftJSONLIterableDataset_with_VisualReconstruction_Ver2",
            QUESTION,
            ["vae 0", "vit 0", f"human {REDRAWN}", "gpt Clear.", "target 0"],
        ),
        ("T2IIterableDataset_Ver1", DRAWN, ["human? A lung.", "gpt Here.", "target 0"]),
        ("T2IIterableDataset_Ver1", QUESTION, ["human? What is it?", "gpt Clear.", "target 0"]),
        ("t2i_pretrain", DRAWN, ["human? A lung.", "target 0"]),
        ("unified_edit", EDIT, ["vae? 0", "vit? 0", "human? Draw it in blue.", "target 1"]),
        (
            "MedicalImageEditingIterableDataset_ver1",
            EDIT,
            ["vae 0", "vit 0", "human Draw it in blue.", "gpt Here it is.", "target 1"],
        ),
        (
            "CounterfactualMedicalIterableDataset_ver1",
            EDIT,
            ["vae 0", "vit 0", "human Draw it in blue.", "target 1", "gpt Here it is."],
        ),
        ("RadiologyReportDataset", QUESTION, ["vit? 0", "human What is it?", "gpt Clear."]),
        (
            "MyCustomMedicalDataset",
            line("multimodal_input_output", "<image>Draw.", "First <image> then.", 1, 1),
            ["vae 0", "vit 0", "human Draw.", "gpt First", "target 1", "gpt then."],
        ),
    ],
)
def test_each_class_has_the_order_that_it_is_documented_with(key, sample, expected) -> None:
    elements = sequence_of(sample, DATASET_REGISTRY[key])
    assert [f"{message.role} {message.text}" for message in to_messages(elements)] == expected
    assert from_messages(to_messages(elements)) == elements


def test_an_intermediate_picture_is_drawn_and_then_the_condition_of_the_next() -> None:
    sample = line("image_to_image", "<image>First.", None, 1, 2)
    sample = Sample(sample.task, sample.inputs, sample.outputs, (*sample.messages, Message("human", "Second.")))
    elements = sequence_of(sample, DATASET_REGISTRY["unified_edit"])
    kinds = [(element.kind, element.place) for element in elements if not element.is_text]
    assert kinds == [("vae", 0), ("vit", 0), ("target", 1), ("vae", 1), ("vit", 1), ("target", 2)]


def test_pictures_of_several_turns_are_counted_through_the_dialogue() -> None:
    turns = [("human", "<image>One?"), ("gpt", "A."), ("human", "And <image> two?"), ("gpt", "B.")]
    message = [{"from": role, "value": text} for role, text in turns]
    sample = line("image_understanding", "", inputs=2, message=message)
    elements = sequence_of(sample, DATASET_REGISTRY["SftJSONLIterableDataset_Ver1"])
    assert [element.place if element.kind == "vit" else element.text for element in elements] == [
        0, "One?", "A.", "And", 1, "two?", "B.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "sample", "reason"),
    [
        ("SftJSONLIterableDataset_Ver1", EDIT, "picture 2 of 2 is not used"),
        ("SftJSONLIterableDataset_TextOnly", QUESTION, "picture 1 of 1 is not used"),
        ("SftJSONLIterableDataset_Ver1", line("image_understanding", "<image>Look.", None, 1), "nothing to learn"),
        ("MedicalImageEditingIterableDataset_ver1", QUESTION, "takes one input_img and one output_img, not 1 and 0"),
        ("MedicalImageEditingIterableDataset_ver1", line("image_to_image", "<image>Do.", None, 1, 1), "fewer than 2 turns"),
        ("unified_edit", line("image_to_image", "<image>Do.", "", 1, 2), "1 instructions for 2 pictures"),
    ],
)
def test_a_line_that_its_class_cannot_use_says_why(key, sample, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        sequence_of(sample, DATASET_REGISTRY[key])


def test_conditions_are_dropped_as_often_as_asked_and_nothing_else_ever() -> None:
    elements = [Element("vae", droppable=True), Element("vit"), Element("human", "a", droppable=True), Element("target")]
    dropout, draws = CondDropout(text=0.2, vit=1.0, vae=0.6), np.random.default_rng(0)
    dropped = np.mean([dropout.dropped(elements, draws) for _ in range(4000)], axis=0)
    assert dropped == pytest.approx([0.6, 0.0, 0.2, 0.0], abs=0.03)
    assert not any(dropout.dropped(elements, None))


def test_cfg_dropout_makes_conditions_droppable_where_a_picture_is_drawn() -> None:
    edit = sequence_of(EDIT, DATASET_REGISTRY["MedicalImageEditingIterableDataset_ver1"], droppable=True)
    assert [element.droppable for element in edit] == [True, True, True, False, False]
    assert not any(element.droppable for element in sequence_of(line("text_only", "a", "b"), text_only, droppable=True))


def test_records_of_another_system_are_refused() -> None:
    with pytest.raises(UserError, match="prepare the data with jobs/prepare_unimedvl"):
        from_messages([Message("system", "hello")])
