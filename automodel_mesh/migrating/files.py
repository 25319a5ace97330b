"""The Python files below some paths: found, read, and written atomically, in the encoding that they have."""

from __future__ import annotations

import io
import os
import stat
import tempfile
import tokenize
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SKIPPED: Final = frozenset({"__pycache__", "node_modules", "site-packages"})
_ENVIRONMENT: Final = "pyvenv.cfg"


class FileError(Exception):
    """A file cannot be read or written; the message says why."""


@dataclass(frozen=True)
class Text:
    """The text of a file.

    Attributes:
        code: the text, with the ends of lines that it has.
        encoding: that of the file, from its first lines.
    """

    code: str
    encoding: str


def python_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files that some paths name, each once: a file as it is, and of a folder those that end in `.py`.

    In a folder, links, hidden files and folders, environments, `node_modules` and `__pycache__` are left out.

    Raises:
        FileError: a path does not exist, or is a notebook.
    """
    seen: set[Path] = set()
    for path in paths:
        for file in _below(path) if path.is_dir() else [_file(path)]:
            if (resolved := file.resolve()) not in seen:
                seen.add(resolved)
                yield file


def read(path: Path) -> Text:
    """Read a file of Python code.

    Raises:
        FileError: it cannot be read, or is not in the encoding that it names.
    """
    try:
        content = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        return Text(content.decode(encoding), encoding)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise FileError(_reason(error)) from error


def write(path: Path, text: Text) -> None:
    """Replace the content of a file in one step; its permissions stay, and a link leads to it as before.

    Raises:
        FileError: it cannot be written, or nobody may write it.
    """
    target = path.resolve()
    try:
        mode = stat.S_IMODE(target.stat().st_mode)
        if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) or not os.access(target, os.W_OK):
            raise FileError("it is read-only")
        content = text.code.encode(text.encoding)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(name).chmod(mode)
            Path(name).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except (OSError, UnicodeEncodeError) as error:
        raise FileError(_reason(error)) from error


def _file(path: Path) -> Path:
    if not path.exists():
        raise FileError(f"{path} does not exist")
    if path.suffix == ".ipynb":
        raise FileError(f"{path} is a notebook: save its code as a .py file")
    return path


def _below(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        here = Path(name)
        folders[:] = sorted(one for one in folders if not _is_skipped(here / one))
        for file in sorted(files):
            path = here / file
            if path.suffix == ".py" and not file.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def _is_skipped(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in _SKIPPED or (folder / _ENVIRONMENT).exists()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
