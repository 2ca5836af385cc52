"""Look at the text that a checkpoint writes about a picture.

    python jobs/check_image_to_text.py                                 # stage 2, else stage 1; the first validation report
    python jobs/check_image_to_text.py --checkpoint outputs/vision_bridge_best_val.pt --max_visual_tokens 64
    python jobs/check_image_to_text.py --checkpoint outputs/vision_bridge_vlm_final.pt --image case_20260123_0000.nii.gz
    python jobs/check_image_to_text.py --max_visual_tokens 64 --max_new_tokens 20 --llm_device cpu

The text is a machine's: it is no finding until a physician has looked. A folder run_... with meta.json, generated.txt and
slice.png is written below --out_dir.
"""

from __future__ import annotations

from raymed.job.job import Outcome, run
from raymed.systems.mamba_vlm.check import CHECK_GUIDE, CheckOptions


def main(options: CheckOptions) -> Outcome:
    from pathlib import Path

    from raymed.systems.mamba_vlm.check import check
    from raymed.systems.mamba_vlm.memory import CHECK, memory_advice
    from raymed.systems.mamba_vlm.paths import local_path

    path = options.find_checkpoint()
    if options.dry_run:
        return Outcome(f"would write about a picture with {path}", {"checkpoint": str(path)})
    with memory_advice(CHECK):
        result = check(options, path)
    lines, data = result.lines, {"text": result.text, "abstained": not result.text, "checkpoint": str(path)}
    if options.save_out:
        folder = result.write(local_path(options.out_dir, Path.cwd()), options.generation, path)
        lines, data = [*lines, f"written to {folder}"], data | {"folder": str(folder)}
    return Outcome("\n".join(lines), data)


if __name__ == "__main__":
    run(CheckOptions, main, aliases=CHECK_GUIDE)
