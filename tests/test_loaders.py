"""The loaders' keywords: one setup or one plain mesh, the retired keywords, and decorated loaders."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from torch.distributed.device_mesh import init_device_mesh

from automodel_mesh import FSDP2Config, MeshContext, ParallelismSizes
from automodel_mesh.compat import worlds
from automodel_mesh.config import DistributedSetup, MoEParallelizerConfig, PipelineConfig
from automodel_mesh.loaders import RETIRED_KEYWORDS, accepts_distributed_setup, resolve_distributed_setup
from automodel_mesh.testing import fake_world

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from typing_extensions import Self

MOVED = {
    "distributed_config": "DistributedSetup.build(strategy=...)",
    "moe_config": "DistributedSetup.build(moe_parallel_config=...), its new name",
    "moe_mesh": "DistributedSetup.build(parallelism_sizes=ParallelismSizes(ep_size=...)), which builds the mesh",
    "pipeline_config": "DistributedSetup.build(pipeline_config=...)",
    "tp_plan": "DistributedSetup.build(strategy=FSDP2Config(tp_plan=...))",
    "activation_checkpointing": "DistributedSetup.build(activation_checkpointing=...)",
    **{
        name: f"DistributedSetup.build(parallelism_sizes=ParallelismSizes({name}=...))"
        for name in ("dp_size", "dp_replicate_size", "tp_size", "pp_size", "cp_size", "ep_size")
    },
}


class Loader:
    """A loader class as in a framework."""

    def __init__(self, source: object, setup: DistributedSetup | None, rest: dict[str, Any]) -> None:
        self.source = source
        self.setup = setup
        self.rest = rest

    @accepts_distributed_setup
    @classmethod
    def from_pretrained(cls, path: str, *, distributed_setup: DistributedSetup | None = None, **kwargs: Any) -> Self:
        """Load a model by its name."""
        return cls(path, distributed_setup, kwargs)

    @classmethod
    @accepts_distributed_setup
    def from_config(cls, config: object, *, distributed_setup: DistributedSetup | None = None, **kwargs: Any) -> Self:
        """Make a model from a configuration."""
        return cls(config, distributed_setup, kwargs)

    @accepts_distributed_setup
    @staticmethod
    def describe(*args: Any, distributed_setup: DistributedSetup | None = None, **kwargs: Any) -> Loader:
        """Make a loader from any arguments."""
        return Loader(args, distributed_setup, kwargs)


class Derived(Loader):
    """A subclass for one task."""


@accepts_distributed_setup
def load(path: str, *, distributed_setup: DistributedSetup | None = None, **kwargs: Any) -> Loader:
    """Load a model."""
    return Loader(path, distributed_setup, kwargs)


@accepts_distributed_setup
def load_through_kwargs(path: str, **kwargs: Any) -> Loader:
    """Load a model by a function that passes its keywords on."""
    return Loader(path, kwargs.pop("distributed_setup"), kwargs)


LOADERS: dict[str, Any] = {
    "decorated_classmethod": Loader.from_pretrained,
    "classmethod_of_decorated": Loader.from_config,
    "inherited": Derived.from_pretrained,
    "of_an_instance": Derived("", None, {}).from_config,
    "staticmethod": Loader.describe,
    "function": load,
    "keywords_alone": load_through_kwargs,
}


def a_mesh() -> DeviceMesh:
    """Return a mesh as a user of Hugging Face transformers makes it."""
    return init_device_mesh("cpu", (4, 2), mesh_dim_names=("dp", "tp"))


# --- the contract, in a call


def test_other_keywords_come_back_untouched() -> None:
    """Without a setup and a mesh the setup is `None`, and every other keyword is returned, the identical objects."""
    weights = object()
    assert resolve_distributed_setup() == (None, {})
    setup, rest = resolve_distributed_setup(None, None, weights=weights, torch_dtype=None)
    assert setup is None
    assert rest == {"weights": weights, "torch_dtype": None}
    assert rest["weights"] is weights


def test_a_setup_is_returned_and_a_mesh_is_wrapped() -> None:
    """A setup is returned unchanged; a plain mesh becomes a setup without settings."""
    given = DistributedSetup(strategy_config=FSDP2Config())
    assert resolve_distributed_setup(given, revision="main") == (given, {"revision": "main"})
    assert resolve_distributed_setup(distributed_setup=given, device_mesh=None)[0] is given
    with fake_world(8):
        mesh = a_mesh()
        setup, rest = resolve_distributed_setup(device_mesh=mesh, revision="main")
        assert rest == {"revision": "main"}
        assert setup == DistributedSetup.from_device_mesh(mesh)
        assert setup is not None
        assert setup.device_mesh is mesh
        assert (setup.mesh_context.tp_size, setup.mesh_context.dp_size) == (2, 4)


def test_a_setup_and_a_mesh_exclude_each_other() -> None:
    """Giving both is an error that names both, even if they agree; so is a mesh with unknown axes."""
    with fake_world(8):
        mesh = a_mesh()
        with pytest.raises(ValueError, match=r"both distributed_setup=.* and device_mesh=.* are given: give one"):
            resolve_distributed_setup(DistributedSetup.from_device_mesh(mesh), mesh)
        with pytest.raises(ValueError, match="name its axes from"):
            resolve_distributed_setup(device_mesh=init_device_mesh("cpu", (8,), mesh_dim_names=("x",)))


def test_arguments_of_other_types_are_refused() -> None:
    """The error names the keyword and, if the other one accepts the value, the other one."""
    wrong: Any
    for wrong in ("fsdp2", FSDP2Config(), MeshContext(), {}, False):
        text = f"is of type {type(wrong).__name__}: give a"
        with pytest.raises(TypeError, match=rf"^distributed_setup=.* {text} DistributedSetup or None$"):
            resolve_distributed_setup(wrong)
        with pytest.raises(TypeError, match=rf"^device_mesh=.* {text} DeviceMesh or None$"):
            resolve_distributed_setup(device_mesh=wrong)
    setup: Any = DistributedSetup()
    with pytest.raises(TypeError, match="what was given belongs into distributed_setup=$"):
        resolve_distributed_setup(device_mesh=setup)
    with fake_world(8):
        mesh: Any = a_mesh()
        with pytest.raises(TypeError, match="what was given belongs into device_mesh=$"):
            resolve_distributed_setup(mesh)


# --- the retired keywords


def test_the_retired_keywords_are_the_documented_ones() -> None:
    """They are the six that NeMo AutoModel's documentation retires, and the sizes, and not the two current keywords."""
    assert {name: text.format(value="...") for name, text in RETIRED_KEYWORDS.items()} == MOVED


@pytest.mark.parametrize("name", MOVED)
def test_a_retired_keyword_is_refused_with_what_to_pass_instead(name: str) -> None:
    """It is refused with any value, even `None`, and even together with a valid setup."""
    for value in (None, object(), "auto", 2):
        for others in ({}, {"distributed_setup": DistributedSetup(), "revision": "main"}):
            with pytest.raises(TypeError) as caught:
                resolve_distributed_setup(**{name: value}, **others)  # type: ignore[arg-type]
            first, second = str(caught.value).split("\n")
            assert first.startswith(f"{name}: a loader takes no such keyword any more. Pass distributed_setup=")
            kept = name == "moe_mesh" or value not in {"auto", 2}  # a new mesh is built, the given one is not used
            assert second == f"  {name}: " + (MOVED[name] if kept else MOVED[name].replace("=...", f"={value!r}"))


def test_the_documented_migration_works() -> None:
    """The example of retired keywords raises one error that names them all; the code that replaces it loads."""
    with fake_world(8):
        strategy = FSDP2Config(activation_checkpointing=True)
        pp_cfg, moe_cfg, moe_mesh = PipelineConfig(), MoEParallelizerConfig(), a_mesh()
        groups = worlds.live_process_groups()
        with pytest.raises(TypeError) as caught:
            Loader.from_pretrained(
                "meta-llama/Llama-3.2-1B",
                distributed_config=strategy,
                tp_size=2,
                pipeline_config=pp_cfg,
                moe_config=moe_cfg,
                moe_mesh=moe_mesh,
                activation_checkpointing=True,
            )
        lines = str(caught.value).split("\n")
        assert [line.split(":")[0].strip() for line in lines[1:]] == [
            "distributed_config",
            "moe_config",
            "moe_mesh",
            "pipeline_config",
            "activation_checkpointing",
            "tp_size",
        ]
        assert "  tp_size: DistributedSetup.build(parallelism_sizes=ParallelismSizes(tp_size=2))" in lines
        assert "  activation_checkpointing: DistributedSetup.build(activation_checkpointing=True)" in lines
        assert worlds.live_process_groups() == groups
        # The documentation leaves out the sizes without which `build` refuses the two settings.
        with pytest.raises(ValueError, match="pipeline_config=.* needs pp_size > 1"):
            DistributedSetup.build(
                strategy=FSDP2Config(),
                parallelism_sizes=ParallelismSizes(tp_size=2),
                pipeline_config=pp_cfg,
                moe_parallel_config=moe_cfg,
                activation_checkpointing=True,
            )
        with DistributedSetup.build(
            strategy=FSDP2Config(),
            parallelism_sizes=ParallelismSizes(tp_size=2, pp_size=2, ep_size=2),
            pipeline_config=pp_cfg,
            moe_parallel_config=moe_cfg,
            activation_checkpointing=True,
        ) as setup:
            model = Loader.from_pretrained("meta-llama/Llama-3.2-1B", distributed_setup=setup)
            assert (model.source, model.setup, model.rest) == ("meta-llama/Llama-3.2-1B", setup, {})
            assert setup.activation_checkpointing is True
            assert setup.pipeline_config is pp_cfg
            assert setup.moe_parallel_config is moe_cfg


# --- decorated loaders


@pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)
def test_a_decorated_loader_keeps_the_contract(loader: Any) -> None:
    """A function, classmethod or staticmethod gets one setup, from either keyword, and its other arguments."""
    alone = loader("name")
    assert alone.source in {"name", ("name",)}
    assert (alone.setup, alone.rest) == (None, {})
    setup = DistributedSetup(strategy_config=FSDP2Config())
    loaded = loader("name", distributed_setup=setup, device_mesh=None, revision="main")
    assert loaded.setup is setup
    assert loaded.rest == {"revision": "main"}
    with fake_world(8):
        mesh = a_mesh()
        loaded = loader("name", device_mesh=mesh, revision="main")
        assert loaded.setup.device_mesh is mesh
        assert loaded.rest == {"revision": "main"}
        with pytest.raises(ValueError, match="both distributed_setup"):
            loader("name", distributed_setup=setup, device_mesh=mesh)
    with pytest.raises(TypeError, match="^tp_size, cp_size: a loader takes no such keyword any more"):
        loader("name", distributed_setup=setup, cp_size=1, tp_size=2)
    with pytest.raises(TypeError, match="^distributed_setup='fsdp2' is of type str"):
        loader("name", distributed_setup="fsdp2")


def test_a_decorated_loader_keeps_its_kind_and_its_name() -> None:
    """It gets the class it is called on, keeps name and docstring, and has `device_mesh` in its signature."""
    assert type(Derived.from_pretrained("x")) is Derived
    assert type(Derived.from_config("x")) is Derived
    assert isinstance(Loader.__dict__["from_pretrained"], classmethod)
    assert isinstance(Loader.__dict__["describe"], staticmethod)
    assert load.__name__ == load.__qualname__ == "load"
    assert load.__module__ == __name__
    assert Loader.from_pretrained.__qualname__ == "Loader.from_pretrained"
    assert Loader.from_pretrained.__doc__ == "Load a model by its name."
    assert list(inspect.signature(load).parameters) == ["path", "distributed_setup", "device_mesh", "kwargs"]
    assert list(inspect.signature(load_through_kwargs).parameters) == list(inspect.signature(load).parameters)
    assert list(inspect.signature(Loader.from_config).parameters)[:2] == ["config", "distributed_setup"]
    for name in ("distributed_setup", "device_mesh"):
        parameter = inspect.signature(load).parameters[name]
        assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, None)


@pytest.mark.release_independent
def test_a_loader_with_wrong_parameters_is_refused() -> None:
    """A loader must take the setup by keyword alone, and have no parameter that is never passed."""

    def without(path: str) -> None:
        """Take no setup."""

    def by_position(path: str, distributed_setup: DistributedSetup | None = None, **kwargs: Any) -> None:
        """Take the setup by position."""

    def with_old(*, distributed_setup: object = None, tp_size: int = 1, device_mesh: object = None) -> None:
        """Take keywords that are never passed."""

    for loader in (without, by_position):
        with pytest.raises(TypeError, match=rf"{loader.__name__}\(.*\).* takes no distributed_setup by keyword alone"):
            accepts_distributed_setup(loader)
    with pytest.raises(TypeError, match=r"has the parameters \['device_mesh', 'tp_size'\], which it would never get"):
        accepts_distributed_setup(with_old)
    with pytest.raises(TypeError, match=r"loader=3 is of type int: give a function or a classmethod"):
        accepts_distributed_setup(3)  # type: ignore[type-var]
