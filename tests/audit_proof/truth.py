"""Imports every module of a package on the installed torch, and says where that fails.

python -m tests.audit_proof.truth FOLDER RESULT.json [PART ...]

FOLDER is on PYTHONPATH, and holds the package; PART is a folder or a file in it, to look at only that. Where a module
fails since torch lacks a name, it is imported again with a stand-in there (stand_ins.py), and where that does not help,
without the statement (skipping.py), so that all such lines of a module are found, and not the first alone.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import platform
import re
import select
import signal
import sys
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

from tests.audit_proof.skipping import Skipping
from tests.audit_proof.stand_ins import StandIn, StandIns
from tests.audit_proof.statements import header, lines, statement

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence

SECONDS: Final = 600
"""The time limit of an import."""

TORCH: Final = re.compile(r"torch(\.|$)")
"""The modules of torch, and not torchvision or torchao."""

DEVICE: Final = re.compile("NVIDIA driver|CUDA driver|CUDA error|No CUDA GPUs|not compiled with CUDA")
"""What errors are about that another machine would not have."""


@dataclass(frozen=True)
class Failure:
    """Why a module could not be imported.

    Attributes:
        cause: `torch`; `missing`: another package is not installed; `third-party`: another package fails; `refuses`:
            the package itself raises an error; `stand-in`: torch refuses a stand-in; `other`.
        error: the exception, in a line.
        file: where, the innermost line in the package: the path below the folder.
        line: the line where the statement starts.
        end: the line where it ends.
        in_function: whether that line is in a function.
        name: what torch lacks, as a dotted path, or the module that is not installed.
        source: the path of the file where the error was raised, which may be another package's.
        at: the line in it.
    """

    cause: str
    error: str
    file: str = ""
    line: int = 0
    end: int = 0
    in_function: bool = False
    name: str = ""
    source: str = ""
    at: int = 0


@dataclass
class Truth:
    """What importing the modules of a package gives on a torch release.

    Attributes:
        torch: the release.
        python: the version of Python.
        imported: the files that were run to their end, with stand-ins for what torch lacks.
        broken: what torch lacks, by file and line.
        failed: why the others could not be run to their end, by file.
    """

    torch: str
    python: str
    imported: list[str] = field(default_factory=list[str])
    broken: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    failed: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])


def modules(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """Return the names of the modules below a folder, by their files."""
    found: dict[str, str] = {}
    for part in [folder / part for part in parts] or sorted(folder.iterdir()):
        for path in [part] if part.suffix == ".py" else sorted(part.rglob("*.py")):
            names = path.relative_to(folder).with_suffix("").parts
            if path.stem != "__main__" and all(name.isidentifier() for name in names):
                found[str(path.relative_to(folder))] = ".".join(names).removesuffix(".__init__")
    return found


def frames(error: BaseException) -> list[tuple[str, int, Any]]:
    """Return the files, lines and frames of a traceback, the innermost last, without those of the import system."""
    walked = [(frame.f_code.co_filename, line, frame) for frame, line in traceback.walk_tb(error.__traceback__)]
    return [each for each in walked if not each[0].startswith("<frozen importlib") and each[0] not in OWN]


OWN: Final = (
    *(str(Path(__file__).with_name(f"{name}.py")) for name in ("truth", "stand_ins", "skipping")),
    importlib.__file__,
)


def torch_name(error: BaseException) -> str:
    """Return the dotted path of what torch lacks, empty if it is something else."""
    if isinstance(error, ImportError) and TORCH.match(error.name or ""):
        wanted = re.search(r"cannot import name '(\w+)'", str(error))
        return f"{error.name}.{wanted[1]}" if wanted else str(error.name)
    if isinstance(error, AttributeError) and error.obj is not None:
        owner: Any = error.obj if hasattr(error.obj, "__name__") else type(error.obj)
        parts = [getattr(owner, name, None) for name in ("__module__", "__qualname__")]  # operators have none
        path = ".".join(filter(None, parts)) if all(parts) else owner.__name__
        return f"{path}.{error.name}" if TORCH.match(path) else ""
    return ""


def values_in(path: str, line: int, scope: Mapping[str, Any]) -> list[Any]:
    """Return what the names in a statement stand for."""
    found = statement(path, line)
    nodes = (node for part in (header(found) if found else []) for node in ast.walk(part))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return [scope[name] for name in names if name in scope]


def stands_in(value: Any) -> bool:
    """Tell whether a value is a stand-in, or a class that would be derived from what a stand-in stands for."""
    bases = getattr(value, "__orig_bases__", ()) if isinstance(value, type) else ()
    return any(isinstance(each, StandIn) for each in (value, *bases))


def is_of_torch(value: Any) -> bool:
    """Tell whether a value is something of torch."""
    return bool(TORCH.match(getattr(value, "__module__", None) or getattr(value, "__name__", "") or ""))


def explain(error: BaseException, folder: Path) -> Failure:
    """Say why an import failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    summary = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    below = [(path.startswith(f"{folder}/"), path, line, frame) for path, line, frame in frames(error)]
    last = max((index for index, (inside, *_) in enumerate(below) if inside), default=None)
    if last is None:
        return Failure("other", summary)
    _, path, line, frame = below[last]
    found = statement(path, line)
    name = torch_name(error) or (isinstance(error, ModuleNotFoundError) and error.name) or ""
    of_torch = TORCH.match(name)
    values = values_in(path, line, {**frame.f_globals, **frame.f_locals})
    deeper = [where for _, where, *_ in below[last + 1 :] if "-packages/" in where]
    if not all("-packages/torch/" in where for where in deeper):
        cause = "third-party"
    elif isinstance(found, ast.Raise):
        cause = "refuses"
    elif isinstance(error, ModuleNotFoundError) and not of_torch:
        cause = "missing"
    elif of_torch:
        cause = "torch"
    elif any(map(stands_in, values)):
        cause = "stand-in"
    elif (deeper and not DEVICE.search(str(error))) or (isinstance(error, TypeError) and any(map(is_of_torch, values))):
        cause = "torch"
    else:
        cause = "other"
    in_function = bool(frame.f_code.co_flags & 0x2)  # CO_NEWLOCALS: not a module's or a class's body
    where = str(Path(path).relative_to(folder))
    return Failure(cause, summary, where, *lines(path, line), in_function, name, below[-1][1], below[-1][2])


class Importer:
    """Imports modules of a folder; what can be imported stays, what fails leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stand_ins = StandIns()
        self.skipping = Skipping()
        self.loaded: set[str] = set()
        self._failures: dict[str, Failure] = {}

    def attempt(self, module: str, following: Sequence[str]) -> Failure | None:
        """Try in a forked process to import a module, then others, up to the first failure; import here what works.

        Returns:
            Why the first module fails, if it does. If one of the others does, that is returned when it is the first.
        """
        if module in self._failures:
            return self._failures.pop(module)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            with os.fdopen(write, "w", buffering=1) as pipe:
                self._answer([module, *following], pipe)
            os._exit(0)
        os.close(write)
        number, failure = self._wait(child, read)
        tried = [module, *following]
        for name in tried[:number]:
            self.loaded.add(name)
            with quiet(), contextlib.suppress(BaseException):
                importlib.import_module(name)
        self.loaded.update(name for name, each in list(sys.modules.items()) if self._holds(each))
        if failure is not None:
            self._failures[tried[number]] = failure
        return self._failures.pop(module, None)

    def go_on(self, failure: Failure) -> bool:
        """Let the next import get behind a failure, if that is possible."""
        if failure.name and self.stand_ins.add((failure.source, failure.at), failure.name):
            return True
        return failure.cause in {"torch", "stand-in"} and self.skipping.add(
            str(self.folder / failure.file), failure.line
        )

    def _answer(self, modules: Sequence[str], pipe: TextIO) -> None:
        """Import modules in the forked process; after each, write a line that says how that ended."""
        for module in modules:
            failure = None
            with quiet():
                try:
                    importlib.import_module(module)
                except BaseException as error:  # noqa: BLE001 - whatever a package does
                    failure = asdict(explain(error, self.folder))
            pipe.write(json.dumps({"failure": failure, "given": sorted(self.stand_ins.given)}) + "\n")
            if failure:
                break

    def _wait(self, child: int, read: int) -> tuple[int, Failure | None]:
        """Return how many modules the forked process has imported, and why it has not imported the next one."""
        said = b""
        with os.fdopen(read, "rb", buffering=0) as pipe:
            while select.select([pipe], [], [], SECONDS)[0]:
                part = pipe.read(1 << 16)
                said += part
                if not part:
                    break
            else:
                os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        answers = [json.loads(line) for line in said.split(b"\n")[:-1]]
        for answer in answers:
            self.stand_ins.given |= {tuple(each) for each in answer["given"]}
        failures = [Failure(**answer["failure"]) for answer in answers if answer["failure"]]
        if status and not failures:
            failures = [Failure("other", f"the process ended with {status}")]
        return sum(not answer["failure"] for answer in answers), next(iter(failures), None)

    def _holds(self, module: Any) -> bool:
        """Tell whether a module lies in the folder."""
        return str(getattr(module, "__file__", None)).startswith(f"{self.folder}/")


@contextlib.contextmanager
def quiet() -> Generator[None, None, None]:
    """Drop what is printed, from C too."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        for target, source in zip((1, 2), kept, strict=True):
            os.dup2(source, target)
            os.close(source)


def parent_failure(module: str, failures: dict[str, Failure]) -> Failure | None:
    """Return the failure of a package that a module is in, since Python imports that first."""
    while module := module.rpartition(".")[0]:
        if module in failures:
            return failures[module]
    return None


def find(folder: Path, parts: Iterable[str]) -> Truth:
    """Import all modules of a folder; one that fails, again with a stand-in for what it lacks."""
    import torch  # noqa: PLC0415 - what the modules have in common, imported once before the forks

    truth = Truth(torch.__version__.partition("+")[0], platform.python_version())
    importer = Importer(folder)
    files = modules(folder, parts)
    broken: dict[tuple[str, int, str], Failure] = {}
    failures: dict[str, Failure] = {}
    names = list(files.values())
    for place, (file, module) in enumerate(files.items()):
        while module not in importer.loaded and (
            failure := parent_failure(module, failures) or importer.attempt(module, names[place + 1 :])
        ):
            if failure.cause == "torch":
                broken[failure.file, failure.line, failure.name] = failure
            if not importer.go_on(failure):
                failures[module] = failure
                truth.failed[file] = asdict(failure)
                break
    for path, at, name in importer.stand_ins.given:
        if path.startswith(f"{folder}/"):
            first, end = lines(path, at)
            where = str(Path(path).relative_to(folder))
            broken.setdefault((where, first, name), Failure("torch", "", where, first, end, False, name, path, at))
    truth.imported = sorted(set(files) - set(truth.failed))
    truth.broken = [asdict(broken[key]) for key in sorted(broken)]
    return truth


def main(folder: str, result: str, *parts: str) -> None:
    """Write what is found as JSON."""
    warnings.simplefilter("ignore")
    sys.argv = ["audit"]
    found = find(Path(folder).resolve(), parts)
    Path(result).write_text(json.dumps(asdict(found), indent=1) + "\n")
    print(f"{len(found.imported)} files run, {len(found.failed)} not")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
