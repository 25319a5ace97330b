"""`--torch` of an audit: reads the names of a torch that is not recorded, wherever it is."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.utils import parse_wheel_filename

from automodel_mesh.audit.recording import import_griffe, read_names
from automodel_mesh.audit.torch_names import TorchNames, parse_names
from automodel_mesh.tracking.arguments import place_of
from automodel_mesh.tracking.index import WheelOfRelease, find_wheel, write_whole
from automodel_mesh.tracking.sources import Watch, ignore_progress


def read_other(
    what: str, *, index_url: str | None = None, cache: Path | None = None, watch: Watch = ignore_progress
) -> TorchNames:
    """Read the names of the torch that WHAT names.

    Args:
        what: see `place_of`.
        index_url: the package index for releases; see `read_release`.
        cache: the folder that stores the names of a release of an index, so that its wheel is downloaded once; by
            default nothing is stored.
        watch: called with each step.

    Returns:
        Its names, as those of its only release.

    Raises:
        SourcesError: `what` is no torch, it cannot be read or downloaded, or an extra is missing, which the message
            names.
    """
    import_griffe()  # before a download
    place = place_of(what)
    if place is not None:
        watch(f"reading {place}")
        return _read(place)
    with find_wheel(what, index_url=index_url, watch=watch) as wheel:
        file = None if cache is None else cache / _file_name(wheel)
        if file is not None and (stored := _load(file)) is not None:
            return stored
        with TemporaryDirectory() as folder:
            path = wheel.download(Path(folder))
            watch(f"reading {wheel.name}")
            names = _read(path)
    if file is not None:
        try:
            write_whole(file, names.content())
        except OSError as error:
            watch(f"the cache {cache} cannot be written, so nothing is stored: {error.strerror or error}")
    return names


def _read(place: Path) -> TorchNames:
    version, scopes = read_names(place)
    return TorchNames.of({version: scopes})


def _file_name(wheel: WheelOfRelease) -> str:
    """Name the file of a wheel's names; another index may have another wheel of that name."""
    version = parse_wheel_filename(wheel.name)[1]
    return f"names-{version}-{hashlib.sha256(f'{wheel.index} {wheel.name}'.encode()).hexdigest()[:12]}.txt.gz"


def _load(file: Path) -> TorchNames | None:
    """Read stored names; `None` if there are none, or they are damaged or of another schema."""
    try:
        return parse_names(gzip.decompress(file.read_bytes()).decode())
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        return None
