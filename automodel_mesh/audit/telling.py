"""Names that tell the class of a value whose type is not known: private members that only one class of torch has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_MESH: Final = "torch.distributed.device_mesh.DeviceMesh"
_REGISTRY: Final = "torch.distributed.device_mesh._MeshEnv"

_OF_A_MESH: Final = (
    "_concatenate",
    "_create_flatten_mesh",
    "_create_sub_mesh",
    "_dim_group_infos",
    "_dim_group_names",
    "_flatten_mapping",
    "_get_all_submeshes",
    "_get_root_mesh",
    "_is_current_rank_part_of_mesh",
    "_root_mesh",
    "_sym_get_coordinate",
    "_unflatten",
)
_OF_THE_REGISTRY: Final = ("child_to_root_mapping", "flatten_name_to_root_dims", "root_to_flatten_mapping")

TELLING: Final[Mapping[str, str]] = {
    **dict.fromkeys(_OF_A_MESH, _MESH),
    **dict.fromkeys(_OF_THE_REGISTRY, _REGISTRY),
}
"""The class of each name."""
