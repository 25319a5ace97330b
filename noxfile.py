"""Every check of the project, as nox sessions; the torch releases come from ci_matrix/torch.toml.

    nox                          lint, typing, releases, and the tests on the releases of the short run
    nox -s tests-2.9 tests-2.11  the tests on these releases
    nox -t matrix                the tests on every release
    nox -s tests-2.9 -- -k mesh  what follows -- goes to pytest

Environment variables that the sessions read:

    UV_TORCH_BACKEND       for uv: cpu picks PyTorch's small CPU builds; needs PyTorch's own index
    UV_NO_CACHE            for uv: keeps no second copy of what it installs
    CI                     if set, each environment is removed when its session ends, even if disk is plenty
    AUTOMODEL_MESH_PASSED  tests sessions to skip, as they passed on this very checkout (.ci/run sets it)

Which releases the short run, the examples, the benchmarks and the coverage use follows from ci_matrix/torch.toml and
the names of the era modules.

An environment takes 3 to 7 GB with the CUDA builds. It is removed when its session ends and less than
ROOM_FOR_AN_ENVIRONMENT is free, so a run never needs much more than that. uv downloads a Python that the
machine lacks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import nox
from packaging.requirements import Requirement
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

nox.needs_version = ">=2025.10.16"
nox.options.default_venv_backend = "uv"
# A release that was not tested must not look like one that passed.
nox.options.error_on_missing_interpreters = True

# The largest environment seen has 7.2 GB. uv may hold a second copy while it installs: where its cache lies
# on another file system, it copies files instead of linking them.
ROOM_FOR_AN_ENVIRONMENT: Final = 16 * 10**9

# A rank is a process. The libraries' own threads would fight over the cores, and threads that run before a
# fork make the fork unsafe (Python 3.12 and newer warn about it). Bytecode is kept, because importing torch
# without it costs every process two seconds more.
RANK_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": None,
}

# Run by the `wheel` session, outside of the checkout, with the names of the modules that the wheel must hold.
IMPORT_EVERY_MODULE: Final = """
import importlib, pkgutil, sys, sysconfig, pathlib
import automodel_mesh
site = pathlib.Path(sysconfig.get_path("purelib"))
found = {m.name for m in pkgutil.walk_packages(automodel_mesh.__path__, "automodel_mesh.")}
if found != set(sys.argv[1:]):
    sys.exit(f"the installed wheel and the checkout differ in {sorted(found ^ set(sys.argv[1:]))}")
for name in sorted(found - {"automodel_mesh.__main__"}):
    module = importlib.import_module(name)
    if site not in pathlib.Path(module.__file__).parents:
        sys.exit(f"{name} was imported from {module.__file__}, which is not the installed wheel")
for path, wanted in {"automodel_mesh/py.typed": True, "compat": False, "tests": False}.items():
    if (site / path).exists() != wanted:
        sys.exit(f"{path} must {'' if wanted else 'not '}be in the wheel")
print(f"imported {len(found)} modules from the installed wheel")
"""

# What the tests of the wheel are run with: neither automodel_mesh/ nor compat/.
WHEEL_TESTS_NEED: Final = ("README.md", "ci_matrix", "docs", "pyproject.toml", "tests")

# The schemas that check-jsonschema brings for the files that GitHub reads.
SCHEMAS: Final = {
    "dependabot": ".github/dependabot.yml",
    "github-actions": "action.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/*.yml",
    "github-workflows": ".github/workflows/*.yml",
}


@dataclass(frozen=True)
class Row:
    """One row of ci_matrix/torch.toml, as far as sessions use it."""

    torch: str
    python: str
    in_short_run: bool

    @property
    def release(self) -> str:
        """The release without its patch number, such as "2.9"."""
        version = Version(self.torch)
        return f"{version.major}.{version.minor}"


def read_rows() -> list[Row]:
    """Read the rows of ci_matrix/torch.toml, oldest torch first."""
    table = nox.project.load_toml("ci_matrix/torch.toml")["rows"]
    rows = [Row(entry["torch"], entry["python"], entry.get("short_run", False)) for entry in table]
    return sorted(rows, key=lambda row: Version(row.torch))


def label_rows(rows: list[Row]) -> dict[str, Row]:
    """Name each row: the newest patch of a release by the release alone, any other by its full number."""
    newest_patch = {row.release: row for row in rows}
    return {row.release if row is newest_patch[row.release] else row.torch: row for row in rows}


def labels_by_era(rows: dict[str, Row]) -> list[list[str]]:
    """Group the rows' names by the era module that serves them; a module is named after its first release."""
    modules = [path.stem.removeprefix("since_") for path in Path("compat/eras").glob("since_*.py")]
    starts = [Version(name.replace("_", ".")) for name in modules]
    eras: dict[Version, list[str]] = {}
    for label, row in rows.items():
        eras.setdefault(max(start for start in starts if start <= Version(row.torch)), []).append(label)
    return list(eras.values())


ROWS: Final = label_rows(read_rows())
ERAS: Final = labels_by_era(ROWS)
NEWEST: Final = list(ROWS)[-1]
OLDEST: Final = next(iter(ROWS))
SHORT_RUN: Final = [label for label, row in ROWS.items() if row.in_short_run or label == NEWEST]
EXAMPLE_ROWS: Final = {label: ROWS[label] for label in SHORT_RUN}
BENCH_ROWS: Final = {label: ROWS[label] for era in ERAS for label in (era[0], era[-1])}
TOOLS_PYTHON: Final = ROWS[NEWEST].python
NEXT_PYTHON: Final = nox.project.load_toml("ci_matrix/torch.toml")["next_python"]

# What `automodel-mesh track` exits with when it could read the torch: it is known, breaks us, or needs a look.
TRACKED: Final = (0, 1, 3)

nox.options.sessions = ["lint", "typing", "releases", *(f"tests-{label}" for label in SHORT_RUN)]


def find_pyenv_pythons() -> None:
    """Make pyenv's Pythons usable by nox and uv, if pyenv is there and nobody has set its versions.

    pyenv puts a `python3.12` on the PATH that fails unless PYENV_VERSION, or a global setting, names a 3.12;
    uv takes that failure for a broken Python and stops.
    """
    if "PYENV_VERSION" in os.environ or shutil.which("pyenv") is None:
        return

    def ask(*arguments: str) -> list[str]:
        answer = subprocess.run(["pyenv", *arguments], capture_output=True, text=True, check=False)
        return answer.stdout.replace(":", "\n").split()

    installed = ask("versions", "--bare", "--skip-aliases")
    wanted = [
        next((name for name in reversed(installed) if name.startswith(f"{python}.")), None)
        for python in sorted({row.python for row in ROWS.values()})
    ]
    names = dict.fromkeys([*ask("version-name"), *filter(None, wanted)])
    if names:
        os.environ["PYENV_VERSION"] = ":".join(names)


find_pyenv_pythons()


@contextlib.contextmanager
def environment(session: nox.Session) -> Iterator[None]:
    """Set up what every session with torch needs; at the end, say its time and free disk that is short.

    With `nox --no-venv` the environment is not the session's own, and stays.
    """
    session.env.update(RANK_ENVIRONMENT)
    start = time.perf_counter()
    try:
        yield
    finally:
        session.log(f"{session.name} took {time.perf_counter() - start:.0f} s")  # nox rounds to minutes
        if session.venv_backend != "none":
            location = Path(session.virtualenv.location)
            if "CI" in os.environ or shutil.disk_usage(location).free < ROOM_FOR_AN_ENVIRONMENT:
                shutil.rmtree(location, ignore_errors=True)


def tools(*names: str, extra: str = "dev") -> list[str]:
    """Look up in pyproject.toml which versions of the named tools an extra allows."""
    lines = nox.project.load_toml("pyproject.toml")["project"]["optional-dependencies"][extra]
    requirements = {Requirement(line).name: line for line in lines}
    return [requirements[name] for name in names]


def install(session: nox.Session, extras: str, torch: str, *more: str) -> None:
    """Install the checkout, editable, with extras and exactly the given torch."""
    session.install("-e", f".[{extras}]", f"torch=={torch}", *more)


def add_session(
    name: str, run: Callable[..., None], *arguments: object, description: str, python: str, tags: list[str]
) -> None:
    """Add a session that calls a function with it and with the arguments, in an environment with torch."""

    def in_environment(session: nox.Session) -> None:
        with environment(session):
            run(session, *arguments)

    in_environment.__doc__ = description
    nox.session(in_environment, name=name, python=python, tags=tags)


def add_sessions(
    prefix: str, rows: dict[str, Row], run: Callable[[nox.Session, Row], None], *, tags: list[str]
) -> None:
    """Add a session `<prefix>-<label>` per row, and fill `{torch}` and `{python}` into its docstring."""
    for label, row in rows.items():
        description = (run.__doc__ or "").format(torch=row.torch, python=row.python)
        add_session(f"{prefix}-{label}", run, row, description=description, python=row.python, tags=tags)


# The cheapest checks first: nox runs sessions in the order of this file.
def audit_our_code(session: nox.Session) -> None:
    """Audit the package and the examples, each module of an era on the releases of that era, without torch."""
    eras = sorted(Path("automodel_mesh/compat/eras").glob("since_*.py"))
    code = [*Path("automodel_mesh").rglob("*.py"), *Path("automodel_mesh/compat").rglob("*.py")]
    code += Path("docs/examples").rglob("*.py")
    first = [module.stem.removeprefix("since_").replace("_", ".").replace(".0", ".") for module in eras]
    bounds = [f">={since},<{end}" for since, end in pairwise(first)] + [f">={first[-1]}"]
    for module, releases in zip(eras, bounds, strict=True):
        files = sorted({str(path) for path in code if path not in eras or path == module})
        command = ("python", "-m", "automodel_mesh", "audit", "--releases", releases, "--fail-on", "cannot-tell")
        session.run(*command, *files, log=False)


@nox.session(python=TOOLS_PYTHON)
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff, what GitHub and pre-commit read, and with our audit which torch we need."""
    session.install("packaging", *tools("check-jsonschema", "pre-commit", "ruff", "zizmor"))
    audit_our_code(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("zizmor", "--offline", "--quiet", ".github", "action.yml")
    session.run("pre-commit", "validate-manifest", ".pre-commit-hooks.yaml")
    for schema, files in SCHEMAS.items():
        found = sorted(map(str, Path().glob(files)))
        session.run("check-jsonschema", "--builtin-schema", f"vendor.{schema}", *found)


@nox.session(python=TOOLS_PYTHON)
def typing(session: nox.Session) -> None:
    """Check types with mypy (strict) and pyright, against the newest torch, and those of a user's programs."""
    with environment(session):
        install(session, "bench,tests", ROWS[NEWEST].torch, *tools("mypy", "pyright", "types-psutil"))
        session.run("mypy")
        session.run("pyright")
        session.run("pytest", "tests/test_typing.py")


@nox.session(python=TOOLS_PYTHON)
def releases(session: nox.Session) -> None:
    """Follow CONTRIBUTING.md in copies of the checkout: drop torch releases, and add one."""
    with environment(session):
        used = tools("check-jsonschema", "mypy", "pre-commit", "pyright", "ruff", "types-psutil", "zizmor")
        install(session, "bench,docs,tests", ROWS[NEWEST].torch, *used)
        session.run("pytest", "--numprocesses=2", "tests/contributing.py", *session.posargs)


def test_options(row: Row) -> list[str]:
    """Say how the tests are run on a release; what is the same on all releases is tested on the newest."""
    # More tests at a time than CI has cores: ranks spend much of their time waiting for the slowest of them, or for
    # one that does not come.
    at_a_time = ["--numprocesses=3"]
    return at_a_time if row is ROWS[NEWEST] else [*at_a_time, "-m", "not release_independent"]


def tests(session: nox.Session, row: Row) -> None:
    """Run the tests on torch {torch}, Python {python}, with real gloo ranks."""
    if session.name in os.environ.get("AUTOMODEL_MESH_PASSED", "").split():
        session.skip("it has passed in this run already")
    install(session, "tests", row.torch)
    session.run("pytest", *test_options(row), *session.posargs)


@nox.session(name="next-python", python=NEXT_PYTHON)
def next_python(session: nox.Session) -> None:
    """Run the tests on the newest torch, on a Python that is newer than those of the matrix."""
    with environment(session):
        tests(session, ROWS[NEWEST])


def cuda(session: nox.Session, row: Row) -> None:
    """Run the CUDA tests on torch {torch}, Python {python}; fails where there is no GPU."""
    remedy = "Use a machine with one; tests-<release> needs none"
    if shutil.which("nvidia-smi") is None:
        session.error(f"{session.name} needs an NVIDIA GPU, and there is no nvidia-smi on the PATH. {remedy}")
    install(session, "tests", row.torch)
    found = session.run("python", "-c", "import torch; print(torch.cuda.is_available())", silent=True)
    if str(found).split()[-1:] != ["True"]:
        why = f"torch {row.torch} cannot use one here; is the driver too old for this build?"
        session.error(f"{session.name} needs an NVIDIA GPU, and {why} {remedy}")
    session.run("pytest", "-m", "cuda", *session.posargs)


def bench_results(session: nox.Session, row: Row) -> Path:
    """Say where the benchmarks' results on a release are kept."""
    return session.cache_dir / f"bench-{row.torch}.json"


def bench_row(session: nox.Session, row: Row) -> None:
    """Run the benchmarks, tests/**/bench_*.py, on torch {torch}, Python {python}."""
    install(session, "bench,tests", row.torch)
    results = f"--benchmark-json={bench_results(session, row)}"
    # Without --forked: the timings would be lost with each benchmark's process. Those that need one fork it themselves.
    options = ["-o", "addopts=--import-mode=importlib", "-o", "python_files=bench_*.py"]
    session.run("pytest", *options, results, *session.posargs)


def examples_row(session: nox.Session, row: Row) -> None:
    """Run docs/examples on torch {torch}, Python {python}, with transformers, on 8 gloo ranks."""
    install(session, "examples,tests", row.torch)
    session.run("pytest", "tests/test_examples.py", *session.posargs)


@dataclass(frozen=True)
class NemoRun:
    """One run of ci_matrix/nemo.toml: a version of nemo-automodel on a torch release."""

    nemo: str
    label: str
    steps: tuple[str, ...]


NEMO: Final = nox.project.load_toml("ci_matrix/nemo.toml")
NEMO_RUNS: Final = {
    f"drop-in-{run['nemo']}-{run['torch']}": NemoRun(run["nemo"], run["torch"], tuple(run["steps"]))
    for run in NEMO["runs"]
    if run["torch"] in ROWS  # a release may have been dropped
}


def add_drop_in_sessions() -> None:
    """Add a session for each run of ci_matrix/nemo.toml."""
    for name, run in NEMO_RUNS.items():
        row = ROWS[run.label]
        description = f"Put our modules in place of those of nemo-automodel {run.nemo}, on torch {row.torch}."
        add_session(name, drop_in_run, run, description=description, python=row.python, tags=["drop-in"])


def drop_in_run(session: nox.Session, run: NemoRun) -> None:
    """Import every module and take the other steps of a run; with `-- record`, record names and results."""
    wanted = NEMO["dependencies"][run.nemo]
    install(session, "tests", ROWS[run.label].torch, *wanted["with"])
    session.install("--no-deps", *wanted["without"])
    python = ("python", "-W", "ignore", "-m")  # NeMo AutoModel and its dependencies warn of each other
    if session.posargs == ["record"] and "names" in run.steps:
        session.run(*python, "tests.drop_in.names")
        session.run(*python, "tests.drop_in.tables")
    name = session.name.removeprefix("drop-in-")
    session.run(*python, "tests.drop_in", name, "imports", *run.steps, *session.posargs)


DOWNSTREAM: Final = {
    f"downstream-{run['package']}-{label}": (run, label)
    for run in nox.project.load_toml("ci_matrix/downstream.toml")["runs"]
    for label in run["torch"]
    if {label, run.get("saved", label)} <= ROWS.keys()  # a release may have been dropped
}


def add_downstream_sessions() -> None:
    """Add a session for each package and torch release of ci_matrix/downstream.toml."""
    for name, (run, label) in DOWNSTREAM.items():
        row = ROWS[label]
        description = f"Give {run['package']} meshes of plain torch's and of ours, on torch {row.torch}."
        python = run.get("python", row.python)
        add_session(name, downstream_run, run, label, description=description, python=python, tags=["downstream"])


def downstream_run(session: nox.Session, run: dict[str, Any], label: str) -> None:
    """Install a package and run its program; with `-- record`, record the results."""
    session.env["CUDA_VISIBLE_DEVICES"] = ""  # meshes are on the CPU, and some packages choose the device themselves
    if saved := run.get("saved"):
        checkpoints = session.cache_dir / session.name
        shutil.rmtree(checkpoints, ignore_errors=True)
        session.env["AUTOMODEL_MESH_CHECKPOINTS"] = str(checkpoints.resolve())
        install(session, "tests", ROWS[saved].torch)
        for meshes in ("plain", "ours"):
            session.run("python", "-m", f"tests.downstream.{run['package']}", meshes)
        if not any(checkpoints.glob(f"{saved} *")):
            session.error(
                f"torch {saved} was not installed: this session installs two, run it without --no-install or -R"
            )
    install(session, "tests", ROWS[label].torch, *run["with"])
    if run["without"]:
        session.install("--no-deps", *run["without"])
    session.run("python", "-m", "tests.downstream", run["package"], label, *session.posargs)


AUDITED: Final = nox.project.load_toml("ci_matrix/audit.toml")


def add_audit_sessions() -> None:
    """Add a session for each torch release, with a Python that the packages of ci_matrix/audit.toml need."""
    for label, row in ROWS.items():
        description = f"Compare what audit says about packages with importing them, on torch {row.torch}."
        python = max(row.python, AUDITED["python"], key=Version)
        name = f"audit-downstream-{label}"
        add_session(name, audit_downstream_row, row, description=description, python=python, tags=["audit-downstream"])


def audit_downstream_row(session: nox.Session, row: Row) -> None:
    """Put each version of each package into a folder of its own, and compare; with `-- record`, record the results."""
    install(session, "track", row.torch, *AUDITED["with"])
    session.install("--no-deps", *AUDITED["without"])
    folder = (session.cache_dir / "audit-downstream").resolve()
    wanted = [f"{package['name']}=={package['version']}" for package in AUDITED["packages"]]
    for requirement in dict.fromkeys(
        [*wanted, *(each for one in AUDITED["packages"] for each in one.get("beside", []))]
    ):
        if not (folder / requirement).is_dir():
            session.install("--no-deps", "--target", str(folder / requirement), requirement)
    session.run("python", "-m", "tests.audit_proof", str(folder), *session.posargs)


def plain(session: nox.Session, row: Row) -> None:
    """Show what the calls of torch {torch} do themselves, Python {python}; its failures are what we mend."""
    install(session, "tests", row.torch)
    session.run("python", "-m", "tests.plain_torch")
    session.run("pytest", "--numprocesses=2", "tests/compat", "--plain-torch", *session.posargs, success_codes=[0, 1])


add_sessions("tests", ROWS, tests, tags=["matrix"])
add_sessions("plain", ROWS, plain, tags=["plain"])
add_sessions("cuda", ROWS, cuda, tags=["cuda"])
add_sessions("bench", BENCH_ROWS, bench_row, tags=["bench"])
add_sessions("examples", EXAMPLE_ROWS, examples_row, tags=["examples"])
add_drop_in_sessions()
add_downstream_sessions()
add_audit_sessions()


@nox.session(venv_backend="none")
def examples(session: nox.Session) -> None:
    """Run the examples on the releases of the short run, one after the other."""
    for label in EXAMPLE_ROWS:
        session.notify(f"examples-{label}", posargs=session.posargs)


@nox.session(name="drop-in", venv_backend="none")
def drop_in(session: nox.Session) -> None:
    """Put our modules in place of NeMo AutoModel's, on each version and torch of ci_matrix/nemo.toml."""
    for name in NEMO_RUNS:
        session.notify(name, posargs=session.posargs)


@nox.session(venv_backend="none")
def downstream(session: nox.Session) -> None:
    """Give other packages meshes of plain torch's and of ours, on each torch of ci_matrix/downstream.toml."""
    for name in DOWNSTREAM:
        session.notify(name, posargs=session.posargs)


@nox.session(name="audit-downstream", venv_backend="none")
def audit_downstream(session: nox.Session) -> None:
    """Compare what audit says about the packages of ci_matrix/audit.toml with imports, on every torch release."""
    for label in ROWS:
        session.notify(f"audit-downstream-{label}", posargs=session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Run the benchmarks on the first and the last release of each era, one after the other."""
    for row in BENCH_ROWS.values():
        bench_results(session, row).unlink(missing_ok=True)  # bench-report wants those of this run
    for label in BENCH_ROWS:
        session.notify(f"bench-{label}", posargs=session.posargs)
    session.notify("bench-report", posargs=())


@nox.session(name="bench-report", python=TOOLS_PYTHON)
def bench_report(session: nox.Session) -> None:
    """Make the tables of docs/benchmarks and their plot from what the benchmarks measured last."""
    files = [bench_results(session, row) for row in BENCH_ROWS.values()]
    if missing := [file.name for file in files if not file.exists()]:
        session.error(f"no results of {', '.join(missing)}: run nox -s bench first")
    session.install(*tools("matplotlib", extra="plots"))
    session.run("python", "docs/benchmarks/render.py", *map(str, files))


def module_names() -> set[str]:
    """List every module that the package must hold; compat/ is one of its subpackages."""
    package = {".".join(path.with_suffix("").parts) for path in Path("automodel_mesh").rglob("*.py")}
    compat = {".".join(("automodel_mesh", *path.with_suffix("").parts)) for path in Path("compat").rglob("*.py")}
    return {name.removesuffix(".__init__") for name in package | compat} - {"automodel_mesh"}


def build_dist(session: nox.Session, folder: Path) -> Path:
    """Build sdist and wheel into a folder that is emptied, check what an index shows of them, and return the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    session.run("uv", "build", "--quiet", "--out-dir", str(folder))
    session.install(*tools("twine"))
    session.run("twine", "check", "--strict", *map(str, sorted(folder.glob("automodel_mesh-*"))))
    (wheel_file,) = folder.glob("*.whl")
    return wheel_file


@nox.session(python=TOOLS_PYTHON)
def dist(session: nox.Session) -> None:
    """Build what is published into dist/; `-- v0.1.0` also compares that tag with the version and the changelog."""
    version = nox.project.load_toml("pyproject.toml")["project"]["version"]
    for tag in session.posargs:
        if tag != f"v{version}":
            session.error(
                f"the tag is {tag}, and the version in pyproject.toml is {version}: the tag must be v{version}"
            )
        if f"\n## {version} " not in Path("CHANGELOG.md").read_text():
            session.error(f"CHANGELOG.md has no section {version}: rename Unreleased to `## {version} - YYYY-MM-DD`")
    build_dist(session, Path("dist"))


def wheel_tests(session: nox.Session, row: Row) -> None:
    """Run the tests on the wheel in dist/, on torch {torch}, Python {python}, where no checkout can be imported."""
    wheels = list(Path("dist").resolve().glob("*.whl"))
    if len(wheels) != 1:
        session.error(f"dist/ holds {len(wheels)} wheels: run nox -s dist first")
    session.install(f"automodel-mesh[tests] @ {wheels[0].as_uri()}", f"torch=={row.torch}")
    place = Path(session.create_tmp()).resolve() / "tests-of-the-wheel"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in WHEEL_TESTS_NEED:
        copy = shutil.copytree if Path(name).is_dir() else shutil.copy
        copy(name, place / name)
    session.chdir(place)
    session.run("pytest", "--numprocesses=3", "-m", "not release_independent and not checkout", *session.posargs)


add_sessions("wheel-tests", {label: ROWS[label] for label in (OLDEST, NEWEST)}, wheel_tests, tags=["wheel-tests"])


@nox.session(python=TOOLS_PYTHON)
def wheel(session: nox.Session) -> None:
    """Build and check sdist and wheel, install the wheel, and import every module of it outside of the checkout."""
    with environment(session):
        built = Path(session.create_tmp()).resolve() / "dist"
        wheel_file = build_dist(session, built)
        requirement = f"automodel-mesh[cli,migrate,testing,track] @ {wheel_file.as_uri()}"
        session.install(requirement, f"torch=={ROWS[NEWEST].torch}")
        names = module_names()
        session.chdir(built)
        session.run("python", "-c", IMPORT_EVERY_MODULE, *sorted(names), log=False)
        session.run("automodel-mesh", "track", "installed")


@nox.session(python=ROWS[OLDEST].python)
def minimums(session: nox.Session) -> None:
    """Run the tests with the lowest allowed version of every direct dependency, torch among them."""
    with environment(session):
        session.install("--resolution", "lowest-direct", "-e", ".[tests]")
        # Not the tests that build a wheel: setuptools wants a newer `packaging` beside it than this library does.
        build_wheels = ("packaging", "release", "typing")
        ignored = [f"--ignore=tests/test_{name}.py" for name in build_wheels]
        session.run("pytest", "--numprocesses=2", *ignored, *session.posargs)


@nox.session(python=TOOLS_PYTHON)
def coverage(session: nox.Session) -> None:
    """Measure the tests' coverage on the last release of each era together."""
    with environment(session):
        session.install(*tools("coverage"))
        session.run("coverage", "erase")
        for label in (era[-1] for era in ERAS):
            install(session, "tests", ROWS[label].torch)
            session.run("coverage", "run", "-m", "pytest", *test_options(ROWS[label]), *session.posargs)
        session.run("coverage", "combine", "--quiet")
        session.run("coverage", "report")


@nox.session(python=TOOLS_PYTHON)
def track(session: nox.Session) -> None:
    """Compare the newest torch on the index, and the nightly where its index is known, with the ledger.

    What follows -- goes to `automodel-mesh track` instead. torch itself is not installed.
    """
    session.install("packaging", *tools("rich", extra="cli"), *tools("pypi-simple", "remotezip", extra="track"))
    command = ("python", "-m", "automodel_mesh", "track")
    if session.posargs:
        session.run(*command, *session.posargs, success_codes=TRACKED)
        return
    reports = Path(os.environ.get("AUTOMODEL_MESH_REPORTS") or session.cache_dir / "track")
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    targets = {"newest": ["newest"]}
    if nightly := os.environ.get("AUTOMODEL_MESH_NIGHTLY_INDEX"):
        targets["nightly"] = ["nightly", "--index-url", nightly]
    else:
        session.log("the nightly is not looked at: AUTOMODEL_MESH_NIGHTLY_INDEX names no index that has it")
    changed = [name for name, what in targets.items() if track_one(session, [*command, *what], reports / f"{name}.md")]
    (reports / "changed").write_text("".join(f"{name}\n" for name in changed))


@nox.session(name="torch-names", python=TOOLS_PYTHON)
def torch_names(session: nox.Session) -> None:
    """Record the names of torch that `automodel-mesh audit` looks up, of all releases, or of those after --.

    With `-- --forget 2.6.0`, remove those of releases whose support has ended.
    """
    session.install("packaging", *tools("griffe", extra="record"))
    command = ("python", "-m", "automodel_mesh.audit.recording")
    if "--forget" in session.posargs:
        session.run(*command, *session.posargs)
        return
    for release in session.posargs or [row.torch for row in ROWS.values()]:
        folder = Path(session.create_tmp()).resolve() / "torch"
        shutil.rmtree(folder, ignore_errors=True)
        session.install("--no-deps", "--target", str(folder), f"torch=={release}")
        session.run(*command, str(folder))
        shutil.rmtree(folder)


def track_one(session: nox.Session, command: list[str], report: Path) -> bool:
    """Write the Markdown report of a torch; tell from its title, `# torch 2.16.0: known`, whether it is not known."""
    with report.open("w") as file:
        session.run(*command, "--markdown", stdout=file, stderr=sys.stderr, success_codes=TRACKED)
    title = report.read_text().partition("\n")[0].removeprefix("# ")
    session.log(f"{title}, see {report}")
    return not title.endswith(": known")


@nox.session(python=TOOLS_PYTHON)
def docs(session: nox.Session) -> None:
    """Build the documentation, and check its tables; a warning is an error."""
    with environment(session):
        install(session, "docs,tests", ROWS[NEWEST].torch)
        session.run("sphinx-build", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
        session.run("pytest", "tests/built_pages.py")


@nox.session(python=TOOLS_PYTHON)
def links(session: nox.Session) -> None:
    """Check that each address in the documentation, the README and CONTRIBUTING answers; needs the network."""
    with environment(session):
        install(session, "docs,tests", ROWS[NEWEST].torch)
        check = ("sphinx-build", "--quiet", "-b", "linkcheck")
        session.run(*check, "docs", "docs/_build/linkcheck")
        # The pages beside docs/ are no Sphinx project, and tests/test_readme.py checks where their relative links lead.
        settings = {
            "extensions": "myst_parser",
            "include_patterns": "*.md",
            "root_doc": "README",
            "suppress_warnings": "myst.xref_missing,toc.not_included",
        }
        options = [f"--define={name}={value}" for name, value in settings.items()]
        session.run(*check, "--isolated", *options, ".", "docs/_build/linkcheck-beside")
