"""A sample as a line of JSONL writes it: a dialogue with the pictures that it shows and those that are to be drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from raymed.data.record import Message
from raymed.data.sources.conversations import read_name
from raymed.models.marks import IMAGE

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Task:
    """What a main_task_type asks of its lines: whether they have pictures to look at and pictures to draw."""

    inputs: bool | None  # None: either will do
    outputs: bool


TASKS = {
    "text_only": Task(inputs=False, outputs=False),
    "image_understanding": Task(inputs=True, outputs=False),
    "image_to_image": Task(inputs=True, outputs=True),
    "multimodal_input_output": Task(inputs=True, outputs=True),
    "image_generation": Task(inputs=None, outputs=True),
    "counterfactual_generation": Task(inputs=True, outputs=True),
}
REFUSED = "refused"  # key of a line that says why what it was made from cannot be used
OTHER_TASK_NAMES = {"t2i": "image_generation", "text_to_image": "image_generation"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture's path as the line writes it, and the size that the line states."""

    path: str
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One line. Its pictures are counted through: first those of `inputs`, then those of `outputs`."""

    task: str
    inputs: tuple[Picture, ...]
    outputs: tuple[Picture, ...]
    messages: tuple[Message, ...]
    patient: str | None = None
    study: str | None = None

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return (*self.inputs, *self.outputs)

    def texts(self, role: str) -> list[str]:
        """Texts of the turns of a role, human or gpt."""
        return [message.text for message in self.messages if message.role == role]


def read_sample(line: bytes) -> Sample:
    """A line of JSONL, checked against its main_task_type.

    BAGEL's own lines, with `image` and `conversations`, are understood as well.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        content = json.loads(line.decode("utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
        json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8 text") from error
    except UnicodeEncodeError as error:
        raise ValueError("holds half of a character (one of two surrogates)") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("not a sample: it is nested too deeply") from error
    if REFUSED in content:
        raise ValueError(str(content[REFUSED]))
    sample = _read(_renamed(content) if "message" not in content and "conversations" in content else content)
    return _checked(sample)


def _renamed(content: dict[str, Any]) -> dict[str, Any]:
    """A line as BAGEL writes it, with the guide's keys."""
    image = content.get("image")
    paths = image if isinstance(image, list) else [image] if image else []
    task = "image_understanding" if paths else "text_only"
    pictures = [{"path": path} for path in paths]
    return {"main_task_type": task, "message": content["conversations"], "input_img": pictures, **content}


def _read(content: dict[str, Any]) -> Sample:
    task = content.get("main_task_type")
    if not isinstance(task, str):
        raise ValueError("no main_task_type")
    task = OTHER_TASK_NAMES.get(task, task)
    if task not in TASKS:
        raise ValueError(f"main_task_type is {task!r}; known: {', '.join(TASKS)}")
    return Sample(
        task=task,
        inputs=_pictures(content, "input_img"),
        outputs=_pictures(content, "output_img"),
        messages=_turns(content.get("message")),
        patient=read_name(content, "patient_id") or read_name(content, "patient"),
        study=read_name(content, "study") or read_name(content, "study_id"),
    )


def _pictures(content: dict[str, Any], key: str) -> tuple[Picture, ...]:
    entries = content.get(key) or []
    if not isinstance(entries, list):
        raise ValueError(f"{key} must be a list of pictures, each with a path")
    pictures = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str) or not entry["path"].strip():
            raise ValueError(f"{key}[{place}] has no path")
        sides = [entry.get(side) for side in ("height", "width")]
        if any(side is not None and (isinstance(side, bool) or not isinstance(side, int) or side < 1) for side in sides):
            raise ValueError(f"{key}[{place}]: height and width must be whole numbers above 0")
        pictures.append(Picture(entry["path"].strip(), *sides))
    return tuple(pictures)


def _turns(entries: object) -> tuple[Message, ...]:
    if not isinstance(entries, list) or not entries:
        raise ValueError("no message: a list of turns, each with from and value")
    turns = []
    for place, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
            raise ValueError(f"message[{place}] needs `from` and a text `value`")
        if entry.get("from") not in ("human", "gpt"):
            raise ValueError(f"message[{place}]: from is {entry.get('from')!r}; known: human, gpt")
        if token := next((token for token in SPECIAL if token in entry["value"]), None):
            raise ValueError(f"message[{place}]: the text holds the special token {token}")
        turns.append(Message(entry["from"], entry["value"]))
    return tuple(turns)


def _checked(sample: Sample) -> Sample:
    """Raises: ValueError: the sample is not what its main_task_type says."""
    task = TASKS[sample.task]
    for key, pictures, wanted in (("input_img", sample.inputs, task.inputs), ("output_img", sample.outputs, task.outputs)):
        if wanted is not None and bool(pictures) != wanted:
            raise ValueError(f"main_task_type {sample.task} needs {key}" if wanted else f"{sample.task} takes no {key}")
    if not any(text.replace(IMAGE, "").strip() for text in sample.texts("human")):
        raise ValueError("no human text")
    marks = sum(text.count(IMAGE) for text in sample.texts("human"))
    if marks != len(sample.inputs) and not (sample.task == "image_generation" and not marks):
        raise ValueError(f"{marks} {IMAGE} marks in human text for {len(sample.inputs)} pictures of input_img")
    drawn = sum(text.count(IMAGE) for text in sample.texts("gpt"))
    if drawn not in (0, len(sample.outputs)):
        raise ValueError(f"{drawn} {IMAGE} marks in gpt text for {len(sample.outputs)} pictures of output_img")
    return sample


def without_marks(text: str) -> str:
    """A text without ``<image>``, its white space collapsed where one was taken out."""
    return " ".join(text.replace(IMAGE, " ").split()) if IMAGE in text else text.strip()
