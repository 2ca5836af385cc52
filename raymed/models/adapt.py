"""How a network with pretrained weights is adapted: which parts are frozen, LoRA, drop path."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from raymed.errors import UserError

LORA_DROPOUT = 0.05


class DropPath(nn.Module):
    """Stochastic depth: in training a residual branch is dropped per sample with probability `rate`, and scaled up to keep
    its expectation otherwise (Huang et al. 2016, arXiv:1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: [samples, ...]."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def blocks_of(backbone: nn.Module) -> nn.ModuleList:
    """The backbone's sequence of blocks (ViT, InternViT, EfficientNet) or stages (ResNet, ConvNeXt), first to last.

    Raises:
        UserError: it has no such sequence.
    """
    for owner in (getattr(backbone, "encoder", None), backbone):
        for name in ("layer", "layers", "blocks", "stages"):
            blocks = getattr(owner, name, None)
            if isinstance(blocks, nn.ModuleList):
                return blocks
    raise UserError(f"a backbone of type {type(backbone).__name__} has no sequence of blocks that can be frozen one by one")


def add_drop_path(backbone: nn.Module, rate: float) -> None:
    """Drop both residual branches of each ViT block, with rates rising linearly from 0 in the first block to `rate`.

    The branch is dropped before its layer scale, which is the same as after it: both are products.

    Raises:
        UserError: the backbone's blocks have no residual branches that can be dropped.
    """
    blocks = blocks_of(backbone)
    for index, block in enumerate(blocks):
        block_rate = rate * index / max(1, len(blocks) - 1)
        if isinstance(getattr(block, "dropout", None), nn.Dropout) and hasattr(block, "attention"):
            if hasattr(block.attention, "projection_dropout"):
                block.attention.projection_dropout = DropPath(block_rate)  # InternViT
            block.dropout = DropPath(block_rate)  # ViT uses it for both branches, InternViT for the second
        else:
            raise UserError(f"drop_path has no effect on a backbone of type {type(backbone).__name__}: set it to 0")


def freeze(module: nn.Module, last_blocks: int = 0) -> None:
    """Freeze all parameters but those of the last `last_blocks` blocks.

    Raises:
        UserError: there are fewer blocks than that.
    """
    module.requires_grad_(False)
    if last_blocks:
        blocks = blocks_of(module)
        if last_blocks > len(blocks):
            raise UserError(f"trainable_blocks is {last_blocks}, but the backbone has {len(blocks)} blocks")
        for block in blocks[-last_blocks:]:
            block.requires_grad_(True)


def rest_frozen(module: nn.Module) -> None:
    """Put every part without a trainable parameter into evaluation mode: its dropout and batch statistics stand still."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        module.eval()
    else:
        for child in module.children():
            rest_frozen(child)


def compute_activations_again(module: nn.Module) -> bool:
    """Let the blocks of a network keep no activations for the backward pass, which computes them again.

    Returns:
        Whether it has blocks that can.
    """
    again, within = False, set[nn.Module]()
    for part in module.modules():
        if part in within:
            continue
        if getattr(part, "supports_gradient_checkpointing", False):  # of transformers, with all that is in it
            part.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
            within.update(part.modules())
            again = True
        elif hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = True  # type: ignore[assignment]
            again = True
    return again


def add_lora(module: nn.Module, rank: int, targets: Sequence[str]) -> None:
    """Freeze `module` and add LoRA adapters of the given rank, alpha 2 * rank, to its linear layers named `targets`."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import, and seldom used

    inject_adapter_in_model(
        LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=LORA_DROPOUT, target_modules=list(targets)), module
    )


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with every LoRA adapter merged into its layer, under the names from before `add_lora`.

    What is merged is on the CPU: beside a network that fills a GPU there is room for one layer, and not for all of them.
    """
    adapted = {f"{name}.weight": layer for name, layer in module.named_modules() if hasattr(layer, "lora_A")}
    state: dict[str, Tensor] = {}
    for key, tensor in module.state_dict().items():
        if ".lora_" in key:
            continue
        plain = key.replace(".base_layer.", ".")
        if plain in adapted:
            tensor = (tensor + adapted[plain].get_delta_weight("default").detach().to(tensor.dtype)).cpu()
        state[plain] = tensor
    return state
