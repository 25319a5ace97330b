"""Nothing exists for torch releases that are no longer supported, and `tests.leftovers` finds what would."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from automodel_mesh.compat import MINIMUM_TORCH
from automodel_mesh.compat.eras import support
from tests.leftovers import BEHAVIOURS, CHECKOUT, ERAS, FACTS, current_floor, floors_of_facts, leftovers, main
from tests.test_ci_matrix import RELEASES

pytestmark = pytest.mark.release_independent


def test_nothing_exists_for_unsupported_releases_only() -> None:
    """Nothing in the checkout exists for unsupported releases only."""
    assert current_floor(CHECKOUT) == MINIMUM_TORCH
    left = leftovers(CHECKOUT, MINIMUM_TORCH)
    assert not left, "\n".join(map(str, left))


def test_each_fact_goes_when_all_releases_agree_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fact says to delete it when the floor reaches the release from which on it never changes."""
    values: list[dict[str, Any]] = []
    for release in RELEASES:
        monkeypatch.setattr(support, "torch_at_least", lambda other, release=release: Version(other) <= release)
        values.append({name: value for name, value in runpy.run_path(str(CHECKOUT / FACTS)).items() if name.isupper()})
    agreed: dict[str, Version] = {}
    for name, newest in values[-1].items():
        last_other = max((index for index, facts in enumerate(values) if facts[name] != newest), default=-1)
        first = RELEASES[last_other + 1]
        agreed[name] = Version(f"{first.major}.{first.minor}")
    assert floors_of_facts(CHECKOUT) == agreed


def test_each_fact_is_used() -> None:
    """Each fact is used by a module in `compat/`."""
    modules = [path.read_text() for path in (CHECKOUT / "compat").rglob("*.py")]
    assert [name for name in floors_of_facts(CHECKOUT) if not any(f"facts.{name}" in text for text in modules)] == []


def test_each_era_but_the_last_says_when_it_goes() -> None:
    """The docstring of an era module says to delete it when the floor reaches the next era."""
    for (_, module), (next_release, _) in zip(support.ERAS, support.ERAS[1:], strict=False):
        docstring = ast.get_docstring(ast.parse((CHECKOUT / ERAS / f"{module}.py").read_text())) or ""
        assert f"floor reaches {next_release}." in docstring


# --- the search


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make a small checkout: two eras, the second from 2.10 on, and a fact to delete at 2.8."""
    fact = (
        'OLD_WAY: Final = not torch_at_least("2.8")\n"""Torch had another.\n\nDelete when the floor\nreaches 2.8."""\n'
    )
    files = {
        FACTS: f'"""Facts."""\n\n{fact}',
        f"{ERAS}/support.py": 'MINIMUM_TORCH: Final = Version("2.6")\n',
        f"{ERAS}/since_2_06.py": "",
        f"{ERAS}/since_2_10.py": "",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def found(checkout: Path, floor: str) -> list[tuple[str, int, str]]:
    """Return what is left at a floor: file, line, and the remedy up to the colon."""
    return [(place.path, place.line, place.remedy.partition(":")[0]) for place in leftovers(checkout, Version(floor))]


def test_a_fact_is_found_once(checkout: Path) -> None:
    """A fact is found from its floor on, in the line of its name."""
    assert found(checkout, "2.7") == []
    assert found(checkout, "2.8") == [(FACTS, 3, "delete OLD_WAY, as its text says")]


@pytest.mark.parametrize(
    ("path", "line", "floors", "remedy"),
    [
        ("compat/ending.py", "if facts.OLD_WAY:", ("2.7", "2.8"), "OLD_WAY is the same on every release"),
        ("tests/test_x.py", 'if torch_at_least("2.9"):', ("2.8", "2.9"), 'torch_at_least("2.9") is always true'),
        (
            "docs/examples/x.py",
            "if torch_at_least('2.9.1'):",
            ("2.9.0", "2.9.1"),
            'torch_at_least("2.9.1") is always true',
        ),
        ("compat/eras/gate.py", "from x import since_2_06", ("2.9", "2.10"), "since_2_06 serves no supported release"),
        (
            "compat/x.py",
            "# Delete when the floor reaches 2.7.",
            ("2.6", "2.7"),
            "delete what goes at 2.7, as it says here",
        ),
        ("compat/ledger.toml", 'until = "2.10"', ("2.9", "2.10"), "no release before 2.10 is supported"),
        ("compat/ledger.toml", 'since = "2.10"', ("2.9", "2.10"), "no release before 2.10 is supported"),
        (BEHAVIOURS, '            "2.9": "works",', ("2.8", "2.9"), "no release before 2.9 is supported"),
        ("README.md", "On every release from 2.6 to 2.15.", ("2.6", "2.7"), "2.6 is not supported"),
        (
            "automodel_mesh/x.py",
            "# Torch warns before torch 2.8.",
            ("2.7", "2.8"),
            "no release before 2.8 is supported",
        ),
        ("automodel_mesh/x.py", "# Up to 2.9 torch warns.", ("2.9", "2.10"), "no release up to 2.9 is supported"),
        ("automodel_mesh/x.py", "# Torch 2.6 - 2.8 warns.", ("2.8", "2.9"), "no release up to 2.8 is supported"),
    ],
)
def test_each_kind_of_leftover_is_found(
    path: str, line: str, floors: tuple[str, str], remedy: str, checkout: Path
) -> None:
    """What to delete at a floor is found at it, with file and line, and not at the floor before."""
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text(f"\n{line}\n")
    before, from_then_on = floors
    assert (path, 2, remedy) not in found(checkout, before)
    assert (path, 2, remedy) in found(checkout, from_then_on)


def test_an_era_whose_module_is_gone_is_still_found(checkout: Path) -> None:
    """A text that names an era module which was deleted is found."""
    (checkout / ERAS / "since_2_06.py").unlink()
    (checkout / "README.md").write_text("See `since_2_06.py` and `since_2_10.py`.\n")
    assert ("README.md", 1, "since_2_06 serves no supported release") in found(checkout, "2.10")


def test_the_command_lists_what_would_be_left(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints what is left, and exits with 1 if there is anything, else with 0."""
    assert main([]) == 0
    assert capsys.readouterr().out == ""
    assert main([str(RELEASES[-1])]) == 1
    places = leftovers(CHECKOUT, RELEASES[-1])
    assert capsys.readouterr().out.splitlines() == [
        f"{place.path}, line {place.line}: {place.remedy}" for place in places
    ]
