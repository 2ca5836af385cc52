"""Write the texts of the classes of a folder into a JSON file, to be edited and passed to jobs/train_clip.py.

    python jobs/class_texts.py --data-dir IMAGES --output class_texts.json --template "这是一张{class_name}的医学图像"
    python jobs/class_texts.py --data-dir IMAGES --output class_texts.json --interactive     # type a text for each class

IMAGES holds one folder of images for each class. Without a template, a class's text is its name. A file that is there is
changed by --interactive alone, which begins with its texts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from raymed.data.sources import SourceSettings, list_source
from raymed.data.sources.class_folders import class_names
from raymed.data.sources.listing import some
from raymed.errors import UserError
from raymed.job.command_line import Alias
from raymed.job.job import JobOptions, Outcome, run
from raymed.systems.clip.class_texts import fill, read_class_texts, write_class_texts

GUIDE = {"data-dir": Alias("data")}


@dataclass(frozen=True, kw_only=True)
class WriteClassTexts(JobOptions):
    """Options of writing class texts.

    Attributes:
        data: Folder with one folder of images for each class.
        output: The JSON file to write.
        template: Text with {class_name} in it.
        interactive: Ask for each class's text; Enter takes the file's, where there is one, or the template's.
    """

    data: str
    output: str = "class_texts.json"
    template: str | None = None
    interactive: bool = False


def main(options: WriteClassTexts) -> Outcome:
    out = Path(options.output).expanduser().resolve()
    if out.exists() and not options.interactive:
        raise UserError(f"{out} is there already: --interactive goes through its texts; or give another --output")
    there = read_class_texts(out) if out.exists() else {}
    listing = list_source(Path(options.data), SourceSettings(format="classes"))
    names = class_names(listing.root, [piece.path for study in listing.studies for piece in study.slices])
    if lost := there.keys() - set(names):
        raise UserError(f"{out} has texts for {some(sorted(lost))}, of which there is no folder: give another --output")
    texts = {name: there.get(name) or fill(options.template, name) for name in names}
    if options.interactive:
        texts = {name: ask(name, text) for name, text in texts.items()}
    if not options.dry_run:
        write_class_texts(out, texts)
    lines = [f"{name}: {text}" for name, text in texts.items()]
    last = f"dry run: nothing was written to {out}" if options.dry_run else f"class texts: {out}"
    return Outcome("\n".join([*lines, last]), {"output": str(out), "texts": texts})


def ask(name: str, text: str | list[str]) -> str | list[str]:
    """What the user types; what there is for Enter or at the end of the input."""
    shown = text if isinstance(text, str) else " / ".join(text)
    print(f"{name} [{shown}]: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip() or text


if __name__ == "__main__":
    run(WriteClassTexts, main, aliases=GUIDE)
