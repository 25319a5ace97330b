"""The configurations: their defaults, valid and invalid values, and their agreement with torch."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import fsdp

from automodel_mesh import moe_config, multimodal_configs, strategy_configs
from automodel_mesh.config import (
    STRATEGY_MAP,
    DDPConfig,
    DistributedStrategyConfig,
    FSDP2Config,
    MegatronFSDPConfig,
    MoEParallelizerConfig,
    MultimodalDistributedConfig,
    MultimodalVisionConfig,
    PipelineConfig,
    normalize_activation_checkpointing_scope,
    strategy_name,
)
from automodel_mesh.multimodal_configs import CpVisionFrameShardingConfig
from automodel_mesh.pipelining import config as pipelining_config
from automodel_mesh.topology.strategies import STRATEGIES

STRATEGY_CONFIGS = [(FSDP2Config, "fsdp2"), (MegatronFSDPConfig, "megatron_fsdp"), (DDPConfig, "ddp")]
DEFAULTS: dict[type[Any], dict[str, object]] = {
    FSDP2Config: {
        "sequence_parallel": False,
        "tp_plan": None,
        "patch_is_packed_sequence": False,
        "mp_policy": fsdp.MixedPrecisionPolicy(torch.bfloat16, torch.float32, None, cast_forward_inputs=False),
        "offload_policy": None,
        "autocast_dtype": None,
        "activation_checkpointing": False,
        "activation_checkpointing_scope": ("all",),
        "defer_fsdp_grad_sync": True,
        "reshard_after_forward": None,
        "enable_async_tensor_parallel": False,
        "enable_compile": False,
        "enable_fsdp2_prefetch": False,
        "fsdp2_backward_prefetch_depth": 2,
        "fsdp2_forward_prefetch_depth": 1,
        "multimodal": MultimodalDistributedConfig("root", MultimodalVisionConfig()),
    },
    MegatronFSDPConfig: {
        "megatron_fsdp_unit_modules": None,
        "zero_dp_strategy": 3,
        "init_fsdp_with_meta_device": False,
        "grad_reduce_in_fp32": False,
        "preserve_fp32_weights": False,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "check_for_nan_in_grad": True,
        "report_nan_in_param_grad": False,
        "average_in_collective": False,
        "disable_bucketing": False,
        "calculate_per_token_loss": False,
        "keep_fp8_transpose_cache": False,
        "nccl_ub": False,
        "fsdp_double_buffer": False,
        "activation_checkpointing": False,
        "sequence_parallel": False,
        "tp_plan": None,
    },
    DDPConfig: {
        "activation_checkpointing": False,
        "activation_checkpointing_scope": ("all",),
        "broadcast_buffers": False,
        "find_unused_parameters": False,
        "static_graph": False,
        "bucket_cap_mb": None,
        "gradient_as_bucket_view": False,
        "autocast_dtype": None,
    },
    PipelineConfig: {
        "pp_schedule": "1f1b",
        "pp_schedule_csv": None,
        "pp_microbatch_size": 1,
        "pp_batch_size": 1,
        "layers_per_stage": None,
        "round_virtual_stages_to_pp_multiple": None,
        "module_fqns_per_model_part": None,
        "patch_inner_model": True,
        "patch_causal_lm_model": True,
        "patch_stage_backward_maybe_with_nosync": False,
        "dtype": None,
        "scale_grads_in_schedule": False,
        "loss_fn": None,
        "pp_seq_len": None,
        "pp_recv_buffer_pool": False,
        "pp_recv_buffer_pool_slack": 2,
    },
    MoEParallelizerConfig: {
        "ignore_router_for_ac": True,
        "reshard_after_forward": False,
        "lm_head_precision": None,
        "wrap_outer_model": True,
        "mp_policy": None,
    },
}
KINDS = list(DEFAULTS)

VALID: list[tuple[type[Any], str, object]] = [
    (FSDP2Config, "tp_plan", "auto"),
    (FSDP2Config, "tp_plan", {"layers.*.mlp": object()}),
    (FSDP2Config, "tp_plan", {}),
    (FSDP2Config, "autocast_dtype", torch.bfloat16),
    (FSDP2Config, "fsdp2_backward_prefetch_depth", 1),
    (FSDP2Config, "multimodal", MultimodalDistributedConfig(frozen_sharding="replicate")),
    (FSDP2Config, "reshard_after_forward", True),
    (FSDP2Config, "reshard_after_forward", 2),
    (FSDP2Config, "activation_checkpointing", "selective"),
    (FSDP2Config, "activation_checkpointing", "full"),
    *((MegatronFSDPConfig, "zero_dp_strategy", value) for value in (0, 2, "no_shard", "optim", "optim_grads")),
    (MegatronFSDPConfig, "zero_dp_strategy", "optim_grads_params"),
    (MegatronFSDPConfig, "megatron_fsdp_unit_modules", ["models.Block"]),
    (MegatronFSDPConfig, "activation_checkpointing", True),
    (DDPConfig, "bucket_cap_mb", 12.5),
    (DDPConfig, "activation_checkpointing", "selective"),
    *((PipelineConfig, "pp_schedule", name) for name in ("GPipe", "gpipe", "INTERLEAVED1F1B", "zbvzerobubble")),
    (PipelineConfig, "pp_schedule_csv", Path("schedule.csv")),
    (PipelineConfig, "layers_per_stage", 4),
    (PipelineConfig, "round_virtual_stages_to_pp_multiple", "up"),
    (PipelineConfig, "round_virtual_stages_to_pp_multiple", "down"),
    (PipelineConfig, "module_fqns_per_model_part", [["embed", "layers.0"], ("layers.1", "head")]),
    (PipelineConfig, "dtype", torch.bfloat16),
    (PipelineConfig, "dtype", "bfloat16"),
    (PipelineConfig, "loss_fn", torch.nn.functional.cross_entropy),
    (PipelineConfig, "pp_seq_len", 4096),
    (PipelineConfig, "pp_recv_buffer_pool_slack", 0),
    (MoEParallelizerConfig, "lm_head_precision", "torch.float32"),
]
POLICIES: list[tuple[type[Any], str, object]] = [
    (FSDP2Config, "mp_policy", fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16)),
    (FSDP2Config, "offload_policy", fsdp.CPUOffloadPolicy()),
    (MoEParallelizerConfig, "mp_policy", fsdp.MixedPrecisionPolicy()),
]

INVALID: list[tuple[type[Any], str, object, type[Exception], str]] = [
    (FSDP2Config, "tp_plan", "", ValueError, "is empty: give the name of a plan"),
    (FSDP2Config, "tp_plan", 3, TypeError, "of type int: give the name of a plan"),
    (MegatronFSDPConfig, "tp_plan", ["q"], TypeError, "of type list: give the name of a plan"),
    (
        FSDP2Config,
        "reshard_after_forward",
        0,
        ValueError,
        "less than 1: give True, False, an int of at least 1",
    ),
    (FSDP2Config, "reshard_after_forward", "yes", TypeError, "of type str: give True, False, an int of at least 1"),
    (FSDP2Config, "fsdp2_forward_prefetch_depth", 0, ValueError, "is less than 1: give an int of at least 1"),
    (FSDP2Config, "autocast_dtype", "float33", ValueError, "is no dtype of torch: give a torch.dtype, its name"),
    (FSDP2Config, "activation_checkpointing", "all", ValueError, "give one of False, True, 'full', 'selective'"),
    (FSDP2Config, "activation_checkpointing", 1, TypeError, "of type int: give one of False, True, 'full'"),
    (FSDP2Config, "activation_checkpointing", None, TypeError, "of type NoneType: give one of False, True, 'full'"),
    (
        MegatronFSDPConfig,
        "activation_checkpointing",
        "selective",
        ValueError,
        "megatron_fsdp does not support it: give",
    ),
    (MegatronFSDPConfig, "zero_dp_strategy", 4, ValueError, r"give one of 0, 1, 2, 3, 'no_shard', 'optim'"),
    (MegatronFSDPConfig, "zero_dp_strategy", "zero3", ValueError, r"'optim_grads', 'optim_grads_params'"),
    (MegatronFSDPConfig, "zero_dp_strategy", True, TypeError, "of type bool: give one of 0, 1, 2, 3"),
    (
        MegatronFSDPConfig,
        "megatron_fsdp_unit_modules",
        "Block",
        TypeError,
        "of type str: give a list of names",
    ),
    (MegatronFSDPConfig, "megatron_fsdp_unit_modules", [], ValueError, "is empty: give a list of names, or None"),
    (DDPConfig, "bucket_cap_mb", 0, ValueError, "is not above 0 and finite: give a number of MiB above 0"),
    (DDPConfig, "bucket_cap_mb", math.nan, ValueError, "is not above 0 and finite: give a number of MiB above 0"),
    (DDPConfig, "bucket_cap_mb", "25", TypeError, "of type str: give a number of MiB above 0, or None"),
    (PipelineConfig, "pp_schedule", "gpip", ValueError, r"not known \(did you mean 'gpipe'\?\): give one of '1F1B'"),
    (PipelineConfig, "pp_schedule", None, TypeError, "of type NoneType: give one of '1F1B'"),
    (PipelineConfig, "pp_schedule_csv", "", ValueError, "is empty: give the path of a file, or None"),
    (PipelineConfig, "pp_schedule_csv", 7, TypeError, "of type int: give the path of a file, or None"),
    (PipelineConfig, "pp_microbatch_size", 0, ValueError, "is less than 1: give an int of at least 1"),
    (PipelineConfig, "pp_microbatch_size", 2, ValueError, "pp_batch_size=1 is not divisible by pp_microbatch_size=2"),
    (PipelineConfig, "pp_batch_size", 2.0, TypeError, "of type float: give an int of at least 1"),
    (PipelineConfig, "pp_batch_size", None, TypeError, "of type NoneType: give an int of at least 1"),
    (PipelineConfig, "layers_per_stage", 0, ValueError, "is less than 1: give an int of at least 1, or None"),
    (PipelineConfig, "layers_per_stage", True, TypeError, "of type bool: give an int of at least 1, or None"),
    (PipelineConfig, "round_virtual_stages_to_pp_multiple", "Up", ValueError, "give one of 'up', 'down', None"),
    (PipelineConfig, "round_virtual_stages_to_pp_multiple", 2, TypeError, "give one of 'up', 'down', None"),
    (PipelineConfig, "module_fqns_per_model_part", [], ValueError, "is empty: give for each stage a list"),
    (PipelineConfig, "module_fqns_per_model_part", "a.b", TypeError, "of type str: give for each stage a list"),
    (PipelineConfig, "module_fqns_per_model_part", [["a"], "b"], TypeError, r"_part\[1\]='b' is of type str"),
    (PipelineConfig, "module_fqns_per_model_part", [["a"], [3]], TypeError, r"_part\[1\]\[0\]=3 is of type int"),
    (PipelineConfig, "module_fqns_per_model_part", [["a"], [""]], ValueError, r"_part\[1\]\[0\] is an empty string"),
    (PipelineConfig, "dtype", "float33", ValueError, "is no dtype of torch: give a torch.dtype, its name"),
    (PipelineConfig, "dtype", "nn", ValueError, "is no dtype of torch: give a torch.dtype, its name"),
    (PipelineConfig, "loss_fn", "mse", TypeError, "of type str: give a function, or None"),
    (PipelineConfig, "pp_seq_len", 0, ValueError, "is less than 1: give an int of at least 1, or None"),
    (MoEParallelizerConfig, "lm_head_precision", 16, TypeError, "of type int: give a torch.dtype, its name"),
]


@pytest.mark.release_independent
@pytest.mark.parametrize(("kind", "name"), STRATEGY_CONFIGS)
def test_each_strategy_has_its_name(kind: type[DistributedStrategyConfig], name: str) -> None:
    """`strategy_name` returns a name that the planner accepts, for instances of subclasses too."""
    derived: Any = type("Derived", (kind,), {})
    assert strategy_name(kind()) == strategy_name(derived()) == kind.strategy == name
    assert name in STRATEGIES
    assert STRATEGY_MAP[name] is kind


@pytest.mark.release_independent
def test_every_strategy_has_a_configuration_and_its_aliases() -> None:
    """The map has the planner's strategies, Megatron-FSDP under two more names, and cannot be changed."""
    assert [(STRATEGY_MAP[name], name) for name in STRATEGIES] == STRATEGY_CONFIGS
    assert dict(STRATEGY_MAP) == {
        "fsdp2": FSDP2Config,
        "ddp": DDPConfig,
        "megatron_fsdp": MegatronFSDPConfig,
        "megatron-fsdp": MegatronFSDPConfig,
        "mfsdp": MegatronFSDPConfig,
    }
    with pytest.raises(TypeError, match="item assignment"):
        STRATEGY_MAP["new"] = FSDP2Config  # type: ignore[index]


@pytest.mark.release_independent
@pytest.mark.parametrize("wrong", ["fsdp2", None, FSDP2Config, object(), type("Other", (), {"strategy": "zero"})()])
def test_an_object_that_is_not_a_configuration_is_refused(wrong: object) -> None:
    """The error lists the classes and shows the given object."""
    with pytest.raises(TypeError, match=rf"of type {type(wrong).__name__}: .* FSDP2Config, MegatronFSDPConfig, DDP"):
        strategy_name(wrong)  # type: ignore[arg-type]


@pytest.mark.release_independent
@pytest.mark.parametrize("kind", KINDS)
def test_configurations_are_compared_by_value_and_can_be_changed(kind: type[Any]) -> None:
    """The fields have these defaults, which are valid, and this order; a change of one is not seen in another."""
    config = kind()
    assert config.to_dict() == DEFAULTS[kind]
    assert list(config.to_dict()) == list(DEFAULTS[kind])
    config.check()
    for name, default in DEFAULTS[kind].items():
        setattr(config, name, object())
        assert config != kind()
        setattr(config, name, default)
        assert config == kind()


@pytest.mark.release_independent
@pytest.mark.parametrize(("kind", "name", "value"), VALID)
def test_a_valid_value_is_kept_as_it_is(kind: type[Any], name: str, value: object) -> None:
    """A field keeps the given object, `to_dict` returns it, and the configuration made from that dict is equal."""
    config = kind(**{name: value})
    fields = config.to_dict()
    assert fields[name] is value
    assert {**fields, name: DEFAULTS[kind][name]} == DEFAULTS[kind]
    assert config == kind(**fields) == config
    assert config != kind()
    config.check()
    fields.clear()
    assert getattr(config, name) is value


@pytest.mark.release_independent
@pytest.mark.parametrize(("kind", "name", "value", "error", "message"), INVALID)
def test_an_invalid_value_is_refused_when_it_is_used(
    kind: type[Any], name: str, value: object, error: type[Exception], message: str
) -> None:
    """The error names the field and its value, and says what is valid."""
    config = kind(**{name: value})
    with pytest.raises(error, match=message) as caught:
        config.check()
    assert name in str(caught.value)
    assert isinstance(value, list) or repr(value) in str(caught.value)


@pytest.mark.release_independent
@pytest.mark.parametrize("kind", KINDS)
def test_a_flag_is_true_or_false(kind: type[Any]) -> None:
    """Each flag can be `True` or `False`; other values that are true or false in Python are refused."""
    flags = [name for name, default in DEFAULTS[kind].items() if isinstance(default, bool)]
    for name in [name for name in flags if name != "activation_checkpointing"]:
        turned = not DEFAULTS[kind][name]
        config = kind(**{name: turned})
        config.check()
        assert config.to_dict() == {**DEFAULTS[kind], name: turned}
        for wrong in (0, 1, "false", None):
            setattr(config, name, wrong)
            with pytest.raises(TypeError, match=rf"^{name}={wrong!r} is of type .*: give True or False$"):
                config.check()


# --- parts of a model, and what is checked when a configuration is made

SCOPES: list[tuple[object, tuple[str, ...]]] = [
    *((same, ("all",)) for same in ("", "all", "ALL", "auto", "default", "all, ,all")),
    (None, ("all",)),
    ([], ("all",)),
    (("",), ("all",)),
    ("language", ("language",)),
    ("Vision+audio", ("vision", "audio")),
    ("vision, language,vision", ("vision", "language")),
    (["audio", "multimodal+language"], ("audio", "multimodal", "language")),
    ({"vision"}, ("vision",)),
    ({"vision", "audio"}, ("audio", "vision")),
]


@pytest.mark.release_independent
@pytest.mark.parametrize(("value", "expected"), SCOPES)
def test_the_parts_that_recompute_are_one_tuple(value: Any, expected: tuple[str, ...]) -> None:
    """Each way to write them gives the same tuple, also as the field of a configuration."""
    assert normalize_activation_checkpointing_scope(value) == expected
    assert FSDP2Config(activation_checkpointing_scope=value).activation_checkpointing_scope == expected
    assert DDPConfig(activation_checkpointing_scope=value).activation_checkpointing_scope == expected


REFUSED_AT_ONCE: list[tuple[type[Any], str, object, type[Exception], str]] = [
    (FSDP2Config, "activation_checkpointing_scope", "visoin", ValueError, "'visoin', .* mean 'vision'.*: give some of"),
    (DDPConfig, "activation_checkpointing_scope", ["all", "audio"], ValueError, "has 'all' beside others"),
    (DDPConfig, "activation_checkpointing_scope", 3, ValueError, "is not a string or a list of strings"),
    (FSDP2Config, "activation_checkpointing_scope", [3], ValueError, "is not a string or a list of strings"),
    (FSDP2Config, "multimodal", {}, TypeError, "of type dict: give a MultimodalDistributedConfig"),
    (PipelineConfig, "pp_recv_buffer_pool_slack", -1, ValueError, "is negative: give an int of at least 0"),
    (PipelineConfig, "pp_recv_buffer_pool_slack", "2", TypeError, "of type str: give an int of at least 0"),
    (MultimodalDistributedConfig, "frozen_sharding", "leaf", ValueError, "give one of 'root', 'per_layer', 'replicat"),
    (MultimodalDistributedConfig, "frozen_sharding", None, ValueError, "give one of 'root', 'per_layer', 'replicate'"),
    (MultimodalDistributedConfig, "vision", None, TypeError, "of type NoneType: give a MultimodalVisionConfig"),
    (MultimodalVisionConfig, "frame_sharding", True, TypeError, "of type bool: give a CpVisionFrameShardingConfig"),
    (CpVisionFrameShardingConfig, "enabled", 1, TypeError, "of type int: give True or False"),
    (CpVisionFrameShardingConfig, "mesh_dims", ["cp"], TypeError, "is of type list: give"),
    (CpVisionFrameShardingConfig, "mesh_dims", ("tp",), ValueError, "is not supported: give"),
    (CpVisionFrameShardingConfig, "min_tokens", -1, ValueError, "give an int of at least 0"),
    (CpVisionFrameShardingConfig, "min_frames", True, ValueError, "give an int of at least 0"),
    (CpVisionFrameShardingConfig, "cost_alpha", "some", ValueError, "give an int of at least 0, or 'auto'"),
]


@pytest.mark.release_independent
@pytest.mark.parametrize(("kind", "name", "value", "error", "message"), REFUSED_AT_ONCE)
def test_a_value_without_a_meaning_is_refused_when_the_configuration_is_made(
    kind: type[Any], name: str, value: object, error: type[Exception], message: str
) -> None:
    """The error names the field and says what is valid."""
    with pytest.raises(error, match=message) as caught:
        kind(**{name: value})
    assert name in str(caught.value)


@pytest.mark.release_independent
def test_the_parts_of_a_multimodal_model_have_their_own_configurations() -> None:
    """Names are taken in any spelling, nothing is shared by two configurations, and the frames are not shared."""
    config = MultimodalDistributedConfig("Per-Layer")  # type: ignore[arg-type] # any spelling
    assert config.frozen_sharding == "per_layer"
    frames = config.vision.frame_sharding
    assert dataclasses.astuple(frames) == (False, ("cp",), 2048, 32, 96, "auto")
    assert CpVisionFrameShardingConfig(cost_alpha=None).cost_alpha is None
    first, second = FSDP2Config(), FSDP2Config()
    assert first.multimodal is not second.multimodal
    assert first.multimodal.vision is not second.multimodal.vision


@pytest.mark.release_independent
def test_a_schedule_file_replaces_the_name_of_a_schedule() -> None:
    """With a file for the schedule, the name of a schedule can be `None`, but not unknown."""
    assert PipelineConfig(pp_schedule=None, pp_schedule_csv="schedule.csv").pp_schedule is None
    PipelineConfig(pp_schedule=None, pp_schedule_csv="schedule.csv").check()
    with pytest.raises(ValueError, match="pp_schedule='gpip' is not known"):
        PipelineConfig(pp_schedule="gpip", pp_schedule_csv="schedule.csv").check()


@pytest.mark.release_independent
def test_a_micro_batch_must_divide_the_batch() -> None:
    """The batch is a multiple of the micro-batch."""
    config = PipelineConfig(pp_batch_size=8, pp_microbatch_size=2)
    assert (config.pp_batch_size, config.pp_microbatch_size) == (8, 2)
    config.check()
    config.pp_microbatch_size = 3
    with pytest.raises(ValueError, match="pp_batch_size=8 is not divisible by pp_microbatch_size=3: give a multiple"):
        config.check()


@pytest.mark.release_independent
@pytest.mark.parametrize("module", [strategy_configs, pipelining_config, moe_config, multimodal_configs])
def test_every_field_documents_its_default(module: Any) -> None:
    """Each field of each configuration has a docstring that says what the default is."""
    kinds = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)]
    assert kinds
    for kind in (kind for kind in kinds if kind.name.endswith("Config")):
        for line, following in zip(kind.body, kind.body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation):
                assert isinstance(following, ast.Expr), ast.unparse(line)
                assert isinstance(following.value, ast.Constant), ast.unparse(line)
                assert "By default" in " ".join(str(following.value.value).split()), ast.unparse(line)


# --- agreement with torch


@pytest.mark.parametrize(("kind", "name", "policy"), POLICIES)
def test_a_policy_of_torch_is_kept_as_it_is(kind: type[Any], name: str, policy: object) -> None:
    """A policy of torch is kept as the same object; a configuration with one can be compared."""
    config = kind(**{name: policy})
    assert config.to_dict()[name] is policy
    assert config == kind(**config.to_dict()) != kind()
    config.check()


@pytest.mark.release_independent  # a new schedule comes with the newest release, and the import takes seconds
def test_the_schedules_are_those_of_torch() -> None:
    """Every name of a schedule in torch is valid, and torch has all valid names except those of later releases."""
    from torch.distributed.pipelining.schedules import get_schedule_class  # noqa: PLC0415 - dear, for this test alone

    with pytest.raises(ValueError, match="valid options") as caught:
        get_schedule_class("no such schedule")
    known = set(re.findall(r"'(\w+)'", str(caught.value).partition("options")[2]))
    assert known <= set(pipelining_config.PIPELINE_SCHEDULES) <= known | {"DualPipeV"}
