"""Which settings a checkpoint is looked at with: those that it was trained with, before what flags and files say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymed.data.image import MINMAX, ImageSettings
from raymed.errors import UserError
from raymed.systems.mamba_vlm.file_names import STAGE_2_BEST, STAGE_2_CONFIG, STAGE_2_FINAL
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.paths import read_paths, same_model, settings_of
from raymed.systems.mamba_vlm.slices import Reading
from raymed.tuning.space import get_setting, with_setting

if TYPE_CHECKING:
    from raymed.systems.mamba_vlm.check import CheckOptions
    from raymed.systems.mamba_vlm.guide_files import GuideCheckpoint
    from raymed.systems.mamba_vlm.recipe import ReportRecipe

GPU_CAP = 32  # visual tokens, wherever the language model is on a GPU
PUBLISHED_SIZE = 512
ASSUMED = (
    "the checkpoint does not say how its pictures were read: as the guide's scripts read them, 512 pixels, each slice from "
    "its least value to its greatest. --data PREPARED takes the settings of prepared reports instead"
)
UNSAID = 64  # visual tokens where neither a checkpoint nor a flag says how many
OF_THE_CHECK = ("vision.encoder", "vision.preset", "vision.freeze", "bridge.max_visual_tokens")  # not of the training


@dataclass
class Settled:
    """The settings in the making.

    Attributes:
        recipe: the network's settings.
        cap: visual tokens of training; None where any will do.
        model: the language model of training, empty for the tiny one; None where none is known.
        notes: what a person should know.
    """

    recipe: ReportRecipe
    cap: int | None
    model: str | None
    notes: list[str] = field(default_factory=list)

    def contradict(self, what: str, force: bool) -> None:
        """Raises: UserError: unless it is forced."""
        if not force:
            raise UserError(f"{what}. Leave the flag out, or say --force")
        self.notes.append(f"WARNING: {what}")


def settled(options: CheckOptions, checkpoint: GuideCheckpoint, path: Path, on_gpu: bool) -> tuple[ReportRecipe, list[str]]:
    """The network's settings: the checkpoint's where it or its stage2_config.json holds them, else the flags'; and what a
    person should know.

    Args:
        path: of the checkpoint.

    Raises:
        UserError: a flag asks for something else than it was trained with, without --force: more visual tokens, another
            language model, another region, another interaction. Or for 8 bits on a CPU.
    """
    defaults = type(options)()
    asked, model = options.max_visual_tokens, options.mamba_model
    if asked is not None and asked < 1:
        raise UserError(f"--max_visual_tokens {asked}: it must be at least 1")
    if asked is None and options.bridge.max_visual_tokens != defaults.bridge.max_visual_tokens:
        asked = options.bridge.max_visual_tokens
    if model is None and options.llm.path != defaults.llm.path:
        model = options.llm.path
    if options.llm.int8 and options.llm_device == "cpu":
        raise UserError("--llm_8bit is for a language model on a GPU: add --llm_device auto, or leave --llm_8bit out")
    stored = checkpoint.values.get("settings")
    chosen = _stored(options, stored) if stored else _described(options, _config_beside(path), model)
    force = options.force
    if model is not None and chosen.model is not None and not same_model(model, chosen.model or None):
        chosen.contradict(f"--mamba_model {model}: the checkpoint was trained with {chosen.model or 'the tiny one'}", force)
    if model is not None:
        chosen.recipe = replace(chosen.recipe, language=replace(chosen.recipe.language, path=model).located())
    cap = asked or chosen.cap or UNSAID
    if chosen.cap is not None and cap > chosen.cap:
        chosen.contradict(f"--max_visual_tokens {cap}: the checkpoint was trained with {chosen.cap}", force)
    if chosen.cap is not None and cap < chosen.cap:
        chosen.notes.append(f"WARNING: {cap} visual tokens in place of the {chosen.cap} of training: texts may be worse")
    if on_gpu and cap > GPU_CAP:
        chosen.notes.append(f"WARNING: at most {GPU_CAP} visual tokens with the language model on a GPU, in place of {cap}")
        cap = GPU_CAP
    language = chosen.recipe.language
    if options.llm.int8:
        language = replace(language, int8=True, freeze=True)
    bridge = replace(chosen.recipe.bridge, max_visual_tokens=cap)
    return replace(chosen.recipe, bridge=bridge, language=language, start=None), chosen.notes


def _stored(options: CheckOptions, stored: Mapping[str, Any]) -> Settled:
    """Those of the checkpoint; of a file of stage 1, which knows no interaction, that of the flags or the YAML file."""
    from raymed.systems.mamba_vlm.recipe import ReportRecipe

    recipe = ReportRecipe.of_settings(stored)
    stage_2 = stored["recipe"] == recipe.name  # stage 1 was trained on all tokens: any cap is as good as another
    chosen = Settled(recipe, recipe.bridge.max_visual_tokens if stage_2 else None, recipe.language.path or "")
    if not stage_2:
        chosen.notes.append("WARNING: a file of stage 1, which has never seen a report: train stage 2")
    file, defaults = options.paths_file, type(options)()
    in_file = {} if file is None else settings_of(replace(read_paths(file), nnunet_encoder_checkpoint=None), file)
    for name in _names(recipe):
        own, flag = get_setting(chosen.recipe, name), get_setting(options, name)
        typed = flag != get_setting(defaults, name)
        wanted = flag if typed else in_file.get(name, own)
        if wanted == own:
            continue
        if typed and (stage_2 or not name.startswith("cmi.")):
            chosen.contradict(f"--{name} {wanted}: the checkpoint was trained with {own}", options.force)
        elif stage_2 or not name.startswith("cmi."):
            chosen.notes.append(f"{file} says {name} {wanted}; the checkpoint was trained with {own}, and that counts")
            continue
        chosen.recipe = with_setting(chosen.recipe, name, wanted)
    if options.vision.encoder is not None:  # its folder was moved
        chosen.recipe = with_setting(chosen.recipe, "vision.encoder", options.vision.located().encoder)
    return chosen


def _described(options: CheckOptions, config: Mapping[str, Any], model: str | None) -> Settled:
    """Those of the flags and the YAML file, for a checkpoint that says nothing of itself: of pictures as the guide's own
    scripts read them, unless data are named.

    Args:
        config: what `stage2_config.json` says of it.
    """
    from raymed.systems.mamba_vlm.recipe import ReportRecipe
    from raymed.systems.mamba_vlm.stage import intensity_of, reading_of

    trained = config.get("mamba_model")
    language = replace(options.llm, path=model or trained or options.llm.path, int8=False)
    completed = replace(options, llm=language).completed()
    completed.check_width(completed.llm)
    reading, intensity, notes = Reading(ImageSettings(PUBLISHED_SIZE, window=MINMAX)), Intensity(), [ASSUMED]
    if options.data is not None or (options.image is None and options.paths_file is None):  # a person's word, or phantoms
        prepared = completed.prepared()
        reading, intensity, notes = reading_of(prepared), intensity_of(prepared), []
    vision, language = completed.vision.located(), completed.llm.located()
    recipe = ReportRecipe(reading, intensity, vision=vision, language=language, bridge=completed.bridge, cmi=completed.cmi)
    return Settled(recipe, config.get("max_visual_tokens"), trained, notes)


def _config_beside(path: Path) -> Mapping[str, Any]:
    """What `stage2_config.json` says of a checkpoint of stage 2 in the same folder; nothing of others.

    Raises:
        UserError: it cannot be read.
    """
    file = path.parent / STAGE_2_CONFIG
    if path.name not in (STAGE_2_FINAL, STAGE_2_BEST) or not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text("utf-8-sig"))
        tokens, model = content.get("max_visual_tokens"), content.get("mamba_model")
        if not isinstance(tokens, int | None) or not isinstance(model, str | None):
            raise TypeError(f"max_visual_tokens {tokens!r}, mamba_model {model!r}")
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file} cannot be read: {error}. Mend it, or move it away") from error
    return {"max_visual_tokens": tokens, "mamba_model": model}


def _names(recipe: ReportRecipe) -> list[str]:
    parts = ("vision", "bridge", "cmi")
    names = [f"{part}.{each.name}" for part in parts for each in fields(getattr(recipe, part))]
    return [name for name in names if name not in OF_THE_CHECK]
