"""What the UniMedVL jobs share: their options, and what the guide's flags are called here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raymed.data.phantom import PhantomSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.systems.options import SystemOptions
from raymed.systems.unimedvl.guide import PublishedSettings
from raymed.systems.unimedvl.mixture import PackingSettings
from raymed.systems.unimedvl.sequence import CondDropout
from raymed.systems.unimedvl.settings import PRESETS, TINY, UnifiedLossSettings, UnifiedModelSettings
from raymed.training.settings import TrainSettings

if TYPE_CHECKING:
    from raymed.systems.unimedvl.recipe import UniMedVLRecipe
    from raymed.training.spec import RunSpec

SMALL = TrainSettings(  # from random weights
    epochs=8, global_batch=4, micro_batch=4, lr=4e-3, weight_decay=0.0, warmup=0.05, final_lr=0.1, ema=0.995
)
SMALL_PACKS = PackingSettings(256, 320, 256, 128)
SMALL_DROPOUT = CondDropout(text=0.1, vit=0.1, vae=0.1)
PHANTOMS = PhantomSettings(patients=240, size=128, difficulty=0.2)


@dataclass(frozen=True, kw_only=True)
class UniMedVLOptions(SystemOptions):
    """Options of a UniMedVL training run or search.

    Attributes:
        data: Folder or URI of prepared sequences (jobs/prepare_unimedvl.py).
        dataset_config_file: The YAML of data sets, in place of prepared ones: they are prepared first, under the storage.
            Without either, phantom patients with questions and pairs of pictures are made and used.
        registry: A module of your own that registers classes and data sets of that YAML; several with commas between them.
        phantom: The phantom patients.
        resume_from_ema: Checkpoint folder whose averaged weights training starts from, in place of model.path: at step 0,
            with a new optimizer. An earlier run of the same name goes on all the same.
        visual_gen: Whether pictures are learned to be drawn: true makes sure that there are some, false leaves them out of
            the loss (default: where there are any).
        visual_und: Whether pictures are seen by the ViT: true makes sure that some are, false that none is (default: where
            the data have it so).
        packing: How samples share sequences; small ones are the preset `unimedvl-tiny`'s, and others have the guide's
            (32768, 36864, 16384, 16384) unless told otherwise.
        model: The network.
        loss: The loss.
        dropout: How often training leaves out a condition that may be left out.
        train: How it is trained; a pack is a sequence of up to packing.max_num_tokens tokens.
        published: Settings that the published trainer counts otherwise, in place of those above.
    """

    MATTERS: ClassVar[tuple[str, ...]] = (
        "data",
        "dataset_config_file",
        "registry",
        "resume_from_ema",
        "model.path",
        "packing.expected_num_tokens",
        "loss.ce_weight",
        "loss.mse_weight",
    )

    data: str | None = None
    dataset_config_file: str | None = None
    registry: str = ""
    phantom: PhantomSettings = PHANTOMS
    resume_from_ema: str | None = None
    visual_gen: bool | None = None
    visual_und: bool | None = None
    packing: PackingSettings = SMALL_PACKS
    model: UnifiedModelSettings = field(default_factory=UnifiedModelSettings)
    loss: UnifiedLossSettings = field(default_factory=UnifiedLossSettings)
    dropout: CondDropout = SMALL_DROPOUT
    train: TrainSettings = SMALL
    published: PublishedSettings = field(default_factory=PublishedSettings)

    @property
    def sampling(self) -> PackingSettings:
        tiny = self.starting_model.path is None and self.model.preset == TINY
        return PackingSettings() if self.packing == SMALL_PACKS and not tiny else self.packing

    @property
    def starting_model(self) -> UnifiedModelSettings:
        """The network, with the weights that `resume_from_ema` names."""
        if self.resume_from_ema is None:
            return self.model
        return replace(self.model, path=self.resume_from_ema, weights="ema")

    def prepared(self) -> Prepared:
        if self.data is not None:
            return Prepared.open(self.data)
        if self.dataset_config_file is None:
            from raymed.systems.unimedvl.phantoms import prepare_phantoms

            return prepare_phantoms(self.folder, self.phantom)
        from raymed.systems.unimedvl.mixture_config import MixtureConfig
        from raymed.systems.unimedvl.parquet import with_parquet_as_lines
        from raymed.systems.unimedvl.prepare import prepare_sequences
        from raymed.systems.unimedvl.prepare_settings import SequenceSettings

        config = Path(self.dataset_config_file).expanduser().absolute()
        model = self.starting_model.located()
        settings = SequenceSettings(tokenizer=model.path or model.preset)
        out = self.folder.child(f"sequences-{config.stem}").uri
        mixture = with_parquet_as_lines(MixtureConfig.read(config, self.registry), self.folder)
        return prepare_sequences(mixture, out, settings).prepared

    def recipe(self, prepared: Prepared) -> UniMedVLRecipe:
        from raymed.systems.unimedvl.recipe import UniMedVLRecipe

        model, loss = self.starting_model, self.loss
        if model.path is not None and self.train.lr == SMALL.lr:
            raise UserError(
                f"train.lr {SMALL.lr:g} is for small networks from random weights and would ruin {model.path}: give "
                "--config configs/unimedvl_sft.yaml, or --train.lr"
            )
        searched = self.search.space.get("train.lr")
        rates = [float(rate) for rate in (*searched.choices, searched.high) if rate is not None] if searched else []
        if model.path is not None and max(rates, default=0.0) >= SMALL.lr:
            raise UserError(
                f"the search space of train.lr is for small networks from random weights and would ruin {model.path}: give "
                "--config with one of its own, such as search: {space: {train.lr: {low: 1.0e-6, high: 1.0e-4, log: true}}}"
            )
        drawn, seen = (self._elements(prepared, kind) for kind in ("target", "vit"))
        if self.visual_gen and not drawn:
            raise UserError(f"--visual-gen true, and {prepared.folder.uri} has no picture to draw: leave it out")
        if self.visual_und is not None and self.visual_und != bool(seen):
            raise UserError(
                f"--visual-und {str(self.visual_und).lower()}, and {seen or 'no'} pictures of {prepared.folder.uri} are "
                "to be seen by the ViT: leave it out, or choose data sets of other classes"
            )
        if self.visual_gen is False:
            loss = replace(loss, mse_weight=0.0)
        if model.path is None and model.vae_path is None:
            model = self._with_autoencoder(model, prepared)
        if self.published.vit_lr is not None:
            if "train.lr" in self.search.space:
                raise UserError("--vit-lr is one number, and the search space varies train.lr: give --model.vit_lr_scale")
            model = replace(model, vit_lr_scale=self.published.vit_lr / self.train.lr)
        return UniMedVLRecipe.for_data(prepared, model=model, loss=loss, dropout=self.dropout)

    def advice(self, prepared: Prepared) -> str:
        """What can be done with the network that is trained, with a place for its {checkpoint}."""
        picture = "PICTURE"
        if self.data is None and self.dataset_config_file is None:
            from raymed.systems.unimedvl.phantoms import unseen_picture

            picture = str(unseen_picture(self.folder, self.phantom, prepared))
        judge, split = "", prepared.judged_split
        if len(prepared.rows(split)):
            judge = (
                f"judge it: python jobs/evaluate_unimedvl.py --model {{checkpoint}} --data {prepared.folder.uri} "
                f"--split {split} --out judged\n"
            )
        return (
            f"{judge}ask it: python jobs/vqa.py --model {{checkpoint}} --image {picture} "
            '--prompt "Which lung is affected?"\n'
            f"let it draw: python jobs/edit_image.py --model {{checkpoint}} --image {picture} "
            '--instruction "Show the mediastinal window."'
        )

    def spec(self, prepared: Prepared) -> RunSpec:
        spec = super().spec(prepared)
        return replace(spec, train=self.published.train(spec.train, spec.workers))

    def _with_autoencoder(self, model: UnifiedModelSettings, prepared: Prepared) -> UnifiedModelSettings:
        """A preset's network with an autoencoder that draws the training pictures."""
        if model.preset != TINY:
            raise UserError(
                f"{model.preset} needs an image autoencoder: give --model.vae_path, a folder with FLUX's ae.safetensors"
            )
        if self.dry_run or not self._draws(prepared):
            return model
        from raymed.systems.unimedvl.autoencoder_fit import fitted_autoencoder

        return replace(model, vae_path=fitted_autoencoder(PRESETS[model.preset], prepared, self.fold, self.folder))

    def _draws(self, prepared: Prepared) -> bool:
        """Whether any sequence has a picture as the autoencoder sees it."""
        return any(self._elements(prepared, kind) for kind in ("vae", "target"))

    def _elements(self, prepared: Prepared, kind: str) -> int:
        """How many elements of a kind the sequences have."""
        return int(sum(each[kind] for each in prepared.manifest.settings.get("lines", {}).values()))
