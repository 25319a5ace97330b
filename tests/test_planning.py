"""`automodel-mesh plan`: its text, its JSON document, sizes near impossible ones, and that it needs no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_mesh.cli import main
from automodel_mesh.planning.nearby import fits, nearest_possible
from automodel_mesh.topology.sizes import ParallelismSizes
from automodel_mesh.topology.strategies import strategy_named
from tests.pages import blocks, run
from tests.terminals import on_a_terminal

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/how-to/plan.md").read_text(encoding="utf-8")
BIG = "--world-size 1024 --tp 8 --pp 4 --cp 2 --ep 16 --dp-replicate 2 --rank 37"

# Python refuses to import a module that is None in sys.modules.
RUN = """
import sys
sys.modules.update(dict.fromkeys({blocked}))
from automodel_mesh.cli import main
sys.exit(main(sys.argv[1:]))
"""
WITHOUT_TORCH = RUN.format(blocked=["torch", "rich", "numpy"])
TORCH_THAT_FAILS = """
import sys
class Broken:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] == "torch":
            raise OSError("libcudart.so: cannot open shared object file")
sys.meta_path.insert(0, Broken())
from automodel_mesh.cli import main
sys.exit(main(sys.argv[1:]))
"""


def command(line: str, program: str = WITHOUT_TORCH) -> subprocess.CompletedProcess[str]:
    """Run `automodel-mesh plan` in a process of its own, by default one that cannot import torch, rich or NumPy."""
    arguments = [sys.executable, "-c", program, "plan", *line.split()]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


# --- the page


@pytest.mark.parametrize("index", range(len(re.findall(r"^automodel-mesh plan .*[^\\]$", PAGE, re.MULTILINE))))
def test_commands_of_the_page_print_what_it_shows(index: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command on one line prints the text below it, to stdout, or to stderr if refused; a longer one draws."""
    found = re.findall(
        r"^```bash\nautomodel-mesh (plan [^\n]*)\n```\n\n```text\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE
    )
    arguments, expected = found[index]
    status = main(arguments.split())
    captured = capsys.readouterr()
    assert (captured.err if status == 2 else captured.out) == expected


def test_python_of_the_page_prints_what_it_shows() -> None:
    """The Python code of the page prints the text below it."""
    program, _ = blocks(PAGE, "python")
    assert run("plan.md", program) == blocks(PAGE, "text")[-2]


def documented() -> dict[str, dict[str, str]]:
    """Read the keys of each object, with their types, from the page."""
    objects = re.split(r"^`(\w+)`:$", PAGE[PAGE.index("## The JSON document") :], flags=re.MULTILINE)
    tables = zip(["", *objects[1::2]], objects[::2], strict=True)
    return {name: dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE)) for name, text in tables}


def check_type(value: object, described: str) -> None:
    """Assert that a value is of a type as the page describes it."""
    kinds = {"integer": int, "string": str, "boolean": bool, "object": dict, "list": list}
    if described.startswith("list of "):
        assert isinstance(value, list)
        for item in value:
            check_type(item, described.removeprefix("list of "))
    elif described.endswith(" or null"):
        if value is not None:
            check_type(value, described.removesuffix(" or null"))
    elif described.startswith("`"):
        check_object(value, documented()[described.strip("`")])
    else:
        assert type(value) is kinds[described]


def check_object(document: Any, keys: dict[str, str]) -> None:
    """Assert that an object has exactly the documented keys, in their order, with values of their types."""
    assert list(document) == list(keys)
    for key, described in keys.items():
        check_type(document[key], described)


@pytest.mark.parametrize("line", [BIG, "--world-size 8", "--world-size 8 --strategy ddp --rank 0", "--world-size 1"])
def test_json_is_as_the_page_describes(line: str) -> None:
    """--json prints one document with the keys and types of the page."""
    done = command(f"{line} --json")
    assert done.returncode == 0, done.stderr
    check_object(json.loads(done.stdout), documented()[""])


# --- the output


def test_the_numbers_of_a_large_mesh() -> None:
    """The JSON document has the axes, the process groups and the groups of a rank."""
    document = json.loads(command(f"{BIG} --json").stdout)
    axes = {axis["name"]: axis for axis in document["axes"]}
    assert (axes["tp"]["groups"], axes["tp"]["nodes_per_group"], axes["tp"]["groups_across_nodes"]) == (128, 1, 0)
    assert (axes["dp_cp"]["size"], axes["dp_cp"]["layout"]) == (32, [[32, 8]])
    assert axes["ep_shard"]["shares_with"] == ["dp"]
    assert document["process_groups"] == {"per_rank": 9, "in_job": 1760}
    assert document["rank"]["groups"][0] == {
        "axes": ["pp"],
        "ranks": [37, 293, 549, 805],
        "nodes": 4,
        "default_group": False,
    }


@pytest.mark.parametrize("program", [WITHOUT_TORCH, TORCH_THAT_FAILS], ids=["absent", "broken"])
@pytest.mark.parametrize("line", ["plan --world-size 8 --tp 2", "--help", "plan --help"])
def test_torch_is_not_needed(program: str, line: str) -> None:
    """The command works where torch is not installed, and where importing it fails."""
    arguments = [sys.executable, "-c", program, *line.split()]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_million_ranks_import_neither_torch_nor_a_list_of_ranks() -> None:
    """The text for 1,048,576 ranks is short, also with the groups of a rank."""
    done = command("--world-size 1048576 --tp 8 --pp 4 --rank 654321")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) < 200
    assert "fsdp2 on 1,048,576 ranks, 8 per node (131,072 nodes)" in done.stdout


def test_a_terminal_with_rich_shows_tables() -> None:
    """On a terminal with rich the tables have frames."""
    pytest.importorskip("rich")
    status, seen, _ = on_a_terminal(RUN.format(blocked=["torch"]), ["plan", *BIG.split()])
    assert status == 0
    assert seen.count("┏") == 3
    assert re.search(r"│ dp_shard_cp +│ dp_shard, cp", seen)


def test_a_terminal_without_rich_shows_plain_text() -> None:
    """On a terminal without rich the output is plain text."""
    status, seen, _ = on_a_terminal(WITHOUT_TORCH, ["plan", "--world-size", "8"])
    assert status == 0
    assert "┏" not in seen
    assert "dp_shard_cp   dp_shard, cp" in seen


def test_markdown_has_a_table_for_each() -> None:
    """--markdown prints tables of Markdown, with underscores escaped."""
    done = command("--world-size 8 --tp 2 --rank 3 --markdown")
    rules = [line for line in done.stdout.splitlines() if line.startswith("| ---")]
    assert [rule.count("|") for rule in rules] == [9, 4, 5]
    assert "| dp\\_shard |" in done.stdout


# --- refusals


@pytest.mark.parametrize(
    ("line", "complaints"),
    [
        ("", ["--world-size"]),
        ("--world-size 0", ["'0' is not a whole number of at least 1"]),
        ("--world-size 8 --tp two", ["'two' is not a whole number of at least 1"]),
        ("--world-size 8 --rank 8", ["--rank 8: give a rank from 0 to 7"]),
        ("--world-size 8 --strategy fsdp", ["did you mean 'fsdp2'"]),
        ("--world-size 8 --json --markdown", ["not allowed with"]),
        ("--world-size 1000 --tp 16", ["not divisible", "--world-size 992 or 1008\n", "--tp 10 or 20\n"]),
        ("--world-size 1024 --tp 8 --ep 48 --pp 2", ["--world-size 960 or 1056\n", "--ep 32 or 64\n"]),
        ("--world-size 8 --strategy megatron_fsdp --pp 2", ["--pp 1\n"]),
    ],
)
def test_what_is_not_possible_exits_with_2(line: str, complaints: list[str]) -> None:
    """Wrong arguments and impossible sizes exit with 2, say what is wrong and what is possible, and print nothing."""
    done = command(line)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    for complaint in complaints:
        assert complaint in done.stderr


@settings(deadline=None, database=None)
@given(
    st.integers(1, 48),
    st.builds(
        ParallelismSizes,
        **{name: st.integers(1, 6) for name in ("tp_size", "pp_size", "cp_size", "ep_size")},
        dp_size=st.none() | st.integers(1, 6),
        dp_replicate_size=st.none() | st.integers(1, 3),
    ),
)
def test_the_nearest_number_of_ranks_is_possible_and_nothing_nearer_is(world: int, sizes: ParallelismSizes) -> None:
    """The numbers of ranks are the nearest possible ones, found by trying all up to a large number."""
    strategy = strategy_named("fsdp2")
    unit = sizes.tp_size * sizes.pp_size * sizes.cp_size
    # Multiples of the other sizes, as far as the first common multiple with everything else is.
    possible = [number for number in range(unit, 48 + 18 * unit * 6 + 1, unit) if fits(strategy, sizes, number)]
    below, above = [number for number in possible if number < world], [number for number in possible if number > world]
    expected = (*below[-1:], *above[:1])
    assert nearest_possible(strategy, sizes, world).get("world_size", ()) == expected
