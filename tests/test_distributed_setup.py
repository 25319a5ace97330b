"""`DistributedSetup`: each argument and each error of `build`, plain meshes, and setups made directly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from automodel_mesh import (
    DDPConfig,
    FSDP2Config,
    MegatronFSDPConfig,
    MeshContext,
    ParallelismSizes,
    get_flat_mesh,
)
from automodel_mesh.compat import worlds
from automodel_mesh.config import (
    STRATEGY_MAP,
    DistributedSetup,
    DistributedStrategyConfig,
    MoEParallelizerConfig,
    PipelineConfig,
)
from automodel_mesh.errors import RankNotInMeshError, RanksDisagreeError
from automodel_mesh.testing import fake_world

PP = ParallelismSizes(pp_size=2)
EP = ParallelismSizes(ep_size=2)


def sizes_of(setup: DistributedSetup) -> dict[str, int | None]:
    """Return the sizes that the setup's context reads from its meshes, those of 1 left out."""
    names = [size.name for size in dataclasses.fields(ParallelismSizes)]
    sizes = {name: getattr(setup.mesh_context, name) for name in names}
    return {name: size for name, size in sizes.items() if size != 1}


def policies_of(setup: DistributedSetup) -> list[object]:
    """Return the settings for pipelines and experts."""
    return [setup.pipeline_config, setup.moe_parallel_config]


# --- strategy


@pytest.mark.parametrize("name", [*STRATEGY_MAP, "FSDP2", "Megatron-FSDP", "DDP"])
def test_a_strategy_is_given_by_name(name: str) -> None:
    """Every name of the map, in any case, gives its configuration with the defaults."""
    with fake_world(8), DistributedSetup.build(name) as setup:
        assert setup.strategy_config == STRATEGY_MAP[name.lower()]()
        assert (setup.device_mesh is None) == (name.lower() == "ddp")


@pytest.mark.parametrize("config", [FSDP2Config(sequence_parallel=True), MegatronFSDPConfig(nccl_ub=True), DDPConfig()])
def test_a_strategy_is_given_as_a_configuration(config: DistributedStrategyConfig) -> None:
    """A configuration object is kept as it is."""
    with fake_world(8), DistributedSetup.build(config) as setup:
        assert setup.strategy_config is config
        assert setup.parallelism_sizes == ParallelismSizes()
        if isinstance(config, DDPConfig):
            assert setup.device_mesh is setup.moe_mesh is None
            assert setup.mesh_context.process_group is not None
        else:
            assert setup.device_mesh is not None
            assert setup.mesh_context.dp_size == 8


def test_every_argument_can_be_left_out() -> None:
    """The default is FSDP2 over all ranks, without settings for pipelines or experts."""
    with fake_world(8), DistributedSetup.build() as setup:
        assert setup.strategy_config == FSDP2Config()
        assert sizes_of(setup) == {"dp_size": 8}
        assert policies_of(setup) == [None, None]
        assert setup.moe_mesh is None
        assert setup.activation_checkpointing is False
        assert setup.device_mesh is setup.mesh_context.device_mesh is not None


def test_the_documented_quick_start_builds_a_setup() -> None:
    """The first example of NeMo AutoModel's documentation builds this setup, also with positional arguments."""
    config, sizes = FSDP2Config(sequence_parallel=True), ParallelismSizes(tp_size=2)
    with (
        fake_world(8),
        DistributedSetup.build(
            strategy=config, parallelism_sizes=sizes, activation_checkpointing=True, world_size=8
        ) as setup,
        DistributedSetup.build(config, sizes, None, None, True, 8) as again,
    ):
        assert setup.strategy_config is config
        assert setup.parallelism_sizes is sizes
        assert setup.activation_checkpointing is True
        assert sizes_of(setup) == sizes_of(again) == {"dp_size": 4, "tp_size": 2}
        assert setup.device_mesh is not None
        assert get_flat_mesh(setup.device_mesh, "tp").size() == 2
        assert again == setup


# --- sizes


@pytest.mark.parametrize(
    ("strategy", "sizes", "expected"),
    [
        ("fsdp2", {"tp_size": 2, "cp_size": 2}, {"dp_size": 2, "tp_size": 2, "cp_size": 2}),
        ("fsdp2", {"dp_replicate_size": 2}, {"dp_size": 8, "dp_replicate_size": 2}),
        ("fsdp2", {"pp_size": 4, "dp_size": 2}, {"pp_size": 4, "dp_size": 2}),
        ("fsdp2", {"ep_size": 4}, {"dp_size": 8, "ep_size": 4}),
        ("megatron_fsdp", {"tp_size": 2, "cp_size": 2}, {"dp_size": 2, "tp_size": 2, "cp_size": 2}),
    ],
)
def test_the_meshes_have_the_sizes_asked_for(
    strategy: str, sizes: dict[str, int], expected: dict[str, int | None]
) -> None:
    """The requested sizes are kept, and the sizes of the meshes are read from the meshes."""
    asked = ParallelismSizes(**sizes)
    with fake_world(8), DistributedSetup.build(strategy, asked) as setup:
        assert setup.parallelism_sizes is asked
        if strategy == "megatron_fsdp":
            expected = {**expected, "dp_replicate_size": None}
        assert sizes_of(setup) == expected
        assert (setup.moe_mesh is not None) == ("ep_size" in sizes)
        assert setup.moe_mesh is setup.mesh_context.moe_mesh


# --- pipeline and experts


@pytest.mark.parametrize(
    ("name", "sizes", "kind", "values"),
    [
        ("pipeline_config", PP, PipelineConfig, {"pp_schedule": "GPipe", "pp_batch_size": 8}),
        ("moe_parallel_config", EP, MoEParallelizerConfig, {"wrap_outer_model": False}),
    ],
)
def test_a_policy_is_an_object_a_dict_or_the_default(
    name: str, sizes: ParallelismSizes, kind: type[Any], values: dict[str, object]
) -> None:
    """An object is kept as it is, a dict is converted, and `None` means the defaults if the setting is needed."""
    given = kind(**values)
    for argument, expected in [(given, given), (values, given), ({}, kind()), (None, kind())]:
        arguments: dict[str, Any] = {name: argument}
        with fake_world(8), DistributedSetup.build("fsdp2", sizes, **arguments) as setup:
            assert getattr(setup, name) == expected
            assert argument is not given or getattr(setup, name) is given


# --- activation checkpointing

MODES: list[tuple[Any, Any, object]] = [  # the strategy, the given mode, the resulting one
    *((name, False, False) for name in ("fsdp2", "ddp", "mfsdp")),
    *((name, mode, True) for name in ("fsdp2", "ddp", "mfsdp") for mode in (True, "full")),
    *((name, "selective", "selective") for name in ("fsdp2", "ddp")),
    (FSDP2Config(activation_checkpointing=True), False, True),
    (FSDP2Config(activation_checkpointing="full"), True, True),
    (FSDP2Config(activation_checkpointing=True), "full", True),
    (DDPConfig(activation_checkpointing="selective"), False, "selective"),
    (DDPConfig(activation_checkpointing="selective"), "selective", "selective"),
    (MegatronFSDPConfig(activation_checkpointing=True), False, True),
]


def test_activation_checkpointing_is_set_in_one_place() -> None:
    """The setup has the mode given to it or to the strategy's configuration; `"full"` becomes `True`."""
    with fake_world(8):
        for strategy, asked, kept in MODES:
            with DistributedSetup.build(strategy, activation_checkpointing=asked) as setup:
                assert (type(setup.activation_checkpointing), setup.activation_checkpointing) == (type(kept), kept)


# --- the world


def test_the_number_of_ranks_is_found_or_given() -> None:
    """Without `world_size` all ranks of the process group are used; with a smaller one, the first ranks."""
    with fake_world(6), DistributedSetup.build() as setup:
        assert setup.mesh_context.dp_size == 6
    for rank in (1, 5):
        with fake_world(8, rank), DistributedSetup.build(world_size=4) as setup:
            assert setup.mesh_context.dp_size == 4
            assert setup.mesh_context.is_member == (rank < 4)


def test_bad_arguments_do_not_initialise_torch_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a launcher's environment, wrong arguments raise before torch.distributed is initialised."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    bad: list[dict[str, Any]] = [
        {"world_size": 4},
        {"parallelism_sizes": ParallelismSizes(tp_size=4)},
        {"pipeline_config": {}},
    ]
    for arguments in bad:
        with pytest.raises(ValueError, match="world_size=|pp_size"):
            DistributedSetup.build(**arguments)
        assert not dist.is_initialized()


# --- errors

HALF = FSDP2Config(activation_checkpointing="selective")
MFSDP_SEQUENCE = MegatronFSDPConfig(sequence_parallel=True)
INVALID: list[tuple[Mapping[str, Any], type[Exception], str]] = [
    (
        {"strategy": "fsdp3"},
        ValueError,
        r"strategy='fsdp3' is not known .*: give one of 'fsdp2', 'megatron_fsdp'",
    ),
    (
        {"strategy": None},
        TypeError,
        "strategy=None is of type NoneType: give an instance of one of FSDP2Config, MegatronFSDPCon",
    ),
    ({"strategy": FSDP2Config}, TypeError, "of type type: .* DDPConfig, or one of the names 'fsdp2', 'megatron_fsdp'"),
    ({"parallelism_sizes": {"tp_size": 2}}, TypeError, r"parallelism_sizes=\{'tp_size': 2\} is of type dict"),
    ({"pipeline_config": {}}, ValueError, r"pipeline_config=PipelineConfig\(\) needs pp_size > 1, but pp_size=1: give"),
    (
        {"pipeline_config": PipelineConfig(pp_schedule="GPipe"), "parallelism_sizes": EP},
        ValueError,
        r"pipeline_config=PipelineConfig\(pp_schedule='GPipe'\) needs .*ParallelismSizes\(pp_size=2\) or more",
    ),
    ({"moe_parallel_config": {}}, ValueError, r"moe_parallel_config=MoEParallelizerConfig\(\) needs ep_size > 1, but"),
    (
        {"moe_parallel_config": MoEParallelizerConfig(), "parallelism_sizes": PP},
        ValueError,
        r"ep_size=1: give parallelism_sizes=ParallelismSizes\(ep_size=2\) or more, or moe_parallel_config=None",
    ),
    (
        {"pipeline_config": {"pp_schedul": "1f1b", 3: 4}, "parallelism_sizes": PP},
        ValueError,
        r"'pp_schedul' \(did you mean 'pp_schedule'\?\); 3\. Its keys are pp_schedule, pp_schedule_csv",
    ),
    (
        {"moe_parallel_config": {"wrap_outer": True}, "parallelism_sizes": EP},
        ValueError,
        r"moe_parallel_config has keys that MoEParallelizerConfig has not: 'wrap_outer' \(did you mean 'wrap_outer_mod",
    ),
    ({"pipeline_config": {"pp_batch_size": 0}, "parallelism_sizes": PP}, ValueError, "pp_batch_size=0 is less than 1"),
    ({"pipeline_config": "gpipe", "parallelism_sizes": PP}, TypeError, "of type str: give a PipelineConfig, a dict"),
    ({"moe_parallel_config": True, "parallelism_sizes": EP}, TypeError, "bool: give a MoEParallelizerConfig, a dict"),
    ({"activation_checkpointing": "some"}, ValueError, "'some' is not known: give one of False, True, 'full', 'selec"),
    ({"activation_checkpointing": 1}, TypeError, "of type int: give one of False, True, 'full', 'selective'"),
    ({"activation_checkpointing": None}, TypeError, "of type NoneType: give one of False, True"),
    (
        {"strategy": "mfsdp", "activation_checkpointing": "selective"},
        ValueError,
        "activation_checkpointing='selective', but megatron_fsdp does not support it: give one of False, True, 'full'",
    ),
    (
        {"strategy": HALF, "activation_checkpointing": True},
        ValueError,
        "activation_checkpointing=True, but FSDP2Config has activation_checkpointing='selective': give it in one place",
    ),
    ({"strategy": MFSDP_SEQUENCE}, ValueError, "sequence_parallel=True, but megatron_fsdp does not support it"),
    *(
        (
            {"strategy": "mfsdp", "parallelism_sizes": ParallelismSizes(**{name: 2})},
            ValueError,
            f"{name}=2, but megatron",
        )
        for name in ("pp_size", "ep_size", "dp_replicate_size")
    ),
    *(
        ({"strategy": "ddp", "parallelism_sizes": ParallelismSizes(**{name: 2})}, ValueError, f"{name}=2, but ddp does")
        for name in ("tp_size", "pp_size", "cp_size", "ep_size", "dp_replicate_size")
    ),
    ({"strategy": "ddp", "pipeline_config": {}}, ValueError, "give strategy 'fsdp2' .ddp supports no pp_size above 1"),
    ({"parallelism_sizes": ParallelismSizes(tp_size=3)}, ValueError, "world_size=8 is not divisible by tp_size"),
    ({"parallelism_sizes": ParallelismSizes(dp_size=3)}, ValueError, "dp_size=3 does not fit"),
    ({"parallelism_sizes": ParallelismSizes(ep_size=3)}, ValueError, "ep_size=3 does not divide"),
    ({"parallelism_sizes": ParallelismSizes(dp_replicate_size=3)}, ValueError, "dp_replicate_size=3 does not divide"),
    ({"world_size": 16}, ValueError, "world_size=16, but there are 8 ranks: give that number or less, or None"),
    ({"world_size": 0}, ValueError, "world_size=0 is less than 1"),
    ({"world_size": "8"}, TypeError, "world_size='8' is of type str"),
    ({"world_size": 4, "ranks": [4]}, ValueError, r"ranks\[0\]=4 is outside the world"),
    ({"ranks": [1, 0]}, ValueError, r"ranks\[1\]=0 is less than ranks\[0\]=1"),
    ({"ranks": [0, 1, 2], "parallelism_sizes": PP}, ValueError, r"len\(ranks\)=3 is not divisible by"),
    ({"ranks": 3}, TypeError, "ranks=3 is of type int"),
    ({"timeout_minutes": 0}, ValueError, "timeout_minutes=0 cannot be waited for: give a number of minutes"),
]


def check_invalid() -> None:
    """Build with each set of bad arguments, and check that none created a process group."""
    before = worlds.live_process_groups()
    for arguments, error, message in INVALID:
        with pytest.raises(error, match=message):
            DistributedSetup.build(**arguments)
        assert worlds.live_process_groups() == before, arguments


def test_bad_arguments_are_refused_before_a_group_is_made() -> None:
    """Each error names the field, its value and valid values, and no process group was created."""
    with fake_world(8, rank=3):
        check_invalid()


WRONG_ON_ONE_RANK: dict[str, Callable[[bool], Any]] = {
    "a field of the strategy": lambda wrong: DistributedSetup.build(
        MegatronFSDPConfig(zero_dp_strategy=7 if wrong else 3)
    ),
    "a pipeline without stages": lambda wrong: DistributedSetup.build(pipeline_config={} if wrong else None),
    "a setting of a context": lambda wrong: MeshContext.build(FSDP2Config(), cp_ring_degree=0 if wrong else 1),
    "the strategy of a context": lambda wrong: MeshContext.build(DDPConfig(bucket_cap_mb=-1 if wrong else 1)),
}


@pytest.mark.ranks(4, timeout=60)
def test_what_one_rank_was_refused_is_told_to_the_others() -> None:
    """Settings are checked before the ranks meet; those that wait are told at once, and the next call works on all."""
    dist.barrier()
    for name, call in WRONG_ON_ONE_RANK.items():
        before = worlds.live_process_groups()
        wrong = dist.get_rank() == 1
        expected: tuple[type[Exception], ...] = (ValueError,) if wrong else (RanksDisagreeError,)
        with pytest.raises(expected) as caught:
            call(wrong)
        assert ("rank 1 was refused (" in str(caught.value)) != wrong, name
        assert worlds.live_process_groups() == before
        with call(False):
            dist.barrier()


@pytest.mark.ranks(8)
def test_a_setup_is_built_or_refused_alike_on_all_ranks(no_leaks: None, mesh_registry_reset: None) -> None:
    """Bad arguments raise on every rank; valid ones build groups with the timeout; ranks outside a subset raise."""
    check_invalid()
    sizes = ParallelismSizes(pp_size=2, tp_size=2, ep_size=2)
    with DistributedSetup.build("fsdp2", sizes, {"pp_schedule": "gpipe"}, timeout_minutes=7) as setup:
        dist.barrier()  # no rank closes a connection that another one is still making
        assert sizes_of(setup) == {"pp_size": 2, "tp_size": 2, "dp_size": 2, "ep_size": 2}
        assert setup.pipeline_config == PipelineConfig(pp_schedule="gpipe")
        assert setup.moe_parallel_config == MoEParallelizerConfig()
        made = [report for report in setup.mesh_context.process_groups() if report.made_here]
        assert made
        assert {report.timeout for report in made} == {timedelta(minutes=7)}
    ranks = [1, 2, 5, 6]
    member = dist.get_rank() in ranks
    with DistributedSetup.build("fsdp2", ParallelismSizes(pp_size=2, ep_size=2), ranks=ranks) as setup:
        dist.barrier()
        assert setup.mesh_context.is_member == member
        assert sizes_of(setup) == {"pp_size": 2, "dp_size": 2, "ep_size": 2}
        assert setup.pipeline_config == PipelineConfig()
        assert setup.device_mesh is not None
        if member:
            assert get_flat_mesh(setup.device_mesh, "pp").size() == 2
        else:
            with pytest.raises(RankNotInMeshError):
                get_flat_mesh(setup.device_mesh, "pp")
    dist.barrier()


# --- plain meshes


@pytest.mark.parametrize(
    ("shape", "names", "sizes"),
    [
        ((8,), ("tp",), {"tp_size": 8, "dp_size": None, "dp_replicate_size": None}),
        ((4, 2), ("dp", "tp"), {"dp_size": 4, "tp_size": 2, "dp_replicate_size": None}),
        ((2, 2, 2), ("dp_replicate", "dp_shard", "tp"), {"dp_replicate_size": 2, "dp_size": None, "tp_size": 2}),
        ((2, 4), ("pp", "dp"), {"pp_size": 2, "dp_size": 4, "dp_replicate_size": None}),
    ],
)
def test_a_plain_mesh_is_a_topology_without_policies(
    shape: tuple[int, ...], names: tuple[str, ...], sizes: dict[str, int | None]
) -> None:
    """The mesh is kept, its sizes are read, there are no settings, and closing does not destroy its groups."""
    with fake_world(8):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        groups = worlds.live_process_groups()
        with DistributedSetup.from_device_mesh(mesh) as setup:
            assert setup.device_mesh is mesh
            assert sizes_of(setup) == sizes
            assert [setup.strategy_config, setup.parallelism_sizes, setup.moe_mesh] == [None, None, None]
            assert policies_of(setup) == [None, None]
            assert setup.activation_checkpointing is False
        assert worlds.live_process_groups() == groups


def test_a_plain_mesh_with_unknown_axes_is_refused() -> None:
    """A mesh with unknown names or none is refused with the known names; so is an object that is not a mesh."""
    with fake_world(8):
        with pytest.raises(ValueError, match=r"\['rows', 'tp'\], and \['rows'\] is not known .*'dp_shard', .*'tp'"):
            DistributedSetup.from_device_mesh(init_device_mesh("cpu", (4, 2), mesh_dim_names=("rows", "tp")))
        with pytest.raises(ValueError, match="a mesh without names is not known here: name its axes"):
            DistributedSetup.from_device_mesh(init_device_mesh("cpu", (8,)))
    wrong: Any
    for wrong in (None, "tp", MeshContext(), DistributedSetup()):
        with pytest.raises(TypeError, match=rf"device_mesh=.* is of type {type(wrong).__name__}: give a DeviceMesh"):
            DistributedSetup.from_device_mesh(wrong)


# --- made directly


def test_a_setup_is_compared_by_value_and_cannot_be_changed() -> None:
    """It cannot be changed; equal setups compare equal; the sizes asked for are no positional argument."""
    setup = DistributedSetup(strategy_config=FSDP2Config(), activation_checkpointing="full")
    assert setup == DistributedSetup(strategy_config=FSDP2Config(), activation_checkpointing=True)
    assert setup == DistributedSetup(MeshContext(), FSDP2Config(), None, None, True)
    assert setup != DistributedSetup(strategy_config=FSDP2Config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setup.pipeline_config = None  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        DistributedSetup(MeshContext(), None, None, None, False, PP)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="mesh_context=FSDP2Config.* is of type FSDP2Config: give a MeshContext"):
        DistributedSetup(FSDP2Config())  # type: ignore[arg-type]


def test_a_setup_without_meshes_has_the_requested_sizes() -> None:
    """Without meshes it has the requested sizes, no other defaults, and can be closed."""
    assert DistributedSetup(strategy_config=FSDP2Config(), parallelism_sizes=PP).pipeline_config is None
    with DistributedSetup(
        strategy_config=FSDP2Config(), parallelism_sizes=PP, pipeline_config=PipelineConfig()
    ) as setup:
        assert setup.device_mesh is setup.moe_mesh is None
        assert setup.pipeline_config == PipelineConfig()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"strategy_config": "fsdp2"}, TypeError, "='fsdp2' is of type str: give an instance of one of FSDP2Config"),
        ({"parallelism_sizes": {}}, TypeError, "parallelism_sizes={} is of type dict: give a ParallelismSizes or None"),
        ({"pipeline_config": {}}, TypeError, "pipeline_config={} is of type dict: give a PipelineConfig or None"),
        ({"moe_parallel_config": {}}, TypeError, "is of type dict: give a MoEParallelizerConfig or None"),
        ({"mesh_context": None}, TypeError, "mesh_context=None is of type NoneType: give a MeshContext"),
        ({"pipeline_config": PipelineConfig()}, ValueError, "pipeline_config=.* needs pp_size > 1, but pp_size=1"),
        ({"moe_parallel_config": MoEParallelizerConfig()}, ValueError, "needs ep_size > 1, but ep_size=1"),
        ({"strategy_config": DDPConfig(), "parallelism_sizes": PP}, ValueError, "pp_size=2, but ddp does not support"),
        ({"strategy_config": MFSDP_SEQUENCE}, ValueError, "sequence_parallel=True, but megatron_fsdp"),
        ({"strategy_config": HALF, "activation_checkpointing": "full"}, ValueError, "'full', but FSDP2Config has"),
        ({"activation_checkpointing": "most"}, ValueError, "'most' is not known"),
    ],
)
@pytest.mark.release_independent
def test_a_setup_made_directly_is_checked(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    """The constructor makes the same checks as `build`, and does not accept names and dicts."""
    with pytest.raises(error, match=message):
        DistributedSetup(**fields)


def test_a_setup_made_directly_is_checked_against_its_meshes() -> None:
    """Settings and strategy must fit the sizes of the meshes, and requested sizes must equal them."""
    with fake_world(8), MeshContext.build(FSDP2Config(), ParallelismSizes(pp_size=2, tp_size=2)) as context:
        for given in (None, ParallelismSizes(pp_size=2, tp_size=2), ParallelismSizes(dp_size=2, pp_size=2, tp_size=2)):
            setup = DistributedSetup(
                strategy_config=FSDP2Config(),
                parallelism_sizes=given,
                pipeline_config=PipelineConfig(),
                mesh_context=context,
            )
            assert setup.device_mesh is context.device_mesh
        refused: list[tuple[dict[str, Any], str]] = [
            ({"moe_parallel_config": MoEParallelizerConfig()}, "needs ep_size > 1, but ep_size=1"),
            ({"strategy_config": MegatronFSDPConfig()}, "pp_size=2, but megatron_fsdp does not support"),
            ({"parallelism_sizes": PP}, "parallelism_sizes.tp_size=1, but the meshes of mesh_context have tp_size=2"),
            ({"parallelism_sizes": ParallelismSizes(dp_size=4, pp_size=2, tp_size=2)}, "dp_size=4, but .* dp_size=2"),
            (
                {"parallelism_sizes": ParallelismSizes(dp_replicate_size=2, pp_size=2, tp_size=2)},
                "dp_replicate_size=2, but .* dp_replicate_size=1",
            ),
        ]
        for fields, message in refused:
            with pytest.raises(ValueError, match=message):
                DistributedSetup(**fields, mesh_context=context)
