"""The guide's flags: what they are called here, and what its trainer counts otherwise than this one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.training.settings import TrainSettings

log = logging.getLogger("raymed")

WARMUP = 0.05  # share of the steps that a warm-up takes which would not end


@dataclass(frozen=True)
class PublishedSettings:
    """Settings as the published trainer counts them; what is not given is as our own settings say.

    Attributes:
        warmup_steps: steps over which the learning rate rises, in place of train.warmup.
        min_lr: learning rate at the end of the cosine, in place of train.final_lr.
        vit_lr: learning rate of the ViT, in place of model.vit_lr_scale.
        gradient_accumulation_steps: packs of each worker in an optimizer step, one after the other, in place of
            train.global_batch and train.micro_batch.
    """

    warmup_steps: int | None = None
    min_lr: float | None = None
    vit_lr: float | None = None
    gradient_accumulation_steps: int | None = None

    def __post_init__(self) -> None:
        if (self.warmup_steps or 0) < 0 or (self.min_lr or 0.0) < 0:
            raise UserError("warmup_steps and min_lr cannot be negative")
        if self.vit_lr is not None and self.vit_lr <= 0:
            raise UserError("vit_lr must be above 0: model.freeze_vit freezes the ViT")
        if self.gradient_accumulation_steps is not None and self.gradient_accumulation_steps < 1:
            raise UserError("gradient_accumulation_steps must be at least 1")

    def train(self, settings: TrainSettings, workers: int) -> TrainSettings:
        """Our settings with these in place.

        Raises:
            UserError: they contradict each other.
        """
        if self.warmup_steps is not None:
            if not settings.steps:
                raise UserError(
                    "--warmup-steps goes with --total-steps; without that, --train.warmup is a share of all steps"
                )
            share = self.warmup_steps / settings.steps
            if share >= 1:
                log.warning(
                    "a warm-up of %d steps would not end in %d: it takes %d", self.warmup_steps, settings.steps,
                    round(WARMUP * settings.steps),
                )  # fmt: skip
                share = WARMUP
            settings = replace(settings, warmup=share)
        if self.min_lr is not None and settings.final_lr != 1.0:  # which is a constant one
            if self.min_lr > settings.lr:
                raise UserError(f"min_lr {self.min_lr:g} is above the learning rate {settings.lr:g}")
            settings = replace(settings, final_lr=self.min_lr / settings.lr)
        if self.gradient_accumulation_steps is not None:
            packs = self.gradient_accumulation_steps * workers
            settings = replace(settings, global_batch=packs, micro_batch=1)
        return settings


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
    "llm-lr": Alias("train.lr", says="of all but the ViT"),
    "vit-lr": Alias("published.vit_lr"),
    "vae-lr": Alias(says="ignored: the image autoencoder is always frozen"),
    "lr-scheduler": Alias("train.final_lr", {"constant": "1.0", "cosine": "0.01"}),
    "weight-decay": Alias("train.weight_decay"),
    "beta1": Alias(says="ignored: it is 0.9"),
    "beta2": Alias("train.beta2"),
    "eps": Alias("train.eps"),
    "min-lr": Alias("published.min_lr"),
    "warmup-steps": Alias("published.warmup_steps"),
    "total-steps": Alias("train.steps"),
    "log-every": Alias("train.log_steps"),
    "ema": Alias("train.ema"),
    "max-grad-norm": Alias("train.clip"),
    "save-every": Alias("train.checkpoint_steps"),
    "gradient-accumulation-steps": Alias("published.gradient_accumulation_steps"),
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
    "max-latent-size": Alias("model.max_latent_size"),
    **dict.fromkeys(("num-workers", "num-worker"), Alias(says="ignored: pictures are decoded once, when data are prepared")),
    "prefetch-factor": Alias(says="ignored: micro-batches are always made while others are computed"),
    "cpu-offload": Alias("train.offload", {"true": "cpu", "false": "none", "True": "cpu", "False": "none"}),
    "enable-tensorboard": Alias(says="ignored: MLflow keeps what TensorBoard would"),
}
