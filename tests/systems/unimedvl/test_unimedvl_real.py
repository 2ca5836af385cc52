"""Real pictures: captions of radiographs as understanding, and windows of real CT as pairs, prepared and packed."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from raymed.data.image import WINDOWS, ImageSettings, apply_window
from raymed.data.sources import read_whole
from raymed.data.split import SplitSettings
from raymed.systems.unimedvl.bounds import check_bounds
from raymed.systems.unimedvl.mixture import PackingSettings
from raymed.systems.unimedvl.mixture_config import MixtureConfig
from raymed.systems.unimedvl.packs import encode_sample, pack
from raymed.systems.unimedvl.phantoms import VAE_ARGUMENTS, VIT_ARGUMENTS
from raymed.systems.unimedvl.prepare import prepare_sequences
from raymed.systems.unimedvl.prepare_settings import SequenceSettings
from raymed.systems.unimedvl.settings import PRESETS, TINY
from raymed.systems.unimedvl.tokens import TextTokens

REAL = os.environ.get("RAYMED_REAL_DATA")

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.usefixtures("cluster"),
    pytest.mark.skipif(not REAL, reason="RAYMED_REAL_DATA does not name the real pictures"),
]


def captions(root: Path) -> list[dict[str, Any]]:
    with (root / "captions" / "captions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "main_task_type": "image_understanding",
            "patient_id": row["patient_id"],
            "input_img": [{"path": os.path.normpath(f"captions/{row['image']}")}],
            "message": [
                {"from": "human", "value": "<image>\nWhat does it show?"},
                {"from": "gpt", "value": row["caption"]},
            ],
        }
        for row in rows
    ]


def windows(root: Path, folder: Path) -> list[dict[str, Any]]:
    """Pairs of windows of real slices, written into a folder."""
    folder.mkdir()
    slices: dict[str, np.ndarray] = {}
    for number, path in enumerate(sorted((root / "volumes" / "dicom_ctmd_P001").glob("*.dcm"))):
        for name in ("lung", "mediastinum"):
            slices[f"P001_{number:02d}_{name}"] = read_whole(path, ImageSettings(window=name))[:, :, 0]
    volume = np.asanyarray(nibabel.load(root / "volumes" / "totalseg_example_ct.nii.gz").dataobj)
    for number in range(0, volume.shape[2], 4):
        hu = np.rot90(volume[:, :, number])
        for name in ("lung", "mediastinum"):
            slices[f"totalseg_{number:02d}_{name}"] = apply_window(hu, *WINDOWS[name])
    for name, pixels in slices.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{name}.png")
    lines = []
    for name in sorted({name.rpartition("_")[0] for name in slices}):
        message = [
            {"from": "human", "value": "<image>\nShow the mediastinal window."},
            {"from": "gpt", "value": "Done. <image>"},
        ]
        pictures = {"input_img": [{"path": f"{name}_lung.png"}], "output_img": [{"path": f"{name}_mediastinum.png"}]}
        lines.append({"main_task_type": "image_to_image", "patient_id": name.split("_")[0], "message": message} | pictures)
    return lines


def write_config(root: Path, folder: Path) -> Path:
    known = {
        "vlm_sft": ("captions", root, captions(root)),
        "unified_edit": ("windows", folder / "windows", windows(root, folder / "windows")),
    }
    config: dict[str, Any] = {"dataset_info": {}}
    for key, (name, data_dir, lines) in known.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        config["dataset_info"][key] = {name: {"data_dir": str(data_dir), "jsonl_path": f"{name}.jsonl"}}
        arguments = {"image_transform_args": VAE_ARGUMENTS, "vit_image_transform_args": VIT_ARGUMENTS}
        config[key] = {"dataset_names": {name: [name]}, **arguments}
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder / "config.yaml"


def test_captions_and_windows_of_real_pictures_are_prepared_and_packed(tmp_path) -> None:
    config = write_config(Path(REAL or ""), tmp_path)
    settings = SequenceSettings(split=SplitSettings("2/1/0", folds=0))
    data = prepare_sequences(MixtureConfig.read(config), str(tmp_path / "data"), settings).prepared
    grids, tokens = PRESETS[TINY].grids, TextTokens.bytes()
    check_bounds(data, grids)
    lines = data.manifest.settings["lines"]
    assert lines["vlm_sft/captions/captions"]["used"] == 231 and not data.manifest.quarantined
    assert lines["unified_edit/windows/windows"]["target"] >= 24 + 10
    drawn = PackingSettings(950, 1000, 800, 500).draw(data, [data.rows("train")], 0, 0)
    assert drawn.fill_rate is not None and drawn.fill_rate > 0.85
    records = data.read(list(drawn.packs[0]))
    sequence = pack([encode_sample(record, grids, tokens) for record in records])
    assert len(sequence.positions) == data.columns(np.array(drawn.packs[0]), ["cost"])["cost"].sum()
