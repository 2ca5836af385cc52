"""Stage 2: encoder and bridge learn to make a language model write the report of a picture."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from raymed.data.record import Record
from raymed.errors import UserError
from raymed.models.adapt import merged_state
from raymed.models.pretrained import fingerprint
from raymed.recipes.exported import read_settings
from raymed.recipes.groups import parameter_groups
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.recipes.recipe import TOKENS, Batch, Loss, LossTerm, ParameterGroup, TrainingPass
from raymed.systems.mamba_vlm.captions import encode_captions
from raymed.systems.mamba_vlm.guide_files import (
    INTERACTION,
    OPTIMIZER,
    GuideCheckpoint,
    compare,
    load_into,
    moments_of,
    read_checkpoint,
)
from raymed.systems.mamba_vlm.language_model import LanguageModel
from raymed.systems.mamba_vlm.network import ReportWriter
from raymed.systems.mamba_vlm.nnunet import read_encoder_plan
from raymed.systems.mamba_vlm.paths import same_model
from raymed.systems.mamba_vlm.settings import InteractionSettings
from raymed.systems.mamba_vlm.stage import WEIGHTS, StageRecipe
from raymed.systems.mamba_vlm.vision import VisionBridge, encoder_plan

if TYPE_CHECKING:
    from raymed.data.prepared import Prepared
    from raymed.registry.assessment import AssessmentSettings
    from raymed.registry.candidate import Candidate
    from raymed.systems.mamba_vlm.assessment import ReportAssessment

log = logging.getLogger("raymed")

HELD = "language_held"  # of an export: what the language model held that is kept apart
PASSES_OF_A_TEXT = 7  # forward passes that take as long as to write one of 80 tokens: 4 of small networks, 7 of large ones
LARGEST_EXPONENT = 700.0  # a perplexity above is no number
ELSEWHERE = {"encoder", "preset", "freeze"}  # of the vision settings: they decide about first weights, not what is seen
METRICS = (
    Metric("train_loss", "nats", "min", "{:.4f}"),
    Metric("train_token_std", "", "max", "{:.3f}"),
    VAL_LOSS,
    Metric("val_perplexity", "", "min", "{:.1f}"),
)


@dataclass(frozen=True)
class ReportRecipe(StageRecipe):
    """The recipe `mamba_vlm`. Build it with `for_data`.

    Attributes:
        cmi: the interaction with the question.
        start: a checkpoint file of the guide's that encoder, bridge and interaction begin with; None for random weights, and
            for the encoder's own.
    """

    NAME: ClassVar[str] = "mamba_vlm"

    cmi: InteractionSettings = field(default_factory=InteractionSettings)
    start: str | None = None

    @classmethod
    def for_data(cls, prepared: Prepared, **settings: Any) -> ReportRecipe:
        recipe = super().for_data(prepared, **settings)
        recipe.check_start()
        return recipe

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], **own: Any) -> ReportRecipe:
        """The recipe that `settings` describes: its own, or those of stage 1."""
        return super().of_settings(settings, cmi=InteractionSettings(**settings.get("cmi", {})), **own)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return METRICS

    @property
    def contrastive(self) -> bool:
        return False

    def check_start(self) -> None:
        """Say what of the file that training begins with is loaded, and what was otherwise when it was trained.

        Raises:
            UserError: it is of another encoder, bridge or language model, or what its interaction learned would be lost.
        """
        if self.start is None:
            return
        checkpoint, path = read_checkpoint(Path(self.start)), Path(self.start)
        weights = {key: tensor for key, tensor in checkpoint.weights.items() if key.startswith(("encoder.", "bridge."))}
        vision, width = replace(self.vision, encoder=None), self.language_model.config.hidden_size
        with torch.device("meta"):
            network = VisionBridge(encoder_plan(self.vision), vision, self.bridge, width)
        log.info("%s: %s", path, compare(network, replace(checkpoint, weights=weights), path))
        learned = any(key.startswith(INTERACTION) for key in checkpoint.weights)
        if learned and not self.cmi.use:
            raise UserError(
                f"{path} was trained with --use_cmi, and what that learned would be lost: add --use_cmi. Without it, begin "
                "with a file of stage 1 (--vision_checkpoint), or --from_scratch"
            )
        if self.cmi.use and not learned:
            log.warning("%s has no interaction with the question: it begins with random weights", path)
        if OPTIMIZER in checkpoint.values and moments_of(checkpoint) is None:
            log.warning("%s has no moments by parameter name: the optimizer begins anew", path)
        self._compare_settings(checkpoint, path)

    def _compare_settings(self, checkpoint: GuideCheckpoint, path: Path) -> None:
        """Of a file of stage 2, what it was trained with and what is asked for now."""
        stored = checkpoint.values.get("settings", {})
        if stored.get("recipe") != self.name:
            return
        trained = ReportRecipe.of_settings(stored)
        model = trained.language.path
        if not same_model(model, self.language.path):
            raise UserError(
                f"{path} was trained with the language model {model or 'that is the tiny one'}, and --mamba_model is "
                f"{self.language.path or 'the tiny one'}: give the same, or begin with a file of stage 1 "
                "(--vision_checkpoint)"
            )
        for part in ("vision", "bridge", *(["cmi"] if self.cmi.use and trained.cmi.use else [])):
            own, before = asdict(getattr(self, part)), asdict(getattr(trained, part))
            for name in own:
                if name not in ELSEWHERE and own[name] != before[name]:
                    log.warning("%s was trained with %s.%s %s: it is %s now", path, part, name, before[name], own[name])

    def build(self) -> ReportWriter:
        """The network with its starting weights, and with the optimizer's moments where the start has them."""
        network = ReportWriter(encoder_plan(self.vision), self.vision, self.bridge, self.cmi, self.language_model)
        if self.start is not None:
            checkpoint = read_checkpoint(Path(self.start))
            load_into(network, checkpoint, Path(self.start))
            network.start_moments = moments_of(checkpoint)  # type: ignore[assignment]
        return network

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """The language model, where it is trained, and the rest, each with and without weight decay."""
        return parameter_groups(module, module.language_model, "language", 1.0)  # type: ignore[arg-type]

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """What is seen, and the further arguments of `ReportWriter.forward`; `learned` [rows]."""
        reports, seen = self.seen(records)
        language = self.language_model
        captions = encode_captions(language.tokenizer, reports.questions, reports.answers, language.end, self.max_text_len)
        tensors = {
            **seen,
            "tokens": captions.tokens,
            "prompt_lengths": captions.prompt_lengths,
            "rows": captions.rows,
            "positions": captions.positions,
            "targets": captions.targets,
            "learned": captions.learned,
        }
        return Batch(tensors, {"caption": float(len(captions.targets))}, [record.id for record in records], ("learned",))

    def count_cut(self, records: Iterable[Record]) -> int:
        """How many of these reports are longer than `max_text_len` allows."""
        language = self.language_model
        texts = [{message.role: message.text for message in record.messages} for record in records]
        questions, answers = ([text[role] for text in texts] for role in ("human", "gpt"))
        return encode_captions(language.tokenizer, questions, answers, language.end, self.max_text_len).cut

    def compute_loss(self, module: nn.Module, batch: Batch) -> Loss:
        """Cross-entropy summed over the supervised tokens; logs the spread of the visual tokens, `token_std`."""
        output = _run(module, batch)
        losses, rows = output["token_losses"], float(len(batch.ids))
        read = batch.tensors["prompt_lengths"].sum() + len(losses)
        return Loss(
            {"caption": LossTerm(losses.sum())}, {"token_std": (output["token_std"] * rows, rows), TOKENS: (read, 0.0)}
        )

    def predict(self, module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """For each row `nll`, the summed cross-entropy of its report, float64, and `tokens`, how many were learned."""
        with torch.no_grad():
            losses = _run(module, batch)["token_losses"]
        nll = torch.zeros(len(batch.ids), dtype=torch.float64, device=losses.device)
        nll = nll.index_add(0, batch.tensors["rows"], losses.double())
        return {"nll": nll, "tokens": batch.tensors["learned"]}

    def evaluate(self, predictions: dict[str, np.ndarray], records: dict[str, np.ndarray]) -> dict[str, float]:
        """`val_loss`: mean cross-entropy of all supervised tokens, and the perplexity."""
        val_loss = float(predictions["nll"].sum() / predictions["tokens"].sum())
        return {"val_loss": val_loss, "val_perplexity": float(np.exp(min(val_loss, LARGEST_EXPONENT)))}

    def assess(self, candidate: Candidate, network: Path, prepared: Prepared, how: AssessmentSettings) -> ReportAssessment:
        """By its texts about patients that it has not seen, and by its validation loss."""
        from raymed.systems.mamba_vlm.assessment import ReportAssessment

        return ReportAssessment.judged(candidate, self, self.load(network), prepared, how)

    def judging_passes(self, rows: int) -> float:
        """Each test row, half of them all, is read with two pictures, and has a text of 80 tokens written about it."""
        return rows / 2 * (2 + PASSES_OF_A_TEXT)

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write weights (LoRA merged), tokenizer, `recipe.json`; a language model not trained stays where it is."""
        folder.mkdir(parents=True, exist_ok=True)
        state = merged_state(module)
        if self._kept_apart:
            state = {key: tensor for key, tensor in state.items() if not key.startswith("language_model.")}
        self.language_model.tokenizer.save_pretrained(folder)
        apart = {HELD: fingerprint(str(self.language.path))} if self._kept_apart else {}
        self.write(state, folder, apart)

    def load(self, folder: Path) -> ReportWriter:
        """The network that `export` wrote, in evaluation mode on the CPU.

        Raises:
            UserError: the folder is not complete, its weights do not fit, or the language model is not where it was, or
                another one is.
        """
        language = LanguageModel.find(replace(self.language, lora=0, freeze=True))
        began = read_settings(folder, self.name).get(HELD)
        if self._kept_apart and began is not None and (now := fingerprint(str(self.language.path))) != began:
            raise UserError(
                f"the language model of {folder} is kept apart in {self.language.path}, which held {began} and holds {now} "
                "now: put back the one that it was trained with"
            )
        vision = replace(self.vision, encoder=None)  # its weights are among the others
        network = ReportWriter(read_encoder_plan(folder), vision, self.bridge, self.cmi, language)
        state = load_file(folder / WEIGHTS)
        missing, unexpected = network.load_state_dict(state, strict=False)
        missing = [key for key in missing if not (self._kept_apart and key.startswith("language_model."))]
        if missing or unexpected:
            raise UserError(f"{folder / WEIGHTS} does not fit its recipe: {', '.join([*missing, *unexpected][:5])}")
        return network.eval()

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"cmi": asdict(self.cmi), "first_weights": self.start}

    @property
    def pretrained(self) -> tuple[str, ...]:
        return () if self.start is None else (self.start,)

    @property
    def _kept_apart(self) -> bool:
        """Whether the language model's weights are those of its own folder."""
        return self.language.path is not None and self.language.frozen and not self.language.lora


RECIPE = ReportRecipe


def _run(module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    inputs = {name: tensor for name, tensor in batch.tensors.items() if name != "learned"}
    return module(**inputs)
