"""Pytest plugin for suites of code that uses process groups: forked ranks, leak checks, fake worlds.

Load it with ``pytest_plugins = ["automodel_mesh.testing"]`` in the top ``conftest.py``. It adds:

- ``@pytest.mark.ranks(8)``: the test's body runs on 8 forked ranks inside one process group. Fixtures are
  computed once, in the parent, and inherited. In full: ``ranks(8, backend="gloo", timeout=60,
  device_type="cpu")``. Under hypothesis' ``@given`` each example is drawn in the parent and runs on ranks of
  its own: set ``deadline=None``.
- ``@pytest.mark.cuda``: the test needs a GPU; for ``-m cuda`` and ``-m "not cuda"``. There is such a marker for each
  device type for which this torch has a backend of its own, such as ``xpu``.
- fixtures ``device_backend``, ``no_leaks``, ``mesh_registry_reset`` and ``fake_world``: ``pytest --fixtures``
  shows what each does.

On ranks, ``capsys`` and ``recwarn`` see nothing: a rank's output goes to a section of the test's report.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import unittest
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist

from automodel_mesh import compat
from automodel_mesh.testing.process import Job
from automodel_mesh.testing.ranks import run_job
from automodel_mesh.testing.worlds import DeviceBackend, fake_world, leak_check, unavailable_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

_ACCELERATORS = {"cuda": "nccl"} | {
    kind: backend
    for kind, backend in dist.Backend.default_device_backend_map.items()
    if backend != dist.Backend.GLOO and dist.is_backend_available(backend)
}
"""The device types that this torch is built for, or that a package has registered, and the backend of each."""

_PAIRS = [
    DeviceBackend("cpu", "gloo"),
    *(
        DeviceBackend(kind, name)
        for kind, backend in _ACCELERATORS.items()
        for name in (backend, "gloo")
        if kind in dist.Backend.backend_capability[name]
    ),
]

# --- fixtures


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test if it leaves a process group or mesh behind; a ``ranks`` test is checked on each rank.

    See `leak_check`. With ``mesh_registry_reset``, torch's mesh registry is emptied before the check.
    """
    if request.node.get_closest_marker("ranks") is not None:
        yield  # checked inside each rank, by `_on_each_rank`
        return
    with leak_check(reset_registry="mesh_registry_reset" in request.fixturenames):
        yield


@pytest.fixture
def mesh_registry_reset() -> Iterator[None]:
    """Empty torch's mesh registry before and after the test; torch 2.10 and newer has none."""
    compat.reset_mesh_registry()
    yield
    compat.reset_mesh_registry()


@pytest.fixture(name="fake_world")
def _fake_world() -> Callable[..., contextlib.AbstractContextManager[None]]:
    """`automodel_mesh.testing.fake_world`, for ``with fake_world(16384, rank=3): ...``."""
    return fake_world


@pytest.fixture(
    params=[
        pytest.param(pair, id="-".join(pair), marks=[getattr(pytest.mark, pair[0])] if pair[0] != "cpu" else [])
        for pair in _PAIRS
    ]
)
def device_backend(request: pytest.FixtureRequest) -> DeviceBackend:
    """Run the test for each device type and backend; skip those that this machine lacks, with the reason.

    A ``ranks`` test gets its process group on that backend, and each rank chooses its device after the fork.
    """
    pair: DeviceBackend = request.param
    marker = request.node.get_closest_marker("ranks")
    reason = unavailable_reason(pair, 1 if marker is None else _job_of(request.node, marker).world_size)
    if reason is not None:
        pytest.skip(reason)
    return pair


# --- the marker


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, and keep `torch.cuda.is_available` from starting CUDA before ranks are forked."""
    config.addinivalue_line(
        "markers",
        "ranks(world_size, *, backend='gloo', timeout=60.0, device_type='cpu'): run the test's body on that "
        "many forked ranks inside one process group",
    )
    for kind in _ACCELERATORS:
        config.addinivalue_line("markers", f"{kind}: the test needs a device of this type")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose ``ranks`` marker is wrong or would have no effect."""
    marker = item.get_closest_marker("ranks")
    if marker is None:
        return
    _job_of(item, marker)
    cls = getattr(item, "cls", None)
    if not isinstance(item, pytest.Function) or (cls is not None and issubclass(cls, unittest.TestCase)):
        pytest.fail("@pytest.mark.ranks works on functions and plain classes, not on this", pytrace=False)
    if inspect.iscoroutinefunction(item.obj):
        pytest.fail("@pytest.mark.ranks works on plain functions: call asyncio.run() inside", pytrace=False)


def _job_of(item: pytest.Item, marker: pytest.Mark) -> Job:
    """Read the marker's arguments into a `Job` whose function is a placeholder."""

    def ranks(world_size: int, *, backend: str | None = "gloo", timeout: float = 60.0, device_type: str = "cpu") -> Job:
        return Job(pytest.fail, world_size, backend=backend, timeout=timeout, device_type=device_type)

    try:
        return ranks(*marker.args, **marker.kwargs)
    except (TypeError, ValueError) as error:
        pytest.fail(f"{item.nodeid}: @pytest.mark.ranks: {error}", pytrace=False)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Replace the function of a ``ranks`` test by one that runs it on ranks, while pytest calls it."""
    __tracebackhide__ = True
    marker = pyfuncitem.get_closest_marker("ranks")
    if marker is None:
        return (yield)
    # Under @given, the function that hypothesis calls for each example is replaced: examples that each rank drew
    # itself would differ.
    handle = getattr(pyfuncitem.obj, "hypothesis", None)
    owner, name = (pyfuncitem, "obj") if handle is None else (handle, "inner_test")
    body = getattr(owner, name)
    setattr(owner, name, _on_each_rank(pyfuncitem, _job_of(pyfuncitem, marker), body))
    try:
        return (yield)
    finally:
        setattr(owner, name, body)


def _on_each_rank(item: pytest.Function, job: Job, body: Callable[..., object]) -> Callable[..., None]:
    """Return a function that runs `body` on the ranks of a job, and adds what they write to the test's report."""
    checked = "no_leaks" in item.fixturenames
    reset = "mesh_registry_reset" in item.fixturenames
    job = replace(job, capture=item.config.getoption("capture") != "no")
    if isinstance(pair := item.funcargs.get("device_backend"), DeviceBackend):
        job = replace(job, device_type=pair.device_type, backend=pair.backend)

    def on_rank(*args: Any, **kwargs: Any) -> None:
        with leak_check(reset_registry=reset) if checked else contextlib.nullcontext():
            body(*args, **kwargs)

    @functools.wraps(body)
    def on_ranks(*args: Any, **kwargs: Any) -> None:
        __tracebackhide__ = True
        for rank, result in enumerate(run_job(replace(job, function=on_rank, args=args, kwargs=kwargs))):
            if result.output:
                item.add_report_section("call", f"rank {rank}", result.output)

    return on_ranks
