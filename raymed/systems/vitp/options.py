"""What the pretraining jobs share: their options."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from raymed.data.choices import parse_choices
from raymed.data.image import ImageSettings
from raymed.data.packing import MixtureSettings
from raymed.data.phantom import PhantomSettings
from raymed.data.prepared import Prepared
from raymed.data.settings import CorpusSettings
from raymed.data.split import SplitSettings
from raymed.errors import UserError
from raymed.models.settings import ModelSettings
from raymed.systems.options import SystemOptions
from raymed.systems.vitp.settings import ChatLossSettings
from raymed.systems.vitp.token_drop import TokenDropSettings
from raymed.training.settings import TrainSettings

if TYPE_CHECKING:
    from raymed.systems.vitp.probe import BackboneProbe
    from raymed.systems.vitp.recipe import VitpRecipe

log = logging.getLogger("raymed")

SMALL = TrainSettings(epochs=6, global_batch=2, micro_batch=1, lr=3e-3, warmup=0.2, final_lr=0.0)  # from random weights
AT_ONCE = 64  # samples read to see whether one asks a question
PHANTOMS = PhantomSettings(patients=48, size=112, slices=(4, 4))


@dataclass(frozen=True, kw_only=True)
class VitpOptions(SystemOptions):
    """Options of a pretraining run or search.

    Attributes:
        data: Folder or URI of prepared conversations (jobs/prepare_vitp.py); without it, notes about phantom patients are
            made and used.
        phantom: The phantom patients used without --data.
        phantom_size: Side of a tile of the phantoms' pictures, in pixels.
        mixture: How often each data set is seen, and how samples share sequences.
        model: The network, an InternVL; all of it is trained unless told otherwise.
        token_drop: Which image tokens the language model does not get to see in training.
        loss: The loss.
        normalisation: Mean and standard deviation that pixels are normalised with.
        probe: Folder or URI of labelled prepared pictures (jobs/prepare_lung.py), on which the ViT is judged at each
            validation: probe_top1 and probe_map5, of other patients' pictures. Either may choose epochs, and trials.
        layout: Layout of checkpoints: native for transformers, internvl as in InternVL's own code.
        train: How it is trained; a pack is a sequence of up to mixture.max_tokens tokens, or, without packing, a sample.
    """

    MATTERS: ClassVar[tuple[str, ...]] = (
        "data",
        "mixture.max_tokens",
        "model.path",
        "token_drop.rate",
        "token_drop.mode",
        "layout",
    )

    data: str | None = None
    phantom: PhantomSettings = PHANTOMS
    phantom_size: int = 56
    mixture: MixtureSettings = field(default_factory=MixtureSettings)
    model: ModelSettings = field(default_factory=lambda: ModelSettings(preset="internvl-tiny"))
    token_drop: TokenDropSettings = field(default_factory=TokenDropSettings)
    loss: ChatLossSettings = field(default_factory=ChatLossSettings)
    normalisation: Literal["imagenet", "clip", "siglip"] = "imagenet"
    layout: Literal["native", "internvl"] = "native"
    probe: str | None = None
    train: TrainSettings = SMALL

    @property
    def sampling(self) -> MixtureSettings:
        return self.mixture

    def prepared(self) -> Prepared:
        if self.data is not None:
            return Prepared.open(self.data)
        from raymed.data.phantom_notes import prepare_notes

        split = SplitSettings("75/25/0", folds=0)
        return prepare_notes(self.folder, self.phantom, CorpusSettings(image=ImageSettings(self.phantom_size), split=split))

    def recipe(self, prepared: Prepared) -> VitpRecipe:
        from raymed.systems.vitp.recipe import VitpRecipe

        monitor = self.search.objective if self.search.space else self.train.monitor
        asks = monitor != "val_choice_loss" or _asked(prepared, prepared.rows("val", self.fold))
        if not asks and len(prepared.rows("val", self.fold)):  # where nobody is validated, the last epoch is kept
            raise UserError(
                "epochs would be chosen by val_choice_loss, and no validation sample asks a question with "
                "declared choices (<cls>: a|b.): leave it out, or prepare data whose val patients are asked some"
            )
        if self.model.path is not None and self.train.lr == SMALL.lr:
            raise UserError(
                f"train.lr {SMALL.lr:g} is for small networks from random weights and would ruin "
                f"{self.model.path}: give --config configs/vitp_medical.yaml (for a search, "
                "configs/vitp_search.yaml), or --train.lr"
            )
        return VitpRecipe.for_data(
            prepared,
            probe=self._backbone_probe(prepared),
            model=self.model,
            token_drop=self.token_drop,
            loss=self.loss,
            normalisation=self.normalisation,
            layout=self.layout,
        )

    def _backbone_probe(self, prepared: Prepared) -> BackboneProbe | None:
        """Raises: UserError: the probe cannot be asked about."""
        if self.probe is None:
            return None
        from raymed.systems.vitp.probe import BackboneProbe

        pictures = Prepared.open(self.probe)
        probe = BackboneProbe.of(pictures, prepared.size)
        asked = set(pictures.columns(probe.rows(pictures), ["patient"])["patient"])
        if known := asked & set(prepared.columns(prepared.rows("train", self.fold), ["patient"])["patient"]):
            log.warning(
                "%d %ss of the probe have ids of those that are trained on: if they are the same, the probe flatters",
                *(len(known), pictures.manifest.unit),
            )
        return probe


def _asked(prepared: Prepared, rows: np.ndarray) -> bool:
    """Whether any of the samples asks a question with declared choices."""
    return any(
        message.role == "human" and parse_choices(message.text)
        for start in range(0, len(rows), AT_ONCE)
        for record in prepared.read(rows[start : start + AT_ONCE])
        for message in record.messages
    )
