"""`automodel-mesh plan --suggest`: all sizes that fit, in the stated order."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from automodel_mesh.cli import main
from automodel_mesh.planning.nearby import fits
from automodel_mesh.planning.suggest import Request, suggest
from automodel_mesh.topology.sizes import ParallelismSizes
from automodel_mesh.topology.strategies import strategy_named

pytestmark = pytest.mark.release_independent


def suggested(line: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the suggestions of a command."""
    assert main(["plan", *line.split(), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["schema", "suggestions"]
    found: list[dict[str, Any]] = document["suggestions"]
    for suggestion in found:
        assert list(suggestion) == ["sizes", "tp_in_a_node", "groups_across_nodes", "process_groups"]
    return found


@pytest.mark.parametrize(
    ("kept", "chosen", "least"),
    [
        (ParallelismSizes(), ("tp_size", "pp_size", "cp_size"), 1),
        (ParallelismSizes(tp_size=4), ("pp_size", "ep_size"), 2),
        (ParallelismSizes(pp_size=3, dp_size=4), ("tp_size", "dp_replicate_size"), 1),
    ],
)
def test_all_sizes_that_fit_are_found_once(kept: ParallelismSizes, chosen: tuple[str, ...], least: int) -> None:
    """The suggestions are all sizes that fit, found by trying every combination."""
    strategy, world = strategy_named("fsdp2"), 24
    known = {name: getattr(kept, name) for name in ("tp_size", "pp_size", "cp_size", "ep_size", "dp_replicate_size")}
    every = [
        {**known, **dict(zip(chosen, values, strict=True))}
        for values in itertools.product(range(least, world + 1), repeat=len(chosen))
    ]
    expected = [sizes for sizes in every if fits(strategy, ParallelismSizes(dp_size=kept.dp_size, **sizes), world)]
    found = suggest(Request(strategy, world, 8, kept, chosen, least))
    listed = [{name: getattr(suggestion.sizes, name) for name in known} for suggestion in found]
    expected = [sizes | {"dp_replicate_size": sizes["dp_replicate_size"] or 1} for sizes in expected]
    assert sorted(map(str, listed)) == sorted(map(str, expected))
    for suggestion in found:
        sizes = suggestion.sizes
        assert sizes.dp_size is not None
        assert sizes.dp_size * sizes.tp_size * sizes.pp_size * sizes.cp_size == world
        assert sizes.dp_size == (kept.dp_size or sizes.dp_size)


def test_suggestions_are_sorted_by_the_stated_rules(capsys: pytest.CaptureFixture[str]) -> None:
    """First tp inside a node, then the groups across nodes, then the groups of the job; ten are shown."""
    found = suggested("--world-size 64 --suggest --gpus-per-node 4", capsys)
    keys = [(not each["tp_in_a_node"], each["groups_across_nodes"], each["process_groups"]["in_job"]) for each in found]
    assert keys == sorted(keys)
    assert len(found) == 10
    assert found[0]["sizes"]["dp_size"] == 64


def test_sizes_inside_a_node_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    """With 6 ranks per node and a tp of 2, 4 or 8, only the 2 stays inside a node."""
    found = suggested("--world-size 24 --pp 3 --suggest tp --gpus-per-node 6", capsys)
    assert [(each["sizes"]["tp_size"], each["tp_in_a_node"]) for each in found] == [(2, True), (8, False), (4, False)]


def test_given_sizes_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Sizes that are given, and those that are not named, are the same in all suggestions."""
    found = suggested("--world-size 64 --tp 8 --ep 16 --suggest dp-replicate,cp", capsys)
    assert {(each["sizes"]["tp_size"], each["sizes"]["ep_size"], each["sizes"]["pp_size"]) for each in found} == {
        (8, 16, 1)
    }
    assert all(each["sizes"]["cp_size"] > 1 and each["sizes"]["dp_replicate_size"] > 1 for each in found)


@pytest.mark.parametrize("strategy", ["megatron_fsdp", "ddp"])
def test_sizes_that_the_strategy_lacks_are_left_out(strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without names only sizes that the strategy supports are chosen."""
    found = suggested(f"--world-size 12 --strategy {strategy} --suggest", capsys)
    assert {each["sizes"]["pp_size"] for each in found} == {1}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--world-size 64 --tp 8 --suggest tp", "--tp is given: leave it out"),
        ("--world-size 7 --suggest tp,pp", "no sizes fit 7 ranks"),
        ("--world-size 10 --tp 3 --suggest", "no sizes fit 10 ranks"),
        ("--world-size 367567200 --suggest", "more than 5,000 combinations of tp, pp, cp to compare"),
    ],
)
def test_what_cannot_be_suggested_exits_with_2(line: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If no sizes fit, or too many would have to be compared, the command exits with 2 and says so."""
    assert main(["plan", *line.split()]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("names", ["tp,xx", "tp,tp", "", "dp"])
def test_unknown_names_are_refused(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Names that are not sizes to choose are refused with those that are."""
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--world-size", "8", "--suggest", names])
    assert "give names from tp, pp, cp, ep, dp-replicate" in capsys.readouterr().err
