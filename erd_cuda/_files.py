"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_directory", "remove_leftovers", "replacing", "write_text"]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.\w+")


def check_directory(path: str | os.PathLike[str]) -> Path:
    """Raise a FileNotFoundError if the directory that ``path`` is to be written to is missing.

    For commands that work long before they write.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no directory {path.parent}")
    return path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a temporary file beside ``path`` that replaces it when the block ends well.

    After an exception, Ctrl-C included, ``path`` is what it was before and the temporary file is
    gone. The temporary name keeps the suffix, because some writers choose the format by it.

    Raises:
        FileNotFoundError: The directory of ``path`` does not exist.
    """
    path = check_directory(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove, in the folder and below it, what processes killed within `replacing` have left."""
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file ``path`` by ``text`` in UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
