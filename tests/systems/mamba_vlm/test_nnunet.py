import zipfile
from pathlib import Path

import pytest
import torch
from nnunet_files import DATASET, FEATURES, plans, write_checkpoint

from raymed.errors import UserError
from raymed.systems.mamba_vlm.encoder import Encoder
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.nnunet import compare, load_encoder, read_checkpoint, read_encoder_plan, write_encoder
from raymed.systems.mamba_vlm.plans import EncoderPlan, read_plan
from raymed.systems.mamba_vlm.settings import BridgeSettings, VisionSettings
from raymed.systems.mamba_vlm.stage import warn_of_intensity
from raymed.systems.mamba_vlm.vision import VisionBridge, encoder_plan


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_checkpoint_of_every_age_gives_all_weights_and_equal_outputs(
    tmp_path: Path, kind: str, new: bool, prefix: str
) -> None:
    original = write_checkpoint(tmp_path / "checkpoint_best.pth", kind, new, prefix)
    weights = read_checkpoint(tmp_path / "checkpoint_best.pth")
    report = write_encoder(weights, tmp_path / "encoder")
    assert len(report.matched) == len(original.state_dict()) and not report.missing and not report.unexpected
    assert weights.aliases == 2 * len(report.matched) and len(weights.others) == 1
    imported = Encoder(read_encoder_plan(tmp_path / "encoder"))
    load_encoder(imported, tmp_path / "encoder")
    picture = torch.randn(1, 1, 16, 16)
    assert torch.equal(imported(picture), original(picture))
    assert imported(picture).shape == (1, 8, 4, 8)  # anisotropic strides


def test_an_encoder_that_is_cut_has_the_outputs_of_its_stage(tmp_path: Path) -> None:
    original = write_checkpoint(tmp_path / "checkpoint.pth")
    write_encoder(read_checkpoint(tmp_path / "checkpoint.pth"), tmp_path / "encoder")
    settings = VisionSettings(encoder=str(tmp_path / "encoder"), output_stage=1, target_side=8)
    bridge = VisionBridge(encoder_plan(settings), settings, BridgeSettings(kind="linear"), 16)
    picture = torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(bridge.features(picture[None])[0], original.stages[:2](picture))
    with pytest.raises(UserError, match="stages 0 to 2"):
        encoder_plan(VisionSettings(encoder=str(tmp_path / "encoder"), output_stage=3))


def test_the_normalisation_of_the_plans_is_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint.pth")
    write_encoder(read_checkpoint(tmp_path / "checkpoint.pth"), tmp_path)
    intensity = read_encoder_plan(tmp_path).intensity
    assert intensity is not None and (intensity.scheme, intensity.mean, intensity.std) == ("CTNormalization", -100.0, 250.0)


def test_pictures_that_were_not_prepared_as_the_encoder_knows_them_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path / "checkpoint.pth")
    write_encoder(read_checkpoint(tmp_path / "checkpoint.pth"), tmp_path)
    vision = VisionSettings(encoder=str(tmp_path), output_stage=1)
    warn_of_intensity(vision, Intensity("plans", -900.0, 300.0, -100.0, 250.0))
    assert not caplog.text
    warn_of_intensity(vision, Intensity())
    assert f"prepare them with --encoder {tmp_path}" in caplog.text


def test_a_checkpoint_in_which_no_weight_of_the_encoder_is_found_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint.pth", prefix="backbone.")
    weights = read_checkpoint(tmp_path / "checkpoint.pth")
    with pytest.raises(UserError, match=r"none of the 24 weights .* backbone\.encoder"):
        compare(weights, weights.plan)


def test_a_weight_that_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint.pth", aliases=False)
    weights = read_checkpoint(tmp_path / "checkpoint.pth")
    weights.tensors.pop("stages.1.0.convs.0.norm.bias")
    with pytest.raises(UserError, match=r"stages\.1\.0\.convs\.0\.norm\.bias"):
        write_encoder(weights, tmp_path / "encoder")
    weights.tensors["stages.1.0.convs.0.norm.weight"] = torch.zeros(3)
    with pytest.raises(UserError, match=r"shape \[3\] in the checkpoint and \[8\]"):
        compare(weights, weights.plan)


def test_3_d_plans_more_channels_and_other_networks_are_refused() -> None:
    volume = plans("plain", new=False)
    volume["configurations"]["3d_fullres"] = {**volume["configurations"]["2d"], "conv_kernel_sizes": [[3, 3, 3]] * 3}
    with pytest.raises(UserError, match="3-D configuration '3d_fullres'"):
        read_plan(volume, "3d_fullres", DATASET)
    with pytest.raises(UserError, match="2 channels"):
        read_plan(plans("plain"), "2d", {"modality": {"0": "T1", "1": "T2"}})
    other = plans("plain")
    other["configurations"]["2d"]["architecture"]["network_class_name"] = "somewhere.SwinUNETR"
    with pytest.raises(UserError, match="SwinUNETR"):
        read_plan(other, "2d", DATASET)
    with pytest.raises(UserError, match="no configuration '3d'"):
        read_plan(other, "3d", DATASET)


def test_a_configuration_has_what_it_inherits() -> None:
    assert read_plan(plans("residual"), "2d_small", DATASET) == read_plan(plans("residual"), "2d", DATASET)
    assert read_plan(plans("plain", new=False), "2d", DATASET).features == tuple(FEATURES)


def test_a_plan_is_the_same_after_a_file(tmp_path: Path) -> None:
    plan = read_plan(plans("residual"), "2d", DATASET)
    assert EncoderPlan.from_json(plan.to_json()) == plan


class Burglar:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (open, ("stolen", "w"))


def test_a_pickle_in_a_checkpoint_is_not_run_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_checkpoint(tmp_path / "checkpoint.pth", extra=Burglar())
    with pytest.raises(UserError, match="--trust"):
        read_checkpoint(tmp_path / "checkpoint.pth")
    assert not (tmp_path / "stolen").exists()
    read_checkpoint(tmp_path / "checkpoint.pth", trust=True)
    assert (tmp_path / "stolen").exists()


def test_numbers_of_an_older_numpy_are_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    assert (tmp_path / "old.pth").read_bytes() != (tmp_path / "new.pth").read_bytes()
    assert b"numpy.core.multiarray" in (tmp_path / "old.pth").read_bytes()
    read_checkpoint(tmp_path / "old.pth")


def test_a_file_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        read_checkpoint(tmp_path / "missing.pth")
    torch.save({"state_dict": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="init_args"):
        read_checkpoint(tmp_path / "other.pth")
    (tmp_path / "damaged.pth").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"damaged\.pth cannot be read"):
        read_checkpoint(tmp_path / "damaged.pth", trust=True)


def test_a_copy_that_broke_off_before_its_first_byte_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "empty.pth", trust=False)
