"""Checkpoints as nnU-Net v2 writes them, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymed.systems.mamba_vlm.encoder import Encoder
from raymed.systems.mamba_vlm.plans import read_plan

FEATURES, STRIDES = [4, 8, 8], [[1, 1], [2, 2], [2, 1]]
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}}
INTENSITY = {"0": {"percentile_00_5": -900.0, "percentile_99_5": 300.0, "mean": -100.0, "std": 250.0, "max": 1000.0}}


def plans(kind: str, new: bool = True) -> dict[str, Any]:
    """plans.json of a plain or residual encoder, as newer or older versions write it; `2d_small` inherits from `2d`."""
    depths = [1, 2, 2] if kind == "residual" else [2, 2, 2]
    name = "ResidualEncoderUNet" if kind == "residual" else "PlainConvUNet"
    if new:
        described: dict[str, Any] = {
            "architecture": {
                "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
                "arch_kwargs": {
                    "n_stages": 3,
                    "features_per_stage": FEATURES,
                    "conv_op": "torch.nn.modules.conv.Conv2d",
                    "kernel_sizes": [[3, 3]] * 3,
                    "strides": STRIDES,
                    "n_blocks_per_stage" if kind == "residual" else "n_conv_per_stage": depths,
                    "conv_bias": True,
                    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                },
            }
        }
    else:
        described = {
            "UNet_class_name": name,
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "n_conv_per_stage_encoder": depths,
            "pool_op_kernel_sizes": STRIDES,
            "conv_kernel_sizes": [[3, 3]] * 3,
        }
    described["normalization_schemes"] = ["CTNormalization"]
    return {
        "configurations": {"2d": described, "2d_small": {"inherits_from": "2d", "batch_size": 2}},
        "foreground_intensity_properties_per_channel": INTENSITY,
    }


def write_checkpoint(
    path: Path, kind: str = "plain", new: bool = True, prefix: str = "", aliases: bool = True, **changed: Any
) -> Encoder:
    """Write a checkpoint with a decoder and with the aliases that nnU-Net's own have; returns the encoder that is in it."""
    torch.manual_seed(0)
    encoder = Encoder(read_plan(plans(kind), "2d", DATASET))
    weights: dict[str, Tensor] = {}
    for key, tensor in encoder.state_dict().items():
        weights[f"{prefix}encoder.{key}"] = tensor
        if aliases:
            alias = key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
            weights |= {f"{prefix}encoder.{alias}": tensor, f"{prefix}decoder.encoder.{key}": tensor}
    weights[f"{prefix}decoder.seg_layers.0.weight"] = torch.zeros(2, 8, 1, 1)
    checkpoint = {
        "network_weights": weights,
        "optimizer_state": {"state": {}, "param_groups": []},
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)]},
        "_best_ema": np.float64(0.75),
        "current_epoch": 10,
        "init_args": {"plans": plans(kind, new), "configuration": "2d", "fold": 0, "dataset_json": DATASET, **changed},
        "trainer_name": "nnUNetTrainer",
    }
    torch.save(checkpoint, path)
    return encoder.eval()
