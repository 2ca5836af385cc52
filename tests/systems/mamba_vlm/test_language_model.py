import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from language_files import write_folder
from torch import nn
from transformers import MambaConfig

from raymed.errors import UserError
from raymed.systems.mamba_vlm.captions import cut_prompt, encode_captions, prompt_ids
from raymed.systems.mamba_vlm.generation import generate
from raymed.systems.mamba_vlm.language_model import LanguageModel, MambaLanguageModel
from raymed.systems.mamba_vlm.settings import GenerationSettings, LanguageSettings
from raymed.systems.mamba_vlm.tiny_language_model import byte_tokenizer

PUBLISHED = {  # the keys of config.json of state-spaces/mamba-130m-hf
    "architectures": ["MambaForCausalLM"],
    "model_type": "mamba",
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "vocab_size": 50280,
    "state_size": 16,
    "d_inner": 1536,
    "d_model": 768,
    "n_layer": 24,
    "expand": 2,
    "intermediate_size": 1536,
    "conv_kernel": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "pad_vocab_size_multiple": 8,
    "ssm_cfg": {},
    "fused_add_norm": True,
    "rms_norm": True,
    "residual_in_fp32": True,
    "rescale_prenorm_residual": False,
    "hidden_act": "silu",
    "initializer_range": 0.1,
    "layer_norm_epsilon": 1e-05,
    "use_bias": False,
    "use_cache": True,
    "use_conv_bias": True,
    "torch_dtype": "float32",
    "transformers_version": "4.39.0.dev0",
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 48,
    "time_step_scale": 1.0,
}


def build(folder: Path, **settings: object) -> MambaLanguageModel:
    return LanguageModel.find(LanguageSettings(path=str(folder), **settings)).build()  # type: ignore[arg-type]


def test_a_folder_of_transformers_gives_its_scores_and_gradients(tmp_path: Path) -> None:
    theirs, ours = write_folder(tmp_path), build(tmp_path)
    ids = torch.randint(1, 257, (2, 12))
    embeddings = ours.embed(ids).requires_grad_()
    scores = ours.logits(ours(embeddings))
    reference = theirs.get_input_embeddings()(ids).detach().requires_grad_()
    wanted = theirs(inputs_embeds=reference).logits[..., :257]
    torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=1e-4)
    scores.square().mean().backward()
    wanted.square().mean().backward()
    torch.testing.assert_close(embeddings.grad, reference.grad, atol=1e-6, rtol=1e-3)


def test_no_score_is_computed_for_rows_of_the_embedding_without_a_token() -> None:
    model = LanguageModel.find(LanguageSettings())
    network = model.build()
    assert model.config.vocab_size == len(model.tokenizer) + 3
    assert network.logits(torch.zeros(1, 64)).shape == (1, len(model.tokenizer))


def test_a_frozen_model_stays_as_it_is_while_gradients_reach_what_comes_before(tmp_path: Path) -> None:
    write_folder(tmp_path)
    network = build(tmp_path)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    bridge = nn.Linear(4, 64)
    host = nn.ModuleList([bridge, network]).train()
    assert not network.training and bridge.training
    optimizer = torch.optim.AdamW([parameter for parameter in host.parameters() if parameter.requires_grad], lr=0.1)
    network.logits(network(bridge(torch.randn(1, 3, 4)))).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in bridge.parameters())
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_layers_of_a_frozen_model_are_computed_again_instead_of_kept(tmp_path: Path) -> None:
    write_folder(tmp_path)
    embeddings = torch.randn(1, 64, 64)

    def kept(network: MambaLanguageModel) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor
        ):
            network(embeddings.clone().requires_grad_())
        return sum(sizes)

    assert kept(build(tmp_path)) < kept(build(tmp_path, gradient_checkpointing=False)) / 4


def test_adapters_are_all_that_a_model_with_lora_trains(tmp_path: Path) -> None:
    write_folder(tmp_path)
    plain, network = build(tmp_path), build(tmp_path, lora=2)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    embeddings = torch.randn(1, 5, 64)
    torch.testing.assert_close(network(embeddings), plain(embeddings))


def test_padding_changes_neither_the_loss_nor_the_scores_of_a_row() -> None:
    network = LanguageModel.find(LanguageSettings()).build()
    ids = torch.randint(1, 257, (1, 9))
    padded = F.pad(ids, (0, 5)).repeat(3, 1)
    torch.testing.assert_close(network(network.embed(padded))[:1, :9], network(network.embed(ids)))


def test_greedy_texts_are_those_of_transformers(tmp_path: Path) -> None:
    theirs, ours = write_folder(tmp_path), build(tmp_path)
    ids = torch.randint(1, 257, (1, 7))
    mask = torch.ones_like(ids, dtype=torch.bool)
    for penalty in (1.0, 1.3):
        settings = GenerationSettings(max_new_tokens=20, repetition_penalty=penalty, stop_repeats=0)
        texts = generate(ours, ours.embed(ids), mask, 0, settings)
        suppressed = list(range(257, 260))
        wanted = theirs.generate(
            inputs_embeds=theirs.get_input_embeddings()(ids),
            max_new_tokens=20,
            do_sample=False,
            repetition_penalty=penalty,
            suppress_tokens=suppressed,
            eos_token_id=0,
        )
        assert texts[0] == [token for token in wanted[0].tolist() if token != 0]


@pytest.mark.parametrize("sample", [False, True])
def test_a_batch_of_prompts_of_several_lengths_generates_what_each_does_alone(sample: bool) -> None:
    torch.manual_seed(3)
    network = LanguageModel.find(LanguageSettings()).build()
    prompts = [torch.randn(1, length, 64) for length in (2, 9, 5)]
    batch = torch.cat([F.pad(prompt, (0, 0, 0, 9 - prompt.shape[1])) for prompt in prompts])
    mask = torch.arange(9) < torch.tensor([2, 9, 5])[:, None]
    settings = GenerationSettings(max_new_tokens=15, sample=sample)
    together = generate(network, batch, mask, 0, settings)
    alone = [
        generate(network, prompt, torch.ones(1, prompt.shape[1], dtype=torch.bool), 0, settings)[0] for prompt in prompts
    ]
    assert together == alone
    assert len({tuple(text) for text in together}) == 3


def test_the_end_stops_a_text_and_is_not_part_of_it() -> None:
    network = LanguageModel.find(LanguageSettings()).build()
    prompt, mask = torch.randn(1, 4, 64), torch.ones(1, 4, dtype=torch.bool)
    varied = GenerationSettings(max_new_tokens=3, repetition_penalty=100.0)  # no token comes twice
    first = generate(network, prompt, mask, 0, varied)[0]
    assert generate(network, prompt, mask, first[1], varied) == [first[:1]]
    held = generate(network, prompt, mask, first[1], replace(varied, min_new_tokens=3))[0]
    assert len(held) == 3 and first[1] not in held


class Script:
    """A language model whose next tokens are written down; the state counts them."""

    def __init__(self, tokens: list[int]) -> None:
        self.script = tokens

    def prefill(self, embeddings: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, int]:
        return torch.zeros(len(embeddings), 1), 1

    def step(self, embeddings: torch.Tensor, state: int) -> tuple[torch.Tensor, int]:
        return torch.full((len(embeddings), 1), float(state)), state + 1

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return ids[:, None].float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        place = int(hidden[0, 0])
        return F.one_hot(torch.tensor([self.script[place % len(self.script)]] * len(hidden)), 10).float()


def scripted(tokens: list[int], settings: GenerationSettings, headings: tuple[list[int], ...] = ()) -> list[int]:
    model: Any = Script(tokens)
    return generate(model, torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool), 0, settings, headings)[0]


def test_a_tail_that_repeats_ends_the_text_and_is_kept_once() -> None:
    plain = GenerationSettings(max_new_tokens=40, repetition_penalty=1.0)
    assert scripted([5, 1, 2, 3], plain) == [5, 1, 2, 3]
    assert scripted([7] * 40, plain) == [7]
    assert scripted([1, 1, 1, 2, 1, 1, 1, 3, 0], plain) == [1, 1, 1, 2, 1, 1, 1, 3], "three times is no endless tail"
    assert len(scripted([7] * 40, replace(plain, stop_repeats=0))) == 40


def test_headings_come_in_their_order_whatever_the_model_says_and_nothing_is_put_below_them() -> None:
    plain = GenerationSettings(max_new_tokens=30, repetition_penalty=1.0, headers=("A", "B"))
    headings = ([8], [9, 8])
    assert scripted([1, 2, 3, 0, 4, 5, 6, 0], plain, headings) == [8, 2, 3, 9, 8, 5, 6]
    assert scripted([0], plain, headings) == [8, 9, 8], "nothing to say below either"
    long = scripted([1, 2, 3, 4, 5], plain, headings)
    assert long.count(9) == 1 and long.index(9) == 1 + 15, "a section without an end leaves room for the next"
    assert len(long) == 30 + 3, "headings take nothing of what may be said"


def test_answer_and_end_are_learned_and_nothing_else() -> None:
    tokenizer = byte_tokenizer()
    captions = encode_captions(tokenizer, ["what?", "a longer question?"], ["no", "yes: one"], 0, 100)
    assert captions.cut == 0
    for row, (question, answer) in enumerate((("what?", "no"), ("a longer question?", "yes: one"))):
        own = captions.rows == row
        assert captions.prompt_lengths[row] == len(question) + 1
        assert tokenizer.decode(captions.targets[own][:-1]) == answer
        assert captions.targets[own][-1] == 0
        row_tokens = captions.tokens[row]
        assert torch.equal(row_tokens[captions.positions[own][:-1] + 1], captions.targets[own][:-1])
        assert captions.positions[own][0] == len(question)  # the newline's state predicts the first token
    assert captions.learned.tolist() == [3, 9]


def test_cutting_keeps_the_answer_and_the_newline_and_no_end_within_a_sentence() -> None:
    tokenizer = byte_tokenizer()
    captions = encode_captions(tokenizer, ["a long question?"], ["answer"], 0, 10)
    assert captions.cut == 1 and captions.tokens.shape[1] == 10
    assert tokenizer.decode(captions.tokens[0, :3]) == "a \n"
    assert tokenizer.decode(captions.targets[:-1]) == "answer" and captions.targets[-1] == 0
    tight = encode_captions(tokenizer, ["a long question?"], ["answer"], 0, 5)
    assert tokenizer.decode(tight.targets) == "answ" and tight.tokens[0, 0] == prompt_ids(tokenizer, "")[0]
    assert cut_prompt([5, 6, 7, 9], 3) == [5, 6, 9]


def test_the_published_folders_are_not_taken_for_the_original_layout_whose_keys_they_hold_too(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = LanguageModel.find(LanguageSettings(path=str(tmp_path))).config
    found = config.hidden_size, config.num_hidden_layers, config.vocab_size, config.intermediate_size, config.time_step_rank
    assert found == (768, 24, 50280, 1536, 48)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "tiny-hf")
    for content, words in (
        ({"d_model": 64, "n_layer": 2}, "ends in -hf"),
        ({"model_type": "gpt2"}, "'gpt2' is not a Mamba"),
        (MambaConfig(vocab_size=100, hidden_size=64, num_hidden_layers=2).to_dict(), "257 tokens and the embedding 100"),
        (MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=2).to_dict(), "of another shape"),
    ):
        (tmp_path / "tiny-hf" / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=words):
            build(tmp_path / "tiny-hf")


def test_8_bits_that_cannot_be_had_name_the_other_way(tmp_path: Path) -> None:
    write_folder(tmp_path)
    way_a = r"python jobs/check_image_to_text\.py --llm_device auto --max_visual_tokens 32"
    with pytest.raises(UserError, match=f"8 bits cannot be had: .*{way_a}$"):
        build(tmp_path, int8=True)
