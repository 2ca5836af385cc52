"""Lines of a file that become studies: grouped by whose they are, with everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from raymed.data.record import Message
from raymed.data.sources.listing import Listing, Refusal, Slice, Study, by_reason
from raymed.errors import UserError


class Lines:
    """A listing in the making, line by line.

    Attributes:
        count: how many lines there were.
        first: where each sample stands, by its id.
    """

    def __init__(self, root: Path, kind: str, noun: str) -> None:
        """Args:
        kind: of the listing, its format.
        noun: what a line is, for a person.
        """
        self.count = 0
        self.first: dict[str, str] = {}
        self._root, self._kind, self._noun = root, kind, noun
        self._wrong: list[tuple[str, str]] = []
        self._refusals: list[Refusal] = []
        self._groups: dict[tuple[str, str, str], tuple[list[Slice], list[bytes]]] = {}

    def add(
        self,
        owner: tuple[str, str, str],
        state: tuple[object, ...],
        name: str,
        path: str,
        frame: int | None,
        where: str,
        messages: tuple[Message, ...],
        mask: str | None = None,
    ) -> None:
        """Take in a sample.

        Args:
            owner: patient, study and source.
            state: what the study has to be read again for, when it changes.
            name, path, frame, where, messages, mask: of its `Slice`.
        """
        self.first[name] = where
        slices, digests = self._groups.setdefault(owner, ([], [b""]))
        content = digests[0] + repr(state).encode(errors="surrogatepass")
        digests[0] = blake2b(content, digest_size=16).digest()
        slices.append(Slice(name, path, frame, len(slices), where, messages, mask=mask))

    def refuse(self, name: str, where: str, patient: str | None, reason: str) -> None:
        """Take in a line that cannot be used, for the quarantine."""
        self._refusals.append(Refusal(name, where, patient, reason))

    def is_wrong(self, where: str, reason: str) -> None:
        """Take in a line that must be mended before any is used."""
        self._wrong.append((where, reason))

    def check(self) -> None:
        """Raises: UserError: a line must be mended."""
        if self._wrong:
            lines = "\n".join(by_reason(self._wrong))
            raise UserError(f"{len(self._wrong)} of {self.count} lines cannot be used; mend or remove them:\n{lines}")

    def listing(self, notes: Sequence[str], patients_known: bool, splits: Mapping[str, str] | None = None) -> Listing:
        """All of them.

        Raises:
            UserError: a line must be mended, or none can be used.
        """
        self.check()
        if not self._groups:
            reasons = "\n".join(by_reason((refusal.where, refusal.reason) for refusal in self._refusals))
            raise UserError(f"{self._root}: no {self._noun} can be used: {reasons or 'there are no lines'}")
        studies = [
            Study(patient, study, None, source, tuple(slices), digests[0].hex())
            for (patient, study, source), (slices, digests) in self._groups.items()
        ]
        studies.sort(key=lambda study: (study.patient, study.study))
        return Listing(
            self._root, self._kind, tuple(studies), tuple(self._refusals), tuple(notes), patients_known, splits or {}
        )
