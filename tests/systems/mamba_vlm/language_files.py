"""Folders of language models as they are published, with random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import MambaForCausalLM

from raymed.systems.mamba_vlm.tiny_language_model import byte_tokenizer, tiny_config


def write_folder(folder: Path) -> MambaForCausalLM:
    """A published folder's layout, with random weights."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    network = MambaForCausalLM(tiny_config(len(tokenizer))).eval()
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return network
