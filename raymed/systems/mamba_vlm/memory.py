"""What to lower where memory does not suffice, in the order of the guide's table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from raymed.errors import RunError

SHORT = re.compile(r"OutOfMemoryError|MemoryError|out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.I)
TRAINING = (
    "--max_visual_tokens 64",
    "--max_text_len 256",
    "--batch_size 1 --gradient_accumulation_steps 8",
    "--llm.gradient_checkpointing true, if it was switched off",
    "--roi_side 7 or --use_cmi",
    "a smaller language model (--mamba_model)",
)
CHECK = (
    "--llm_device cpu, which is slow and needs no GPU",
    "--llm_device auto --max_visual_tokens 32",
    "--llm_device auto --llm_8bit, which needs bitsandbytes",
    "--max_new_tokens 60",
)


@contextmanager
def memory_advice(steps: tuple[str, ...]) -> Iterator[None]:
    """Errors that say that memory did not suffice get advice; others pass.

    Args:
        steps: what to lower, in this order.

    Raises:
        RunError: memory did not suffice.
    """
    try:
        yield
    except (RunError, RuntimeError, MemoryError) as error:  # torch's own is a RuntimeError
        if not SHORT.search(f"{type(error).__name__}: {error}"):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = "\n".join(f"  {number}. {step}" for number, step in enumerate(steps, start=1))
        raise RunError(f"memory did not suffice: {reason}\nLower what it needs, in this order:\n{advice}") from error
