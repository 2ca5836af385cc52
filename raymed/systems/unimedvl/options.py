"""What the UniMedVL jobs share: their options, and what the guide's flags are called here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from raymed.data.phantom import PhantomSettings
from raymed.data.prepared import Prepared
from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.systems.options import SystemOptions
from raymed.systems.unimedvl.mixture import PackingSettings
from raymed.systems.unimedvl.sequence import CondDropout
from raymed.systems.unimedvl.settings import PRESETS, TINY, UnifiedLossSettings, UnifiedModelSettings
from raymed.training.settings import TrainSettings

if TYPE_CHECKING:
    from raymed.systems.unimedvl.recipe import UniMedVLRecipe

SMALL = TrainSettings(  # from random weights
    epochs=8, global_batch=4, micro_batch=4, lr=3e-3, weight_decay=0.0, warmup=0.05, final_lr=0.1, ema=0.995
)
SMALL_PACKS = PackingSettings(256, 320, 256, 128)
PHANTOMS = PhantomSettings(patients=48, size=128, difficulty=0.2)

# What the guide's flags are called here.
FIXED = "ignored: it is so in this network, or as the checkpoint's configurations have it"
GUIDE = {
    "model-path": Alias("model.path"),
    "resume-from": Alias("model.path", says="only its weights are taken; an earlier run of the same name goes on by itself"),
    **dict.fromkeys(("resume-model-only", "resume-model-optimizer"), Alias(says="ignored: a checkpoint gives weights only")),
    **{
        name: Alias(says=FIXED)
        for name in (
            *("llm-path", "vit-path", "layer-module", "llm-qk-norm", "tie-word-embeddings", "latent-patch-size"),
            *("vit-patch-size", "vit-max-num-patch-per-side", "connector-act", "interpolate-pos", "vit-select-layer"),
            "vit-rope",
        )
    },
    "vae-path": Alias("model.vae_path"),
    "copy-init-moe": Alias("model.copy_init_moe", {"true": "true"}),
    "freeze-llm": Alias("model.freeze_llm", {"true": "true"}),
    "freeze-vit": Alias("model.freeze_vit", {"true": "true"}),
    "freeze-und": Alias("model.freeze_und", {"true": "true"}),
    "freeze-vae": Alias(says="the image autoencoder is always frozen"),
    "visual-und": Alias(says="ignored: what is learned follows from the data; --loss.ce_weight 0 learns no answers"),
    "ce-weight": Alias("loss.ce_weight"),
    "mse-weight": Alias("loss.mse_weight"),
    "timestep-shift": Alias("loss.timestep_shift"),
    "ce-loss-reweighting": Alias("loss.ce_loss_reweighting", {"true": "true"}),
    "text-cond-dropout-prob": Alias("dropout.text"),
    "vit-cond-dropout-prob": Alias("dropout.vit"),
    "vae-cond-dropout-prob": Alias("dropout.vae"),
    "expected-num-tokens": Alias("packing.expected_num_tokens"),
    "max-num-tokens": Alias("packing.max_num_tokens"),
    "max-num-tokens-per-sample": Alias("packing.max_num_tokens_per_sample"),
    "prefer-buffer-before": Alias("packing.prefer_buffer_before"),
    "max-buffer-size": Alias("packing.max_buffer_size"),
    "lr": Alias("train.lr"),
    **dict.fromkeys(("llm-lr", "vit-lr"), Alias(says="ignored: --model.vit_lr_scale is the ViT's, relative to --train.lr")),
    "vae-lr": Alias(says="ignored: the image autoencoder is always frozen"),
    "lr-scheduler": Alias("train.final_lr", {"constant": "1.0", "cosine": "0.01"}),
    "weight-decay": Alias("train.weight_decay"),
    "beta1": Alias(says="ignored: it is 0.9"),
    "beta2": Alias("train.beta2"),
    "eps": Alias("train.eps"),
    "min-lr": Alias(says="ignored: --train.final_lr is the last learning rate, as a share of the peak"),
    "warmup-steps": Alias(says="ignored: --train.warmup is a share of all steps, so that the warm-up always ends"),
    "total-steps": Alias("train.steps"),
    "log-every": Alias("train.log_steps"),
    "ema": Alias("train.ema"),
    "max-grad-norm": Alias("train.clip"),
    "save-every": Alias("train.checkpoint_steps"),
    "gradient-accumulation-steps": Alias(
        says="ignored: --train.global_batch says how many packs an update takes, over all workers"
    ),
    "auto-resume": Alias("resume", {"true": "auto", "True": "auto", "false": "never", "False": "never"}),
    "data-seed": Alias(says="ignored: --seed is the seed of everything"),
    "global-seed": Alias("seed"),
    "results-dir": Alias("storage"),
    "checkpoint-dir": Alias(says="ignored: checkpoints lie with the run, under --storage"),
    "max-checkpoints": Alias(says="ignored: --keep-checkpoints says which are kept; last and best always are"),
    "finetune-from-hf": Alias(says="is so with --model.path: configurations, autoencoder and tokenizer are the folder's"),
    "finetune-from-ema": Alias("model.weights", {"true": "ema", "True": "ema", "false": "model", "False": "model"}),
    "num-shard": Alias("workers"),
    "num-replicate": Alias(says="ignored: --workers says how many there are in all"),
    "backward-prefetch": Alias(says="ignored: DeepSpeed fetches weights ahead by itself"),
    "sharding-strategy": Alias(says="ignored: --train.zero_stage says what is sharded among workers"),
    "use-flex": Alias(says="ignored: flex attention is taken for long sequences on a GPU, where it is the faster one"),
    "max-latent-size": Alias(says="ignored: it is that of the checkpoint, and checked against the data"),
    **dict.fromkeys(("num-workers", "num-worker"), Alias(says="ignored: pictures are decoded once, when data are prepared")),
    "prefetch-factor": Alias(says="ignored: micro-batches are always made while others are computed"),
    "cpu-offload": Alias("train.offload", {"true": "cpu", "false": "none", "True": "cpu", "False": "none"}),
    "enable-tensorboard": Alias(says="ignored: MLflow keeps what TensorBoard would"),
}


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
        packing: How samples share sequences; small ones are the preset `unimedvl-tiny`'s, and others have the guide's
            (32768, 36864, 16384, 16384) unless told otherwise.
        model: The network.
        loss: The loss.
        dropout: How often training leaves out a condition that may be left out.
        train: How it is trained; a pack is a sequence of up to packing.max_num_tokens tokens.
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
    packing: PackingSettings = SMALL_PACKS
    model: UnifiedModelSettings = field(default_factory=UnifiedModelSettings)
    loss: UnifiedLossSettings = field(default_factory=UnifiedLossSettings)
    dropout: CondDropout = field(default_factory=CondDropout)
    train: TrainSettings = SMALL

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
        from raymed.systems.unimedvl.prepare import prepare_sequences
        from raymed.systems.unimedvl.prepare_settings import SequenceSettings

        config = Path(self.dataset_config_file).expanduser().absolute()
        model = self.starting_model.located()
        settings = SequenceSettings(tokenizer=model.path or model.preset)
        out = self.folder.child(f"sequences-{config.stem}").uri
        return prepare_sequences(MixtureConfig.read(config, self.registry), out, settings).prepared

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
        targets = sum(each["target"] for each in prepared.manifest.settings.get("lines", {}).values())
        if self.visual_gen and not targets:
            raise UserError(f"--visual-gen true, and {prepared.folder.uri} has no picture to draw: leave it out")
        if self.visual_gen is False:
            loss = replace(loss, mse_weight=0.0)
        if model.path is None and model.vae_path is None:
            model = self._with_autoencoder(model, prepared)
        return UniMedVLRecipe.for_data(prepared, model=model, loss=loss, dropout=self.dropout)

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
        lines = prepared.manifest.settings.get("lines", {}).values()
        return any(each["vae"] + each["target"] for each in lines)
