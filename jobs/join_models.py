"""Put a ViT under a language model: the folder of an InternVL, to be trained with jobs/pretrain_vitp.py.

    python jobs/join_models.py VIT Qwen2.5-0.5B-Instruct --out INTERNVL     # a new projector, and InternVL's marks
    python jobs/join_models.py VIT InternVL2_5-1B --out INTERNVL            # its ViT is replaced, all else stays

VIT is what jobs/extract_vit.py writes, or any model that holds an InternViT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raymed.errors import UserError
from raymed.job.job import JobOptions, Outcome, run
from raymed.models.settings import Layout


@dataclass(frozen=True)
class JoinModels(JobOptions):
    """Options of putting a model together.

    Attributes:
        vit: A folder or file with an InternViT, models:/NAME@ALIAS or runs:/RUN_ID.
        llm: Folder of a Qwen2 with its tokenizer, or of an InternVL, by its path or by its name under RAYMED_MODELS.
        out: The folder to write.
        layout: Names of the weights: native for transformers, internvl as in InternVL's own code.
    """

    vit: str
    llm: str
    out: str = "joined"
    layout: Layout = "native"


def main(options: JoinModels) -> Outcome:
    from raymed.models.internvl_weights import write_remote_code
    from raymed.models.joined import join
    from raymed.models.model_folders import MODEL_FILES, find_model
    from raymed.registry.address import open_tower

    out = Path(options.out).expanduser().resolve()
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} is not empty: choose another --out")
    model, new = join(open_tower(options.vit, options.tracking), find_model(options.llm, MODEL_FILES), options.seed)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    lines = [f"{millions:.1f} million parameters; new: {', '.join(new) or 'nothing'}"]
    if not options.dry_run:
        out.mkdir(parents=True, exist_ok=True)
        if options.layout == "native":
            model.export(out)
        else:
            write_remote_code(model.network.state_dict(), model.network.config, out)
            model.tokenizer.save_pretrained(out)
    lines.append("dry run: nothing was written" if options.dry_run else f"the InternVL, {options.layout}: {out}")
    return Outcome("\n".join(lines), {"out": str(out), "new": new, "parameters": round(millions * 1e6)})


if __name__ == "__main__":
    run(JoinModels, main, positional=True)
