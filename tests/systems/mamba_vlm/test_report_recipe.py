from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from kept_features import kept_records
from language_files import write_folder
from nnunet_files import write_checkpoint as write_nnunet
from report_data import write_reports
from report_records import SIZE, records
from safetensors.torch import load_file, save_file

from raymed.data.image import ImageSettings
from raymed.errors import UserError
from raymed.models.pretrained import pretrained_of
from raymed.recipes.exported import open_model
from raymed.recipes.recipe import SlowlyJudged, TrainingPass
from raymed.systems.mamba_vlm.bridge_recipe import BridgeRecipe
from raymed.systems.mamba_vlm.guide_files import write_checkpoint
from raymed.systems.mamba_vlm.intensity import Intensity
from raymed.systems.mamba_vlm.nnunet import read_checkpoint as read_nnunet
from raymed.systems.mamba_vlm.nnunet import write_encoder
from raymed.systems.mamba_vlm.pretraining import Objective
from raymed.systems.mamba_vlm.recipe import ReportRecipe
from raymed.systems.mamba_vlm.settings import BridgeSettings, InteractionSettings, LanguageSettings, VisionSettings
from raymed.systems.mamba_vlm.slices import Reading
from raymed.training.frozen import unfrozen

VISION = VisionSettings(preset="tiny", output_stage=2, target_side=8)
RECIPE = ReportRecipe(Reading(ImageSettings(size=SIZE)), vision=VISION, bridge=BridgeSettings(max_visual_tokens=16))
BRIDGE = BridgeRecipe(Reading(ImageSettings(size=SIZE)), vision=VISION, bridge=BridgeSettings(max_visual_tokens=16))


def seeded(recipe: ReportRecipe | BridgeRecipe) -> torch.nn.Module:
    torch.manual_seed(0)
    return recipe.build()


def test_losses_are_summed_over_learned_tokens_and_predictions_are_their_rows() -> None:
    module = seeded(RECIPE)
    batch = RECIPE.encode(records(), None)
    loss, predicted = RECIPE.compute_loss(module, batch), RECIPE.predict(module, batch)
    assert batch.units == {"caption": float(predicted["tokens"].sum())}
    torch.testing.assert_close(predicted["nll"].sum(), loss.terms["caption"].total.double(), rtol=1e-5, atol=0)
    metrics = RECIPE.evaluate({name: value.numpy() for name, value in predicted.items()}, {})
    assert metrics["val_loss"] == pytest.approx(
        float(loss.terms["caption"].total.detach()) / batch.units["caption"], rel=1e-5
    )
    alone = [RECIPE.predict(module, RECIPE.encode([record], None))["nll"] for record in records()]
    torch.testing.assert_close(torch.cat(alone), predicted["nll"], rtol=1e-4, atol=1e-4)


def test_every_trained_parameter_is_in_one_group_and_rates_do_not_decay() -> None:
    module = seeded(replace(RECIPE, cmi=InteractionSettings(use=True)))
    groups = RECIPE.groups(module)
    listed = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(listed) == sorted(id(parameter) for parameter in module.parameters() if parameter.requires_grad)
    still = {id(parameter) for group in groups if not group.decay for parameter in group.parameters}
    for name, parameter in module.named_parameters():
        if name.endswith(("A_log", ".D")):
            assert id(parameter) in still, name


def test_an_exported_model_predicts_the_same_without_what_it_was_made_from(tmp_path: Path) -> None:
    recipe = replace(RECIPE, intensity=Intensity("zscore"), cmi=InteractionSettings(use=True))
    module = seeded(recipe).eval()
    recipe.export(module, tmp_path)
    opened, loaded = open_model(tmp_path)
    assert opened == recipe
    batch = recipe.encode(records(), None)
    assert torch.equal(opened.predict(loaded, batch)["nll"], recipe.predict(module, batch)["nll"])


def test_training_begins_with_the_weights_of_a_file_of_the_guide(tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = RECIPE.build()
    write_checkpoint(tmp_path / "vision_bridge_best_val.pt", first.state_dict(), step=1)
    second = seeded(replace(RECIPE, start=str(tmp_path / "vision_bridge_best_val.pt")))
    assert torch.equal(second.encoder.stages[0][0].convs[0].conv.weight, first.encoder.stages[0][0].convs[0].conv.weight)


def test_reports_that_will_be_cut_are_counted() -> None:
    assert RECIPE.count_cut(records()) == 0
    assert replace(RECIPE, max_text_len=4).count_cut(records()) == len(records())


def test_a_start_of_other_settings_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "first.pt", RECIPE.build().state_dict(), step=1)
    replace(RECIPE, start=str(tmp_path / "first.pt")).check_start()
    other = replace(RECIPE, vision=replace(VISION, output_stage=3), start=str(tmp_path / "first.pt"))
    with pytest.raises(UserError, match=r"first\.pt does not fit .*--from_scratch"):
        other.check_start()


def test_what_a_start_loads_is_said_and_what_it_was_trained_with_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "raymed")
    path = tmp_path / "last.pt"
    write_checkpoint(path, RECIPE.build().state_dict(), step=1, settings=RECIPE.settings())
    replace(RECIPE, start=str(path)).check_start()
    assert " weights matched, 0 missing, 0 unexpected" in caplog.text and "trained with" not in caplog.text
    fewer = replace(RECIPE, bridge=BridgeSettings(max_visual_tokens=4), vision=replace(VISION, roi_side=3), start=str(path))
    replace(fewer, cmi=InteractionSettings(use=True)).check_start()
    assert "trained with bridge.max_visual_tokens 16: it is 4 now" in caplog.text
    assert "trained with vision.roi_side 0: it is 3 now" in caplog.text
    assert "no interaction with the question: it begins with random weights" in caplog.text
    other = replace(RECIPE, language=LanguageSettings(path=r"D:\models\mamba-130m-hf")).settings()
    write_checkpoint(path, RECIPE.build().state_dict(), step=1, settings=other)
    with pytest.raises(UserError, match=r"mamba-130m-hf, and --mamba_model is the tiny one: give the same"):
        replace(RECIPE, start=str(path)).check_start()


def test_an_interaction_that_was_trained_is_not_left_out_without_a_word(tmp_path: Path) -> None:
    """Going on without the flag wrote stage 2's last file anew without it."""
    recipe, path = replace(RECIPE, cmi=InteractionSettings(use=True)), tmp_path / "last.pt"
    write_checkpoint(path, recipe.build().state_dict(), step=1)  # as the guide's own scripts, without settings
    replace(recipe, start=str(path)).check_start()
    with pytest.raises(UserError, match=r"trained with --use_cmi, .* would be lost: add --use_cmi"):
        replace(RECIPE, start=str(path)).check_start()


def test_the_optimizer_begins_anew_after_a_file_of_the_guides_own_scripts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, path = RECIPE.build(), tmp_path / "vision_bridge_step500.pt"
    optimizer = torch.optim.AdamW(network.bridge.parameters())
    write_checkpoint(path, network.state_dict(), step=500, optimizer_state_dict=optimizer.state_dict())
    recipe = replace(RECIPE, start=str(path))
    recipe.check_start()
    assert "the optimizer begins anew" in caplog.text
    assert recipe.build().start_moments is None


def test_training_says_which_weights_its_encoder_begins_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "raymed")
    prepared = write_reports(tmp_path / "data")
    BridgeRecipe.for_data(prepared)
    assert "the encoder begins with random weights: import nnU-Net's" in caplog.text
    caplog.clear()
    write_nnunet(tmp_path / "best.pth")
    write_encoder(read_nnunet(tmp_path / "best.pth"), tmp_path / "encoder")
    BridgeRecipe.for_data(prepared, vision=VisionSettings(encoder=str(tmp_path / "encoder"), output_stage=1))
    assert "16 of 16 weights matched, 0 missing, 8 unexpected" in caplog.text and "random" not in caplog.text


def test_a_region_around_the_mask_reads_masks_and_reports_without_one_have_the_centre() -> None:
    recipe = replace(RECIPE, vision=replace(VISION, roi_side=4, roi_mode="mask"))
    batch = recipe.encode(records(mask=True), None)
    assert batch.tensors["mask"].shape == (3, 1, 1, SIZE, SIZE)
    assert batch.tensors["mask"].flatten(1).mean(1).tolist() == [0.0, 1.0, 1.0]
    assert torch.isfinite(recipe.predict(seeded(recipe), batch)["nll"]).all()
    assert "mask" not in RECIPE.encode(records(mask=True), None).tensors


@pytest.mark.parametrize("region", [{}, {"roi_side": 4, "roi_mode": "mask"}, {"roi_side": 4, "roi_mode": "saliency"}])
@pytest.mark.parametrize("recipe", [RECIPE, replace(BRIDGE, objective="contrast"), replace(BRIDGE, objective="proxy_l2")])
def test_pictures_that_a_frozen_encoder_has_seen_cost_what_they_cost_anew(
    recipe: ReportRecipe | BridgeRecipe, region: dict[str, Any]
) -> None:
    frozen = replace(recipe, vision=replace(VISION, freeze=True, **region))
    module, part = seeded(frozen), frozen.frozen_part
    assert part is not None and part.of(module.train()) is module.encoder and unfrozen(module.encoder) == ""
    pictures = records(mask=True)
    kept = kept_records(frozen, pictures)
    batches = [frozen.encode(each, TrainingPass(0, 0)) for each in (pictures, kept)]
    assert "pictures" not in batches[1].tensors
    losses = [next(iter(frozen.compute_loss(module, batch).terms.values())).total for batch in batches]
    assert torch.equal(*losses)


def test_an_encoder_that_is_trained_or_sees_parts_of_pictures_hidden_is_no_frozen_part() -> None:
    assert RECIPE.frozen_part is None and BRIDGE.frozen_part is None
    assert replace(BRIDGE, vision=replace(VISION, freeze=True)).frozen_part is None


@pytest.mark.parametrize("recipe", [RECIPE, *(replace(BRIDGE, objective=each) for each in get_args(Objective))])
def test_a_network_in_bf16_sees_pictures_that_are_not(recipe: ReportRecipe | BridgeRecipe) -> None:
    """As on a GPU, where weights are in bf16 and the host's pictures in float32."""
    loss = recipe.compute_loss(seeded(recipe).bfloat16(), recipe.encode(records(), TrainingPass(0, 0)))
    next(iter(loss.terms.values())).total.backward()


@pytest.mark.parametrize("objective", ["masked", "contrast", "proxy_l2"])
def test_stage_1_has_the_loss_of_its_rows(objective: str) -> None:
    recipe = replace(BRIDGE, objective=objective)  # type: ignore[arg-type]
    module = seeded(recipe)
    batch = recipe.encode(records(), TrainingPass(0, 0))
    loss = recipe.compute_loss(module, batch)
    assert batch.units == {"proxy": 3.0}
    predicted = {name: value.numpy() for name, value in recipe.predict(module, batch).items()}
    assert recipe.evaluate(predicted, {})["val_loss"] == pytest.approx(
        float(loss.terms["proxy"].total.detach()) / 3, rel=1e-4
    )
    loss.terms["proxy"].total.backward()
    groups = recipe.groups(module)
    assert all(parameter.grad is not None for group in groups for parameter in group.parameters)


@pytest.mark.parametrize("objective", ["masked", "contrast"])
def test_an_exported_bridge_opens_by_itself(tmp_path: Path, objective: str) -> None:
    recipe = replace(BRIDGE, objective=objective)  # type: ignore[arg-type]
    module = seeded(recipe).eval()
    recipe.export(module, tmp_path)
    opened, loaded = open_model(tmp_path)
    batch = recipe.encode(records(), None)
    assert opened == recipe
    assert torch.equal(opened.predict(loaded, batch)["losses"], recipe.predict(module, batch)["losses"])


def test_what_is_hidden_is_drawn_from_seed_epoch_and_record_and_nothing_else() -> None:
    together = BRIDGE.encode(records(), TrainingPass(1, 2)).tensors["hidden"]
    alone = BRIDGE.encode(records()[1:2], TrainingPass(1, 2)).tensors["hidden"]
    assert torch.equal(together[1:2], alone)
    assert not torch.equal(BRIDGE.encode(records(), TrainingPass(1, 3)).tensors["hidden"], together)
    assert 0.3 < together.float().mean() < 0.7


def test_a_contrast_compares_all_validation_rows_however_they_were_batched() -> None:
    recipe = replace(BRIDGE, objective="contrast")
    module = seeded(recipe)
    together = {name: value.numpy() for name, value in recipe.predict(module, recipe.encode(records(), None)).items()}
    parts = [recipe.predict(module, recipe.encode([record], None)) for record in records()]
    alone = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    assert recipe.evaluate(alone, {})["val_loss"] == pytest.approx(recipe.evaluate(together, {})["val_loss"], rel=1e-4)


def test_pictures_of_another_size_are_refused_by_the_records_name() -> None:
    with pytest.raises(UserError, match="r0: pictures of 64 x 64"):
        replace(RECIPE, reading=Reading(ImageSettings(size=64))).encode(records(), None)


@pytest.mark.parametrize("lora", [0, 2])
def test_a_language_model_from_a_folder_stays_there_unless_it_has_adapters(tmp_path: Path, lora: int) -> None:
    write_folder(tmp_path / "tiny-hf")
    recipe = replace(RECIPE, language=LanguageSettings(path=str(tmp_path / "tiny-hf"), lora=lora))
    module = seeded(recipe).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    recipe.export(module, tmp_path / "export")
    kept = load_file(tmp_path / "export" / "model.safetensors")
    assert any(key.startswith("language_model.") for key in kept) == bool(lora)
    opened, loaded = open_model(tmp_path / "export")
    batch = recipe.encode(records(), None)
    torch.testing.assert_close(
        opened.predict(loaded, batch)["nll"], recipe.predict(module, batch)["nll"], rtol=1e-4, atol=1e-3
    )
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name for name in trained if name.startswith("language_model."))
    write_checkpoint(tmp_path / "stage2.pt", module.state_dict(), step=1)
    again = seeded(replace(recipe, start=str(tmp_path / "stage2.pt"))).eval()
    torch.testing.assert_close(recipe.predict(again, batch)["nll"], recipe.predict(module, batch)["nll"])


def test_an_exported_report_writer_refuses_another_language_model_than_it_was_trained_with(tmp_path: Path) -> None:
    language = tmp_path / "tiny-hf"
    write_folder(language)
    recipe = replace(RECIPE, language=LanguageSettings(path=str(language)))
    recipe.export(seeded(recipe), tmp_path / "export")
    recipe.load(tmp_path / "export")
    weights = load_file(language / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, language / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"kept apart in .*tiny-hf, which held weights .* and holds weights"):
        recipe.load(tmp_path / "export")


def test_a_run_is_known_by_what_its_encoder_language_model_and_first_weights_hold() -> None:
    settings = {"vision": replace(VISION, encoder="/e"), "language": LanguageSettings(path="/l")}
    assert list(pretrained_of(replace(RECIPE, **settings, start="/s.pt"))) == ["/s.pt", "/e", "/l"]
    assert list(pretrained_of(replace(BRIDGE, **settings))) == ["/e", "/l"]
    assert not list(pretrained_of(RECIPE))


def test_another_file_of_first_weights_is_another_run() -> None:
    """A run's own start weights and the recipe's stood under one name, and the recipe's were not compared."""
    other = replace(RECIPE, start="/models/vision_bridge_best_val.pt")
    assert {"train", "sampling", "seed", "start"}.isdisjoint(RECIPE.settings())
    assert RECIPE.settings() != other.settings()


def test_the_time_of_writing_is_set_aside_from_the_hours_of_a_search() -> None:
    assert isinstance(RECIPE, SlowlyJudged) and RECIPE.judging_passes(100) > 2 * 100
