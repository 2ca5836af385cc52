"""Where memory does not suffice a person is told what to lower, in the guide's order; other errors stay what they are."""

import pytest
import torch

from raymed.errors import RunError, UserError
from raymed.systems.mamba_vlm.memory import CHECK, TRAINING, memory_advice


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RunError("the run failed: worker 0 failed (OutOfMemoryError: CUDA out of memory.)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        MemoryError(),
    ],
)
def test_what_to_lower_stands_in_the_order_of_the_guides_table(error: Exception) -> None:
    with pytest.raises(RunError) as told, memory_advice(TRAINING):
        raise error
    words = str(told.value)
    places = [
        words.index(step) for step in ("--max_visual_tokens 64", "--max_text_len 256", "--batch_size 1", "--roi_side 7")
    ]
    assert places == sorted(places)
    first = r"1\. --llm_device cpu.*\n.*2\. --llm_device auto --max_visual_tokens 32\n"
    with pytest.raises(RunError, match=first), memory_advice(CHECK):
        raise error


@pytest.mark.parametrize("error", [UserError("no such file"), RunError("the loss is not finite"), RuntimeError("shapes")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as told, memory_advice(TRAINING):
        raise error
    assert told.value is error
