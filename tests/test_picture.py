"""`automodel-mesh plan --picture`: which nodes and groups are drawn, and the files."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from automodel_mesh.cli import main
from automodel_mesh.topology import plan
from automodel_mesh.topology.panels import MOST_NODES, Cell, drawn_axes, panel
from automodel_mesh.topology.sizes import ParallelismSizes

if TYPE_CHECKING:
    from pathlib import Path

    from automodel_mesh.topology import MeshAxis

pytestmark = pytest.mark.release_independent

SMALL = plan("fsdp2", ParallelismSizes(tp_size=2, ep_size=4), 16, ranks_per_node=6)
LARGE = plan("fsdp2", ParallelismSizes(tp_size=8, pp_size=4, cp_size=2, ep_size=16), 1024, ranks_per_node=8)
LINE = ["plan", "--world-size", "16", "--tp", "2", "--ep", "4"]


@pytest.mark.parametrize("name", ["tp", "dp_shard", "dp_cp", "ep", "ep_shard", "pp"])
def test_a_small_world_is_drawn_whole(name: str) -> None:
    """All nodes and ranks of a small world are shown, and two have the same number if they are in one group."""
    shown = panel(SMALL, SMALL.axis(name))
    cells = {cell.rank: cell.group for row in shown.nodes for cell in row.cells}
    assert [len(row.cells) for row in shown.nodes] == [6, 6, 4]
    assert [*cells] == list(range(16))
    topology = SMALL.topologies.moe if shown.in_expert_mesh else SMALL.topologies.root
    assert topology is not None
    for group in topology.groups(name):
        assert {rank for rank in cells if cells[rank] == cells[group[0]]} == set(group)
    assert shown.note == ""


@pytest.mark.parametrize("axis", LARGE.axes, ids=lambda axis: axis.name)
def test_a_large_world_shows_the_nodes_of_the_first_group(axis: MeshAxis) -> None:
    """In a large world the nodes of the first rank's group are shown, eight at most, and the note counts the others."""
    shown = panel(LARGE, axis)
    group = next(group for group in LARGE.groups_of(0) if axis.name in group.axes)
    nodes = sorted({rank // 8 for rank in group.ranks})
    assert [row.node for row in shown.nodes] == nodes[:MOST_NODES]
    assert {cell.rank for row in shown.nodes for cell in row.cells if cell.group == 0} == {
        rank for rank in group.ranks if rank // 8 in nodes[:MOST_NODES]
    }
    assert f"{128 - len(shown.nodes)} other nodes not shown" in shown.note


def test_the_titles_say_what_the_table_says() -> None:
    """The title of a panel has the groups of the axis, and whether they stay inside a node."""
    assert panel(LARGE, LARGE.axis("tp")).title == "tp: 128 groups of 8 ranks, each inside a node"
    assert panel(LARGE, LARGE.axis("pp")).title == "pp: 256 groups of 4 ranks, each on 4 nodes"
    assert panel(SMALL, SMALL.axis("ep")).title == "ep: 4 groups of 4 ranks, on up to 2 nodes"


def test_the_axes_are_those_named_and_the_expert_mesh() -> None:
    """By default the native axes of more than one rank are drawn; those of the expert mesh always are."""
    assert [axis.name for axis in drawn_axes(LARGE)] == ["pp", "dp_shard", "cp", "tp", "ep_shard", "ep"]
    assert [axis.name for axis in drawn_axes(LARGE, ["tp", "dp", "tp", "ep"])] == ["tp", "dp", "ep", "ep_shard"]
    with pytest.raises(KeyError, match="no axis 'tq'"):
        drawn_axes(LARGE, ["tq"])


@pytest.mark.parametrize(("suffix", "start"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_a_picture_is_written_beside_the_report(
    suffix: str, start: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--picture writes a file of the format that its name says, the same each time, and the report is printed."""
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "other")]
    for file in files:
        assert main([*LINE, "--picture", str(file), "--axes", "tp, dp"]) == 0
    assert "fsdp2 on 16 ranks" in capsys.readouterr().out
    one, other = (file.read_bytes() for file in files)
    assert one.startswith(start)
    assert one == other
    if suffix == ".svg":
        assert "dp: 2 groups of 8 ranks" in one.decode()
        assert "expert mesh" in one.decode()


def test_letters_go_on_after_z() -> None:
    """Groups after Z have two letters."""
    assert [Cell(0, number).letters for number in (0, 25, 26, 27, 52, 701, 702)] == [
        "A",
        "Z",
        "AA",
        "AB",
        "BA",
        "ZZ",
        "AAA",
    ]


def test_without_matplotlib_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without matplotlib --picture exits with 2, names the extra, and prints and writes nothing."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*LINE, "--picture", str(tmp_path / "mesh.svg")]) == 2
    captured = capsys.readouterr()
    assert "pip install 'automodel-mesh[plots]'" in captured.err
    assert (captured.out, [*tmp_path.iterdir()]) == ("", [])


def test_a_picture_of_another_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is neither SVG nor PNG is refused as a wrong argument."""
    with pytest.raises(SystemExit, match="2"):
        main([*LINE, "--picture", "mesh.gif"])
    assert "give a file whose name ends in .svg or .png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--picture", "/nowhere/mesh.svg"], "No such file or directory"),
        (["--picture", "/nowhere/mesh.svg", "--axes", "dp_shad"], "no axis 'dp_shad' here (did you mean 'dp_shard'?)"),
    ],
)
def test_a_picture_that_cannot_be_drawn_exits_with_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown axis and a file that cannot be written exit with 2, and nothing is printed to stdout."""
    assert main([*LINE, *arguments]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""
