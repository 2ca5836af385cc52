"""Ask UniMedVL about pictures: questions, reports.

    python jobs/vqa.py --model models:/raymed-unimedvl@champion --image chest.png --prompt "Which lung is affected?"
    python jobs/vqa.py --model UniMedVL --image chest.png --prompt "Write a report." --temperature 0.1
    python jobs/vqa.py --model UniMedVL --questions questions.jsonl --out answers.jsonl

A line of questions.jsonl is {"image": "chest.png", "prompt": "Which lung is affected?"}; paths are relative to the file. An
answer is a model's, and nobody has checked it.
"""

from __future__ import annotations

from raymed.job.job import Outcome, run
from raymed.systems.unimedvl.asking import GUIDE, VQA


def main(options: VQA) -> Outcome:
    from raymed.systems.unimedvl.asking import ask_many, ask_one
    from raymed.systems.unimedvl.pipeline import Pipeline

    pipeline = Pipeline.open(options.model, options.tracking, options.weights, options.reading)
    return ask_many(pipeline, options) if options.questions else ask_one(pipeline, options)


if __name__ == "__main__":
    run(VQA, main, aliases=GUIDE)
