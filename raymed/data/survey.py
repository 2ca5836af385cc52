"""What a source holds, checked before any picture is opened: labels, patients, and ids."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raymed.data.choices import parse_choices
from raymed.data.labels import LabelTable
from raymed.data.sources import Listing, Refusal, SourceSettings, Study, list_source
from raymed.data.sources.listing import by_reason
from raymed.errors import UserError
from raymed.models.marks import IMAGE

UNLABELLED = "unlabelled"  # the class of pictures without a label, in counts
OWN_LABELS = "source"
NAMED = 10


@dataclass(frozen=True)
class Survey:
    """A source, listed and found consistent.

    Attributes:
        listing: everything the source listed.
        labels: the label table.
        studies: what is to be prepared: the listed studies whose label is not ignored.
        ignored: slices whose label is on the ignore list, per label.
        known_as: from a patient's id in the source to the one in `studies`, which may be a pseudonym.
    """

    listing: Listing
    labels: LabelTable
    studies: tuple[Study, ...]
    ignored: dict[str, int]
    known_as: Callable[[str], str] = str

    @property
    def slices(self) -> int:
        """Slices to be prepared."""
        return sum(len(study.slices) for study in self.studies)

    @property
    def patients(self) -> dict[str, int]:
        """Patients per class name."""
        classes = {study.patient: class_name(self.labels, self.class_of(study)) for study in self.studies}
        counts = Counter(classes.values())
        return {name: counts[name] for name in (*self.labels.names, UNLABELLED) if counts[name]}

    def class_of(self, study: Study) -> int | None:
        """Class index of a study; None without a label."""
        return None if study.label is None else self.labels.index_of(study.label)


def survey(source: Path, settings: SourceSettings, labels: str) -> Survey:
    """List a source and check it. Opens no picture and writes nothing.

    Args:
        labels: a label table's file or name, or ``source``: the classes are the labels that the source writes.

    Raises:
        UserError: nothing there, unknown labels, a patient with two labels, or ids that are not unique.
    """
    listing = list_source(source, settings)
    if settings.labelled and listing.format == "conversations":
        listing = _with_questions(listing)
    written: Counter[str] = Counter()
    for study in listing.studies:
        if study.label is not None:
            written[study.label] += len(study.slices)
    table = LabelTable.of(sorted(written)) if labels == OWN_LABELS else LabelTable.open(labels)
    if settings.labelled and listing.format == "conversations" and labels != OWN_LABELS:
        listing = _with_choices(listing, table)
    table.check(written)
    ignored = {label: count for label, count in sorted(written.items()) if table.index_of(label) is None}
    studies = tuple(study for study in listing.studies if study.label is None or study.label not in ignored)
    if not studies:
        raise UserError(f"{source}: every label is on the label table's ignore list: {', '.join(ignored)}")
    found = Survey(listing, table, studies, ignored)
    _require_one_label(found)
    _require_unique_ids(studies)
    return found


def class_name(labels: LabelTable, index: int | None) -> str:
    """Name of a class index; `UNLABELLED` for None."""
    return UNLABELLED if index is None else labels.names[index]


def _with_questions(listing: Listing) -> Listing:
    """Conversations to learn labels from: lines that ask for none, or about no picture, are refused one by one.

    Where no line asks for a label, there are none to learn, and all are as they were.

    Raises:
        UserError: all are refused.
    """
    if all(study.label is None for study in listing.studies):
        return listing
    studies, refusals = [], list(listing.refusals)
    for study in listing.studies:
        kept = []
        for piece in study.slices:
            asked = any(IMAGE in turn.text for turn in piece.messages if turn.role == "human")
            if study.label is None or not asked:
                lacks = "<cls> question, so no label" if study.label is None else f"{IMAGE} mark in a question"
                refusals.append(Refusal(piece.id, piece.where, study.patient, f"no {lacks}"))
            else:
                kept.append(piece)
        if kept:
            studies.append(replace(study, slices=tuple(kept)))
    if not studies:
        reasons = "\n".join(by_reason((refusal.where, refusal.reason) for refusal in refusals))
        raise UserError(f"{listing.root}: no line can be learned from:\n{reasons}")
    return replace(listing, studies=tuple(studies), refusals=tuple(refusals))


def _with_choices(listing: Listing, table: LabelTable) -> Listing:
    """Conversations whose prompts declare classes of the label table, in whatever way they are written.

    Prompts that declare some of them only are told of: a model is asked to choose from all.

    Raises:
        UserError: a prompt declares what the table does not know; shows both.
    """
    declared: dict[str, list[str]] = defaultdict(list)
    for study in listing.studies:
        for piece in study.slices:
            asked = [parse_choices(turn.text) for turn in piece.messages if turn.role == "human"]
            for choices in filter(None, asked):
                declared["|".join(choices)].append(piece.where)
    own = ", ".join(f"{row.code} {row.name}" for row in table.classes)
    prompts = {text: f"{text} ({len(where)} lines, such as {where[0]})" for text, where in declared.items()}
    unknown = [prompts[text] for text in prompts if not all(map(table.knows, text.split("|")))]
    if unknown:
        raise UserError(
            f"prompts declare other choices than the label table's classes ({own}): {'; '.join(unknown[:NAMED])}. Give the "
            "table of these data with --labels, or mend the prompts"
        )
    fewer = [
        prompts[text]
        for text in prompts
        if len({table.index_of(each) for each in text.split("|")} - {None}) < len(table.classes)
    ]
    if not fewer:
        return listing
    note = (
        f"prompts declare some of the label table's classes ({own}): {'; '.join(fewer[:NAMED])}. A model is asked to choose "
        "from all of them; for the declared ones alone, give a table of those with --labels"
    )
    return replace(listing, notes=(*listing.notes, note))


def _require_one_label(found: Survey) -> None:
    classes: dict[str, dict[int, str]] = defaultdict(dict)
    for study in found.studies:
        if (index := found.class_of(study)) is not None:
            classes[study.patient].setdefault(index, f"{study.label} ({study.slices[0].where})")
    several = {patient: " and ".join(names.values()) for patient, names in classes.items() if len(names) > 1}
    _refuse(several, "patients have two labels", "Correct the label, or give each person an id of their own")


def _require_unique_ids(studies: Sequence[Study]) -> None:
    owners: dict[str, list[str]] = defaultdict(list)
    places: dict[str, list[str]] = defaultdict(list)
    for study in studies:
        owners[study.study].append(study.patient)
        for piece in study.slices:
            places[piece.id].append(piece.where)
    repeated = {name: " and ".join(where) for name, where in places.items() if len(where) > 1}
    _refuse(repeated, "pictures are listed more than once", "List each picture once")
    shared = {study: "of " + " and of ".join(names) for study, names in owners.items() if len(names) > 1}
    _refuse(shared, "study ids stand for several studies", "Make study ids unique, or correct patient ids and labels")


def _refuse(wrong: Mapping[str, str], what: str, remedy: str) -> None:
    if wrong:
        named = "; ".join(f"{name}: {text}" for name, text in sorted(wrong.items())[:NAMED])
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise UserError(f"{len(wrong)} {what}: {named}{more}. {remedy}")
