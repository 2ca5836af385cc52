"""A trial that a person picked, promoted: assessed as its system says it, and registered."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from raymed.errors import UserError
from raymed.job.job import Outcome
from raymed.language import say
from raymed.registry.alias import alias_of
from raymed.registry.assessment import AssessmentSettings
from raymed.registry.candidate import Candidate
from raymed.registry.register import assess_and_register
from raymed.storage.folder import Folder
from raymed.tracking.tracker import Tracker


@dataclass(frozen=True)
class Promotion:
    """A trial to be promoted.

    Attributes:
        tracker: where its run is.
        candidate: what it left.
        alias: that the version gets; None for the usual one.
        licence: what its card says about the terms of use.
    """

    tracker: Tracker
    candidate: Candidate
    alias: str | None
    licence: str

    def describe(self) -> Outcome:
        """What would be done. Raises: UserError: its checkpoint or its data are gone, or are others now."""
        candidate, prepared = self.candidate, self.candidate.open_data()
        text = [
            say("checkpoint  {folder}", folder=candidate.network(candidate.checkpoint).uri),
            say("data        {data}, digest {digest}", data=candidate.data, digest=prepared.digest),
            say(
                "alias       {alias}",
                alias=alias_of(candidate, self.alias) or say("none: a limit left some out of training"),
            ),
            say("dry run: nothing was judged or registered"),
        ]
        return Outcome("\n".join(text), asdict(candidate))

    def run(self, folder: Folder, how: AssessmentSettings) -> Outcome:
        """Assess and register it.

        Args:
            folder: of the storage, for tables that name patients.

        Raises:
            UserError: as `assess_and_register`; or the run was deleted.
        """
        run = self.tracker.describe(self.candidate.run_id)
        if run.is_deleted:
            raise UserError(
                f"the run {run.id} ({run.name}) was deleted: restore it first, in the MLflow UI or by mlflow runs restore"
            )
        registered = assess_and_register(
            self.tracker,
            self.candidate,
            self.alias,
            licence=self.licence,
            how=how,
            found_by=f"The run {run.name}, picked by a person.",
        )
        assessment, files = registered.assessment, []
        for name, content in assessment.files().items():
            files.append(f"promoted/{self.candidate.run_id}/{name}")
            folder.write(files[-1], content)
        text = [
            *assessment.lines(),
            *(say("every judged patient: {folder}/{name}", folder=folder.uri, name=name) for name in files),
            say("registered: {uri} (version {version})", uri=registered.uri, version=registered.version),
            assessment.next_step(registered.uri, self.tracker.uri),
        ]
        data = {"model": registered.uri, "version": registered.version, "figures": assessment.figures()}
        return Outcome("\n".join(filter(None, text)), data)
