"""A trained CLIP classifier, from wherever it is kept, asked about its own classes or others."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from raymed.data.image import ImageSettings
from raymed.data.labels import LabelTable
from raymed.data.plan import SliceSettings
from raymed.errors import UserError
from raymed.evaluation.calibration import Temperature
from raymed.evaluation.predict import Inference, Model
from raymed.models.ensemble import Ensemble
from raymed.registry.address import resolve_model
from raymed.storage.seal import check_seal
from raymed.systems.clip import checkpoint
from raymed.systems.clip.recipe import ClipRecipe
from raymed.tracking.tracker import Tracker


@dataclass(frozen=True)
class Classifier:
    """A classifier to be opened.

    Attributes:
        paths: an exported network, or a ``.pth`` file; of a cross-validation one for each fold, whose probabilities are
            averaged.
        asked: the recipe, with the texts that it is asked about.
        inference: how pictures are treated, and what comes out.
    """

    paths: tuple[Path, ...]
    asked: ClipRecipe
    inference: Inference

    def open(self) -> Model:
        """The network, ready to predict.

        Raises:
            UserError: its files are damaged or not complete, or it cannot take the texts.
        """
        networks = [self._network(path) for path in self.paths]
        return self.asked, networks[0] if len(networks) == 1 else Ensemble(networks).eval()

    def _network(self, path: Path) -> nn.Module:
        if path.is_dir():
            check_seal(path)
            return self.asked.load(path)
        content = checkpoint.read(path)
        recipe = ClipRecipe.from_settings(content["recipe"])
        with tempfile.TemporaryDirectory() as temporary:  # exported and loaded again, for the texts that are asked about
            checkpoint.export(path, content, recipe, Path(temporary))
            return self.asked.load(Path(temporary))


def open_classifier(uri: str, tracker: Tracker, texts: Mapping[str, str | Sequence[str]] | None = None) -> Classifier:
    """The classifier at a ``.pth`` file, an exported folder, the output folder of a cross-validation, or an address that
    `resolve_model` knows.

    Args:
        texts: other classes, by name, than it was trained on. Its temperature was fitted on its own, and is not used then.

    Raises:
        UserError: there is no such model, it is of another system, or the texts cannot be used.
    """
    inference, image = None, None
    files = fold_files(Path(uri).expanduser())
    if uri.endswith(".pth"):
        files = (Path(uri).expanduser(),)
    if files:
        contents = [checkpoint.read(path) for path in files]
        for path, content in zip(files, contents, strict=True):
            if "normalisation" not in content:
                raise UserError(
                    f"{path} is of an earlier raymed and does not say how its pictures were treated: train on from it "
                    "(--resume-from), which writes a new file"
                )
            if content["recipe"] != contents[0]["recipe"]:
                raise UserError(f"{path} and {files[0]} are of different settings: they are not folds of one configuration")
        recipe = ClipRecipe.from_settings(contents[0]["recipe"])
        image = ImageSettings.from_dict(contents[0]["config"]["image"])
        paths = files
    else:
        resolved = resolve_model(uri, tracker)
        paths, inference = (resolved.network,), resolved.inference
        recipe = ClipRecipe.read(resolved.network)
    if inference is None:
        inference = Inference(
            name=uri,
            labels=LabelTable.of(recipe.names),
            image=image or ImageSettings(size=recipe.prepared_size),
            slices=SliceSettings(choice="all"),
            temperature=Temperature(),
            data="",
        )
    asked = recipe
    if texts is not None:
        names = sorted(texts)
        prompts = [[text] if isinstance(text, str) else list(text) for text in (texts[name] for name in names)]
        asked = recipe.with_texts(names, prompts)
        inference = replace(inference, labels=LabelTable.of(names), temperature=Temperature())
    return Classifier(paths, asked, inference)


def fold_files(folder: Path) -> tuple[Path, ...]:
    """The best checkpoints of a cross-validation, by its output folder; empty where that is none.

    Raises:
        UserError: some folds have none.
    """
    folds = sorted(folder.glob("fold_*"), key=lambda each: (len(each.name), each.name)) if folder.is_dir() else []
    if not folds:
        return ()
    try:
        count = int(json.loads((folder / checkpoint.CONFIG).read_text("utf-8"))["n_splits"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} holds folds, but no {checkpoint.CONFIG} that says how many there are: {error!r}"
        ) from error
    files = [folder / f"fold_{number}" / checkpoint.BEST for number in range(1, count + 1)]
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {', '.join(missing)}: run the cross-validation again until every fold is trained, without "
            "--no-save-best; or name one fold's file"
        )
    return tuple(files)
