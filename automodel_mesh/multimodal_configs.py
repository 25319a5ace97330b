"""How the parts of a model for images and sound are distributed: which layers recompute, how frozen parts are sharded.

Without torch. The names are those of NeMo AutoModel 0.7.0; the last three classes are fields of each other, and
`MultimodalDistributedConfig` is one of `FSDP2Config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from automodel_mesh.checks import is_int, is_list, nearest, shown, wrong_type
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.fields import check_flags, is_config, one_of_names

__all__ = [
    "ActivationCheckpointingScope",
    "CpVisionFrameShardingConfig",
    "FrozenMultimodalSharding",
    "MultimodalDistributedConfig",
    "MultimodalVisionConfig",
    "normalize_activation_checkpointing_scope",
    "normalize_frozen_multimodal_sharding",
]

ActivationCheckpointingScope: TypeAlias = str | list[str] | tuple[str, ...]
"""The parts of a model whose layers recompute their activations: one name, several with commas between, or a list."""

FrozenMultimodalSharding: TypeAlias = Literal["root", "per_layer", "replicate"]
"""Where the parameters of a frozen part are: in the outermost unit, in units of their own, or whole on each rank."""

_VALID_ACTIVATION_CHECKPOINTING_SCOPES: Final = frozenset({"all", "language", "vision", "audio", "multimodal"})
_ALL: Final = ("all",)
_OTHER_NAMES_OF_ALL: Final = ("default", "auto")
_FROZEN: Final[tuple[FrozenMultimodalSharding, ...]] = ("root", "per_layer", "replicate")


def normalize_activation_checkpointing_scope(value: object) -> tuple[str, ...]:
    """Return the parts of a model whose layers recompute their activations.

    Args:
        value: `"all"`, or any of `"language"`, `"vision"`, `"audio"` and `"multimodal"`: a string, with `,` or `+`
            between several, or a list, tuple or set of such strings. `"default"`, `"auto"`, `""`, `[]` and `None` mean
            `"all"`. Case does not matter.

    Returns:
        The names, each once, in the given order (those of a set sorted), or `("all",)`.

    Raises:
        ValueError: the value or an item is not a string, a name is not known, or `"all"` stands beside others.
    """
    valid = f"give some of {one_of_names(sorted(_VALID_ACTIVATION_CHECKPOINTING_SCOPES))}"
    items: object = (value,) if isinstance(value, str) else () if value is None else value
    if isinstance(items, (set, frozenset)):
        items = sorted(items, key=str)
    if not is_list(items) or not all(isinstance(item, str) for item in items):
        raise MeshArgumentError(
            f"activation_checkpointing_scope={shown(value)} is not a string or a list of strings: {valid}"
        )
    parts = ",".join(map(str, items)).lower().replace("+", ",").replace("-", "_").split(",")
    names = ["all" if part.strip() in _OTHER_NAMES_OF_ALL else part.strip() for part in parts if part.strip()]
    for name in names:
        if name not in _VALID_ACTIVATION_CHECKPOINTING_SCOPES:
            near = nearest(name, _VALID_ACTIVATION_CHECKPOINTING_SCOPES)
            raise MeshArgumentError(f"activation_checkpointing_scope has {name!r}, which is not known{near}: {valid}")
    scopes = tuple(dict.fromkeys(names)) or _ALL
    if "all" in scopes and len(scopes) > 1:
        raise MeshArgumentError(
            f"activation_checkpointing_scope={shown(value)} has 'all' beside others: leave these out"
        )
    return scopes


def normalize_frozen_multimodal_sharding(value: object) -> FrozenMultimodalSharding:
    """Return how frozen parts are sharded, in lower case and with underscores.

    Args:
        value: `"root"`, `"per_layer"` or `"replicate"`, in any case, with `-` or `_`.

    Raises:
        ValueError: the value is something else.
    """
    name = value.lower().replace("-", "_") if isinstance(value, str) else None
    if name not in _FROZEN:
        raise MeshArgumentError(f"frozen_sharding={shown(value)} is not known: give one of {one_of_names(_FROZEN)}")
    return name


@dataclass(frozen=True)
class CpVisionFrameShardingConfig:
    """Whether the ranks of context parallelism share the images and frames that a vision encoder processes.

    Raises:
        TypeError: `enabled` is not a bool, or `mesh_dims` not a tuple.
        ValueError: another field has a value that is not valid.
    """

    enabled: bool = False
    """Whether they do. By default `False`: each rank encodes everything."""

    mesh_dims: tuple[Literal["cp"]] = ("cp",)
    """The axes that share the work; no others are supported. By default `("cp",)`."""

    min_tokens: int = 2048
    """The number of visual tokens from which on it is done, at least 0. By default 2048."""

    min_frames: int = 32
    """The number of images and frames from which on it is done with fewer tokens too, at least 0. By default 32."""

    min_local_patch_rows: int = 96
    """The number of patches that a rank is filled up to, at least 0; 0 for no filling. By default 96."""

    cost_alpha: int | Literal["auto"] | None = "auto"
    """The weight of the linear part of an image's cost, at least 0. By default `"auto"`, which `None` means too: chosen
    from the encoder's width."""

    def __post_init__(self) -> None:
        check_flags(self, "enabled")
        _check_mesh_dims(self.mesh_dims)
        for name in ("min_tokens", "min_frames", "min_local_patch_rows"):
            _check_count(name, getattr(self, name), "an int of at least 0")
        if self.cost_alpha not in (None, "auto"):
            _check_count("cost_alpha", self.cost_alpha, "an int of at least 0, or 'auto'")


@dataclass
class MultimodalVisionConfig:
    """What holds for the parts of a model that encode images.

    Raises:
        TypeError: `frame_sharding` has another class.
    """

    frame_sharding: CpVisionFrameShardingConfig = field(default_factory=CpVisionFrameShardingConfig)
    """How ranks share images and frames. By default `CpVisionFrameShardingConfig()`: they do not."""

    def __post_init__(self) -> None:
        _require("frame_sharding", self.frame_sharding, CpVisionFrameShardingConfig)


@dataclass
class MultimodalDistributedConfig:
    """How the parts of a model for images and sound are distributed.

    Raises:
        TypeError: `vision` has another class.
        ValueError: `frozen_sharding` is not known.
    """

    frozen_sharding: FrozenMultimodalSharding = "root"
    """Where the parameters of a part without trainable ones are: `"root"`, in the outermost FSDP unit, which every rank
    gathers at each pass; `"per_layer"`, in units of their own, for parts that all ranks run or leave out together; or
    `"replicate"`, whole on each rank. By default `"root"`."""

    vision: MultimodalVisionConfig = field(default_factory=MultimodalVisionConfig)
    """What holds for images. By default `MultimodalVisionConfig()`."""

    def __post_init__(self) -> None:
        self.frozen_sharding = normalize_frozen_multimodal_sharding(self.frozen_sharding)
        _require("vision", self.vision, MultimodalVisionConfig)


def _check_mesh_dims(value: object) -> None:
    if not isinstance(value, tuple):
        raise wrong_type("mesh_dims", value, "('cp',)")
    if value != ("cp",):
        raise MeshArgumentError(f"mesh_dims={shown(value)} is not supported: give ('cp',)")


def _check_count(name: str, value: object, wanted: str) -> None:
    if not is_int(value) or value < 0:
        raise MeshArgumentError(f"{name}={shown(value)} is not valid: give {wanted}")


def _require(name: str, value: object, kind: type) -> None:
    if not is_config(kind, value):
        raise wrong_type(name, value, f"a {kind.__name__}")
