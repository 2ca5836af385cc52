from pathlib import Path

from raymed.systems.mamba_vlm.output import LOG, _append_log
from raymed.training.checkpoint import Progress


def progress(*losses: float) -> Progress:
    history = [{"train_loss": loss, "global_step": 5.0 * number} for number, loss in enumerate(losses, start=1)]
    return Progress(epoch=len(losses), global_step=5 * len(losses), history=history)


def test_a_log_is_gone_on_with_and_never_wiped(tmp_path: Path) -> None:
    _append_log(tmp_path / LOG, progress(3.0, 2.5))
    _append_log(tmp_path / LOG, progress(2.0))
    assert (tmp_path / LOG).read_text().splitlines() == [
        "step,epoch,caption_loss",
        "5,1,3.000000",
        "10,2,2.500000",
        "15,3,2.000000",
    ]
