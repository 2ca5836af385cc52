"""Lines of JSONL: the guide's examples are read, and every line that cannot be used says why."""

import json

import pytest

from raymed.systems.unimedvl.samples import read_sample

GUIDE = [
    '{"main_task_type":"multimodal_input_output","input_img":[{"path":"a.png","height":512,"width":512}],"output_img":'
    '[{"path":"b.png","height":512,"width":512}],"message":[{"from":"human","value":"<image>\\n\\nClinical context: less."},'
    '{"from":"gpt","value":"The heart size appears reduced. <image>"}]}',
    '{"main_task_type":"text_only","message":[{"from":"human","value":"What are the symptoms of pneumonia?"},'
    '{"from":"gpt","value":"Cough."}]}',
    '{"main_task_type":"image_understanding","input_img":[{"path":"c.png","height":1024,"width":1024}],"message":'
    '[{"from":"human","value":"<image>\\n\\nAnalyze this chest X-ray."},{"from":"gpt","value":"Clear lung fields."}]}',
    '{"main_task_type":"image_to_image","input_img":[{"path":"he.png","height":512,"width":512}],"output_img":'
    '[{"path":"ihc.png","height":512,"width":512}],"message":[{"from":"human","value":"<image>\\n\\nConvert."},'
    '{"from":"gpt","value":"I convert ... <image>"}]}',
]  # fmt: skip
GOOD = json.loads(GUIDE[3])


@pytest.mark.parametrize("text", GUIDE)
def test_the_guides_lines_are_read(text) -> None:
    sample = read_sample(text.encode())
    assert sample.task == json.loads(text)["main_task_type"]
    assert len(sample.pictures) == text.count('"path"')


def test_a_line_of_bagels_own_is_understood() -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A lung."}]
    sample = read_sample(json.dumps({"image": "x.png", "conversations": turns, "patient_id": 7}).encode())
    assert (sample.task, sample.inputs[0].path, sample.patient) == ("image_understanding", "x.png", "7")


def changed(**values: object) -> str:
    return json.dumps({key: value for key, value in {**GOOD, **values}.items() if value is not None})


def turns(*pairs: tuple[str, object]) -> list[dict[str, object]]:
    return [{"from": role, "value": text} for role, text in pairs]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{not json", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": "\\ud800"}', "half of a character"),
        (changed(main_task_type=None), "no main_task_type"),
        (changed(main_task_type="segmentation"), "main_task_type is 'segmentation'; known: text_only"),
        (changed(message=None), "no message"),
        (changed(message=turns(("human", "<image>"), ("gpt", "yes"))), "no human text"),
        (changed(message=turns(("gpt", "yes"))), "no human text"),
        (changed(message=turns(("system", "x"))), "from is 'system'; known: human, gpt"),
        (changed(message=turns(("human", 3))), "needs `from` and a text `value`"),
        (changed(message=turns(("human", "<image>a <|im_end|>"))), r"holds the special token <\|im_end\|>"),
        (changed(input_img=[]), "needs input_img"),
        (changed(output_img=None), "needs output_img"),
        (changed(main_task_type="image_understanding"), "takes no output_img"),
        (changed(input_img=[{"path": " "}]), r"input_img\[0\] has no path"),
        (changed(input_img=[{"path": "a", "height": -1}]), "height and width must be whole numbers"),
        (changed(message=turns(("human", "Convert."), ("gpt", "<image>"))), "0 <image> marks in human text for 1 pictures"),
        (changed(message=turns(("human", "<image><image>Go"), ("gpt", "<image>"))), "2 <image> marks in human text for 1"),
        (changed(message=turns(("human", "<image>Go"), ("gpt", "<image><image>"))), "2 <image> marks in gpt text for 1"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_says_why(text, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        read_sample(text.encode())


def test_bytes_that_are_no_text_are_a_reason_of_their_own() -> None:
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_sample(b'{"a": "\xff"}')
