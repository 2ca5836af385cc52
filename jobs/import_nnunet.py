"""Take the encoder out of a checkpoint of nnU-Net v2 (2-D), for jobs that write reports.

    python jobs/import_nnunet.py nnunet_results/.../checkpoint_best.pth --out ENCODER
    python jobs/train_vlm.py --vision.encoder ENCODER

ENCODER gets encoder.safetensors (weights) and encoder.json (layers, and how pictures were normalised). The checkpoint is a
pickle; only tensors and plain values are read from it, unless --trust says that it is your own.
"""

from __future__ import annotations

from dataclasses import dataclass

from raymed.job.job import JobOptions, Outcome, run


@dataclass(frozen=True)
class ImportNnunet(JobOptions):
    """Options of importing an encoder.

    Attributes:
        checkpoint: nnU-Net's checkpoint_best.pth or checkpoint_final.pth.
        out: Folder to write.
        trust: Run what the pickle says: only with a file of your own.
    """

    checkpoint: str
    out: str = "nnunet_encoder"
    trust: bool = False


def main(options: ImportNnunet) -> Outcome:
    from pathlib import Path

    from raymed.systems.mamba_vlm.nnunet import compare, read_checkpoint, write_encoder
    from raymed.systems.mamba_vlm.paths import local_path

    weights = read_checkpoint(local_path(options.checkpoint, Path.cwd()), options.trust)
    plan, out = weights.plan, local_path(options.out, Path.cwd())
    report = compare(weights, plan) if options.dry_run else write_encoder(weights, out)
    lines = [
        f"{plan.kind} encoder of {len(plan.features)} stages, {', '.join(map(str, plan.features))} channels: {report}",
        f"left out: {len(weights.others)} weights of the decoder and others, {weights.aliases} that name one a second time",
        f"would be written to {out}" if options.dry_run else f"encoder in {out}",
    ]
    if plan.intensity is None:
        lines.insert(2, "the plans do not say how pictures were normalised: prepare data with min-max or a window")
    return Outcome("\n".join(lines), {"matched": len(report.matched), "missing": len(report.missing), "out": str(out)})


if __name__ == "__main__":
    run(ImportNnunet, main, positional=True)
