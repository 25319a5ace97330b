"""Makes results.md and the plot of this folder out of what `nox -s bench` measured.

    python docs/benchmarks/render.py RESULTS.json [RESULTS.json ...]

Each file is one release's, as pytest-benchmark writes it. Times are medians.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib import pyplot as plt
from packaging.version import Version

OURS: Final = "ours"
TORCH: Final = "torch"
HERE: Final = Path(__file__).parent
PLOTTED: Final = 'get_flat_mesh(mesh, "tp")'
LOOKUP: Final = "test_time_of_lookups"
BUILD: Final = "test_time_of_building"
FIRST_MESH: Final = "test_time_of_the_first_mesh_of_a_process"
RANKS: Final = "test_time_on_eight_gloo_ranks"
MEETING: Final = "test_the_meeting_of_eight_ranks"

Case = tuple[object, ...]
Found = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """What was measured on one release: for each benchmark and its parameters, what was found of each side."""

    torch: str
    python: str
    machine: str
    date: str
    found: dict[str, dict[Case, dict[str, Found]]]

    @staticmethod
    def read(path: Path) -> Release:
        """Read a file of pytest-benchmark's."""
        data = json.loads(path.read_text())
        found: dict[str, dict[Case, dict[str, Found]]] = {}
        for benchmark in data["benchmarks"]:
            params = dict(benchmark["params"] or {})
            whose = params.pop("whose", OURS)
            case = tuple(tuple(value) if isinstance(value, list) else value for value in params.values())
            cases = found.setdefault(benchmark["name"].split("[")[0], {})
            cases.setdefault(case, {})[whose] = {"seconds": benchmark["stats"]["median"], **benchmark["extra_info"]}
        machine = data["machine_info"]
        return Release(
            data["benchmarks"][0]["extra_info"]["torch"].split("+")[0],
            machine["python_version"],
            f"{machine['cpu'].get('brand_raw', machine['machine'])}, {machine['cpu']['count']} cores",
            data["datetime"][:10],
            found,
        )


Cell = Callable[[Release], str]
Row = tuple[str, Cell]


def duration(seconds: float) -> str:
    """Write a time with the unit that suits it."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def times(test: str, case: Case, read: Callable[[Found], float] = lambda found: found["seconds"]) -> Cell:
    """Make the cell of a time: ours, torch's, and how many times ours torch's is."""

    def cell(release: Release) -> str:
        sides = release.found[test][case]
        ours, torchs = read(sides[OURS]), read(sides[TORCH])
        ratio = torchs / ours
        return f"{duration(ours)} / {duration(torchs)}: **{f'{ratio:,.0f}' if ratio >= 10 else f'{ratio:.1f}'}**"

    return cell


def counts(test: str, case: Case, what: str, unit: float = 1) -> Cell:
    """Make the cell of a count: ours and torch's."""

    def cell(release: Release) -> str:
        sides = release.found[test][case]
        return " / ".join(f"{sides[side][what] / unit:,.0f}" for side in (OURS, TORCH))

    return cell


def table(corner: str, releases: list[Release], rows: Iterable[Row]) -> str:
    """Lay out rows over the releases."""
    lines = [f"| {corner} | " + " | ".join(f"torch {release.torch}" for release in releases) + " |"]
    lines.append("|---" * (len(releases) + 1) + "|")
    lines += [f"| {name} | " + " | ".join(cell(release) for release in releases) + " |" for name, cell in rows]
    return "\n".join(lines)


def lookup_rows(cases: Iterable[Case], what: str) -> list[Row]:
    """Make a row for each request and world size."""
    return [
        (f"`{request}`, {world:,} ranks", times(LOOKUP, (world, request), lambda found: found[what]))
        for world, request in sorted(cases, key=lambda case: (str(case[1]), case[0]))
    ]


def build_rows(cases: Iterable[Case], cell: Callable[[Case], Cell]) -> list[Row]:
    """Make a row for each shape and number of ranks outside the mesh."""
    return [(build_name(*case), cell(case)) for case in cases]  # type: ignore[arg-type]


def build_name(shape: tuple[int, ...], outside: int) -> str:
    """Name what is built."""
    name = " x ".join(map(str, shape))
    return f"{name}, {outside:,} more ranks outside" if outside else name


def rank_rows(cases: dict[Case, dict[str, Found]]) -> list[Row]:
    """Make the rows of the times on real ranks: building, and first lookups."""
    rows = [(f"build {case[0]}", times(RANKS, case)) for case in cases]
    for case, sides in cases.items():
        for request in sides[OURS]["first"]:
            cell = times(RANKS, case, lambda found, request=request: found["first"][request])
            rows.append((f"first `{request}`, {case[0]}", cell))
    return rows


def results(releases: list[Release]) -> str:
    """Write all tables."""
    lookups, builds, ranks = (releases[-1].found[test] for test in (LOOKUP, BUILD, RANKS))
    measured = ", ".join(f"torch {release.torch} on Python {release.python}" for release in releases)
    megabytes = 1e6
    parts = [
        "<!-- Made by docs/benchmarks/render.py from what `nox -s bench` measured. -->",
        f"Measured on {releases[-1].date}, {releases[-1].machine}; {measured}.",
        "![Repeated lookups and building over the number of ranks, ours and torch's](results.svg)",
        "## Repeated lookups",
        table("", releases, lookup_rows(lookups, "seconds")),
        "## First lookups",
        table("", releases, lookup_rows(lookups, "first")),
        "## Building",
        table("", releases, build_rows(builds, lambda case: times(BUILD, case))),
        "Calls of `new_group` on one rank, ours and torch's:",
        table("", releases, build_rows(builds, lambda case: counts(BUILD, case, "new_group calls"))),
        "Process groups of one rank besides the default one, ours and torch's:",
        table("", releases, build_rows(builds, lambda case: counts(BUILD, case, "groups"))),
        "Resident memory that building adds to a process, in MB, ours and torch's:",
        table("", releases, build_rows(builds, lambda case: counts(BUILD, case, "bytes", megabytes))),
        "## The first mesh of a process",
        "A mesh of 8 ranks and one axis of it. The second row is the peak memory added, in MB, ours and torch's.",
        table(
            "",
            releases,
            [("time", times(FIRST_MESH, ())), ("memory", counts(FIRST_MESH, (), "bytes", megabytes))],
        ),
        "## 8 gloo ranks",
        table("", releases, rank_rows(ranks)),
        "The meeting of the ranks, with which each operation that makes groups begins and ends; plain torch has none:",
        table(
            "", releases, [("time on one rank", lambda release: duration(release.found[MEETING][()][OURS]["seconds"]))]
        ),
        "What building adds on one rank, ours and torch's:",
        table(
            "",
            releases,
            [
                (f"{what}, {case[0]}", counts(RANKS, case, what))
                for case in ranks
                for what in ("groups", "threads", "open files")
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def curves(release: Release, side: str) -> dict[str, list[tuple[int, float]]]:
    """Return the points of a release's two curves: ranks and seconds."""
    lookups = release.found[LOOKUP].items()
    builds = release.found[BUILD].items()
    return {
        f"repeated {PLOTTED}": sorted(
            (case[0], sides[side]["seconds"])  # type: ignore[misc]
            for case, sides in lookups
            if case[1] == PLOTTED
        ),
        "build dp_shard x tp": sorted(
            (math.prod(case[0]), sides[side]["seconds"])  # type: ignore[arg-type]
            for case, sides in builds
            if case[0][0] == 1 and not case[1]  # type: ignore[index]
        ),
    }


def plot(releases: list[Release], path: Path) -> None:
    """Draw repeated lookups and building over the number of ranks."""
    mpl.rcParams["svg.hashsalt"] = "automodel-mesh"  # the same picture from the same numbers
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, release in enumerate(releases):
        for side, style in ((TORCH, "--"), (OURS, "-")):
            for axes, (title, points) in zip(panels, curves(release, side).items(), strict=True):
                label = f"{side}, torch {release.torch}" if side == OURS else f"torch {release.torch}"
                axes.plot(*zip(*points, strict=True), style, color=f"C{number}", marker=".", label=label)
                axes.set(xscale="log", yscale="log", title=title, xlabel="ranks", ylabel="seconds")
                axes.grid(visible=True, alpha=0.3)
    panels[0].legend(fontsize="x-small")
    figure.savefig(path, metadata={"Date": None})


def main(files: list[str]) -> None:
    """Write the results page and the plot."""
    releases = sorted(map(Release.read, map(Path, files)), key=lambda release: Version(release.torch))
    (HERE / "results.md").write_text(results(releases))
    plot(releases, HERE / "results.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
