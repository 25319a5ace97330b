"""The recorded names are those of the installed torch, on every release."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
import tomli
import torch
from packaging.version import Version

from automodel_mesh.audit.lookup import Release, refused, release_of
from automodel_mesh.audit.torch_names import STUB, load_names, recorded_releases

PACKAGES = (
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.tensor.parallel",
    "torch.nn.attention",
    "torch.utils.data",
)
"""What is imported beside torch; with what they import, these are about half of torch's modules."""

GAPS = {
    "torch.distributed.Backend.FAKE",  # set when the backend is registered; the newest torch declares it
    "torch.distributed.distributed_c10d.Backend.FAKE",
    "torch.multiprocessing.ProcessException.error_pid",  # in `__slots__` only
    "torch.multiprocessing.spawn.ProcessException.error_pid",
}
"""What older torches do not declare, and so is said to be missing although it is there."""

FEWEST_MODULES = 400
FEWEST_MISSING = 1000
"""Less than what every release has, so that a test that looks at nothing fails."""


@cache
def installed() -> Release:
    """Return the recorded names of the installed torch."""
    return release_of(Version(torch.__version__).base_version)


def is_anywhere(path: str) -> bool:
    """Tell whether any release has a name; of others, which stubs leave out, an audit says nothing."""
    return any(release_of(one).find(path).state == "there" for one in recorded_releases())


def signatures_elsewhere(path: str) -> list[tuple[str, ...]]:
    """Return the signatures of a function in all releases; what all of them refuse is not reported either."""
    return [found for one in recorded_releases() if (found := release_of(one).signatures(path))]


def modules() -> Iterator[tuple[str, ModuleType]]:
    """Yield the modules of torch that are imported and written in Python; those in C++ have stubs, which have gaps."""
    for package in PACKAGES:
        importlib.import_module(package)
    for path, module in sorted(sys.modules.items()):
        scope = load_names().scope(path, installed().name)
        if path.partition(".")[0] == "torch" and scope is not None and STUB not in scope[""]:
            yield path, module


def test_the_installed_release_is_recorded() -> None:
    """A release of the matrix is one that an audit knows; `nox -s torch-names` records it."""
    assert installed().name in recorded_releases()


@pytest.mark.release_independent
def test_the_releases_of_the_matrix_are_recorded() -> None:
    """The data file has the releases that the matrix has, and no other."""
    rows = tomli.loads((Path(__file__).parents[2] / "ci_matrix" / "torch.toml").read_text(encoding="utf-8"))["rows"]
    assert list(recorded_releases()) == sorted((row["torch"] for row in rows), key=Version)


def test_what_is_said_to_be_missing_is_missing() -> None:
    """No name that some release has, and this one is said to lack, is in a module of this torch."""
    names_of_all = {path: load_names().all_names(path) for path, _ in modules()}
    assert len(names_of_all) > FEWEST_MODULES
    missing = [
        (path, name)
        for path, names in names_of_all.items()
        for name in names
        if installed().find(f"{path}.{name}").state == "missing"
    ]
    assert len(missing) > (0 if installed().name == recorded_releases()[-1] else FEWEST_MISSING // 10)
    assert [f"{path}.{name}" for path, name in missing if name in vars(sys.modules[path])] == []


def test_what_modules_offer_is_not_said_to_be_missing() -> None:
    """No name of an `__all__`, and no public method of a class in it, is said to be missing."""
    wrong: list[str] = []
    count = 0
    for path, module in modules():
        for name in getattr(module, "__all__", ()):
            offered = vars(module).get(name)  # without warnings of what is deprecated, as below
            is_class = issubclass(type(offered), type)
            members = [f"{name}.{one}" for one in vars(offered) if one[:1] != "_"] if is_class else []
            count += 1 + len(members)
            paths = (f"{path}.{one}" for one in (name, *members))
            missing = (one for one in paths if installed().find(one).state == "missing" and is_anywhere(one))
            wrong += [one for one in missing if one not in GAPS]
    assert count > FEWEST_MISSING
    assert wrong == []


def test_functions_take_their_own_parameters() -> None:
    """A call with all parameters that a function has here, by their names, is not said to be refused."""
    wrong: list[str] = []
    count = 0
    for path, module in modules():
        for name, function in list(vars(module).items()):
            signatures = installed().signatures(f"{path}.{name}") if type(function) is FunctionType else ()
            if not signatures:
                continue
            parameters = inspect.signature(function).parameters.values()
            keywords = [one.name for one in parameters if one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}]
            count += 1
            if any(
                not refused(there, tuple(keywords), 0, bound=False) for there in signatures_elsewhere(f"{path}.{name}")
            ):
                wrong += [
                    f"{path}.{name}({one})" for one in [refused(signatures, tuple(keywords), 0, bound=False)] if one
                ]
    assert count > FEWEST_MISSING
    assert wrong == []


@pytest.mark.parametrize(
    ("signature", "keywords", "positional", "answer"),
    [
        ("(a,b=)", ["b"], 1, ""),
        ("(a,b=)", ["c"], 1, "c"),
        ("(a,b=)", [], 3, "*"),
        ("(a,*,b=)", [], 2, "*"),
        ("(a,*args)", [], 9, ""),
        ("(a,**more)", ["c"], 1, ""),
        ("(a,/,b)", ["a"], 0, "a"),
        ("(a,/,b)", [], 2, ""),
        ("(a,*args,b=)", ["b"], None, ""),
        ("()", [], None, ""),
    ],
)
@pytest.mark.release_independent
def test_what_a_signature_refuses(signature: str, keywords: list[str], positional: int | None, answer: str) -> None:
    """Keywords must be parameters that can be given by name, and positional arguments must have places."""
    assert refused((signature,), tuple(keywords), positional, bound=False) == answer
