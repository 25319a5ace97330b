"""`automodel-mesh track` reads what WHAT names, reports, exits with a status, shows progress, and records releases."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.version import Version

from automodel_mesh.cli import main
from automodel_mesh.tracking.arguments import read_sources
from automodel_mesh.tracking.ledger import load_ledger
from automodel_mesh.tracking.progress import _amount, _Line
from automodel_mesh.tracking.sources import SourcesError, Unit
from tests import terminals
from tests.tracking.small_torch import PATHS, make_folder, torch_files

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).parents[2]
C10D = "torch/distributed/distributed_c10d.py"
NAME = "torch.distributed.distributed_c10d:_process_group_name"
HEAD = re.compile(r"(def _process_group_name)(\(.*\n)")

CHANGED_BODY = (HEAD, r"\1\2    added = None\n")
GONE = (HEAD, r"def _elsewhere\2")

PROGRAM = "import sys\nfrom automodel_mesh.cli import main\nsys.exit(main(sys.argv[1:]))\n"

Edit = tuple["re.Pattern[str]", str]


def without(*modules: str) -> str:
    """Write a program that runs the command where some modules cannot be imported."""
    # For None in sys.modules, Python raises ImportError.
    return f"import sys\nsys.modules.update(dict.fromkeys({modules!r}))\n{PROGRAM}"


def command(*arguments: str, program: str = PROGRAM, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    line = [sys.executable, "-c", program, "track", *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def on_a_terminal(*arguments: str, program: str = PROGRAM, piped: bool = False) -> tuple[int, str, str]:
    """Run the command on a terminal of 60 columns; see `terminals.on_a_terminal`."""
    return terminals.on_a_terminal(program, ["track", *arguments], columns=60, piped=piped)


def release() -> str:
    """Return the release of the installed torch, whose sources all wheels here have."""
    text = (site() / "torch" / "version.py").read_text()
    (version,) = re.findall(r"^__version__ = '([^']*)'", text, re.MULTILINE)
    return Version(version).base_version


def site() -> Path:
    """Return the folder where torch is installed."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def make_wheel(folder: Path, version: str, *edits: Edit) -> Path:
    """Write a wheel with the files of the installed torch that are compared, with another version and edited."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"torch-{version}-cp312-cp312-manylinux_2_28_x86_64.whl"
    with ZipFile(wheel, "w") as archive:
        archive.writestr("torch/version.py", f"__version__ = '{version}'\n")
        for path in load_ledger().paths:
            if (file := site() / path).is_file():
                text = file.read_text()
                for pattern, new in edits if path == C10D else ():
                    text, count = pattern.subn(new, text)
                    assert count == 1
                archive.writestr(path, text)
    return wheel


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an index with only the installed release, and a cache, and set both as defaults of the command."""
    folder = tmp_path / "index"
    wheel = make_wheel(folder / "torch", release())
    (folder / "torch" / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel.name}">{wheel.name}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", str(folder))
    monkeypatch.setenv("AUTOMODEL_MESH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return folder


# --- what WHAT names


def test_an_existing_path_takes_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An existing folder named like a version is read, `~` is the home folder, and the keywords are never folders."""
    pytest.importorskip("pypi_simple")
    make_folder(tmp_path / "2.15.0", torch_files("2.14.1"))
    for keyword in ("installed", "newest", "nightly"):
        make_folder(tmp_path / keyword, torch_files("2.14.1"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_sources("2.15.0", PATHS).version == "2.14.1"
    assert read_sources("~/2.15.0", PATHS).version == "2.14.1"
    assert read_sources("installed", PATHS).origin.startswith("the installed torch")
    for keyword in ("newest", "nightly"):
        with pytest.raises(SourcesError, match="asking no-such-index for the releases of torch failed"):
            read_sources(keyword, PATHS, index_url="no-such-index")


@pytest.mark.parametrize(
    "what",
    ["no/such/folder", "torch-2.15.0-py3-none-any.whl", "https://127.0.0.1/torch.whl", "~nobody-has-this-name/x"],
)
def test_a_missing_path_is_refused(what: str) -> None:
    """A path that does not exist is an error that says so and lists what is accepted."""
    with pytest.raises(SourcesError, match=f"'{what}' does not exist: give 'installed', a wheel .* or 'nightly'"):
        read_sources(what, PATHS)


@pytest.mark.parametrize("what", ["", " ", "newset", "2.x", "torch==2.15.0", "\0", "x" * 5000])
def test_neither_a_path_nor_a_version_is_refused(what: str) -> None:
    """What is neither a path nor a version is an error that says so and lists what is accepted."""
    with pytest.raises(SourcesError, match="is neither a file or folder nor a version: give 'installed', a wheel"):
        read_sources(what, PATHS)


# --- reports and exit statuses


def test_the_installed_torch_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    """The installed release is known, the exit status is 0, and only the report is written, without colours."""
    assert main(["track", "installed"]) == 0
    out, err = capsys.readouterr()
    first, second, third = out.splitlines()
    assert re.fullmatch(rf"torch {release()} \(from .*\): known - none of \d+ names changed", first)
    assert second == f"compared with what the ledger has recorded of {release()}."
    assert third == "Nothing that automodel-mesh relies on changed."
    assert err == ""


def test_a_changed_body_needs_a_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A candidate with a changed body exits with 3, with a diff from the last release and the functions that use it."""
    pytest.importorskip("pypi_simple")
    wheel = make_wheel(tmp_path, "99.1.0rc2", CHANGED_BODY)
    status = main(["track", str(wheel), "--json", "--ledger-until", release()])
    document = json.loads(capsys.readouterr().out)
    assert status == 3
    assert (document["schema"], document["verdict"], document["torch"]) == (1, "needs a look", "99.1.0rc2")
    assert (document["recorded"], document["compared_with"]) == (False, [release()])
    (finding,) = document["findings"]
    assert (finding["name"], finding["change"], finding["verdict"]) == (NAME, "body", "needs a look")
    assert "+    added = " in finding["diff"]
    assert finding["used_by"]
    assert document["notes"] == []


def test_a_vanished_name_breaks(tmp_path: Path, index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A vanished name exits with 1, and if the release before cannot be read, a note says why there is no diff."""
    shutil.rmtree(index)
    wheel = make_wheel(tmp_path, "99.1.0", GONE)
    assert main(["track", str(wheel), "--ledger-until", release(), "--markdown"]) == 1
    text, err = capsys.readouterr()
    assert text.startswith("# torch 99.1.0: breaks\n")
    assert f"| `{NAME}` | vanished | breaks |" in text
    assert re.search(r"^> .*torch " + re.escape(release()), text, re.MULTILINE)
    assert err == ""


def test_a_release_is_read_from_an_index_and_cached(
    tmp_path: Path, index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A release is read from the index that --index-url names, and the second time from the cache alone."""
    pytest.importorskip("pypi_simple")
    elsewhere = ["--index-url", str(index.rename(tmp_path / "elsewhere"))]
    assert main(["track", "newest", *elsewhere]) == 0
    assert capsys.readouterr().out.startswith(f"torch {release()} (from torch-{release()}-cp312-cp312-")
    (tmp_path / "elsewhere" / "torch" / "index.html").unlink()
    assert main(["track", release(), *elsewhere]) == 0
    assert main(["track", release(), *elsewhere, "--cache", str(tmp_path / "other")]) == 2
    assert main(["track", "newest", *elsewhere]) == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no/such/torch.whl"], "'no/such/torch.whl' does not exist"),
        (["the-latest"], "'the-latest' is neither a file or folder nor a version"),
        (["{empty}"], "contains no torch"),
        (["77.0.0"], "has no wheel of torch 77.0.0"),
        (["nightly", "--index-url", "{empty}"], "asking file:"),
        (["installed", "--ledger-until", "1.13"], "the ledger begins with"),
        (["installed", "--ledger-until", "soon"], "'soon' is not a version number"),
    ],
)
def test_sources_that_cannot_be_read_exit_with_2(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be read exits with 2, with the reason on stderr and nothing on stdout."""
    pytest.importorskip("pypi_simple")
    (tmp_path / "empty").mkdir()
    assert main(["track", *(argument.format(empty=tmp_path / "empty") for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("automodel-mesh: ")
    assert complaint in err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "WHAT"),
        (["newest", "--json", "--markdown"], "not allowed with"),
        (["newest", "--record", "--ledger-until", "2.9"], "not allowed with"),
        (["newest", "nightly"], "unrecognized arguments: nightly"),
        (["newest", "--loud"], "--loud"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments exit with 2, are named on stderr, and nothing is written to stdout."""
    with pytest.raises(SystemExit) as caught:
        main(["track", *arguments])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert complaint in err


def test_the_help_explains_arguments_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    """The help explains each kind of WHAT, the JSON document, and the exit statuses."""
    with pytest.raises(SystemExit) as caught:
        main(["track", "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    for word in ("2.16.0rc1", "newest ", "nightly ", ".whl", "installed ", "verdict", "remedy", "Exit status: 0 known"):
        assert word in text


def test_a_wheel_is_compared_without_torch_and_extras(tmp_path: Path) -> None:
    """A wheel is compared even if neither torch nor rich, pytest or the libraries for an index can be imported."""
    wheel = make_wheel(tmp_path, release())
    modules = ("torch", "numpy", "rich", "pytest", "_pytest", "requests", "pypi_simple", "remotezip")
    done = command(str(wheel), "--json", program=without(*modules))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["verdict"] == "known"


def test_a_missing_library_is_named() -> None:
    """If a library for reading an index is missing, the error says how to install it."""
    done = command("newest", "--index-url", "http://127.0.0.1:9", program=without("pypi_simple"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'automodel-mesh[track]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="the standard library has tomllib")
def test_missing_tomli_is_named() -> None:
    """On Python 3.10 without tomli, the error says how to install it."""
    done = command("installed", program=without("tomli"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'automodel-mesh[track]'" in done.stderr


def test_characters_that_stdout_cannot_write_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A character that stdout cannot write is written as an escape sequence."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    done = command(str(make_wheel(tmp_path / "caf\u00e9", release())))
    assert done.returncode == 0, done.stderr
    assert "/caf\\xe9/torch" in done.stdout


def test_an_interrupt_exits_with_130() -> None:
    """Ctrl-C exits with 130, without a traceback and with nothing on stdout."""
    pytest.importorskip("pypi_simple")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        # A shell starts background processes with SIGINT ignored, and their child processes inherit that.
        program = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{PROGRAM}"
        line = [sys.executable, "-c", program, "track", "newest", "--index-url", url]
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        connection, _ = server.accept()
        with connection:
            connection.recv(1)  # the request, which gets no answer
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err == "\nautomodel-mesh: interrupted\n"


# --- recording


def copy_of_checkout(folder: Path) -> Path:
    """Copy the parts of the checkout that the command needs, so that a test may write into them."""
    (folder / "automodel_mesh").mkdir(parents=True)
    left_out = shutil.ignore_patterns("__pycache__", "compat")
    shutil.copytree(ROOT / "automodel_mesh", folder / "automodel_mesh", ignore=left_out, dirs_exist_ok=True)
    shutil.copytree(ROOT / "compat", folder / "compat", ignore=left_out)
    (folder / "automodel_mesh" / "compat").symlink_to(folder / "compat")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_record_adds_the_release(tmp_path: Path) -> None:
    """--record prints the report, adds the release to the ledger and names the file, and then the release is known."""
    checkout = copy_of_checkout(tmp_path / "checkout")
    ledger = checkout / "compat" / "ledger.json"
    before = ledger.read_bytes()
    wheel = make_wheel(tmp_path, "99.1.0", CHANGED_BODY)
    done = command(str(wheel), "--record", "--json", cwd=checkout)
    assert done.returncode in {1, 3}, done.stderr
    assert json.loads(done.stdout)["recorded"] is False
    assert done.stderr == f"recorded torch 99.1.0 in {ledger}\n"
    assert json.loads(ledger.read_text())["releases"] == [*json.loads(before)["releases"], "99.1.0"]
    done = command(str(wheel), cwd=checkout)
    assert (done.returncode, done.stderr) == (0, "")
    assert "compared with what the ledger has recorded of 99.1.0." in done.stdout


def test_a_candidate_is_not_recorded(tmp_path: Path) -> None:
    """--record of a candidate exits with 2, with the reason on stderr, nothing on stdout, and the ledger unchanged."""
    checkout = copy_of_checkout(tmp_path / "checkout")
    before = (checkout / "compat" / "ledger.json").read_bytes()
    done = command(str(make_wheel(tmp_path, "99.1.0rc1")), "--record", cwd=checkout)
    assert (done.returncode, done.stdout) == (2, "")
    assert "automodel-mesh: torch 99.1.0rc1 is not a release: only releases are recorded" in done.stderr
    assert (checkout / "compat" / "ledger.json").read_bytes() == before


def test_forget_removes_the_release(tmp_path: Path) -> None:
    """--forget removes a release from the ledger and names the file, and refuses a release that is not in it."""
    checkout = copy_of_checkout(tmp_path / "checkout")
    ledger = checkout / "compat" / "ledger.json"
    oldest, *others = json.loads(ledger.read_text())["releases"]
    done = command(oldest, "--forget", cwd=checkout)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"removed torch {oldest} from {ledger}\n"
    assert json.loads(ledger.read_text())["releases"] == others
    done = command(oldest, "--forget", cwd=checkout)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"torch {oldest} is not in the ledger" in done.stderr


def test_outside_of_a_checkout_nothing_is_recorded(tmp_path: Path) -> None:
    """If the ledger cannot be written, the report is still printed, and the exit status is 2 with the reason."""
    checkout = copy_of_checkout(tmp_path / "checkout")
    (checkout / "pyproject.toml").unlink()
    done = command("installed", "--record", cwd=checkout)
    assert done.returncode == 2
    assert done.stdout.startswith(f"torch {release()} ")
    assert "is not in a checkout of automodel-mesh" in done.stderr


# --- terminals


def test_rich_shows_progress_and_colours(tmp_path: Path) -> None:
    """On a terminal, rich removes the progress before it prints the report, and colours its lines."""
    pytest.importorskip("rich")
    pytest.importorskip("pypi_simple")
    status, seen, _ = on_a_terminal(str(make_wheel(tmp_path, "99.1.0", GONE)), "--ledger-until", release())
    assert status == 1
    progress, _, report = seen.partition("\x1b[?25h")  # rich shows the cursor again when the progress ends
    assert "reading the wheel" in progress
    assert "comparing" in progress
    assert f"\x1b[1;31mBREAKS (1)\x1b[0m\n\n\x1b[1m{NAME}  vanished\x1b[0m\n" in report
    assert "\x1b[31m    -def _process_group_name" in report
    relied_on = report.partition("    relied on   ")[2].partition("    what to do")[0]
    assert max(map(len, relied_on.splitlines())) <= 60


def test_no_color_turns_colours_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR set, rich prints no colours."""
    pytest.importorskip("rich")
    wheel = str(make_wheel(tmp_path, release()))
    coloured = re.compile(r"\x1b\[[\d;]*3\dm[^\x1b]*torch ")
    assert coloured.search(on_a_terminal(wheel)[1])
    monkeypatch.setenv("NO_COLOR", "1")
    _, seen, _ = on_a_terminal(wheel)
    assert f"torch {release()} (from" in seen
    assert not coloured.search(seen)


def test_progress_without_rich_is_one_line(tmp_path: Path) -> None:
    """On a terminal without rich, progress is one line, which is rewritten, and erased before the report."""
    status, seen, _ = on_a_terminal(str(make_wheel(tmp_path, release())), program=without("rich"))
    assert status == 0
    assert "\r\x1b[2Kreading the wheel " in seen
    assert f"\r\x1b[2Kcomparing\r\x1b[2Ktorch {release()} (from the wheel" in seen
    *steps, report = seen.split("\r\x1b[2K")
    assert all(len(step) < 60 and "\n" not in step for step in steps)
    assert "\x1b" not in report


@pytest.mark.parametrize("modules", [(), ("rich",)], ids=["rich", "plain"])
def test_a_pipe_gets_only_the_document(modules: tuple[str, ...], tmp_path: Path) -> None:
    """If stdout is a pipe, it gets only the JSON document, and the terminal the progress."""
    wheel = make_wheel(tmp_path, release())
    status, seen, out = on_a_terminal(str(wheel), "--json", program=without(*modules), piped=True)
    assert status == 0
    assert "comparing" in seen
    assert json.loads(out)["verdict"] == "known"
    assert "\x1b" not in out


def test_the_line_of_progress_is_short_and_seldom_rewritten() -> None:
    """The line fits the terminal, and is written at once for a new step, and not for each amount of the same step."""
    stream = StringIO()
    line = _Line(stream, columns=30)
    for done in range(0, 10**8, 10**4):
        line("downloading torch.whl", done, 10**8, "bytes")
    line("comparing")
    written = stream.getvalue().split("\r\x1b[2K")[1:]
    assert written[0] == "downloading torch.whl 0.0 of "
    assert written[-1] == "comparing"
    assert len(written) < 1000


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (0, 0, "files", ""),
        (3, 0, "files", ""),
        (3, 21, "files", "3 of 21"),
        (50_000, 95_000, "files", "50000 of 95000"),
        (0, 95_000_000, "bytes", "0.0 of 95.0 MB"),
        (12_345_678, 95_000_000, "bytes", "12.3 of 95.0 MB"),
        (12_345_678, 0, "bytes", "12.3 MB"),
        (1_000, 40_000, "bytes", "0.0 of 0.0 MB"),
    ],
)
def test_an_amount_has_its_unit(done: int, total: int, unit: Unit, text: str) -> None:
    """Files are counted, bytes are shown in megabytes, and an unknown total of files is not shown."""
    assert _amount(done, total, unit) == text
