"""`backport`: code that is written for the `DeviceMesh` of the newest torch runs on this one.

Only when it is called, `backport` replaces or adds functions of torch, for all meshes: those that this torch lacks, or
that do something else than those of the newest tested release. They have the names and signatures of that release, and
call the functions of this package. `eras/newest.py` has the releases.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from torch.distributed import device_mesh
from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.checks import wrong_type
from automodel_mesh.compat import create
from automodel_mesh.compat.eras.gate import era
from automodel_mesh.compat.eras.newest import IMPOSSIBLE, SINCE
from automodel_mesh.compat.eras.support import NEWEST_TESTED_TORCH, TORCH_VERSION, torch_at_least
from automodel_mesh.compat.folding import flatten, unflatten
from automodel_mesh.compat.lookup import get_group, get_root_mesh
from automodel_mesh.compat.requests import BackendChoice, shown_mesh
from automodel_mesh.compat.slicing import concatenate, slice_mesh
from automodel_mesh.compat.teardown import abort_root
from automodel_mesh.errors import MeshArgumentError

if TYPE_CHECKING:
    from types import TracebackType

    from torch.distributed import ProcessGroup
    from typing_extensions import Self

    # Type checkers compare the methods below with those of the torch that they find.
    _Torchs = DeviceMesh
else:
    _Torchs = object

_torchs_init: Final = DeviceMesh.__init__
_torchs_get_coordinate: Final = DeviceMesh.get_coordinate
Function = TypeVar("Function", bound=Callable[..., Any])
FEATURES: Final[dict[str, tuple[str, ...]]] = {}
"""For the name of each function that can be set, what it does: keys of `SINCE`."""


def _does(*features: str) -> Callable[[Function], Function]:
    """Note what a function does. `backport` sets it if torch's function of the same name does not do all of that."""

    def note(function: Function) -> Function:
        FEATURES[function.__name__] = features
        return function

    return note


class Newest(_Torchs):
    """The methods of `DeviceMesh` in the newest release, by our functions; they are set on torch's class."""

    @_does("`DeviceMesh(preserve_rank_order=False)`")
    def __init__(self, *args: Any, preserve_rank_order: bool = False, **kwargs: Any) -> None:
        if preserve_rank_order:
            raise MeshArgumentError(
                f"DeviceMesh: preserve_rank_order=True is not possible with torch {TORCH_VERSION}, which sorts the "
                "ranks of each process group: leave it out, and give the ranks in ascending order."
            )
        _torchs_init(self, *args, **kwargs)

    @_does("`mesh[...]` of a slice, without a warning", "`mesh[...]` of a flattened axis that is not contiguous")
    def __getitem__(self, mesh_dim_names: str | tuple[str, ...]) -> DeviceMesh:
        return slice_mesh(self, mesh_dim_names)

    @_does(
        "`mesh._flatten(backend_override=...)`",
        "`mesh._flatten` to a name in use is an error",
        "`mesh._flatten` of one axis to its own name gives the mesh itself",
    )
    def _flatten(self, mesh_dim_name: str | None = None, backend_override: BackendChoice | None = None) -> DeviceMesh:
        return flatten(self, mesh_dim_name or None, backend_override=backend_override)

    @_does("`mesh._unflatten` of an axis by its index", "`mesh._unflatten` of an axis by its name")
    def _unflatten(
        self,
        dim: int | str,
        mesh_sizes: Sequence[int],
        mesh_dim_names: Sequence[str],
        backend_override: Mapping[Any, BackendChoice] | None = None,
    ) -> DeviceMesh:
        return unflatten(self, dim, mesh_sizes, mesh_dim_names, backend_override=backend_override)

    @staticmethod
    @_does("`DeviceMesh._concatenate`")
    def _concatenate(device_mesh_list: Sequence[DeviceMesh]) -> DeviceMesh:
        return concatenate(device_mesh_list)

    @_does("`mesh._get_root_mesh`")
    def _get_root_mesh(self) -> DeviceMesh:
        return get_root_mesh(self)

    @property
    @_does("`root._flatten_mapping`")
    def _flatten_mapping(self) -> dict[str, DeviceMesh]:  # type: ignore[override]
        # Not read-only, as `flattened_meshes` is: some frameworks add meshes of their own.
        if get_root_mesh(self) is self:
            return cast("dict[str, DeviceMesh]", era.flattened(self))
        return cast("dict[str, DeviceMesh]", vars(self).setdefault("_automodel_mesh_flatten_mapping", {}))

    @_does("`mesh._is_current_rank_part_of_mesh`")
    def _is_current_rank_part_of_mesh(self) -> bool:
        return self.get_coordinate() is not None

    @_does("`mesh.get_group`, `get_all_groups`: of each axis of every mesh")
    def get_group(self, mesh_dim: int | str | None = None) -> ProcessGroup:
        """Return the group of an axis."""
        return get_group(self, mesh_dim)

    @_does("`mesh.get_coordinate` as a tuple")
    def get_coordinate(self) -> tuple[int, ...] | None:
        """Return the coordinate of this rank."""
        coordinate = _torchs_get_coordinate(self)  # our function calls this one
        return None if coordinate is None else tuple(coordinate)

    @_does("`mesh.abort`")
    def abort(self) -> None:
        """Abort the groups of a root mesh's family but the default one."""
        if get_root_mesh(self) is not self:
            raise MeshArgumentError(f"abort: {shown_mesh(self)} is not a root mesh: call it on the root mesh.")
        abort_root(self)


@_does("`init_device_mesh(backend_override=...)`")
def init_device_mesh(
    device_type: str,
    mesh_shape: tuple[int, ...],
    *,
    mesh_dim_names: tuple[str, ...] | None = None,
    backend_override: Mapping[int | str, BackendChoice] | None = None,
) -> DeviceMesh:
    """Call our function with the parameters of torch's."""
    return create.init_device_mesh(
        device_type, mesh_shape, mesh_dim_names=mesh_dim_names, backend_override=backend_override
    )


_INIT: Final = "init_device_mesh"
_lock: Final = threading.Lock()
_calls: Final[list[Backport]] = []
"""The calls of `backport` that have not ended: those that are no `with` blocks never do."""
_before: Final[dict[str, Any]] = {}
"""What torch had in place of each function that is set; nothing for a name that was not there."""


class Backport:
    """What `backport` did; in a `with` statement, torch is as before at the end of the block.

    Attributes:
        installed: what this torch does with `backport` only.
        present: what this torch does itself.
        impossible: what this torch does not do with `backport` either, each with the reason.
    """

    installed: tuple[str, ...] = tuple(feature for feature, since in SINCE.items() if not torch_at_least(since))
    present: tuple[str, ...] = tuple(
        feature
        for feature, since in [*SINCE.items(), *((name, each.since) for name, each in IMPOSSIBLE.items())]
        if torch_at_least(since)
    )
    impossible: Mapping[str, str] = MappingProxyType(
        {name: each.why for name, each in IMPOSSIBLE.items() if not torch_at_least(each.since)}
    )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            if self not in _calls:
                return
            _calls.remove(self)
            if not _calls:
                _restore()

    def __str__(self) -> str:
        lines = [
            f"backport on torch {TORCH_VERSION}, as torch {NEWEST_TESTED_TORCH}:",
            *(f"  by backport: {feature}" for feature in self.installed),
            *(f"  by torch: {feature}" for feature in self.present),
            *(f"  not possible: {feature}: {why}" for feature, why in self.impossible.items()),
        ]
        return "\n".join(lines)


def backport(*, dry_run: bool = False) -> Backport:
    """Let code that is written for the `DeviceMesh` of the newest tested torch run on this one.

    It replaces or adds functions of torch, for all meshes of this process, made before or afterwards, by anyone. Called
    again it changes nothing more, and on the newest torch nothing at all. As a context manager it restores torch when
    the last block ends, unless there was a call that is not the head of a `with` statement.

    Call it before the code that is to use it is imported: a name that was bound before, as by `from torch.distributed
    import init_device_mesh`, stays what it was.

    Args:
        dry_run: whether to change nothing, and only return what would be changed.

    Returns:
        What was installed, what this torch does itself, and what is not possible, with the reasons; `print` shows it.

    Raises:
        TypeError: `dry_run` is not a bool.

    Torch releases:
        each lacks other things; docs/how-to/backport.md has the table.
    """
    if not isinstance(cast("object", dry_run), bool):
        raise wrong_type("backport: dry_run", dry_run, "True or False")
    call = Backport()
    if not dry_run:
        with _lock:
            if not _calls:
                _install()
            _calls.append(call)
    return call


def _needed() -> list[str]:
    """Return the names of the functions of ours that do something that this torch does not."""
    return [name for name, features in FEATURES.items() if not all(torch_at_least(SINCE[each]) for each in features)]


def _install() -> None:
    _before.clear()
    for name in _needed():
        if name == _INIT:
            _before[name] = torchs = device_mesh.init_device_mesh
            _replace_in_torch(torchs, init_device_mesh)
            continue
        if name in vars(DeviceMesh):
            _before[name] = vars(DeviceMesh)[name]
        setattr(DeviceMesh, name, vars(Newest)[name])


def _restore() -> None:
    for name in _needed():
        if name == _INIT:
            _replace_in_torch(init_device_mesh, _before[name])
        elif vars(DeviceMesh).get(name) is not vars(Newest)[name]:
            continue  # someone else has replaced it since
        elif name in _before:
            setattr(DeviceMesh, name, _before[name])
        else:
            delattr(DeviceMesh, name)


def _replace_in_torch(old: object, new: object) -> None:
    """Replace `init_device_mesh` in each module of torch that has it, those included that import it from another."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.") and getattr(module, "__dict__", {}).get(_INIT) is old:
            setattr(module, _INIT, new)


def _signature(ours: Callable[..., Any], torchs: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a constructor of torch's with the keywords that only ours has."""
    signature = inspect.signature(torchs)
    more = [each for each in inspect.signature(ours).parameters.values() if each.kind is each.KEYWORD_ONLY]
    every = dict(signature.parameters) | {each.name: each for each in more if each.name not in signature.parameters}
    return signature.replace(parameters=sorted(every.values(), key=lambda each: (each.kind, each.name.startswith("_"))))


cast("Any", Newest.__init__).__signature__ = _signature(Newest.__init__, _torchs_init)
