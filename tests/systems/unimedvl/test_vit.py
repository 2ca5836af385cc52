import numpy as np
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from raymed.systems.unimedvl.settings import VisionSizes
from raymed.systems.unimedvl.vit import VisionModel, grid_positions, patches_of

SIZES = VisionSizes(hidden=32, layers=2, heads=4, intermediate=48, patch=14, side=4)


def picture(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def siglip_with(ours: VisionModel) -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, patch_size=14, image_size=56
    )
    theirs = SiglipVisionModel(config).eval()
    state = {key.removeprefix("vision_model."): tensor for key, tensor in ours.state_dict().items()}
    linear = state["embeddings.patch_embedding.weight"]
    state["embeddings.patch_embedding.weight"] = linear.unflatten(1, (14, 14, 3)).permute(0, 3, 1, 2)
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in theirs.state_dict()) else ""
    report = theirs.load_state_dict({prefix + key: value for key, value in state.items()}, strict=False)
    assert not report.unexpected_keys and all("head." in key for key in report.missing_keys)
    return theirs


def test_a_square_picture_is_seen_as_by_siglip():
    torch.manual_seed(0)
    ours = VisionModel(SIZES).eval()
    image = picture(56, 56)
    seen = ours(patches_of(image, 14), grid_positions(4, 4, 4), torch.tensor([16]))
    pixels = image.permute(2, 0, 1)[None].float() / 255 * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(seen, siglip_with(ours)(pixels).last_hidden_state[0], atol=1e-5, rtol=1e-4)


def test_a_picture_is_seen_alike_alone_and_beside_others():
    torch.manual_seed(0)
    ours = VisionModel(SIZES).eval()
    small, large = picture(14, 28), picture(56, 42)
    patches = [patches_of(small, 14), patches_of(large, 14)]
    places = [grid_positions(1, 2, 4), grid_positions(4, 3, 4)]
    together = ours(torch.cat(patches), torch.cat(places), torch.tensor([2, 12]))
    torch.testing.assert_close(together[:2], ours(patches[0], places[0], torch.tensor([2])))
    torch.testing.assert_close(together[2:], ours(patches[1], places[1], torch.tensor([12])))


def test_patches_go_row_by_row_with_colours_innermost():
    image = picture(28, 42)
    patches = patches_of(image, 14)
    assert patches.shape == (6, 588)
    row, column, colour = 3, 5, 2
    assert patches[4, (row * 14 + column) * 3 + colour] == image[14 + row, 14 + column, colour]
    assert grid_positions(2, 3, 70).tolist() == [0, 1, 2, 70, 71, 72]
