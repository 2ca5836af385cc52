"""What nnU-Net's plans say about a 2-D encoder: its layers, and how pictures were normalised for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raymed.errors import UserError

Pair = tuple[int, int]
CLASSES: dict[str, Literal["plain", "residual"]] = {
    "PlainConvUNet": "plain",
    "ResidualEncoderUNet": "residual",
}


@dataclass(frozen=True)
class IntensityStatistics:
    """How values became what the encoder was trained on.

    Attributes:
        scheme: nnU-Net's name, such as ``CTNormalization``: cut to the two percentiles, minus mean, over standard deviation.
        percentile_00_5: of the foreground of all training pictures, as the three below it.
        percentile_99_5: see there.
        mean: see there.
        std: see there.
    """

    scheme: str
    percentile_00_5: float
    percentile_99_5: float
    mean: float
    std: float


@dataclass(frozen=True)
class EncoderPlan:
    """The layers of an encoder, a value for each stage.

    Attributes:
        kind: plain convolutions, or residual blocks.
        features: channels.
        strides: of the first convolution, (rows, columns).
        kernels: (rows, columns).
        depths: convolutions of a stage, or residual blocks.
        convolution_bias: whether convolutions have one.
        epsilon: of the instance norms.
        intensity: what pictures were normalised by; None where the plans do not say.
    """

    kind: Literal["plain", "residual"]
    features: tuple[int, ...]
    strides: tuple[Pair, ...]
    kernels: tuple[Pair, ...]
    depths: tuple[int, ...]
    convolution_bias: bool = True
    epsilon: float = 1e-5
    intensity: IntensityStatistics | None = None

    def cut(self, stage: int) -> EncoderPlan:
        """The plan up to and including a stage.

        Raises:
            UserError: there is no such stage.
        """
        if not 0 <= stage < len(self.features):
            raise UserError(f"vision.output_stage is {stage}, and the encoder has the stages 0 to {len(self.features) - 1}")
        end = stage + 1
        return EncoderPlan(
            self.kind,
            self.features[:end],
            self.strides[:end],
            self.kernels[:end],
            self.depths[:end],
            self.convolution_bias,
            self.epsilon,
            self.intensity,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EncoderPlan:
        intensity = values.get("intensity")
        return cls(
            kind=values["kind"],
            features=tuple(values["features"]),
            strides=tuple(_pair(stride) for stride in values["strides"]),
            kernels=tuple(_pair(kernel) for kernel in values["kernels"]),
            depths=tuple(values["depths"]),
            convolution_bias=values["convolution_bias"],
            epsilon=values["epsilon"],
            intensity=None if intensity is None else IntensityStatistics(**intensity),
        )


def read_plan(plans: Mapping[str, Any], configuration: str, dataset: Mapping[str, Any]) -> EncoderPlan:
    """The encoder of a configuration, of plans new (with `architecture`) and old (without).

    Args:
        plans: nnU-Net's plans.json.
        configuration: such as ``2d``.
        dataset: nnU-Net's dataset.json.

    Raises:
        UserError: it is 3-D, of an unknown network, or takes more than one channel.
    """
    described = _configuration(plans, configuration)
    channels = dataset.get("channel_names", dataset.get("modality", {"0": ""}))
    if len(channels) != 1:
        raise UserError(
            f"the encoder takes {len(channels)} channels ({', '.join(map(str, channels.values()))}): one is supported"
        )
    architecture = described.get("architecture")
    if architecture is None:
        name = described.get("UNet_class_name", "PlainConvUNet")
        strides, kernels = described["pool_op_kernel_sizes"], described["conv_kernel_sizes"]
        base, most = described["UNet_base_num_features"], described["unet_max_num_features"]
        features = [min(base * 2**stage, most) for stage in range(len(strides))]
        depths, bias, epsilon = described["n_conv_per_stage_encoder"], True, 1e-5
    else:
        name, arguments = architecture["network_class_name"].rsplit(".", 1)[-1], architecture["arch_kwargs"]
        strides, kernels, features = arguments["strides"], arguments["kernel_sizes"], arguments["features_per_stage"]
        depths = arguments.get("n_blocks_per_stage", arguments.get("n_conv_per_stage"))
        bias, epsilon = arguments.get("conv_bias", True), (arguments.get("norm_op_kwargs") or {}).get("eps", 1e-5)
    if name not in CLASSES:
        raise UserError(f"the plans' network is {name}, not {' or '.join(CLASSES)}: it was made by another trainer")
    stages = len(features)
    return EncoderPlan(
        kind=CLASSES[name],
        features=tuple(int(count) for count in features),
        strides=_pairs(strides, stages, configuration),
        kernels=_pairs(kernels, stages, configuration),
        depths=tuple(int(depth) for depth in (depths if isinstance(depths, list | tuple) else [depths] * stages)),
        convolution_bias=bool(bias),
        epsilon=float(epsilon),
        intensity=_intensity(plans, described),
    )


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it inherits."""
    configurations = plans.get("configurations", {})
    if name not in configurations:
        raise UserError(f"the plans have no configuration {name!r} (there are: {', '.join(configurations) or 'none'})")
    described = dict(configurations[name])
    parent = described.pop("inherits_from", None)
    return described if parent is None else {**_configuration(plans, parent), **described}


def _pairs(values: Any, stages: int, configuration: str) -> tuple[Pair, ...]:
    each = list(values) if isinstance(values, list | tuple) else [values] * stages
    if any(isinstance(value, list | tuple) and len(value) == 3 for value in each):
        raise UserError(
            f"the checkpoint is of the 3-D configuration {configuration!r}: the report writer looks at slices, so give the "
            "checkpoint of a 2-D one (nnUNetv2_train DATASET 2d FOLD)"
        )
    return tuple(_pair(value) for value in each)


def _pair(value: Any) -> Pair:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _intensity(plans: Mapping[str, Any], described: Mapping[str, Any]) -> IntensityStatistics | None:
    values = plans.get("foreground_intensity_properties_per_channel", {}).get("0")
    schemes = described.get("normalization_schemes") or [None]
    if values is None or schemes[0] is None:
        return None
    return IntensityStatistics(
        schemes[0], *(float(values[name]) for name in ("percentile_00_5", "percentile_99_5", "mean", "std"))
    )
