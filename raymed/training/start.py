"""Weights that a run starts from: those of an earlier run, but for parts that are declared to be new."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymed.errors import UserError
from raymed.storage.folder import Folder
from raymed.storage.seal import digest_of_file

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("raymed")

FOLDER = "start"  # of a storage: the weights that its runs started from, each by its digest
ABANDONED = 3600.0  # seconds without a new file after which a copy that was begun is taken for a killed process's
SHOWN = 5


@dataclass(frozen=True)
class StartWeights:
    """An exported network that every worker of a run can reach.

    Attributes:
        uri: of its folder.
        digest: of its files.
        new: see `StartSettings`.
    """

    uri: str
    digest: str
    new: tuple[str, ...] = ()

    @classmethod
    def of(cls, network: Path, new: tuple[str, ...], storage: Folder | None) -> StartWeights:
        """A network on this machine's disk, copied into a storage where the workers look for it.

        Args:
            storage: None where no worker will ask.
        """
        digest = _digest(network)
        if storage is None:
            return cls(str(network), digest, new)
        from raymed.training.upload import upload

        copies = storage.child(FOLDER)
        _sweep(copies)
        if set(copies.child(digest).names()) != {path.name for path in network.iterdir()}:
            copies.make()
            if not storage.is_local:  # each object is whole when it is there
                upload(network, copies, digest)
            else:  # a copy that a kill cut short would be taken for the whole one
                begun = f"{digest}-{uuid.uuid4().hex[:8]}"
                upload(network, copies, begun)
                with contextlib.suppress(OSError):  # another process was faster, and its copy is the same
                    (Path(copies.path) / begun).rename(Path(copies.path) / digest)
                copies.delete(begun)
        return cls(copies.child(digest).uri, digest, new)

    def load_on_all(self, module: nn.Module) -> None:
        """`load_into` on all workers of a run: the first one opens the weights, and the others have them from it.

        Raises:
            UserError: on all of them, as `load_into`.
        """
        import torch.distributed as dist

        problem: list[UserError | None] = [None]
        if dist.get_rank() == 0:
            try:
                self.load_into(module)
            except UserError as error:
                problem = [error]
        dist.broadcast_object_list(problem)
        if problem[0] is not None:
            raise problem[0]
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)

    def load_into(self, module: nn.Module) -> None:
        """Put the weights into a network that a recipe has built. LoRA adapters, which no export has, stay as built.

        Raises:
            UserError: the weights lack a part that is not new, hold others, or are of another shape; or a new part is none
                of the network's.
        """
        import torch

        from raymed.recipes.exported import open_model
        from raymed.training.checkpoint import copy_to_local

        with tempfile.TemporaryDirectory() as temporary:
            folder = Folder.at(self.uri)
            if not folder.is_local:
                copy_to_local(folder, Path(temporary))
            _, network = open_model(Path(folder.path if folder.is_local else temporary))
            given = network.state_dict()
        own = {
            name.replace(".base_layer.", "."): tensor for name, tensor in module.state_dict().items() if ".lora_" not in name
        }
        for part in self.new:
            if not any(_is_of(name, part) for name in own):
                parts = sorted({name.split(".")[0] for name in own})
                raise UserError(f"start.new names {part}, which the network does not have. Its parts are {', '.join(parts)}")
        old = [name for name in own if not any(_is_of(name, part) for part in self.new)]
        rest = [name for name in given if not any(_is_of(name, part) for part in self.new)]
        missing, more = set(old) - given.keys(), set(rest) - own.keys()
        other = {name for name in old if name in given and given[name].shape != own[name].shape}
        problems = [
            f"{what} {_shown(names)}"
            for what, names in (("they lack", missing), ("the network has no", more), ("of another shape:", other))
            if names
        ]
        if problems:
            raise UserError(
                f"the weights in {self.uri} are not this network's: {'; '.join(problems)}. Give the settings they were made "
                "with, or name what is to start anew: --start.new NAME,NAME"
            )
        with torch.no_grad():
            for name in old:
                own[name].copy_(given[name])


def _sweep(copies: Folder) -> None:
    """Remove copies that were begun and abandoned."""
    for name in copies.names():
        if "-" in name and time.time() - copies.modified(name) > ABANDONED:
            with contextlib.suppress(OSError):  # another process was faster
                copies.delete(name)


def _is_of(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _shown(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:SHOWN]) + (f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else "")


def _digest(folder: Path) -> str:
    """Of a folder's files, with their names."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{digest_of_file(path)}\n".encode())
    return digest.hexdigest()
