"""What pipeline training is configured with."""

from __future__ import annotations

from automodel_mesh.pipelining.config import PipelineConfig

__all__ = ["PipelineConfig"]
