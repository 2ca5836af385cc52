"""What conversations are like is told before a day is spent on them, with a line each where advice is missed."""

from __future__ import annotations

from raymed.data.record import Message
from raymed.data.sources.dialogues import ENOUGH, Dialogues


def of(*pairs: tuple[str, str]) -> list[str]:
    dialogues = Dialogues()
    for question, answer in pairs:
        dialogues.add((Message("human", question), Message("gpt", answer)))
    return dialogues.lines()


def test_short_and_repeated_answers_and_few_kinds_of_question_are_told_one_by_one() -> None:
    told = "\n".join(of(*[("<image>\nWhat do you see here, in short?", "Nothing.")] * 6))
    assert "6 conversations; 6 answers in words of their own, 0 to declared choices; 1 kinds of question" in told
    assert "'what do you see' 6" in told and "median 8, most from 8 to 8" in told
    assert f"fewer than {ENOUGH} samples" in told and "half of the answers have fewer than 50" in told
    assert "6 of 6 answers stand in the data more than once" in told and "fewer than 10 kinds of question" in told


def test_what_follows_the_advice_is_not_warned_about() -> None:
    pairs = [(f"<image>描述{number}号病灶", f"{number} " + "双肺可见磨玻璃影。" * 8) for number in range(20)]
    told = of(*pairs * 1)
    assert told[1:2] == ["characters of an answer: median 74, most from 74 to 75"]
    assert len(told) == 3 and "fewer than 10000 samples" in told[2]


def test_declared_choices_are_no_short_answers() -> None:
    (told, *warnings) = of(("<image>\n<cls>: 0|1.", "1"), ("<image>\n<cls>: 0|1.", "1"))
    assert "0 answers in words of their own, 2 to declared choices" in told
    assert not any("answers" in line for line in warnings)
