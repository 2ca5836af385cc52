"""The registered model: an MLflow pyfunc that needs nothing but its own folder.

In: one row per picture file, patient folder, DICOM series, NIfTI volume or array, with the patient's id. Out: one row per
patient. MLflow loads this file as code, so nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType

from raymed.data.acquisition import HOUNSFIELD
from raymed.data.hounsfield import Values, require_hounsfield, without_padding
from raymed.data.image import ImageError, ImageSettings, fit, show
from raymed.data.sources import Listing, NoImagesError, Refusal, Slice, SourceSettings, is_single, list_source, load_study
from raymed.data.sources.dicom import several_persons
from raymed.data.sources.patients import Person, compare_persons
from raymed.data.sources.table import Row, list_rows
from raymed.errors import UserError
from raymed.evaluation.predict import Found, Inference, Predictor, reasons, table, to_record
from raymed.recipes.exported import open_model
from raymed.storage.seal import check_seal

NETWORK, INFERENCE = "network", "inference"  # names of the artefacts
MICRO_BATCH = 32
EXAMPLE = pd.DataFrame({"patient_id": ["patient-1"], "image": ["/data/patient-1"]})


class PatientModel(PythonModel):
    """Patients' pictures in, one decision per patient out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Raises: UserError: a file of the model is damaged."""
        check_seal(Path(context.artifacts[INFERENCE]).parent.parent)
        self.inference = Inference.read(Path(context.artifacts[INFERENCE]))
        self.inference.image.require_rule()  # the code that comes with the model may have lost to an installed raymed
        self.predictor = Predictor(open_model(Path(context.artifacts[NETWORK])), MICRO_BATCH)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row per patient, in the order of first appearance.

        Args:
            model_input: columns `patient_id` and `image`. An image is a path (picture, folder of one patient, DICOM
                series, NIfTI volume) or the patient's slices as an array [slices, h, w] or [slices, h, w, 3]: uint8 as
                displayed, int16 in Hounsfield units. Rows that name single pictures form one series per patient.

        Raises:
            UserError: a column is missing, or a path does not exist or holds several patients.
        """
        missing = {"patient_id", "image"} - set(model_input.columns)
        if missing:
            raise UserError(f"the input has no column {', '.join(sorted(missing))}; give patient_id and image")
        if model_input.empty:
            raise UserError("the input has no rows: give one for each picture, folder or array")
        if unnamed := int(model_input["patient_id"].isna().sum()):
            raise UserError(f"{unnamed} of {len(model_input)} rows have no patient_id: give one for each row")
        predictions = []
        for patient, images in model_input.groupby("patient_id", sort=False)["image"]:
            found, notes = _find(str(patient), list(images), self.inference.image)
            predictions.append(self.predictor.patient(str(patient), found, self.inference, notes))
        shares = {f"p_{name}": float for name in self.inference.labels.names}  # also where no patient has any
        return pd.DataFrame(table(predictions, self.inference)).astype(shares)


def signature(class_names: Sequence[str]) -> ModelSignature:
    """What goes in and comes out, in MLflow's terms."""
    text, number = DataType.string, DataType.double
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(text, "patient_id"),
        ColSpec(text, "decision", required=False),
        ColSpec(text, "shown_as", required=False),
        *(ColSpec(number, f"p_{name}", required=False) for name in class_names),
        ColSpec(DataType.long, "slices"),
        ColSpec(text, "model"),
        ColSpec(text, "note"),
    ]
    return ModelSignature(Schema([ColSpec(text, "patient_id"), ColSpec(AnyType(), "image")]), Schema(outputs))


def _find(patient: str, images: Sequence[Any], settings: ImageSettings) -> tuple[list[Found], list[str]]:
    """The usable slices of one patient's input rows, and notes on the others."""
    found: list[Found] = []
    notes: list[str] = []
    pictures: dict[str, Row] = {}
    persons: dict[str, Person] = {}
    for number, image in enumerate(images):
        if isinstance(image, str | Path) and is_single(Path(image)):
            path = str(Path(image).absolute())
            if path in pictures:
                raise UserError(f"{image} is named twice for patient {patient}: name each picture once")
            pictures[path] = Row(number, path, patient, None, "pictures", None, "")
            continue
        if isinstance(image, str | Path):
            try:
                listing = list_source(Path(image), SourceSettings(labelled=False, patient_ids="header"), usable=False)
            except NoImagesError as error:  # a file that is no image
                notes.append(str(error))
                continue
            if len({study.patient for study in listing.studies}) > 1:
                raise UserError(f"{image} holds several patients: give one row per patient, or use the prediction job")
            persons |= _persons(listing)
            usable, refused = _from_listing(patient, f"{number}/", listing, settings)
        else:
            usable, refused = _from_array(patient, number, image, settings)
        found += usable
        notes += refused
    if pictures:  # a series of the patient's, in the order that a folder of them has, whatever that of the rows
        listing = list_rows(Path("row"), Path("/"), pictures.values(), SourceSettings(labelled=False, patient_ids="folder"))
        persons |= _persons(listing)
        usable, refused = _from_listing(patient, "", listing, settings)
        found += usable
        notes += refused
    if mixed := compare_persons(dict.fromkeys(persons, patient), persons).mixed:
        return [], [several_persons(*mixed[patient])]
    return found, notes


def _persons(listing: Listing) -> dict[str, Person]:
    """Whom the files are of that can be used, by their whole paths."""
    paths = {piece.path for study in listing.studies for piece in study.slices}
    return {str(listing.root / path): listing.persons[path] for path in sorted(paths & listing.persons.keys())}


def _from_listing(patient: str, name: str, listing: Listing, settings: ImageSettings) -> tuple[list[Found], list[str]]:
    found, lost = [], list(listing.refusals)
    for study in listing.studies:
        for piece, loaded in load_study(listing.root, study, settings):
            if isinstance(loaded, Refusal):
                lost.append(loaded)
            else:
                found.append((to_record(piece.id, patient, f"{name}{study.study}", piece.position, loaded), piece))
    return found, [*(note for notes in listing.about.values() for note in notes), *reasons(lost)]


def _from_array(patient: str, number: int, image: Any, settings: ImageSettings) -> tuple[list[Found], list[str]]:
    try:
        slices = np.asarray(image)
    except ValueError:
        return [], [f"array {number}: slices of different sizes"]
    if slices.ndim == 3 and slices.shape[-1] == 3:
        return [], [f"array {number}: {' x '.join(map(str, slices.shape))} may be one colour picture: give [1, h, w, 3]"]
    if slices.ndim == 3:
        slices = slices[..., None]
    if slices.ndim != 4 or slices.shape[-1] not in (1, 3) or not slices.size:
        shape = " x ".join(map(str, slices.shape))
        return [], [f"array {number}: {shape} is neither [slices, h, w] nor [slices, h, w, 3]"]
    if slices.dtype == np.int64:  # from JSON, which knows neither kind; below zero are Hounsfield units alone
        kind = np.iinfo(np.uint8 if slices.min() >= 0 else np.int16)
        if kind.min <= slices.min() and slices.max() <= kind.max:
            slices = slices.astype(kind.dtype)
    if slices.dtype not in (np.uint8, np.int16):
        return [], [f"array {number}: {slices.dtype}; give uint8 as displayed, or int16 in Hounsfield units"]
    modality = HOUNSFIELD if slices.dtype == np.int16 else None
    scanned: list[Values] = []
    found: list[Found] = []
    notes: list[str] = []
    for position, picture in enumerate(slices):
        try:
            if modality:
                hu, values = without_padding(picture.astype(np.float32))
                scanned.append(values)
                picture = show(hu, settings)
            fitted = fit(picture, settings)
        except ImageError as error:
            notes.append(f"array {number}, slice {position}: {error}")
            continue
        name = f"{number}#{position}"
        piece = Slice(name, "", None, position, f"array {name}", modality=modality)
        found.append((to_record(name, patient, str(number), position, fitted), piece))
    try:
        require_hounsfield(scanned)
    except ImageError as error:
        return [], [f"array {number}: {error}"]
    return found, notes


mlflow.models.set_model(PatientModel())
