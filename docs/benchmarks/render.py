"""Makes headlines.md, results.md and the plot of this folder out of what `nox -s bench` measured.

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
from matplotlib.axes import Axes
from packaging.version import Version

OURS: Final = "ours"
TORCH: Final = "torch"
HERE: Final = Path(__file__).parent
MADE: Final = "<!-- Made by docs/benchmarks/render.py from what `nox -s bench` measured. -->"
UNBROKEN: Final = "\N{NO-BREAK SPACE}"  # between a number and its unit
PLOTTED: Final = 'get_flat_mesh(mesh, "tp")'
LOOKUP: Final = "test_time_of_lookups"
BUILD: Final = "test_time_of_building"
FIRST_MESH: Final = "test_time_of_the_first_mesh_of_a_process"
RANKS: Final = "test_time_on_eight_gloo_ranks"
MEETING: Final = "test_the_meeting_of_eight_ranks"
PLAN: Final = "test_time_of_planning_a_million_ranks"
NOTHING: Final = "python -c pass"

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

    @property
    def short(self) -> str:
        """The release without its patch."""
        return ".".join(self.torch.split(".")[:2])

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


def duration(time: float) -> str:
    """Write a time in seconds with the unit that suits it."""
    number, unit = (time, "s") if time >= 1 else (time * 1e3, "ms") if time >= 1e-3 else (time * 1e6, "µs")
    return f"{number:.3g}{UNBROKEN}{unit}"


def times_ours(ratio: float) -> str:
    """Write how many times ours torch's is."""
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.1f}"


def seconds(found: Found) -> float:
    """Return the median time."""
    return float(found["seconds"])


def times(test: str, case: Case, read: Callable[[Found], float] = seconds) -> Cell:
    """Make the cell of a time: ours, torch's, and how many times ours torch's is."""

    def cell(release: Release) -> str:
        sides = release.found[test][case]
        ours, torchs = read(sides[OURS]), read(sides[TORCH])
        return f"{duration(ours)} / {duration(torchs)}: **{times_ours(torchs / ours)}**"

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
        MADE,
        "# All measurements",
        f"Measured on {releases[-1].date}, {releases[-1].machine}; {measured}. A cell reads "
        "*ours / torch's:* **torch's divided by ours**; all are medians. "
        "[What is measured](index.md#what-is-measured), and how to read it.",
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
            "", releases, [("time on one rank", lambda release: duration(seconds(release.found[MEETING][()][OURS])))]
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
        "## A plan of 1,048,576 ranks",
        "The whole command `automodel-mesh plan`, and a Python that does nothing:",
        table(
            "",
            releases,
            [
                (f"`{name}`", lambda release, whose=whose: duration(seconds(release.found[PLAN][()][whose])))
                for name, whose in (("automodel-mesh plan", OURS), (NOTHING, NOTHING))
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def calls(found: Found) -> float:
    """Return how often a rank called `new_group`."""
    return float(found["new_group calls"])


WIDE: Final = ((1, 1, 8192, 1, 8), 0)
HEADLINES: Final[tuple[tuple[str, str, Case, Callable[[Found], float]], ...]] = (
    ("Look up an axis again, 16,384 ranks", LOOKUP, (16_384, PLOTTED), seconds),
    ("Build a mesh and its derived axes, 65,536 ranks", BUILD, WIDE, seconds),
    ("… calls of `new_group` on each rank", BUILD, WIDE, calls),
    ("The first mesh of a process, 8 ranks", FIRST_MESH, (), seconds),
    ("Build a mesh on 8 gloo ranks", RANKS, ("dp_shard 4 x tp 2",), seconds),
)


def headlines(releases: list[Release]) -> str:
    """Write the five ratios and the plot that the page begins with."""
    *others, newest = releases
    span = f"{others[0].short} to {others[-1].short}"
    lines = [f"| torch {newest.short} | ours | torch's | torch's / ours | on {span} |", "|---|--:|--:|--:|--:|"]
    for name, test, case, read in HEADLINES:
        sides = [[read(release.found[test][case][side]) for side in (OURS, TORCH)] for release in releases]
        *ratios, ratio = (torchs / ours for ours, torchs in sides)
        write = duration if read is seconds else "{:,.0f}".format
        ends = " to ".join(dict.fromkeys(times_ours(end) for end in (min(ratios), max(ratios))))
        lines.append(f"| {name} | {' | '.join(map(write, sides[-1]))} | **{times_ours(ratio)}** | {ends} |")
    picture = "![Time of repeated lookups and of building over the number of ranks, ours and torch's](results.svg)"
    return "\n\n".join([MADE, "\n".join(lines), picture]) + "\n"


Line = tuple[str, list[tuple[int, float]]]
"""The release of a line in the plot, and its points: ranks and seconds."""


def lookup_line(release: Release, side: str) -> Line:
    """Return the times of a repeated lookup."""
    found = release.found[LOOKUP].items()
    return release.short, sorted((case[0], seconds(sides[side])) for case, sides in found if case[1] == PLOTTED)  # type: ignore[misc]


def build_line(release: Release, side: str) -> Line:
    """Return the times of building a mesh of the axes dp_shard and tp."""
    found = release.found[BUILD].items()
    return release.short, sorted(
        (math.prod(case[0]), seconds(sides[side]))  # type: ignore[arg-type]
        for case, sides in found
        if case[0][0] == 1 and not case[1]  # type: ignore[index]
    )


PANELS: Final = (
    ("Look up an axis again", lookup_line, range(-7, 1)),
    ("Build a mesh and its derived axes", build_line, range(-3, 2)),
)
COLOURS: Final = {TORCH: "#D55E00", OURS: "#0072B2"}


def plot(releases: list[Release], path: Path) -> None:
    """Draw repeated lookups and building over the number of ranks, one above the other, each line with its name."""
    mpl.rcParams.update({"svg.hashsalt": "automodel-mesh", "font.size": 15})  # the same picture from the same numbers
    figure, panels = plt.subplots(2, 1, figsize=(7.2, 8.6), layout="constrained")
    ranks = [8, 256, 4096, 65_536]
    for axes, (title, line, powers) in zip(panels, PANELS, strict=True):
        for side in (TORCH, OURS):
            draw_lines(axes, side, [line(release, side) for release in releases])
        axes.set_title(title, loc="left", fontsize=15, weight="bold")
        axes.set(xscale="log", yscale="log", xlim=(6, 65_536 * 60), ylim=(10.0 ** powers[0], 10.0 ** powers[-1]))
        axes.minorticks_off()
        axes.set_xticks(ranks, [f"{number:,}" for number in ranks])
        axes.set_yticks([10.0**power for power in powers], [duration(10.0**power) for power in powers])
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("ranks", loc="left")
    figure.savefig(path, metadata={"Date": None})


def draw_lines(axes: Axes, side: str, lines: list[Line]) -> None:
    """Draw the lines of one side, and name them at their ends: one name for those that end near each other."""
    named: list[list[Line]] = []
    for line in sorted(lines, key=end):
        axes.plot(*zip(*line[1], strict=True), color=COLOURS[side], marker=".")
        if named and end(line) < 2.5 * end(named[-1][-1]):
            named[-1].append(line)
        else:
            named.append([line])
    for group in named:
        names = ", ".join(sorted((name for name, _ in group), key=Version))
        words = f"{'ours, on torch' if side == OURS else side} {names}".replace(", 2.1", ",\n2.1", 1)
        place = (group[0][1][-1][0], math.sqrt(end(group[0]) * end(group[-1])))
        axes.annotate(words, place, (7, 0), textcoords="offset points", va="center", color=COLOURS[side], fontsize=13)


def end(line: Line) -> float:
    """Return the last time of a line."""
    return line[1][-1][1]


def main(files: list[str]) -> None:
    """Write the headlines, the page of results and the plot."""
    releases = sorted(map(Release.read, map(Path, files)), key=lambda release: Version(release.torch))
    (HERE / "headlines.md").write_text(headlines(releases), encoding="utf-8")
    (HERE / "results.md").write_text(results(releases), encoding="utf-8")
    plot(releases, HERE / "results.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
