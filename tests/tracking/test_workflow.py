"""The scheduled workflow keeps one issue: it opens, updates and closes it, and leaves it alone if nothing changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from automodel_mesh.tracking.comparison import Comparison, Finding
from automodel_mesh.tracking.report import as_markdown

pytestmark = [
    pytest.mark.release_independent,
    pytest.mark.skipif(shutil.which("bash") is None, reason="the script is one for bash"),
]

GITHUB = Path(__file__).parents[2] / ".github"
SCRIPT = GITHUB / "track_issue.sh"
WORKFLOW = GITHUB / "workflows" / "track.yml"

# Replaces GitHub's own `gh`: stores issues in a file, and accepts only those arguments that the script may use.
GH = """\
import argparse, json, pathlib, sys

state = pathlib.Path(sys.argv[1])
github = json.loads(state.read_text())
parser = argparse.ArgumentParser()
topics = parser.add_subparsers(dest="topic", required=True)
issue = topics.add_parser("issue").add_subparsers(dest="verb", required=True)
label = topics.add_parser("label").add_subparsers(dest="verb", required=True)

def verb(group, name, positional, *options):
    command = group.add_parser(name, allow_abbrev=False)
    for one in positional:
        command.add_argument(one)
    for option in options:
        command.add_argument(option, **({"action": "store_true"} if option == "--force" else {"required": True}))

verb(issue, "list", [], "--label", "--state", "--limit", "--json", "--jq")
verb(issue, "view", ["number"], "--json", "--jq")
verb(issue, "create", [], "--title", "--label", "--body-file")
verb(issue, "edit", ["number"], "--title", "--body-file")
verb(issue, "comment", ["number"], "--body")
verb(issue, "close", ["number"], "--comment")
verb(label, "create", ["name"], "--description", "--color", "--force")
given = parser.parse_args(sys.argv[2:])
github["calls"].append(f"{given.topic} {given.verb}")
issues = github["issues"]
one = next((one for one in issues if str(one["number"]) == getattr(given, "number", None)), None)

if given.topic == "label":
    assert given.force
    github["labels"] = sorted({*github["labels"], given.name})
elif given.verb == "list":
    assert (given.state, given.json, given.jq) == ("open", "number", ".[].number")
    found = [one["number"] for one in issues if one["open"] and given.label in one["labels"]]
    print(*found[: int(given.limit)], sep="\\n")
elif given.verb == "create":
    assert given.label in github["labels"] and given.body_file == "-"
    number = len(issues) + 1
    issues.append({"number": number, "open": True, "labels": [given.label], "title": given.title,
                   "body": sys.stdin.read().strip(), "comments": []})
elif given.verb == "view":
    assert (given.json, given.jq) == ("body", ".body")
    print(one["body"])
elif given.verb == "edit":
    one["title"], one["body"] = given.title, sys.stdin.read().strip()
elif given.verb == "comment":
    one["comments"].append(given.body)
elif given.verb == "close":
    one["open"] = False
    one["comments"].append(given.comment)
state.write_text(json.dumps(github))
"""


@dataclass
class Repository:
    """A repository on a fake GitHub, and the folder of reports."""

    folder: Path

    @property
    def reports(self) -> Path:
        """The folder that is the script's argument."""
        return self.folder / "reports"

    @property
    def github(self) -> dict[str, Any]:
        """The state of GitHub: issues, labels, and the calls of `gh`."""
        return dict(json.loads((self.folder / "github.json").read_text()))

    @github.setter
    def github(self, state: dict[str, Any]) -> None:
        (self.folder / "github.json").write_text(json.dumps(state))

    def report(self, **comparisons: Comparison) -> None:
        """Fill the folder as `nox -s track` does."""
        shutil.rmtree(self.reports, ignore_errors=True)
        self.reports.mkdir()
        for name, comparison in comparisons.items():
            (self.reports / f"{name}.md").write_text(as_markdown(comparison) + "\n")
        changed = [name for name, comparison in comparisons.items() if comparison.verdict != "known"]
        (self.reports / "changed").write_text("".join(f"{name}\n" for name in changed))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the script."""
        environment = {**os.environ, "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        line = ["bash", str(SCRIPT), *(arguments or (str(self.reports),))]
        return subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=self.folder)

    def calls_of_run(self) -> list[str]:
        """Run the script, which must succeed, and return its calls of `gh`."""
        self.github = {**self.github, "calls": []}
        done = self.run()
        assert done.returncode == 0, done.stdout + done.stderr
        return list(self.github["calls"])


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Make a repository without issues."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "gh.py").write_text(GH)
    gh = tmp_path / "bin" / "gh"
    gh.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "gh.py"}" "{tmp_path / "github.json"}" "$@"\n')
    gh.chmod(0o755)
    made = Repository(tmp_path)
    made.github = {"issues": [], "labels": [], "calls": []}
    return made


def compared(torch: str, *changes: str) -> Comparison:
    """Make a comparison with a finding for each changed text."""
    findings = tuple(
        Finding(
            name=f"torch.distributed:_name{number}",
            change="body",
            verdict="needs a look",
            before="",
            after="",
            diff=f"--- before\n+++ after\n@@ -1 +1 @@\n-``` `old` $HOME \\n\n+{change}",
            used_by=("groups.known",),
            reaches=(),
            use="Read.",
            remedy="Look.",
        )
        for number, change in enumerate(changes)
    )
    return Comparison(
        torch, f"the wheel of {torch}", recorded=False, compared_with=("2.15.0",), names=9, findings=findings
    )


def test_known_torches_open_no_issue(repository: Repository) -> None:
    """If every torch is known and no issue is open, the script only asks for an open issue."""
    repository.report(newest=compared("2.15.0"), nightly=compared("2.16.0.dev1"))
    assert repository.calls_of_run() == ["issue list"]
    (repository.reports / "changed").unlink()
    assert repository.calls_of_run() == ["issue list"]


def test_a_first_finding_opens_an_issue(repository: Repository) -> None:
    """The first report with findings becomes an issue with the label, a title and the unchanged report."""
    repository.report(newest=compared("2.15.0"), nightly=compared("2.16.0.dev1", "new"))
    assert repository.calls_of_run() == ["issue list", "label create", "issue create"]
    (issue,) = repository.github["issues"]
    assert (issue["open"], issue["labels"], issue["comments"]) == (True, ["torch-track"], [])
    assert issue["title"] == "torch 2.16.0.dev1: needs a look"
    assert issue["body"].startswith("Written by `.github/workflows/track.yml`, ")
    assert issue["body"].endswith("\n\n" + as_markdown(compared("2.16.0.dev1", "new")))
    assert "2.15.0: known" not in issue["body"]


def test_two_reports_share_an_issue(repository: Repository) -> None:
    """Two reports with findings share the issue, the newest release first."""
    newest, nightly = compared("2.16.0", "new"), compared("2.17.0.dev1", "new", "newer")
    repository.report(newest=newest, nightly=nightly)
    repository.calls_of_run()
    (issue,) = repository.github["issues"]
    assert issue["title"] == "torch 2.16.0: needs a look; torch 2.17.0.dev1: needs a look"
    assert issue["body"].endswith(f"\n\n{as_markdown(newest)}\n\n{as_markdown(nightly)}")


def test_an_unchanged_issue_is_left_alone(repository: Repository) -> None:
    """An issue that already has the report is left alone, even if GitHub returns its lines with CRLF."""
    repository.report(newest=compared("2.16.0", "new"))
    repository.calls_of_run()
    before = repository.github["issues"]
    assert repository.calls_of_run() == ["issue list", "issue view"]
    before[0]["body"] = before[0]["body"].replace("\n", "\r\n")
    repository.github = {**repository.github, "issues": before}
    assert repository.calls_of_run() == ["issue list", "issue view"]
    assert repository.github["issues"] == before


def test_other_findings_update_the_issue(repository: Repository) -> None:
    """If the findings changed, the open issue gets the new report and title, and a comment that says so."""
    repository.report(newest=compared("2.16.0", "new"))
    repository.calls_of_run()
    repository.report(newest=compared("2.16.1", "newer"))
    assert repository.calls_of_run() == ["issue list", "issue view", "issue edit", "issue comment"]
    (issue,) = repository.github["issues"]
    assert issue["title"] == "torch 2.16.1: needs a look"
    assert issue["body"].endswith(as_markdown(compared("2.16.1", "newer")))
    (comment,) = issue["comments"]
    assert comment.startswith("The findings changed")
    assert "torch 2.16.1: needs a look" in comment


def test_the_same_findings_send_no_message(repository: Repository) -> None:
    """A nightly of another day with the same findings updates the report without a comment."""
    repository.report(newest=compared("2.15.0"), nightly=compared("2.16.0.dev1", "new"))
    repository.calls_of_run()
    repository.report(newest=compared("2.15.0"), nightly=compared("2.16.0.dev2", "new"))
    assert repository.calls_of_run() == ["issue list", "issue view", "issue edit"]
    (issue,) = repository.github["issues"]
    assert issue["title"] == "torch 2.16.0.dev2: needs a look"
    assert issue["comments"] == []


def test_an_edited_issue_is_overwritten(repository: Repository) -> None:
    """An issue whose text was replaced by hand gets the report again."""
    repository.report(newest=compared("2.16.0", "new"))
    repository.calls_of_run()
    issues = repository.github["issues"]
    issues[0]["body"] = "I will look at it."
    repository.github = {**repository.github, "issues": issues}
    assert repository.calls_of_run() == ["issue list", "issue view", "issue edit", "issue comment"]
    assert "# torch 2.16.0: needs a look" in repository.github["issues"][0]["body"]


def test_the_issue_is_closed_when_all_is_known(repository: Repository) -> None:
    """When every torch is known again, the issue is closed with a comment, and a later finding opens a new one."""
    repository.report(newest=compared("2.16.0", "new"))
    repository.calls_of_run()
    repository.report(newest=compared("2.16.0"))
    assert repository.calls_of_run() == ["issue list", "issue close"]
    (issue,) = repository.github["issues"]
    assert not issue["open"]
    assert issue["comments"] == ["Every torch that is looked at is known again."]
    assert repository.calls_of_run() == ["issue list"]
    repository.report(newest=compared("2.17.0", "new"))
    assert repository.calls_of_run() == ["issue list", "label create", "issue create"]
    assert [issue["open"] for issue in repository.github["issues"]] == [False, True]


def test_other_issues_are_left_alone(repository: Repository) -> None:
    """Issues without the label are never changed."""
    other = {"number": 1, "open": True, "labels": ["bug"], "title": "t", "body": "b", "comments": []}
    repository.github = {**repository.github, "issues": [other]}
    repository.report(newest=compared("2.16.0", "new"))
    repository.calls_of_run()
    repository.report(newest=compared("2.16.0"))
    repository.calls_of_run()
    assert repository.github["issues"][0] == other


@pytest.mark.parametrize("listed", ["newest.md", "newest.md\n", "\nnewest\n\n"])
def test_the_list_of_reports_is_read_leniently(repository: Repository, listed: str) -> None:
    """The list of reports may have names or file names, empty lines, and no newline at its end."""
    repository.report(newest=compared("2.16.0", "new"))
    (repository.reports / "changed").write_text(listed)
    assert repository.calls_of_run()[-1] == "issue create"


def test_a_missing_report_is_an_error(repository: Repository) -> None:
    """Without a report that it needs, or without a folder, the script fails with the reason and never calls `gh`."""
    repository.report(newest=compared("2.16.0", "new"))
    (repository.reports / "changed").write_text("newest\nnightly\n")
    done = repository.run()
    assert done.returncode == 2
    assert done.stderr.endswith("changed lists nightly, and there is no nightly.md\n")
    (repository.reports / "newest.md").unlink()
    done = repository.run()
    assert done.returncode == 2
    assert "there is no newest.md in" in done.stderr
    assert repository.run("").returncode != 0
    assert repository.github["calls"] == []


def test_a_failure_of_github_is_an_error(repository: Repository) -> None:
    """If GitHub does not answer, the script fails, and does not open a second issue."""
    repository.report(newest=compared("2.16.0", "new"))
    (repository.folder / "bin" / "gh").write_text("#!/bin/sh\necho 'no network' >&2\nexit 4\n")
    done = repository.run()
    assert done.returncode == 4
    assert done.stderr == "no network\n"


def test_only_one_job_of_the_workflow_may_write() -> None:
    """The workflow is scheduled, lets only one job write issues, and names no index."""
    text = WORKFLOW.read_text()
    top, report, issue = re.split(r"^  (?:report|issue):$", text, flags=re.MULTILINE)
    assert "schedule:" in top
    assert "workflow_dispatch:" in top
    assert "permissions:\n  contents: read\n" in top
    assert "concurrency:" in top
    assert text.count(": write") == 1
    assert "issues: write" in issue
    assert "- run: nox -s track\n" in report
    assert "${{ vars.NIGHTLY_INDEX }}" in report
    assert "- run: bash .github/track_issue.sh " in issue
    assert all("timeout-minutes:" in job for job in (report, issue))
    assert text.count("actions/checkout") == text.count("persist-credentials: false")
    assert "http" not in text
