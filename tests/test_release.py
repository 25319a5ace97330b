"""Releases: the tag that is built, the links that the package index shows, the documentation of each version."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from email.parser import Parser
from pathlib import Path

import pytest
import tomli

from tests.test_ci_matrix import RELEASES, label, list_sessions
from tests.test_packaging import build, copy_checkout, read

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).resolve().parent.parent
HOME = "https://forge.example/some/project"
TAG = "v0.1.0"
VERSION = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program."""
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_relative_links_lead_to_files(page: str) -> None:
    """Each link of a page in the root that is a path leads to a file or folder of the checkout."""
    paths = [target for target in LINK.findall((ROOT / page).read_text(encoding="utf-8")) if ":" not in target]
    assert paths or page != "README.md"
    assert [path for path in paths if not (ROOT / path.partition("#")[0]).exists()] == []


def test_a_release_names_its_home(tmp_path: Path) -> None:
    """In what is published each link of the README is absolute, to a file of the tag, and the URLs are given."""
    checkout = copy_checkout(tmp_path / "checkout")
    done = run(sys.executable, ".github/set_home.py", HOME, TAG, cwd=checkout)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (metadata,) = [
        text for name, text in read(build("wheel", checkout, tmp_path / "wheel")).items() if "METADATA" in name
    ]
    message = Parser().parsestr(metadata)
    urls = dict(line.split(", ") for line in message.get_all("Project-URL", []))
    assert urls.keys() == {"Repository", "Documentation", "Changelog", "Issues"}
    assert urls["Repository"] == HOME
    assert all(url.startswith(HOME) for url in urls.values())
    links = LINK.findall(str(message.get_payload()))
    ours = [link.removeprefix(f"{HOME}/blob/{TAG}/") for link in links if link.startswith(HOME)]
    assert [link for link in links if not link.startswith("https://")] == []
    assert ours
    assert [path for path in ours if not (ROOT / path.partition("#")[0]).exists()] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](docs/a.md)", f"[a]({HOME}/blob/{TAG}/docs/a.md)"),
        ("[a](docs/a.md#b) [c](docs/)", f"[a]({HOME}/blob/{TAG}/docs/a.md#b) [c]({HOME}/blob/{TAG}/docs/)"),
        ("![a drawing](docs/a.svg)", f"![a drawing]({HOME}/raw/{TAG}/docs/a.svg)"),
        ("[a](https://example.org/b) [c](#d) [e](mailto:f)", "[a](https://example.org/b) [c](#d) [e](mailto:f)"),
        ("f(x), mesh[a] (b), [c], d[0]", "f(x), mesh[a] (b), [c], d[0]"),
    ],
)
def test_only_paths_become_absolute(text: str, expected: str) -> None:
    """Links to paths become absolute, pictures as raw files; other links and text stay."""
    assert runpy.run_path(str(ROOT / ".github/set_home.py"))["absolute"](text, HOME, TAG) == expected


def test_a_tag_of_another_version_is_not_built() -> None:
    """`nox -s dist` refuses a tag that is not the version of the package, and says both."""
    done = run(sys.executable, "-m", "nox", "--no-venv", "--no-install", "-s", "dist", "--", "v99.1", cwd=ROOT)
    assert done.returncode == 1
    assert f"the tag is v99.1, and the version in pyproject.toml is {VERSION}" in done.stderr


def test_a_version_without_changelog_is_not_built(tmp_path: Path) -> None:
    """`nox -s dist` refuses a tag whose version has no section in the changelog."""
    checkout = copy_checkout(tmp_path / "checkout")
    changelog = checkout / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace(f"\n## {VERSION} ", "\n## Unreleased "))
    done = run(
        sys.executable, "-m", "nox", "--no-venv", "--no-install", "-s", "dist", "--", f"v{VERSION}", cwd=checkout
    )
    assert done.returncode == 1
    assert f"CHANGELOG.md has no section {VERSION}" in done.stderr


def test_wheels_are_tested_on_the_oldest_and_the_newest_release() -> None:
    """The wheel's tests run on the oldest and the newest torch of the matrix."""
    assert set(list_sessions("-t", "wheel-tests")) == {f"wheel-tests-{label(RELEASES[i])}" for i in (0, -1)}


def test_only_a_tested_wheel_is_published() -> None:
    """The release workflow runs for tags alone; it publishes after all else, without a password, from a named place."""
    text = (ROOT / ".github/workflows/release.yml").read_text()
    assert 'on:\n  push:\n    tags: ["v*"]\n\npermissions: {}\n' in text
    jobs = dict(re.findall(r"^  ([a-z-]+):\n((?: {4,}.*\n|\n)+)", text.partition("\njobs:\n")[2], re.MULTILINE))
    publish = jobs["publish"]
    assert "needs: [build, test, docs]" in publish
    assert "environment: pypi" in publish
    assert re.findall(r"^    permissions:\n((?:      .*\n)+)", publish, re.MULTILINE) == [
        "      id-token: write # trusted publishing: the index takes this token, and there is no password to store\n"
    ]
    assert [name for name, job in jobs.items() if "write" in "".join(re.findall(r": write\b", job))] == [
        "publish",
        "publish-docs",
    ]
    assert "secrets." not in text
    assert 'nox -s dist -- "$GITHUB_REF_NAME"' in jobs["build"]


def test_the_documentation_of_each_version_stays(tmp_path: Path) -> None:
    """Each version has a folder, none is lost, and the first page leads to the newest final release."""
    remote, html = tmp_path / "remote.git", tmp_path / "html"
    assert run("git", "init", "--quiet", "--bare", str(remote), cwd=tmp_path).returncode == 0
    (html / "_static").mkdir(parents=True)
    for version in ("0.9.0", "0.10.0", "0.10.1rc1", "0.9.1", "0.9.1"):
        (html / "index.html").write_text(f"documentation of {version}")
        done = run("bash", str(ROOT / ".github/publish_docs.sh"), str(html), version, str(remote), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    run("git", "clone", "--quiet", "--branch", "gh-pages", str(remote), str(site), cwd=tmp_path)
    for version in ("0.9.0", "0.9.1", "0.10.0", "0.10.1rc1"):
        assert (site / version / "index.html").read_text() == f"documentation of {version}"
    first = (site / "index.html").read_text()
    assert "url=0.10.0/" in first
    assert re.findall(r'<li><a href="(.*?)/">', first) == ["0.10.0", "0.9.1", "0.9.0", "0.10.1rc1"]
    assert (site / ".nojekyll").exists()


@pytest.mark.parametrize("version", ["", "main", "../1", "1/2", "1 2"])
def test_what_is_no_version_gets_no_folder(version: str, tmp_path: Path) -> None:
    """What is not a version is refused before anything is written."""
    done = run("bash", str(ROOT / ".github/publish_docs.sh"), str(tmp_path), version, str(tmp_path / "x"), cwd=tmp_path)
    assert done.returncode == 2
    assert "not a version" in done.stderr
    assert list(tmp_path.iterdir()) == []
