"""The keywords with which a loader such as `from_pretrained` is given one `DistributedSetup`, or one plain mesh.

A framework decorates each loader, which then gets one argument::

    class ShardedModel:
        @accepts_distributed_setup
        @classmethod
        def from_pretrained(
            cls, path: str, *, distributed_setup: DistributedSetup | None = None, **kwargs: Any
        ) -> Self:
            model = cls.load(path, **kwargs)
            if distributed_setup is not None:
                shard(model, distributed_setup)
            return model

Users pass `distributed_setup=` or `device_mesh=`. A keyword that loaders took in earlier versions is an error that says
what to pass instead.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from torch.distributed.device_mesh import DeviceMesh

from automodel_mesh.checks import wrong_type
from automodel_mesh.compat.requests import shown_mesh
from automodel_mesh.config import DistributedSetup
from automodel_mesh.errors import MeshArgumentError, MeshTypeError
from automodel_mesh.topology.sizes import ParallelismSizes

if TYPE_CHECKING:
    _Loader = TypeVar("_Loader", bound=Callable[..., Any] | classmethod[Any, ..., Any] | staticmethod[..., Any])

__all__ = ["RETIRED_KEYWORDS", "accepts_distributed_setup", "resolve_distributed_setup"]

_MOVED: Final = {
    "distributed_config": "DistributedSetup.build(strategy={value})",
    "moe_config": "DistributedSetup.build(moe_parallel_config={value}), its new name",
    "moe_mesh": "DistributedSetup.build(parallelism_sizes=ParallelismSizes(ep_size=...)), which builds the mesh",
    "pipeline_config": "DistributedSetup.build(pipeline_config={value})",
    "tp_plan": "DistributedSetup.build(strategy=FSDP2Config(tp_plan={value}))",
    "activation_checkpointing": "DistributedSetup.build(activation_checkpointing={value})",
}
_SIZES: Final = {
    size.name: f"DistributedSetup.build(parallelism_sizes=ParallelismSizes({size.name}={{value}}))"
    for size in fields(ParallelismSizes)
}

RETIRED_KEYWORDS: Final[Mapping[str, str]] = MappingProxyType({**_MOVED, **_SIZES})
"""The keywords that loaders took in earlier versions, and what to write instead, with `{value}` for the value."""


def resolve_distributed_setup(
    distributed_setup: DistributedSetup | None = None, device_mesh: DeviceMesh | None = None, **kwargs: Any
) -> tuple[DistributedSetup | None, dict[str, Any]]:
    """Return the setup that a loader's keywords specify, and the other keywords.

    Args:
        distributed_setup: the setup.
        device_mesh: instead of a setup, a mesh without settings; its axes have names of `MeshAxisName`.
        **kwargs: the loader's other keywords.

    Returns:
        The setup, made from the mesh if that was given, or `None` if neither was; and the other keywords, unchanged.

    Raises:
        TypeError: a keyword of `RETIRED_KEYWORDS`, even if `None`; the message says what to pass instead. Or
            `distributed_setup` or `device_mesh` has the wrong type.
        ValueError: both `distributed_setup` and `device_mesh`; or the mesh has no axis names, or an unknown one.
    """
    _refuse_retired(kwargs)
    _check_type("distributed_setup", distributed_setup, DistributedSetup)
    _check_type("device_mesh", device_mesh, DeviceMesh)
    if device_mesh is None:
        return distributed_setup, kwargs
    if distributed_setup is not None:
        raise MeshArgumentError(
            f"both distributed_setup= and device_mesh={shown_mesh(device_mesh)} are given: give one of "
            "them, distributed_setup where there are policies, device_mesh for a topology alone"
        )
    return DistributedSetup.from_device_mesh(device_mesh), kwargs


def accepts_distributed_setup(loader: _Loader) -> _Loader:
    """Decorate a loader, so that it takes the keywords of `resolve_distributed_setup` and gets the setup.

    Args:
        loader: a function, `classmethod` or `staticmethod` that takes `distributed_setup` by keyword. It is always
            called with one, which is `None` if the caller gave neither a setup nor a mesh, never with `device_mesh`,
            and with all other arguments unchanged. For type checkers it should have the parameters
            `distributed_setup: DistributedSetup | None = None` and `**kwargs`, so that they accept `device_mesh`.

    Returns:
        The loader, of the same kind, with its name, docstring and annotations; its signature shows `device_mesh` too.
        A call raises what `resolve_distributed_setup` raises.

    Raises:
        TypeError: `loader` has another type; it does not take `distributed_setup` by keyword alone; or it has a
            parameter `device_mesh` or one named in `RETIRED_KEYWORDS`, which is never passed to it.
    """
    if isinstance(loader, (classmethod, staticmethod)):
        return cast("_Loader", type(loader)(accepts_distributed_setup(loader.__func__)))
    if not callable(loader):
        raise wrong_type("loader", loader, "a function or a classmethod")
    function: Callable[..., Any] = loader
    signature = _extended_signature(function)

    @functools.wraps(function)
    def load(*args: Any, **kwargs: Any) -> Any:
        setup, rest = resolve_distributed_setup(**kwargs)
        return function(*args, distributed_setup=setup, **rest)

    load.__signature__ = signature  # type: ignore[attr-defined] # read by inspect.signature
    return cast("_Loader", load)


def _refuse_retired(kwargs: Mapping[str, Any]) -> None:
    """Refuse the keywords of earlier versions; one message lists all that were passed."""
    found = [name for name in RETIRED_KEYWORDS if name in kwargs]
    if not found:
        return
    moved = "".join(f"\n  {name}: {RETIRED_KEYWORDS[name].format(value=_shown(kwargs[name]))}" for name in found)
    raise MeshTypeError(
        f"{', '.join(found)}: a loader takes no such keyword any more. Pass distributed_setup=DistributedSetup.build("
        f"...), to which each has moved:{moved}"
    )


def _shown(value: object) -> str:
    """Return a value as text for the message, or `...` for one that may be long, such as a mesh or a configuration."""
    return repr(value) if isinstance(value, (bool, int, str)) else "..."


def _check_type(name: str, value: object, kind: type) -> None:
    """Require `None` or an instance of a class; if the other keyword accepts the value, the message says so."""
    if value is None or isinstance(value, kind):
        return
    keywords = {DistributedSetup: "distributed_setup", DeviceMesh: "device_mesh"}
    other = next((keyword for known, keyword in keywords.items() if isinstance(value, known)), None)
    hint = "" if other is None else f"; what was given belongs into {other}="
    raise wrong_type(name, value, f"a {kind.__name__} or None{hint}")


def _extended_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature that callers see, after a check that the function can be decorated."""
    signature = inspect.signature(function)
    parameters = dict(signature.parameters)
    retired = [name for name in ("device_mesh", *RETIRED_KEYWORDS) if name in parameters]
    if retired:
        raise MeshTypeError(
            f"{function.__qualname__} has the parameters {retired}, which it would never get: take them out, "
            "distributed_setup has what they meant"
        )
    rest = [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    own = parameters.pop("distributed_setup", None)
    if (own is None and not rest) or (own is not None and own.kind is not own.KEYWORD_ONLY):
        raise MeshTypeError(
            f"{function.__qualname__}{signature} takes no distributed_setup by keyword alone: give it the parameter "
            "`*, distributed_setup: DistributedSetup | None = None`"
        )
    keyword = inspect.Parameter.KEYWORD_ONLY
    setup = own or inspect.Parameter("distributed_setup", keyword, annotation="DistributedSetup | None")
    mesh = inspect.Parameter("device_mesh", keyword, default=None, annotation="DeviceMesh | None")
    last = [parameters.pop(name) for name in rest]
    return signature.replace(parameters=[*parameters.values(), setup.replace(default=None), mesh, *last])
