"""`PipelineConfig`: how a model is split into pipeline stages, and by which schedule they run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from automodel_mesh.checks import is_int, listed, nearest, wrong_type
from automodel_mesh.dtypes import check_dtype
from automodel_mesh.errors import MeshArgumentError
from automodel_mesh.fields import (
    as_dict,
    check_at_least_one,
    check_choice,
    check_flags,
    check_list_of_names,
    one_of_names,
)
from automodel_mesh.keywords import suggest_keywords

if TYPE_CHECKING:
    import torch

__all__ = ["PIPELINE_SCHEDULES", "PipelineConfig"]

PIPELINE_SCHEDULES: Final = (
    "1F1B",
    "Interleaved1F1B",
    "GPipe",
    "LoopedBFS",
    "InterleavedZeroBubble",
    "ZBVZeroBubble",
    "DualPipeV",
    "PipelineScheduleSingle",
    "PipelineScheduleMulti",
)
"""The names of schedules in `torch.distributed.pipelining`, which ignores case; torch has `DualPipeV` from 2.9 on."""


@suggest_keywords
@dataclass
class PipelineConfig:
    """How a model is split into pipeline stages, and by which schedule they run.

    Fields can be changed. They are checked when the configuration is used, by `check`.

    Raises:
        TypeError: `pp_recv_buffer_pool_slack` is not an int.
        ValueError: `pp_recv_buffer_pool_slack` is negative.
    """

    pp_schedule: str | None = "1f1b"
    """The schedule, one of `PIPELINE_SCHEDULES` in any case, or `None` with `pp_schedule_csv`. By default `"1f1b"`."""

    pp_schedule_csv: str | os.PathLike[str] | None = None
    """A file with the schedule as a table, one row for each rank, instead of `pp_schedule`. By default `None`."""

    pp_microbatch_size: int = 1
    """Samples in a micro-batch, at least 1 and a divisor of `pp_batch_size`. By default 1."""

    pp_batch_size: int = 1
    """Samples that a rank processes in one training step, at least 1. By default 1."""

    layers_per_stage: int | None = None
    """Layers in a stage, at least 1. By default `None`: the number that makes one stage for each pipeline rank, or two
    if the schedule needs several."""

    round_virtual_stages_to_pp_multiple: Literal["up", "down"] | None = None
    """Whether to round the number of stages that `layers_per_stage` gives `"up"` or `"down"`, to a multiple of the
    pipeline ranks. By default `None`: another number is an error when the pipeline is built."""

    module_fqns_per_model_part: Sequence[Sequence[str]] | None = None
    """The qualified names of the modules of each stage. By default `None`: layers are spread evenly."""

    patch_inner_model: bool = True
    """Whether the forward method of the inner model is replaced by one that a stage can run. By default `True`."""

    patch_causal_lm_model: bool = True
    """Whether the forward method of the outer model, with the head, is replaced too. By default `True`."""

    patch_stage_backward_maybe_with_nosync: bool = False
    """Whether the stage's backward step is replaced by one that defers the reduction of gradients. By default
    `False`."""

    dtype: torch.dtype | str | None = None
    """The dtype of the tensors that stages send to each other, a `torch.dtype` or its name. By default `None`: the
    model's."""

    scale_grads_in_schedule: bool = False
    """Whether the schedule divides gradients by the number of micro-batches. By default `False`: the loss does."""

    loss_fn: Callable[..., Any] | None = None
    """The function that returns the loss, which the last stage calls. By default `None`: given when the pipeline is
    built."""

    pp_seq_len: int | None = None
    """Number of tokens in a sample, at least 1, for the shapes of what stages send each other. By default `None`: found
    from the data."""

    pp_recv_buffer_pool: bool = False
    """Whether the buffers that a stage receives into are used again for later micro-batches. By default `False`: each
    has its own."""

    pp_recv_buffer_pool_slack: int = 2
    """The number of such buffers beyond those that the schedule needs at a time, at least 0. By default 2."""

    def __post_init__(self) -> None:
        slack: object = self.pp_recv_buffer_pool_slack
        wanted = "an int of at least 0"
        if not is_int(slack):
            raise wrong_type("pp_recv_buffer_pool_slack", slack, wanted)
        if slack < 0:
            raise MeshArgumentError(f"pp_recv_buffer_pool_slack={slack} is negative: give {wanted}")

    def check(self) -> None:
        """Refuse values that are not valid.

        Raises:
            TypeError: a field has a value of the wrong type.
            ValueError: a field has a value that is not valid; the message lists the valid ones.
        """
        _check_csv(self.pp_schedule_csv)
        if self.pp_schedule_csv is None or self.pp_schedule is not None:
            _check_schedule(self.pp_schedule)
        check_at_least_one(self, "pp_microbatch_size", "pp_batch_size")
        if self.pp_batch_size % self.pp_microbatch_size:
            raise MeshArgumentError(
                f"pp_batch_size={self.pp_batch_size} is not divisible by pp_microbatch_size="
                f"{self.pp_microbatch_size}: give a multiple of it"
            )
        check_at_least_one(self, "layers_per_stage", optional=True)
        check_choice(self, "round_virtual_stages_to_pp_multiple", ("up", "down", None))
        _check_parts(self.module_fqns_per_model_part)
        check_flags(self, "patch_inner_model", "patch_causal_lm_model")
        check_flags(self, "patch_stage_backward_maybe_with_nosync", "scale_grads_in_schedule", "pp_recv_buffer_pool")
        check_dtype(self, "dtype")
        check_at_least_one(self, "pp_seq_len", optional=True)
        if self.loss_fn is not None and not callable(self.loss_fn):
            raise wrong_type("loss_fn", self.loss_fn, "a function, or None")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, their values as they are."""
        return as_dict(self)


def _check_schedule(value: object) -> None:
    wanted = f"one of {one_of_names(PIPELINE_SCHEDULES)}, in any case, or pp_schedule_csv"
    if not isinstance(value, str):
        raise wrong_type("pp_schedule", value, wanted)
    known = {name.lower(): name for name in PIPELINE_SCHEDULES}
    if value.lower() not in known:
        raise MeshArgumentError(f"pp_schedule={value!r} is not known{nearest(value.lower(), known)}: give {wanted}")


def _check_csv(value: object) -> None:
    wanted = "the path of a file, or None"
    if value is None:
        return
    if not isinstance(value, (str, os.PathLike)):
        raise wrong_type("pp_schedule_csv", value, wanted)
    if not os.fspath(value):
        raise MeshArgumentError(f"pp_schedule_csv={value!r} is empty: give {wanted}")


def _check_parts(value: object) -> None:
    if value is None:
        return
    wanted = "for each stage a list of module names, or None"
    for index, part in enumerate(listed("module_fqns_per_model_part", value, wanted)):
        check_list_of_names(f"module_fqns_per_model_part[{index}]", part)
