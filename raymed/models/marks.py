"""The marks of the conversation template `internvl2_5`: where turns and pictures begin and end."""

from __future__ import annotations

IMAGE = "<image>"  # where a turn of text has its picture
CONTEXT = "<IMG_CONTEXT>"  # one per image token in the sequence
IMAGE_START, IMAGE_END = "<img>", "</img>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
PADDING = "<|endoftext|>"
REQUIRED = (TURN_START, TURN_END, IMAGE_START, IMAGE_END, CONTEXT)
