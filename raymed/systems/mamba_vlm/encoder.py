"""nnU-Net's 2-D encoders, plain and residual (Isensee et al. 2021, 2024), cut after a stage. Names of parameters are
nnU-Net's."""

from __future__ import annotations

from torch import Tensor, nn

from raymed.systems.mamba_vlm.plans import EncoderPlan, Pair


class ConvolutionUnit(nn.Module):
    """Convolution, instance norm, and a leaky ReLU unless it is left out."""

    def __init__(
        self, channels: int, features: int, kernel: Pair, stride: Pair, bias: bool, epsilon: float, activated: bool = True
    ) -> None:
        super().__init__()
        padding = ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
        self.conv = nn.Conv2d(channels, features, kernel, stride, padding, bias=bias)
        self.norm = nn.InstanceNorm2d(features, eps=epsilon, affine=True)
        self.activation = nn.LeakyReLU(inplace=True) if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(x)))


class ConvolutionStage(nn.Module):
    """Convolutions one after the other; the first has the stride."""

    def __init__(
        self, channels: int, features: int, kernel: Pair, stride: Pair, depth: int, bias: bool, epsilon: float
    ) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *(
                ConvolutionUnit(
                    channels if index == 0 else features, features, kernel, stride if index == 0 else (1, 1), bias, epsilon
                )
                for index in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class ResidualBlock(nn.Module):
    """Two convolutions, to which the input is added: pooled where they stride, projected where channels change."""

    def __init__(self, channels: int, features: int, kernel: Pair, stride: Pair, bias: bool, epsilon: float) -> None:
        super().__init__()
        self.conv1 = ConvolutionUnit(channels, features, kernel, stride, bias, epsilon)
        self.conv2 = ConvolutionUnit(features, features, kernel, (1, 1), bias, epsilon, activated=False)
        skip: list[nn.Module] = [] if stride == (1, 1) else [nn.AvgPool2d(stride, stride)]
        if channels != features:
            skip.append(ConvolutionUnit(channels, features, (1, 1), (1, 1), bias=False, epsilon=epsilon, activated=False))
        self.skip = nn.Sequential(*skip)
        self.activation = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv2(self.conv1(x)) + self.skip(x))


class ResidualStage(nn.Module):
    """Residual blocks one after the other; the first has the stride."""

    def __init__(
        self, channels: int, features: int, kernel: Pair, stride: Pair, depth: int, bias: bool, epsilon: float
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    channels if index == 0 else features, features, kernel, stride if index == 0 else (1, 1), bias, epsilon
                )
                for index in range(depth)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Encoder(nn.Module):
    """From a picture to the map of the plan's last stage.

    Attributes:
        features: channels of the map.
    """

    def __init__(self, plan: EncoderPlan) -> None:
        super().__init__()
        self.features = plan.features[-1]
        channels = 1
        if plan.kind == "residual":
            unit = ConvolutionUnit(1, plan.features[0], plan.kernels[0], (1, 1), plan.convolution_bias, plan.epsilon)
            self.stem = ConvolutionStem(unit)
            channels = plan.features[0]
        stages: list[nn.Module] = []
        for features, kernel, stride, depth in zip(plan.features, plan.kernels, plan.strides, plan.depths, strict=True):
            layers = (channels, features, kernel, stride, depth, plan.convolution_bias, plan.epsilon)
            # nnU-Net puts a pooling layer before plain convolutions where there is one, hence the sequence of one
            stages.append(nn.Sequential(ConvolutionStage(*layers)) if plan.kind == "plain" else ResidualStage(*layers))
            channels = features
        self.stages = nn.Sequential(*stages)

    def forward(self, pictures: Tensor) -> Tensor:
        """[batch, 1, height, width] -> [batch, features, height / strides, width / strides]."""
        return self.stages(self.stem(pictures) if hasattr(self, "stem") else pictures)


class ConvolutionStem(nn.Module):
    """The convolution before a residual encoder's first stage."""

    def __init__(self, unit: ConvolutionUnit) -> None:
        super().__init__()
        self.convs = nn.Sequential(unit)

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)
