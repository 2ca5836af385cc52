"""What a person can say about the report writer's parts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from raymed.errors import UserError
from raymed.models.model_folders import find_model
from raymed.systems.mamba_vlm.paths import model_name

LANGUAGE_FILES = "config.json, model.safetensors or its shards, tokenizer.json"  # of a folder `state-spaces/mamba-*-hf`
ENCODER_FILES = "encoder.json and encoder.safetensors, by jobs/import_nnunet.py"


@dataclass(frozen=True)
class VisionSettings:
    """The encoder, and which of its tokens are used.

    Attributes:
        encoder: folder that jobs/import_nnunet.py wrote; without it, random weights of `preset`.
        preset: `nnunet`: eight stages of 32 to 512 channels; `tiny`: five of 8 to 64.
        output_stage: whose map is used, from 0 (guide: encoder_output_stage).
        target_side: the map is brought to this many rows and columns (guide: encoder_target_spatial).
        freeze: keep the encoder as it is.
        roi_side: rows and columns of the region that is used; 0 for the whole map.
        roi_mode: where the region lies: in the centre, around the mask, or where features are largest.
        pool_side: average the map down to this many rows and columns; 0 leaves it (guide: use_pooling, pool_size).
    """

    encoder: str | None = None
    preset: Literal["nnunet", "tiny"] = "nnunet"
    output_stage: int = 4
    target_side: int = 28
    freeze: bool = False
    roi_side: int = 0
    roi_mode: Literal["center", "mask", "saliency"] = "center"
    pool_side: int = 0

    def __post_init__(self) -> None:
        if self.target_side < 1 or min(self.roi_side, self.pool_side) < 0:
            raise UserError("vision.target_side is at least 1; vision.roi_side and vision.pool_side cannot be negative")
        if self.roi_side > self.target_side:
            raise UserError(
                f"vision.roi_side is {self.roi_side}, larger than the map of vision.target_side {self.target_side}: give a "
                f"side up to {self.target_side}, or 0 for the whole map"
            )

    @property
    def reads_masks(self) -> bool:
        """Whether the region lies around a mask."""
        return self.roi_side > 0 and self.roi_mode == "mask"

    def located(self) -> VisionSettings:
        """With the absolute path of the encoder: workers have another working folder.

        Raises:
            UserError: there is none.
        """
        return (
            self if self.encoder is None else replace(self, encoder=str(find_model(model_name(self.encoder), ENCODER_FILES)))
        )

    @property
    def pretrained(self) -> tuple[str, ...]:
        return () if self.encoder is None else (self.encoder,)


@dataclass(frozen=True)
class BridgeSettings:
    """From the encoder's map to tokens of the language model.

    Attributes:
        kind: `mamba` reads the tokens in both directions; `linear` and `attention` have as many parameters and show what it
            is worth.
        merge: of the two directions: `concat` as in the guide, or `mean`.
        max_visual_tokens: the most visual tokens a picture has; a square map is averaged down to the largest square that
            fits.
    """

    kind: Literal["mamba", "linear", "attention"] = "mamba"
    merge: Literal["concat", "mean"] = "concat"
    max_visual_tokens: int = 96

    def __post_init__(self) -> None:
        if self.max_visual_tokens < 1:
            raise UserError(f"bridge.max_visual_tokens is {self.max_visual_tokens}: it must be at least 1")


@dataclass(frozen=True)
class InteractionSettings:
    """Cross-Mamba interaction (CMI): the question sets a state space model that the visual tokens flow through.

    Attributes:
        use: whether there is one (guide: use_cmi).
        compress_to: the most visual tokens that enter it (guide: cmi_compress_to).
        states: channels of its state (guide: cmi_d_state).
        form: `guide` replaces the tokens; `gated` adds to them, and changes nothing before it is trained.
    """

    use: bool = False
    compress_to: int = 512
    states: int = 64
    form: Literal["guide", "gated"] = "guide"

    def __post_init__(self) -> None:
        if min(self.compress_to, self.states) < 1:
            raise UserError("cmi.compress_to and cmi.states must be at least 1")


@dataclass(frozen=True)
class LanguageSettings:
    """The language model, a Mamba.

    Attributes:
        path: local folder in the layout of `state-spaces/mamba-2.8b-hf`, by its path or by its name under RAYMED_MODELS;
            without it, a tiny one with random weights that reads bytes.
        freeze: keep it as it is (default: with pretrained weights; random ones are trained).
        lora: rank of LoRA adapters in it (0 = none).
        int8: keep its matrices in 8 bits (needs bitsandbytes and a GPU); not for training it.
        gradient_checkpointing: compute its layers again in the backward pass: much less memory, a third more time.
    """

    path: str | None = None
    freeze: bool | None = None
    lora: int = 0
    int8: bool = False
    gradient_checkpointing: bool = True

    def __post_init__(self) -> None:
        if self.lora < 0:
            raise UserError(f"llm.lora is {self.lora}: a rank cannot be negative")
        if self.lora and self.freeze is False:
            raise UserError("llm.lora trains adapters in a frozen language model: it cannot go with llm.freeze false")
        if self.int8 and (self.freeze is False or self.lora):
            raise UserError("llm.int8 keeps the language model as it is: it goes with neither llm.freeze false nor LoRA")

    @property
    def frozen(self) -> bool:
        """Whether its own weights stay as they are."""
        return self.freeze if self.freeze is not None else self.path is not None or self.lora > 0

    def located(self) -> LanguageSettings:
        """With the absolute path that `path` stands for: workers have another working folder.

        Raises:
            UserError: there is none.
        """
        return self if self.path is None else replace(self, path=str(find_model(model_name(self.path), LANGUAGE_FILES)))

    @property
    def pretrained(self) -> tuple[str, ...]:
        return () if self.path is None else (self.path,)


@dataclass(frozen=True)
class GenerationSettings:
    """How texts are generated.

    Attributes:
        max_new_tokens: the most tokens of a text, those of its headings aside.
        min_new_tokens: so many come before the text may end.
        sample: draw tokens; otherwise the likeliest is taken.
        temperature: of the draws; below 1 the likely become likelier.
        top_p: tokens are drawn among the likeliest that together have this probability.
        repetition_penalty: scores of tokens that were generated before are divided by it (multiplied where negative);
            above 1 it also hinders what a report has to say twice, such as "lung".
        stop_repeats: a text whose last tokens are the same so many times in a row ends there, with one of them (0 = never).
        headers: headings that the text must have, in this order; what stands below each is generated, and may be nothing.
        seed: of the draws.
    """

    max_new_tokens: int = 80
    min_new_tokens: int = 0
    sample: bool = False
    temperature: float = 0.7
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    stop_repeats: int = 4
    headers: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise UserError("generation.max_new_tokens is at least 1, generation.min_new_tokens from 0 up to it")
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise UserError(
                "generation.temperature and generation.repetition_penalty are above 0, generation.top_p above 0 and up to 1"
            )
        if self.stop_repeats < 0 or self.stop_repeats == 1:
            raise UserError(
                "generation.stop_repeats is how often a tail stands in a row before the text ends: 2 or more, or 0"
            )
        if not all(header.strip() for header in self.headers):
            raise UserError("generation.headers holds an empty heading: leave it out")
