"""What raymed makes of the files that pydicom and nibabel come with: the table in docs/data.md.

python tests/data/conformance.py        # writes the table anew
"""

import warnings
from collections import defaultdict
from pathlib import Path

import nibabel
import pydicom

from raymed.data.image import ImageSettings
from raymed.data.sources import Refusal, SourceSettings, dicom, load_study, nifti

FILES = {
    "pydicom": Path(pydicom.__file__).parent / "data" / "test_files",
    "nibabel": Path(nibabel.__file__).parent / "tests" / "data",
}
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
BEGIN, END = "<!-- conformance: written by tests/data/conformance.py -->\n", "<!-- end of conformance -->\n"
SETTINGS = ImageSettings(size=64)
MANY = 3  # files of one folder with one verdict: they are counted


def files(library: str) -> list[str]:
    """Files that claim to be images of the library's kind, relative to its folder."""
    root = FILES[library]
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    if library == "pydicom":
        return [name for name in names if not name.endswith((".txt", ".json", ".icc", ".dump", ".gz"))]
    return [name for name in names if name.endswith((".nii", ".nii.gz"))]


def verdict(path: Path) -> str:
    """Read, left out or refused, and why: of the file alone."""
    source = nifti if path.name.endswith((".nii", ".nii.gz")) else dicom
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listing = source.list_studies(path, SourceSettings(labelled=False, patient_regex="(.+)"))
        results = [result for study in listing.studies for _, result in load_study(listing.root, study, SETTINGS)]
    if listing.refusals:
        (refusal,) = listing.refusals
        return plain("left out" if refusal.expected else "refused", refusal.reason)
    if refused := [result.reason for result in results if isinstance(result, Refusal)]:
        return plain("refused", refused[0])
    return f"read: {len(results)} slices" if len(results) > 1 else "read"


def plain(kind: str, reason: str) -> str:
    """A reason without what a decoder's version may say in other words."""
    before, decoding, _ = reason.partition("cannot be decoded")
    return f"{kind}: {before}{decoding}" if decoding else f"{kind}: {reason}"


def table() -> str:
    """Markdown: a line for each verdict."""
    lines = ["| library | files | what raymed makes of them |", "|---|---|---|"]
    for library in FILES:
        by_verdict: dict[str, list[str]] = defaultdict(list)
        for name in files(library):
            by_verdict[verdict(FILES[library] / name)].append(name)
        for words, names in sorted(by_verdict.items(), key=lambda item: (item[0].split(":")[0], item[0])):
            lines.append(f"| {library} | {', '.join(folded(names))} | {words.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def folded(names: list[str]) -> list[str]:
    """Names, and folders with the count of theirs where these are many."""
    folders: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folders[name.rpartition("/")[0]].append(name)
    shown: list[str] = []
    for folder, members in folders.items():
        shown += (
            [f"`{folder}/` ({len(members)} files)"] if folder and len(members) > MANY else [f"`{name}`" for name in members]
        )
    return shown


def documented() -> str:
    """The table as it stands in the docs."""
    return DOCS.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    text = DOCS.read_text(encoding="utf-8")
    DOCS.write_text(text.replace(BEGIN + documented() + END, BEGIN + table() + END), encoding="utf-8")
