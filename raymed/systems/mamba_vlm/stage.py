"""What the recipes of both stages share: pictures of prepared reports, an encoder that reads them, a bridge to tokens of the
language model's width."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from safetensors.torch import save_file
from torch import Tensor, nn

from raymed.data.image import recorded
from raymed.data.record import Record
from raymed.errors import UserError
from raymed.recipes.exported import read_settings, write_settings
from raymed.recipes.recipe import Batch, FrozenPart
from raymed.systems.mamba_vlm.encoder import Encoder
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.language_model import LanguageModel
from raymed.systems.mamba_vlm.nnunet import load_encoder, write_plan
from raymed.systems.mamba_vlm.records import Reports, read_reports
from raymed.systems.mamba_vlm.settings import BridgeSettings, LanguageSettings, VisionSettings
from raymed.systems.mamba_vlm.slices import Reading, SliceSettings
from raymed.systems.mamba_vlm.vision import encoder_plan

if TYPE_CHECKING:
    from raymed.data.prepared import Prepared

log = logging.getLogger("raymed")

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class StageRecipe:
    """Settings of both stages.

    Attributes:
        reading: how pictures were read from files, their size among it; a model asked about files reads them alike.
        intensity: what the pictures' bytes mean.
        vision: the encoder, and which of its tokens are used.
        bridge: from its map to visual tokens.
        language: the language model, whose width the tokens have.
        max_text_len: most tokens of question and report together; of stage 1, most tokens of a report.
    """

    NAME: ClassVar[str]

    reading: Reading
    intensity: Intensity = field(default_factory=Intensity)
    vision: VisionSettings = field(default_factory=VisionSettings)
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    language: LanguageSettings = field(default_factory=LanguageSettings)
    max_text_len: int = 512

    @classmethod
    def for_data(cls, prepared: Prepared, **settings: Any) -> Self:
        """The recipe for these prepared reports.

        Raises:
            UserError: they are no reports, or a model is missing.
        """
        recipe = cls(reading_of(prepared), intensity_of(prepared), **settings)
        recipe = replace(recipe, vision=recipe.vision.located(), language=recipe.language.located())
        if recipe.vision.encoder is not None:
            folder = Path(recipe.vision.encoder)
            report = load_encoder(Encoder(encoder_plan(recipe.vision)), folder)
            log.info("%s: %s; unexpected ones are of stages that are not used", folder, report)
        elif recipe.vision.preset == "nnunet" and settings.get("start") is None:
            log.warning(
                "the encoder begins with random weights: import nnU-Net's (jobs/import_nnunet.py) and give "
                "--vision.encoder, or nnunet_encoder_checkpoint in config/paths.yaml"
            )
        warn_of_intensity(recipe.vision, recipe.intensity)
        _language_model(recipe.language)
        return recipe

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The recipe that `export` wrote into a folder.

        Raises:
            UserError: the folder holds no exported model of this recipe.
        """
        return cls.of_settings(read_settings(folder, cls.NAME))

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], **own: Any) -> Self:
        """The recipe that `settings` describes, with what a stage has of its `own`."""
        return cls(
            reading=Reading.from_dict(settings["reading"]),
            intensity=Intensity(**settings["intensity"]),
            vision=VisionSettings(**settings["vision"]),
            bridge=BridgeSettings(**settings["bridge"]),
            language=LanguageSettings(**settings["language"]),
            max_text_len=settings["max_text_len"],
            **own,
        )

    @property
    def name(self) -> str:
        return self.NAME

    @property
    def size(self) -> int:
        """Side of the pictures, in pixels."""
        return self.reading.image.size

    @property
    def language_model(self) -> LanguageModel:
        """The language model before its weights are read, and its tokenizer."""
        return _language_model(self.language)

    @property
    def frozen_part(self) -> FrozenPart | None:
        """The encoder, where it is frozen."""
        if not self.vision.freeze:
            return None
        deciding = {"plan": asdict(encoder_plan(self.vision)), "intensity": asdict(self.intensity)}
        return FrozenPart("encoder", deciding | {"side": self.vision.target_side}, varied=False)

    def features(self, module: nn.Module, batch: Batch) -> Tensor:
        """The encoder's maps, [rows, slices, channels, side, side]."""
        return module.features(batch.tensors["pictures"])  # type: ignore[operator]

    def seen(self, records: Sequence[Record]) -> tuple[Reports, dict[str, Tensor]]:
        """The records' texts, and what a network sees of them: `pictures`, or the `features` that a frozen encoder made of
        them; and `mask` where the region lies around it."""
        reports = read_reports(records, self.size, self.intensity, self.vision.reads_masks)
        seen = {"pictures": reports.pictures, "features": reports.features, "mask": reports.mask}
        return reports, {name: tensor for name, tensor in seen.items() if tensor is not None}

    def settings(self) -> dict[str, Any]:
        return {
            "recipe": self.name,
            "reading": recorded(self.reading),
            "intensity": asdict(self.intensity),
            "vision": asdict(self.vision),
            "bridge": asdict(self.bridge),
            "language": asdict(self.language),
            "max_text_len": self.max_text_len,
        }

    def write(self, state: Mapping[str, Tensor], folder: Path, facts: Mapping[str, str] | None = None) -> None:
        """Write weights, the encoder's plan and `recipe.json`, with facts about them, which ends an export."""
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / WEIGHTS)
        write_plan(encoder_plan(self.vision), folder)
        write_settings(folder, self.settings() | dict(facts or {}))


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


def reading_of(prepared: Prepared) -> Reading:
    """How the pictures of prepared reports were read."""
    described = prepared.manifest.settings
    if "slices" not in described or "orientation" not in described:
        raise UserError(f"{prepared.folder.uri} holds no reports: prepare them with jobs/prepare_mamba.py")
    hounsfield = intensity_of(prepared).scheme == "plans"
    return Reading(prepared.image, SliceSettings(**described["slices"]), described["orientation"], hounsfield)


def intensity_of(prepared: Prepared) -> Intensity:
    """What the bytes of prepared reports mean."""
    described = prepared.manifest.settings
    if "intensity" not in described:
        raise UserError(f"{prepared.folder.uri} holds no reports: prepare them with jobs/prepare_mamba.py")
    return Intensity(**described["intensity"])


@lru_cache
def _language_model(settings: LanguageSettings) -> LanguageModel:
    return LanguageModel.find(settings)
