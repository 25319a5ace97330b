"""The records of known behaviours are complete, and agree with the pages and modules that state the same facts."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from itertools import pairwise

import pytest
from packaging.version import Version

from automodel_mesh.audit.behaviours import BEHAVIOURS, OLDEST, Behaviour, Rule
from automodel_mesh.compat.eras.newest import SINCE
from tests import plain_torch
from tests.leftovers import leftovers
from tests.test_ci_matrix import RELEASES, ROOT

pytestmark = pytest.mark.release_independent

NAMED = {behaviour.program: behaviour for behaviour in BEHAVIOURS}


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.program)
def test_a_record_is_complete(behaviour: Behaviour) -> None:
    """It has a program of its title, releases in their order, a function of ours, and rules or the reason for none."""
    assert plain_torch.program(behaviour).__doc__ == f"{behaviour.title}."
    releases = list(behaviour.results)
    assert releases[0] == OLDEST
    assert releases == sorted(releases, key=Version)
    assert all(before != after for before, after in pairwise(behaviour.results.values()))
    module, _, function = behaviour.remedy.rpartition(".")
    assert function in import_module(module).__all__
    assert bool(behaviour.rules) != bool(behaviour.not_seen)
    assert set().union(*(rule.differs for rule in behaviour.rules)) <= set(behaviour.results.values())


@pytest.mark.parametrize("rule", {rule.call: rule for each in BEHAVIOURS for rule in each.rules}.values())
def test_a_rule_names_what_torch_has(rule: Rule) -> None:
    """The dotted path of a rule is where torch defines the function or method."""
    path, _, name = rule.call.rpartition(".")
    module = path.removesuffix(".DeviceMesh")
    holder = import_module(module)
    function = getattr(holder if module == path else holder.DeviceMesh, name)
    assert f"{function.__module__}.{function.__qualname__}" == rule.call


def test_each_result_that_begins_later_is_found_when_the_floor_passes_it() -> None:
    """`python -m tests.leftovers` lists each result but the first ones, whose releases are not in the text."""
    listed = [place for place in leftovers(ROOT, RELEASES[-1]) if place.path.endswith("audit/behaviours.py")]
    later = [release for behaviour in BEHAVIOURS for release in behaviour.results if release != OLDEST]
    assert len([place for place in listed if "write OLDEST" in place.remedy]) == len(later)


SAME = {
    "slice_of_a_slice": "`mesh[...]` of a slice, without a warning",
    "flattened_across_a_gap": "`mesh[...]` of a flattened axis that is not contiguous",
    "name_of_a_flattened_axis": "`mesh._flatten` to a name in use is an error",
    "name_of_a_native_axis": "`mesh._flatten` to a name in use is an error",
    "own_name": "`mesh._flatten` of one axis to its own name gives the mesh itself",
    "split_by_index": "`mesh._unflatten` of an axis by its index",
    "split_by_name": "`mesh._unflatten` of an axis by its name",
    "joined": "`DeviceMesh._concatenate`",
    "coordinate": "`mesh.get_coordinate` as a tuple",
    "override": "`init_device_mesh(backend_override=...)`",
}
"""Facts that are recorded also for `backport`."""
ONLY_NAMES = {
    "`mesh._flatten(backend_override=...)`",
    "`mesh._get_root_mesh`",
    "`root._flatten_mapping`",
    "`mesh._is_current_rank_part_of_mesh`",
    "`mesh.get_group`, `get_all_groups`: of each axis of every mesh",
    "`mesh.abort`",
    "`DeviceMesh(preserve_rank_order=False)`",
}
"""Features of `backport` that no behaviour is about."""


def test_backport_dates_the_same_facts_alike() -> None:
    """What the newest torch does, it does since the release that compat/eras/newest.py has for it."""
    assert set(SINCE) == {*SAME.values(), *ONLY_NAMES}
    since = {program: list(NAMED[program].results)[-1] for program in SAME}
    assert since == {program: SINCE[feature] for program, feature in SAME.items()}


def test_the_records_need_no_torch() -> None:
    """An audit runs where torch is not installed: the records import nothing of it."""
    program = "import sys; import automodel_mesh.audit.behaviours; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


# --- pages

README = {
    "slicing a slice": "slice_of_a_slice",
    "slicing a flattened axis from the root": "flattened_from_the_root",
    "… whose axes are not contiguous": "flattened_across_a_gap",
    "… from a slice of the root": "flattened_from_a_slice",
    "flattening to a name in use": "name_of_a_flattened_axis",
    "unflattening an axis": "split_by_index",
    "concatenating meshes": "joined",
    "`backend_override`": "override",
    "axes of size 1": "axes_of_one_rank",
    "the root, in a second thread": "another_thread",
    "two equal root meshes": "equal_roots",
    "a mesh without references": "dropped",
}
COMPILED = {
    'torch: the size of `mesh["tp"]`': "size_in_compiled_code",
    'torch: `mesh["tp"]`, returned': "sliced_in_compiled_code",
    'torch: `mesh.get_group("tp")`': "group_in_compiled_code",
}


def table(page: str, corner: str) -> list[list[str]]:
    """Return the cells of the table of a page whose first cell is given, without the line below its head."""
    (text,) = re.findall(
        rf"^\| ?{re.escape(corner)} \|.*?(?=\n\n)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return [head, *rows]


def releases_in(heading: str) -> list[str]:
    """Return the releases of a column, from a heading such as `torch 2.6 - 2.8`."""
    first, *last = re.findall(r"\d+\.\d+", heading)
    known = [f"{release.major}.{release.minor}" for release in RELEASES]
    return known[known.index(first) : known.index((last or [first])[0]) + 1]


def stated(text: str) -> set[str]:
    """Return what can be compared of a result or a cell: errors, whether it is absent, warns or has wrong ranks."""
    return set(re.findall(r"\w+Error|Unsupported|absent|warns|wrong ranks|not found|empties your dictionary", text))


@pytest.mark.parametrize(
    ("page", "corner", "lines"),
    [
        ("README.md", "", README),
        ("docs/how-to/compiled-code.md", "inside `torch.compile(fullgraph=True)`", COMPILED),
    ],
)
def test_a_page_says_the_same(page: str, corner: str, lines: dict[str, str]) -> None:
    """A table about torch on another page has the same errors, warnings and absences in the column of a release."""
    head, *rows = table(page, corner)
    cells = {row[0]: row[1:] for row in rows}
    for line, program in lines.items():
        for heading, cell in zip(head[1:], cells[line], strict=True):
            if not re.search(r"\d", heading):
                continue  # what this library does
            results = {release: stated(NAMED[program].result(release)) for release in releases_in(heading)}
            assert results == {release: stated(cell) for release in results}, line
