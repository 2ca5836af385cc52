"""Says which upgrade took a library's private part away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType


@contextmanager
def since(compat: ModuleType) -> Iterator[None]:
    """Within it, parts of the library of a `raymed.compat` module are tried.

    Raises:
        AssertionError: one is not what it was.
    """
    library = compat.__name__.rpartition(".")[2].partition("_")[0]
    try:
        yield
    except Exception as error:
        raise AssertionError(
            f"{library} {version(library)} is not what {library} {compat.SEEN} was, where raymed/compat/"
            f"{compat.__name__.rpartition('.')[2]}.py was last seen to work: {error!r}"
        ) from error
