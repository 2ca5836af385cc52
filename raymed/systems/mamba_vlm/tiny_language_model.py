"""The tiny language model, for phantoms and tests: it begins with random weights, and knows every byte and the words of
reports on phantom patients, whose texts are short for it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MambaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

END = "<|endoftext|>"  # its id is 0, as in the published tokenizer
REPORTS = (  # whose words are a token each
    "Both lungs are clear. There is no sign of pneumonia.",
    "Dense consolidation with open airways in the left lung, upper zone; a small part of the lungs. This fits bacterial",
    "Patches of ground glass under the pleura in the right lung, middle zone; a moderate part of the lungs. This fits viral",
    "Ground glass around the hila with small cysts in both lungs, lower zone; a large part of the lungs.",
    "This fits Pneumocystis pneumonia.",
    "Write the findings of this CT.",
    "What does this slice of a chest CT show?",
    "Describe this image.",
)


def tiny_config(vocabulary: int) -> MambaConfig:
    """Width 64, two layers; three rows more than the tokenizer has tokens, as in the published models."""
    return MambaConfig(
        vocab_size=vocabulary + 3,
        hidden_size=64,
        num_hidden_layers=2,
        time_step_rank=4,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def byte_tokenizer(texts: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """A tokenizer that knows every byte, the end of a text, and the words of `texts`; always the same for the same texts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    enough = len(alphabet) + sum(map(len, texts)) + 1
    trainer = trainers.BpeTrainer(vocab_size=enough, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END)
