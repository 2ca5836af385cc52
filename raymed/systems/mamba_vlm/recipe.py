"""Stage 2: encoder and bridge learn to make a language model write the report of a picture."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raymed.data.record import Record
from raymed.errors import UserError
from raymed.models.adapt import merged_state
from raymed.models.pretrained import fingerprint
from raymed.recipes.exported import read_settings, write_settings
from raymed.recipes.groups import parameter_groups
from raymed.recipes.metric import VAL_LOSS, Metric
from raymed.recipes.recipe import Batch, Loss, LossTerm, ParameterGroup, TrainingPass
from raymed.systems.mamba_vlm.captions import encode_captions
from raymed.systems.mamba_vlm.guide_files import OPTIMIZER, compare, load_into, read_checkpoint
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.language_model import LanguageModel
from raymed.systems.mamba_vlm.network import ReportWriter
from raymed.systems.mamba_vlm.nnunet import read_encoder_plan, write_plan
from raymed.systems.mamba_vlm.records import read_reports
from raymed.systems.mamba_vlm.settings import BridgeSettings, InteractionSettings, LanguageSettings, VisionSettings
from raymed.systems.mamba_vlm.slices import Reading, SliceSettings
from raymed.systems.mamba_vlm.vision import VisionBridge, encoder_plan
from raymed.training.state import StartMoments

if TYPE_CHECKING:
    from raymed.data.prepared import Prepared
    from raymed.registry.assessment import AssessmentSettings
    from raymed.registry.candidate import Candidate
    from raymed.systems.mamba_vlm.assessment import ReportAssessment

log = logging.getLogger("raymed")

WEIGHTS = "model.safetensors"
HELD = "language_held"  # of an export: what the language model held that is kept apart
LARGEST_EXPONENT = 700.0  # a perplexity above is no number
METRICS = (
    Metric("train_loss", "nats", "min", "{:.4f}"),
    Metric("train_token_std", "", "max", "{:.3f}"),
    VAL_LOSS,
    Metric("val_perplexity", "", "min", "{:.1f}"),
)


@dataclass(frozen=True)
class ReportRecipe:
    """The recipe `mamba_vlm`. Build it with `for_data`.

    Attributes:
        reading: how pictures were read from files, their size among it; a model asked about files reads them alike.
        intensity: what the pictures' bytes mean.
        vision: the encoder, and which of its tokens are used.
        bridge: from its map to visual tokens.
        cmi: the interaction with the question.
        language: the language model.
        max_text_len: most tokens of question and report together.
        start: a checkpoint file of the guide's that encoder, bridge and interaction begin with; None for random weights, and
            for the encoder's own.
    """

    reading: Reading
    intensity: Intensity = field(default_factory=Intensity)
    vision: VisionSettings = field(default_factory=VisionSettings)
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    cmi: InteractionSettings = field(default_factory=InteractionSettings)
    language: LanguageSettings = field(default_factory=LanguageSettings)
    max_text_len: int = 512
    start: str | None = None

    @classmethod
    def for_data(cls, prepared: Prepared, **settings: Any) -> ReportRecipe:
        """The recipe for these prepared reports.

        Raises:
            UserError: they are no reports, or a model is missing.
        """
        recipe = cls(reading_of(prepared), intensity_of(prepared), **settings)
        recipe = replace(recipe, vision=recipe.vision.located(), language=recipe.language.located())
        warn_of_intensity(recipe.vision, recipe.intensity)
        _language_model(recipe.language)
        recipe.check_start()
        return recipe

    @classmethod
    def read(cls, folder: Path) -> ReportRecipe:
        """The recipe that `export` wrote into a folder.

        Raises:
            UserError: the folder holds no exported model of this recipe.
        """
        return cls.of_settings(read_settings(folder, "mamba_vlm"))

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> ReportRecipe:
        """The recipe that `settings` describes: its own, or those of stage 1."""
        return cls(
            reading=Reading.from_dict(settings["reading"]),
            intensity=Intensity(**settings["intensity"]),
            vision=VisionSettings(**settings["vision"]),
            bridge=BridgeSettings(**settings["bridge"]),
            cmi=InteractionSettings(**settings.get("cmi", {})),
            language=LanguageSettings(**settings["language"]),
            max_text_len=settings["max_text_len"],
        )

    @property
    def name(self) -> str:
        return "mamba_vlm"

    @property
    def size(self) -> int:
        """Side of the pictures, in pixels."""
        return self.reading.image.size

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return METRICS

    @property
    def contrastive(self) -> bool:
        return False

    @property
    def language_model(self) -> LanguageModel:
        """The language model before its weights are read, and its tokenizer."""
        return _language_model(self.language)

    def check_start(self) -> None:
        """Raises: UserError: the file that training begins with is of another encoder or bridge."""
        if self.start is None:
            return
        checkpoint, path = read_checkpoint(Path(self.start)), Path(self.start)
        weights = {key: tensor for key, tensor in checkpoint.weights.items() if key.startswith(("encoder.", "bridge."))}
        vision, width = replace(self.vision, encoder=None), self.language_model.config.hidden_size
        with torch.device("meta"):
            network = VisionBridge(encoder_plan(self.vision), vision, self.bridge, width)
        compare(network, replace(checkpoint, weights=weights), path)

    def build(self) -> ReportWriter:
        """The network with its starting weights, and with the optimizer's moments where the start has them."""
        network = ReportWriter(encoder_plan(self.vision), self.vision, self.bridge, self.cmi, self.language_model)
        if self.start is not None:
            checkpoint = read_checkpoint(Path(self.start))
            load_into(network, checkpoint, Path(self.start))
            if moments := checkpoint.values.get(OPTIMIZER):
                network.start_moments = StartMoments(**moments)  # type: ignore[assignment]
        return network

    def groups(self, module: nn.Module) -> list[ParameterGroup]:
        """The language model, where it is trained, and the rest, each with and without weight decay."""
        return parameter_groups(module, module.language_model, "language", 1.0)  # type: ignore[arg-type]

    def encode(self, records: Sequence[Record], training: TrainingPass | None) -> Batch:
        """Pictures, masks where the region lies around them, and the arguments of `ReportWriter`; `learned` [rows]."""
        reports = read_reports(records, self.size, self.intensity, self.vision.reads_masks)
        language = self.language_model
        captions = encode_captions(language.tokenizer, reports.questions, reports.answers, language.end, self.max_text_len)
        tensors = {
            "pictures": reports.pictures,
            "tokens": captions.tokens,
            "prompt_lengths": captions.prompt_lengths,
            "rows": captions.rows,
            "positions": captions.positions,
            "targets": captions.targets,
            "learned": captions.learned,
        }
        if reports.mask is not None:
            tensors["mask"] = reports.mask
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
        return Loss({"caption": LossTerm(losses.sum())}, {"token_std": (output["token_std"] * rows, rows)})

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

    def export(self, module: nn.Module, folder: Path) -> None:
        """Write weights (LoRA merged), tokenizer, `recipe.json`; a language model not trained stays where it is."""
        folder.mkdir(parents=True, exist_ok=True)
        state = merged_state(module)
        if self._kept_apart:
            state = {key: tensor for key, tensor in state.items() if not key.startswith("language_model.")}
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / WEIGHTS)
        write_plan(encoder_plan(self.vision), folder)
        self.language_model.tokenizer.save_pretrained(folder)
        apart = {HELD: fingerprint(str(self.language.path))} if self._kept_apart else {}
        write_settings(folder, self.settings() | apart)

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
        return {
            "recipe": self.name,
            "reading": asdict(self.reading),
            "intensity": asdict(self.intensity),
            "vision": asdict(self.vision),
            "bridge": asdict(self.bridge),
            "cmi": asdict(self.cmi),
            "language": asdict(self.language),
            "max_text_len": self.max_text_len,
            "first_weights": self.start,
        }

    @property
    def pretrained(self) -> tuple[str, ...]:
        return () if self.start is None else (self.start,)

    @property
    def _kept_apart(self) -> bool:
        """Whether the language model's weights are those of its own folder."""
        return self.language.path is not None and self.language.frozen and not self.language.lora


RECIPE = ReportRecipe


def reading_of(prepared: Prepared) -> Reading:
    """How the pictures of prepared reports were read."""
    described = prepared.manifest.settings
    if "slices" not in described or "orientation" not in described:
        raise UserError(f"{prepared.folder.uri} holds no reports: prepare them with jobs/prepare_mamba.py")
    hounsfield = intensity_of(prepared).scheme == "plans"
    return Reading(prepared.image, SliceSettings(**described["slices"]), described["orientation"], hounsfield)


def intensity_of(prepared: Prepared) -> Intensity:
    """What the bytes of prepared reports mean.

    Raises:
        UserError: the data hold no reports.
    """
    described = prepared.manifest.settings
    if "intensity" not in described:
        raise UserError(f"{prepared.folder.uri} holds no reports: prepare them with jobs/prepare_mamba.py")
    return Intensity(**described["intensity"])


def warn_of_intensity(vision: VisionSettings, intensity: Intensity) -> None:
    """Tell a person whose pictures were not prepared as the imported encoder knows them.

    Raises:
        UserError: the folder holds no imported encoder.
    """
    known = encoder_plan(vision).intensity
    if known is None:
        return
    try:
        trained = Intensity.of_plans(asdict(known), str(vision.encoder))
    except UserError:  # a normalisation that is not known here: any choice of --normalize was a person's own
        return
    if trained != intensity:
        log.warning(
            "%s was trained on pictures normalised by %s, which the data are not: prepare them with --encoder %s",
            *(vision.encoder, known.scheme, vision.encoder),
        )


def _run(module: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    inputs = {name: tensor for name, tensor in batch.tensors.items() if name != "learned"}
    return module(**inputs, ids=batch.ids)


@lru_cache
def _language_model(settings: LanguageSettings) -> LanguageModel:
    return LanguageModel.find(settings)
