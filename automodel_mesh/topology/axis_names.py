"""`MeshAxisName`: the names of the axes that the built-in strategies have; without torch."""

from __future__ import annotations

import enum

__all__ = ["MeshAxisName"]


class MeshAxisName(str, enum.Enum):
    """The names of mesh axes; each compares, hashes and prints as the plain string."""

    PP = "pp"
    DP = "dp"
    DP_REPLICATE = "dp_replicate"
    DP_SHARD = "dp_shard"
    DP_SHARD_CP = "dp_shard_cp"
    DP_CP = "dp_cp"
    CP = "cp"
    TP = "tp"
    EP = "ep"
    EP_SHARD = "ep_shard"

    # Without these an enum prints its own name, and f"{MeshAxisName.TP}_group" would differ between Pythons.
    def __str__(self) -> str:
        return str.__str__(self)

    def __format__(self, format_spec: str) -> str:
        return str.__format__(self, format_spec)
