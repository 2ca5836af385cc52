"""Slices and patients that cannot be used: each with its reason, and a limit to how many there may be."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Any

import pyarrow as pa

from raymed.data.survey import NAMED, Survey
from raymed.errors import UserError

Line = dict[str, Any]  # of quarantine.jsonl: id, where, patient, reason, expected
KEYS = ("id", "where", "patient", "reason")
EXPECTED = "expected"  # nothing is wrong with the file, as with a localizer


class Quarantine:
    """The slices that a source refused at once, and per study those that could not be decoded.

    Files with which nothing is wrong, and which are only not what is asked for, are on its list and no damage.

    Args:
        kept: the refused slices of studies that were read in an earlier run.
        limit: the share of all slices that may be damaged, and of all patients who may be without any, e.g. ``5%``.

    Raises:
        UserError: more than the limit are refused, here or when `add` brings them.
    """

    def __init__(self, found: Survey, kept: Mapping[str, list[Line]], limit: str) -> None:
        self._listed = [{key: getattr(refusal, key) for key in (*KEYS, EXPECTED)} for refusal in found.listing.refusals]
        self._studies: dict[str, list[Line]] = {study.study: list(kept.get(study.study, [])) for study in found.studies}
        self._ignored = {study.patient for study in found.listing.studies} - {study.patient for study in found.studies}
        self._limit = _share(limit)
        damaged = sum(not line.get(EXPECTED) for line in self._listed)
        self._total = found.slices + damaged
        self.damaged = damaged + sum(map(len, kept.values()))
        self._require_few()

    def add(self, refused: pa.Table) -> None:
        """Take in refused slices: a table with the columns study, id, where, patient and reason."""
        for row in refused.to_pylist():
            self._studies[row["study"]].append({key: row[key] for key in KEYS} | {EXPECTED: False})
        self.damaged += refused.num_rows
        self._require_few()

    def of_study(self, study: str) -> list[Line]:
        return sorted(self._studies[study], key=_order)

    @property
    def lines(self) -> list[Line]:
        """Every refused slice, sorted by id."""
        return sorted([*self._listed, *(line for lines in self._studies.values() for line in lines)], key=_order)

    def to_jsonl(self) -> bytes:
        return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines).encode()

    def reasons(self) -> str:
        """The commonest reasons of damage, how often, and an example of each."""
        by_reason: dict[str, list[Line]] = defaultdict(list)
        for line in self.lines:
            if not line.get(EXPECTED):
                by_reason[line["reason"]].append(line)
        common = sorted(by_reason.items(), key=lambda item: -len(item[1]))[:NAMED]
        return "; ".join(f"{reason} ({len(lines)}, e.g. {lines[0]['where']})" for reason, lines in common)

    def left_out(self, used: Collection[str]) -> dict[str, str]:
        """The patients of whom nothing is used, each with the commonest reason; but those whose label is ignored.

        Args:
            used: the patients of whom something is.

        Raises:
            UserError: they are more than the limit's share of all patients.
        """
        reasons: dict[str, Counter[str]] = defaultdict(Counter)
        for line in self.lines:
            if line["patient"] is not None and line["patient"] not in used and line["patient"] not in self._ignored:
                reasons[line["patient"]][line["reason"]] += 1
        lost = {patient: counts.most_common(1)[0][0] for patient, counts in sorted(reasons.items())}
        total = len(lost) + len(used)
        if len(lost) > self._limit * total:
            named = "; ".join(f"{patient}: {reason}" for patient, reason in list(lost.items())[:NAMED])
            more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
            raise UserError(
                f"{len(lost)} of {total} patients have no slice that can be used, more than max_quarantine "
                f"{float(self._limit):.1%}: {named}{more}. Mend the source, or raise --max-quarantine"
            )
        return lost

    def _require_few(self) -> None:
        if self.damaged > self._limit * self._total:
            raise UserError(
                f"{self.damaged} of {self._total} records cannot be used, more than max_quarantine "
                f"{float(self._limit):.1%}: {self.reasons()}. Mend the source, or raise --max-quarantine"
            )


def _order(line: Line) -> tuple[str, str]:
    return line["id"], line["where"]


def _share(text: str) -> Fraction:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip())
    if not match or (share := Fraction(match[1]) / 100) > 1:
        raise UserError(f"max_quarantine is {text!r}: give a share such as 5%")
    return share
