"""A network judged on prepared patients: its answers beside guessing, its pictures beside the unchanged input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from raymed.data.prepared import Prepared
from raymed.data.record import Record
from raymed.evaluation.answer_metrics import (
    AnswerScores,
    answer_guard,
    commonest_answers,
    from_commonest,
    score_answers,
)
from raymed.evaluation.estimate import Estimate, flatten
from raymed.evaluation.picture_metrics import Pictures, PictureScores, frechet_distance, score_pictures
from raymed.evaluation.text_guards import Guard, swap_patients
from raymed.evaluation.text_metrics import Texts
from raymed.systems.unimedvl.reader import Reader, pictures_of
from raymed.systems.unimedvl.sequence import from_messages

AT_ONCE = 64  # records read at a time


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers to questions about pictures, beside what a person wrote."""

    texts: Texts
    questions: list[str]
    scores: AnswerScores
    guards: tuple[Guard, ...]


@dataclass(frozen=True, eq=False)
class Drawings:
    """Pictures drawn from pictures.

    Attributes:
        ids, sources: of their records.
        scores: of all, and `by_source` of each data set where there are several.
        distance: Fréchet's between the latents of what was wanted and drawn; None of a single picture.
    """

    ids: list[str]
    sources: list[str]
    pictures: Pictures
    scores: PictureScores
    by_source: dict[str, PictureScores]
    distance: float | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was judged; None where the data have nothing of its kind."""

    answers: Answers | None
    drawings: Drawings | None

    @property
    def patients(self) -> list[str]:
        """Who was judged, sorted."""
        judged = [self.answers.texts.patients] if self.answers else []
        judged += [self.drawings.pictures.patients] if self.drawings else []
        return sorted({str(patient) for part in judged for patient in part})

    def metrics(self) -> dict[str, Estimate]:
        """Every figure with its interval."""
        named = [part.scores.metrics for part in (self.answers, self.drawings) if part]
        return {name: estimate for metrics in named for name, estimate in metrics.items()}

    def figures(self) -> dict[str, float]:
        """Every figure and the ends of its interval, and which guards answers passed."""
        guards = self.answers.guards if self.answers else ()
        passed = {f"passed_{guard.name.replace(' ', '_')}": float(guard.passed) for guard in guards}
        distance = self.drawings.distance if self.drawings else None
        return flatten(self.metrics()) | passed | ({} if distance is None else {"latent_frechet": distance})

    def verdicts(self) -> list[str]:
        """What the figures mean: of answers beside guessing, of pictures beside their input."""
        verdicts = [f"{guard.name}: {guard.words}" for guard in self.answers.guards] if self.answers else []
        if self.drawings:
            verdicts.append(str(self.drawings.scores))
            verdicts += [f"{source}: {part}" for source, part in self.drawings.by_source.items()]
        return verdicts

    def lines(self) -> list[str]:
        """For a person."""
        lines = []
        if self.answers:
            texts, metrics = self.answers.texts, self.answers.scores.metrics
            lines.append(f"answers: {len(texts.references)} of {len(np.unique(texts.patients))} patients")
            lines += [f"  {name:<10} {estimate}" for name, estimate in metrics.items()]
        if self.drawings:
            pictures, scores = self.drawings.pictures, self.drawings.scores
            lines.append(f"pictures: {len(pictures.drawn)} of {len(np.unique(pictures.patients))} patients")
            lines += [f"  {name:<10} {estimate}" for name, estimate in scores.metrics.items()]
            if self.drawings.distance is not None:
                lines.append(f"  latent Fréchet distance {self.drawings.distance:.3f}")
        return [*lines, *(f"  {verdict}" for verdict in self.verdicts())]


@dataclass
class _Kinds:
    """Numbers of the rows that ask about a picture, and of those that have one drawn from another."""

    asked: list[int] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)


def evaluate_rows(
    reader: Reader, prepared: Prepared, rows: np.ndarray, limit: int, seed: int = 0, fold: int | None = None
) -> Evaluation:
    """Answer and draw what the rows ask for, and judge it; nothing where they neither ask about a picture nor have one drawn
    from another.

    The commonest answer is that of the training patients.

    Args:
        limit: most questions, and most pictures; drawn by the seed where there are more (0 = all).
        fold: whose training patients those are.
    """
    kinds = _kinds(prepared, rows)
    asked, drawn = (_some(each, limit, seed) for each in (kinds.asked, kinds.drawn))
    answers = _answers(reader, prepared, prepared.read(asked), seed, fold) if asked else None
    drawings = _drawings(reader, prepared.read(drawn), seed) if drawn else None
    return Evaluation(answers, drawings)


def question_of(record: Record) -> str:
    """All that is asked before the first answer."""
    texts = []
    for element in from_messages(record.messages):
        if element.kind == "gpt":
            break
        if element.is_text:
            texts.append(element.text)
    return " ".join(texts)


def _kinds(prepared: Prepared, rows: np.ndarray) -> _Kinds:
    kinds = _Kinds()
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        for row, record in zip(part.tolist(), prepared.read(part), strict=True):
            known = [element.kind for element in from_messages(record.messages)]
            seen = "vit" in known
            if seen and "target" in known:
                kinds.drawn.append(row)
            elif seen and "gpt" in known:
                kinds.asked.append(row)
    return kinds


def _some(rows: Sequence[int], limit: int, seed: int) -> list[int]:
    if not limit or len(rows) <= limit:
        return list(rows)
    return sorted(np.random.default_rng(seed).choice(rows, limit, replace=False).tolist())


def _answers(reader: Reader, prepared: Prepared, records: list[Record], seed: int, fold: int | None) -> Answers:
    patients = np.array([record.patient for record in records])
    questions = [question_of(record) for record in records]
    references = [_first_answer(record) for record in records]

    def judged(generated: list[str]) -> AnswerScores:
        return score_answers(Texts(patients, references, generated), seed)

    texts = Texts(patients, references, [reader.answer(record) for record in records])
    scores = score_answers(texts, seed)
    training = _kinds(prepared, prepared.rows("train", fold)).asked
    guards = []
    if training:
        known = [
            record
            for start in range(0, len(training), AT_ONCE)
            for record in prepared.read(training[start : start + AT_ONCE])
        ]
        commonest = commonest_answers([question_of(each) for each in known], [_first_answer(each) for each in known])
        guards.append(
            answer_guard(
                "commonest answer", scores, judged(from_commonest(questions, commonest)), "the commonest answer's", seed
            )
        )
    if len(np.unique(patients)) > 1:
        swapped = swap_patients(patients, seed)
        others = [
            reader.answer(record, _shown(record, records[other])) for record, other in zip(records, swapped, strict=True)
        ]
        guards.append(answer_guard("image shuffle", scores, judged(others), "with another patient's picture", seed))
    return Answers(texts, questions, scores, tuple(guards))


def _first_answer(record: Record) -> str:
    return next(element.text for element in from_messages(record.messages) if element.kind == "gpt")


def _shown(record: Record, other: Record) -> dict[tuple[str, int], np.ndarray]:
    """The other record's pictures in the places of this one's; its first where it has fewer."""
    own, others = pictures_of(record), pictures_of(other)
    return {key: others.get(key, next(iter(others.values()))) for key in own}


def _drawings(reader: Reader, records: list[Record], seed: int) -> Drawings:
    inputs, targets = [], []
    for record in records:
        elements, pictures = from_messages(record.messages), pictures_of(record)
        last = max(place for place, element in enumerate(elements) if element.kind == "target")
        shown = next(element.place for element in reversed(elements[:last]) if element.kind in ("vae", "vit"))
        inputs.append(pictures[("output", shown) if ("output", shown) in pictures else ("input", shown)])
        targets.append(pictures["output", elements[last].place])
    drawn = [reader.paint(record) for record in records]
    made = Pictures(np.array([record.patient for record in records]), inputs, targets, drawn)
    distance = None
    if len(drawn) > 1:
        distance = frechet_distance(*(np.stack([reader.latent(each) for each in part]) for part in (targets, drawn)))
    sources = np.array([record.source for record in records])
    several = np.unique(sources).tolist() if len(np.unique(sources)) > 1 else []
    by_source = {source: score_pictures(made.only(sources == source), seed=seed) for source in several}
    return Drawings(
        [record.id for record in records], sources.tolist(), made, score_pictures(made, seed=seed), by_source, distance
    )
