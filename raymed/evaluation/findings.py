"""Which findings a text names: the words of a label table, but where the text says that there are none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from raymed.data.labels import LabelTable

CLAUSES = re.compile(r"[.;:,!?\n，。；：、！？]|\bbut\b|\bhowever\b|但")
DENIALS = re.compile(
    r"\b(?:no|not|without|free of|absence of|negative for|denies|rather than)\b|未见|未及|未发现|没有|无|排除"
)


@dataclass(frozen=True)
class Findings:
    """The classes of a label table as findings: a text has one if it names any of its words in a clause that does not deny
    it before. Of words that lie within each other the longest counts. It is a count of words and no reading of texts.
    """

    table: LabelTable

    def of(self, text: str) -> frozenset[int]:
        """Class indices of what a text names."""
        named: set[int] = set()
        for clause in CLAUSES.split(text.casefold()):
            for match in self._words.finditer(clause):
                if not DENIALS.search(clause, 0, match.start()):
                    named.add(self._class_of[match[0]])
        return frozenset(named)

    @cached_property
    def _class_of(self) -> dict[str, int]:
        return {
            word.strip().casefold(): index
            for index, row in enumerate(self.table.classes)
            for word in (row.name, *row.names.values(), *row.aliases)
        }

    @cached_property
    def _words(self) -> re.Pattern[str]:
        words = sorted(self._class_of, key=len, reverse=True)
        return re.compile("|".join(_whole(word) for word in words))


def _whole(word: str) -> str:
    """A pattern of a word; Latin ones must not be parts of others."""
    before, after = (r"(?<!\w)" if word[0].isascii() else "", r"(?!\w)" if word[-1].isascii() else "")
    return f"{before}{re.escape(word)}{after}"
