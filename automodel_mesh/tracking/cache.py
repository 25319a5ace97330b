"""What was read of a torch release, kept in a folder, so that it is read without the network the next time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

_SCHEMA: Final = 1


@dataclass(frozen=True)
class Entry:
    """What was read of one release.

    Attributes:
        wheel: The name of the wheel that was read.
        version: The version that the wheel's name tells.
        yanked: Whether the release had been yanked.
        files: The text by path of what was read; `None` where the wheel has no such file.
    """

    wheel: str
    version: str
    yanked: bool
    files: Mapping[str, str | None]

    def has(self, paths: Iterable[str]) -> bool:
        """Tell whether it is known of each file what it holds, or that the wheel has none."""
        return all(path in self.files for path in paths)


def default_cache() -> Path:
    """Return the folder of the cache, which need not exist.

    Returns:
        What the environment variable AUTOMODEL_MESH_CACHE says; else `automodel-mesh` in XDG_CACHE_HOME, where that is
        an absolute path; else `~/.cache/automodel-mesh`.
    """
    own = os.environ.get("AUTOMODEL_MESH_CACHE")
    if own:
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "automodel-mesh"


def file_name(version: str, index: str) -> str:
    """Return the name of the file for a release of one index.

    Args:
        version: The release.
        index: The index's URL without credentials, so that a new password finds the same file.
    """
    return f"torch-{version}-{hashlib.sha256(index.encode()).hexdigest()[:12]}.json"


def load(file: Path) -> Entry | None:
    """Read an entry; `None` where there is none, or none that can be used."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document.pop("schema") != _SCHEMA:
            return None
        entry = Entry(**document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return entry if _is_sound(entry) else None


def _is_sound(entry: Entry) -> bool:
    """Tell whether the values have their types; the file may be of anybody's making."""
    values: list[tuple[object, type]] = [
        (entry.wheel, str),
        (entry.version, str),
        (entry.yanked, bool),
        (entry.files, dict),
    ]
    if not all(isinstance(value, kind) for value, kind in values):
        return False
    texts = list[object](entry.files.values())
    return all(text is None or isinstance(text, str) for text in texts)


def store(file: Path, entry: Entry) -> None:
    """Write an entry, whole or not at all, whoever else writes the same one.

    Raises:
        OSError: The folder cannot be made or written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{uuid4().hex}.part")
    try:
        part.write_text(json.dumps({"schema": _SCHEMA, **asdict(entry)}), encoding="utf-8")
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
