"""Python files, read and written atomically, in the encoding that they have."""

from __future__ import annotations

import io
import os
import stat
import tempfile
import tokenize
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from automodel_mesh.python_files import FileError


@dataclass(frozen=True)
class Text:
    """The text of a file.

    Attributes:
        code: the text, with the ends of lines that it has.
        encoding: that of the file, from its first lines.
    """

    code: str
    encoding: str


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


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
