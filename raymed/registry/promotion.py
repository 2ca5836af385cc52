"""A trial that a person picked, promoted: judged and registered, or, of data without classes, registered by its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.evaluation.summary import lines
from raymed.job.job import Outcome
from raymed.registry.assessment import Candidate
from raymed.registry.register import alias_of, assess_and_register, register_network
from raymed.storage.folder import Folder
from raymed.tracking.tracker import Tracker
from raymed.training.checkpoint import read_history, step_of


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
        """What would be done. Raises: UserError: its checkpoint or its data are gone."""
        candidate, prepared = self.candidate, Prepared.open(self.candidate.data)
        text = [
            f"checkpoint  {candidate.network(candidate.checkpoint).uri}",
            f"data        {candidate.data}, digest {prepared.digest}",
            f"alias       {alias_of(candidate, self.alias) or 'none: a limit left patients out of training'}",
            "dry run: nothing was judged or registered",
        ]
        return Outcome("\n".join(text), asdict(candidate))

    def run(self, folder: Folder, how: Mapping[str, Any]) -> Outcome:
        """Judge and register it.

        Args:
            folder: of the storage, for the table of judged patients.
            how: micro_batch, workers and bootstrap of the assessment.

        Raises:
            UserError: as `assess_and_register`.
        """
        if not Prepared.open(self.candidate.data).labels.classes:
            return self._register_network()
        registered = assess_and_register(self.tracker, self.candidate, self.alias, licence=self.licence, **how)
        assessment, patients = registered.assessment, f"promoted/{self.candidate.run_id}/patients.csv"
        folder.write(patients, assessment.predictions())
        judged, split = (assessment.test, "test") if assessment.test else (assessment.validation, "validation")
        text = [
            f"{judged.patients} {split} patients, temperature {assessment.temperature:.3f}",
            *lines(judged),
            f"every judged patient: {folder.uri}/{patients}",
            f"registered: {registered.uri} (version {registered.version})",
        ]
        data = {"model": registered.uri, "version": registered.version, "temperature": assessment.temperature}
        return Outcome("\n".join(text), data | {"split": split, "figures": judged.flat()})

    def _register_network(self) -> Outcome:
        """For data without classes: the network and its validation loss."""
        run, checkpoint = self.tracker.describe(self.candidate.run_id), Folder.at(self.candidate.checkpoint)
        history, step = read_history(checkpoint), step_of(Path(checkpoint.path).name)
        if not history:
            raise UserError(
                f"step {step} of the run {run.name} came before the first validation, so nothing is known of it. "
                f"Its network can be used as it is: python jobs/extract_vit.py --model {checkpoint.uri} --out VIT"
            )
        val_loss, validated = history[-1]["val_loss"], history[-1]["global_step"]
        when = f"in epoch {history[-1]['epoch']:g}" if step == validated else f"at step {validated:g}, before it"
        found_by = f"The run {run.name} at step {step}: val_loss {val_loss:.4f} {when}; picked by a person."
        registered = register_network(self.tracker, self.candidate, val_loss, found_by, self.alias, self.licence)
        text = [
            f"val_loss {val_loss:.4f}; the data have no classes to judge patients by",
            f"registered: {registered.uri} (version {registered.version})",
            f"take its ViT out: python jobs/extract_vit.py --model {registered.uri} --out VIT",
        ]
        return Outcome("\n".join(text), {"model": registered.uri, "version": registered.version, "val_loss": val_loss})
