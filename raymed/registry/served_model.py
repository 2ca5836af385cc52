"""A classifier as MLflow serves it: code, weights and inference settings in one sealed folder."""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow

import raymed
from raymed.evaluation.predict import Inference
from raymed.registry import serving
from raymed.storage.seal import seal

NEEDS = [  # what the served model imports
    *("torch", "transformers", "safetensors", "peft", "mlflow", "numpy", "pandas", "scipy", "pyarrow", "PyYAML"),
    *("pillow", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "nibabel"),
]


def save(network: Path, inference: Inference, folder: Path) -> None:
    """Write a self-contained pyfunc model, sealed: code, weights and inference settings."""
    with tempfile.TemporaryDirectory() as temporary:
        settings = Path(temporary) / "inference.json"
        settings.write_text(inference.to_json(), encoding="utf-8")
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=serving.__file__,
            artifacts={serving.NETWORK: str(network), serving.INFERENCE: str(settings)},
            code_paths=[str(Path(raymed.__file__).parent)],
            signature=serving.signature(inference.labels.names),
            input_example=serving.EXAMPLE,
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in NEEDS],
        )
    seal(folder)
