"""A model as MLflow serves it: code, weights and settings in one sealed folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import mlflow
from mlflow.models import ModelSignature

import raymed
from raymed.evaluation.predict import Inference
from raymed.registry import serving
from raymed.storage.seal import seal

NEEDS = [  # what the served model imports
    *("torch", "transformers", "safetensors", "peft", "mlflow", "numpy", "pandas", "scipy", "pyarrow", "PyYAML"),
    *("blake3", "pillow", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "nibabel"),
]


def save(network: Path, inference: Inference, folder: Path) -> None:
    """Write a classifier: code, weights and inference settings."""
    with tempfile.TemporaryDirectory() as temporary:
        settings = Path(temporary) / "inference.json"
        settings.write_text(inference.to_json(), encoding="utf-8")
        artifacts = {serving.NETWORK: network, serving.INFERENCE: settings}
        save_served(serving, artifacts, serving.signature(inference.labels.names), folder)


def save_served(
    code: ModuleType, artifacts: Mapping[str, Path], signature: ModelSignature, folder: Path, also_needs: Sequence[str] = ()
) -> None:
    """Write a self-contained pyfunc model, sealed.

    Args:
        code: the module that MLflow runs as the model; its EXAMPLE is an input.
        artifacts: what it reads, the network as `serving.NETWORK`.
        also_needs: packages that it imports besides `NEEDS`.
    """
    mlflow.pyfunc.save_model(
        str(folder),
        python_model=code.__file__,
        artifacts={name: str(path) for name, path in artifacts.items()},
        code_paths=[str(Path(raymed.__file__).parent)],
        signature=signature,
        input_example=code.EXAMPLE,
        pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in (*NEEDS, *also_needs)],
    )
    seal(folder)
