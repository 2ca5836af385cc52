"""Small text models as folders, with a real WordPiece or byte-pair vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertForMaskedLM, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] normal lung bacterial viral pneumonia x - ray of a with , ."
HAN = "正 常 的 肺 炎 细 菌 病 毒 性 图 像"
PIECES = "##s ##ia ##al"


def write_bert(folder: Path, positions: int = 64) -> BertForMaskedLM:
    """A masked language model, as BERTs are published: the encoder under ``bert.``, a head beside it."""
    vocabulary = [*WORDS.split(), *HAN.split(), *PIECES.split()]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), "utf-8")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.1,
    )
    model = BertForMaskedLM(config)
    model.save_pretrained(folder)
    return model.eval()


def write_clip(folder: Path) -> CLIPModel:
    """A whole CLIP model: text tower, vision tower, projections."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "lu", "lun", "lung</w>"]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nl u\nlu n\nlun g</w>\n", "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}), "utf-8")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    end = len(vocabulary) - 1
    text = CLIPTextConfig(
        **shape,
        vocab_size=len(vocabulary),
        max_position_embeddings=24,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    vision = CLIPVisionConfig(**shape, image_size=32, patch_size=16)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16))
    model.save_pretrained(folder)
    return model.eval()
