"""A torch of three files, as a wheel or in a folder, for tests of reading sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from automodel_mesh.tracking.sources import Unit, Watch

MESH = "torch/distributed/device_mesh.py"
LACKING = "torch/distributed/no_such_file.py"
PATHS = (MESH, LACKING)
MESH_TEXT = "# línea\r\nclass DeviceMesh: ...\n"
LINUX = "cp312-cp312-manylinux_2_28_x86_64"

Step = tuple[str, int, int, Unit]


def torch_files(version: str) -> dict[str, bytes]:
    """Return the files of the small torch."""
    return {
        "torch/__init__.py": b"raise AssertionError('torch was imported')\n",
        "torch/version.py": f"from typing import Optional\n__version__ = '{version}'\ncuda = None\n".encode(),
        MESH: MESH_TEXT.encode(),
    }


def make_wheel(folder: Path, version: str, *, tags: str = LINUX, files: Mapping[str, bytes] | None = None) -> Path:
    """Write a wheel of the small torch, or of other files."""
    wheel = folder / f"torch-{version}-{tags}.whl"
    with ZipFile(wheel, "w", ZIP_DEFLATED) as archive:
        for name, content in (torch_files(version) if files is None else files).items():
            archive.writestr(name, content)
    return wheel


def make_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def append_to(steps: list[Step]) -> Watch:
    """Return a callback for progress that appends each step to a list."""

    def watch(step: str, done: int = 0, total: int = 0, unit: Unit = "files") -> None:
        steps.append((step, done, total, unit))

    return watch
