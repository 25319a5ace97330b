"""What is found is put into words: as text, as JSON, and as Markdown that GitHub shows as it is meant."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_mesh.tracking.findings import VERDICTS, Comparison, Finding
from automodel_mesh.tracking.markdown import ISSUE_LIMIT, REPORT_LIMIT, as_markdown
from automodel_mesh.tracking.report import as_document, as_lines, as_text

pytestmark = pytest.mark.release_independent

VANISHED = Finding(
    name="torch.distributed.device_mesh:_MeshEnv.get_root_mesh",
    change="vanished",
    verdict="breaks",
    before="(self, device_mesh: 'DeviceMesh') -> 'DeviceMesh'",
    after="",
    diff="--- before\n+++ after\n@@ -1,2 +0,0 @@\n-def get_root_mesh(self, device_mesh):\n-    return device_mesh",
    used_by=("since_2_06.root_of", "since_2_06.family_of"),
    reaches=("get_root_mesh", "flatten"),
    use="Asked for the root of a mesh, whose __init__ and `a_b | c_d` do not tell it.",
    remedy="Keep roots ourselves.",
)
BODY = Finding(
    name="torch.distributed.distributed_c10d:_world.pg_map",
    change="body",
    verdict="needs a look",
    before="",
    after="",
    diff='--- before\n+++ after\n@@ -1 +1 @@\n-"""``` old"""\n+"""```` new"""',
    used_by=("groups.known",),
    reaches=(),
    use="Read.",
    remedy="Look at what a key is.",
)
APPEARED = Finding(
    name="torch.distributed.device_mesh:DeviceMesh._layout",
    change="appeared",
    verdict="needs a look",
    before="",
    after="_MeshLayout",
    diff="",
    used_by=("a.one", "a.two", "a.three"),
    reaches=("four", "five", "six"),
    use="",
    remedy="",
)
NEW = Comparison(
    torch="2.16.0rc1",
    origin="the wheel /tmp/torch-2.16.0rc1-cp312-none-any.whl",
    recorded=False,
    compared_with=("2.14.1", "2.15.0"),
    names=41,
    findings=(BODY, VANISHED, APPEARED),
    notes=("a note that has <b>HTML</b> in it",),
)
KNOWN = Comparison(
    torch="2.15.0",
    origin="the installed torch in /env",
    recorded=True,
    compared_with=("2.15.0",),
    names=41,
    findings=(),
)

TEXT = """\
torch 2.16.0rc1 (from the wheel /tmp/torch-2.16.0rc1-cp312-none-any.whl): breaks - 2 of 41 names changed, 1 appeared
compared with 2.14.1 and 2.15.0, the nearest releases in the ledger.
automodel-mesh fails on it as it is.
note: a note that has <b>HTML</b> in it

BREAKS (1)

torch.distributed.device_mesh:_MeshEnv.get_root_mesh  vanished
    before      (self, device_mesh: 'DeviceMesh') -> 'DeviceMesh'
    used by     since_2_06.root_of, since_2_06.family_of
    reaches     get_root_mesh, flatten
    relied on   Asked for the root of a mesh, whose __init__ and `a_b | c_d` do not tell it.
    what to do  Keep roots ourselves.
    --- before
    +++ after
    @@ -1,2 +0,0 @@
    -def get_root_mesh(self, device_mesh):
    -    return device_mesh

NEEDS A LOOK (2)

torch.distributed.distributed_c10d:_world.pg_map  changed its body
    used by     groups.known
    relied on   Read.
    what to do  Look at what a key is.
    --- before
    +++ after
    @@ -1 +1 @@
    -\"""``` old\"""
    +\"""```` new\"""

torch.distributed.device_mesh:DeviceMesh._layout  appeared
    now         _MeshLayout
    used by     a.one, a.two, a.three
    reaches     four, five, six"""

MARKDOWN = """\
# torch 2.16.0rc1: breaks
<!-- findings FINGERPRINT -->

**breaks**: 2 of 41 names changed, 1 appeared. automodel-mesh fails on it as it is.

Read from `the wheel /tmp/torch-2.16.0rc1-cp312-none-any.whl`; compared with 2.14.1 and 2.15.0, \
the nearest releases in the ledger.

> a note that has \\<b\\>HTML\\</b\\> in it

| name | what happened | verdict | functions touched |
|---|---|---|---|
| `torch.distributed.device_mesh:_MeshEnv.get_root_mesh` | vanished | breaks | \
`since_2_06.root_of`, `since_2_06.family_of`, `get_root_mesh`, `flatten` |
| `torch.distributed.distributed_c10d:_world.pg_map` | changed its body | needs a look | `groups.known` |
| `torch.distributed.device_mesh:DeviceMesh._layout` | appeared | needs a look | \
`a.one`, `a.two`, `a.three`, `four` and 2 more |

## `torch.distributed.device_mesh:_MeshEnv.get_root_mesh` vanished (breaks)

- **before**: `(self, device_mesh: 'DeviceMesh') -> 'DeviceMesh'`
- **used by**: `since_2_06.root_of`, `since_2_06.family_of`
- **reaches**: `get_root_mesh`, `flatten`
- **relied on**: Asked for the root of a mesh, whose \\_\\_init\\_\\_ and `a_b | c_d` do not tell it.
- **what to do**: Keep roots ourselves.

<details><summary>diff</summary>

```diff
--- before
+++ after
@@ -1,2 +0,0 @@
-def get_root_mesh(self, device_mesh):
-    return device_mesh
```

</details>

## `torch.distributed.distributed_c10d:_world.pg_map` changed its body (needs a look)

- **used by**: `groups.known`
- **relied on**: Read.
- **what to do**: Look at what a key is.

<details><summary>diff</summary>

`````diff
--- before
+++ after
@@ -1 +1 @@
-\"""``` old\"""
+\"""```` new\"""
`````

</details>

## `torch.distributed.device_mesh:DeviceMesh._layout` appeared (needs a look)

- **now**: `_MeshLayout`
- **used by**: `a.one`, `a.two`, `a.three`
- **reaches**: `four`, `five`, `six`"""


def fingerprint(text: str) -> str:
    """Return what a Markdown report has as the fingerprint of its findings."""
    (found,) = re.findall(r"^<!-- findings ([0-9a-f]{16}) -->$", text, re.MULTILINE)
    return str(found)


def fences_close(text: str) -> bool:
    """Tell whether each fence of a Markdown text is closed and each folded part ends outside of fences."""
    fence, folded = "", 0
    for line in text.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif opening := re.match(r"(`{3,})diff$", line):
            fence = opening[1]
        else:
            folded += line.startswith("<details>") - (line == "</details>")
    return not fence and not folded


# --- text


def test_text() -> None:
    """Text begins with the verdict, and tells breaks first, each finding with what it touches and its diff."""
    assert as_text(NEW) == TEXT


def test_text_of_a_known_release() -> None:
    """Of a known torch, text says what it was compared with and that nothing we rely on changed."""
    assert as_text(KNOWN) == (
        "torch 2.15.0 (from the installed torch in /env): known - none of 41 names changed\n"
        "compared with what the ledger has recorded of 2.15.0.\n"
        "Nothing that automodel-mesh relies on changed."
    )
    between = as_text(replace(KNOWN, recorded=False, compared_with=("2.14.0", "2.15.0")))
    assert "\ncompared with 2.14.0 and 2.15.0, the nearest releases in the ledger.\n" in between


def test_text_of_what_changed_without_harm() -> None:
    """A known torch with harmless findings is not said to have changed nothing."""
    text = as_text(replace(KNOWN, findings=(replace(BODY, verdict="known"),)))
    assert "known - 1 of 41 names changed" in text
    assert "What changed does no harm." in text
    assert "\n\nKNOWN (1)\n\n" in text
    assert "Nothing that" not in text


def test_a_name_is_counted_once() -> None:
    """A name with two findings is one name that changed."""
    twice = replace(NEW, findings=(BODY, replace(BODY, change="signature")))
    assert "needs a look - 1 of 41 names changed\n" in as_text(twice)


def test_wrapped_text() -> None:
    """With a width, sentences are wrapped below their beginning, and diffs and names are left whole."""
    long = replace(VANISHED, use="words " * 40, diff="-" + "x" * 90)
    lines = as_text(replace(NEW, findings=(long,)), width=60).split("\n")
    first = next(place for place, line in enumerate(lines) if line.startswith("    relied on   words"))
    assert lines[first + 1].startswith("                words words")
    assert sum(line.count("words") for line in lines) == 40
    assert f"    -{'x' * 90}" in lines
    too_long = [line for line in lines if len(line) > 60]
    assert [line.split()[0] for line in too_long] == ["torch", long.name, "-" + "x" * 90]


def test_width_of_nothing() -> None:
    """A terminal that says it has no columns still gets lines of words."""
    assert "    relied on   Asked for the root of a\n                mesh, whose" in as_text(NEW, width=0)


def test_lines_of_a_diff() -> None:
    """Each line is told by what it is, for whoever colours it."""
    kinds = {line.text.strip(): line.kind for line in as_lines(NEW)}
    assert kinds["BREAKS (1)"] == "breaks"
    assert kinds["NEEDS A LOOK (2)"] == "needs a look"
    assert kinds[f"{VANISHED.name}  vanished"] == "name"
    assert kinds["-def get_root_mesh(self, device_mesh):"] == "removed"
    assert kinds['+"""```` new"""'] == "added"
    assert kinds["@@ -1 +1 @@"] == "hunk"
    assert kinds["relied on   Read."] == "plain"


@pytest.mark.parametrize("write", [as_text, as_markdown])
def test_characters_that_command_a_terminal(write: Any) -> None:
    """What a source has of control characters is shown, not sent to the terminal; a form feed ends no line."""
    nasty = replace(BODY, diff="-a\x1b[2Jb\n+c\x0cd\te\x9b\n f\r")
    text = write(replace(NEW, torch="2.16.0\x07", findings=(nasty,), origin="a\nb"))
    assert "-a\\x1b[2Jb\n" in text
    assert "+c\\x0cd\te\\x9b\n" in text
    assert " f\\x0d\n" in text + "\n"
    assert "a b" in text.partition("2.16.0")[2]
    assert not set(text) & {"\x1b", "\x07", "\x0c", "\r", "\x9b"}


# --- JSON


def test_document() -> None:
    """The JSON document has all fields of the comparison and its findings, breaks first, in types that JSON has."""
    document = as_document(NEW)
    assert json.loads(json.dumps(document)) == document
    assert list(document) == [
        "schema",
        "verdict",
        "torch",
        "origin",
        "recorded",
        "compared_with",
        "names",
        "findings",
        "notes",
    ]
    assert set(document) == {"schema", "verdict"} | {field.name for field in fields(Comparison)}
    assert (document["schema"], document["verdict"]) == (1, "breaks")
    assert document["compared_with"] == ["2.14.1", "2.15.0"]
    assert [finding["name"] for finding in document["findings"]] == [VANISHED.name, BODY.name, APPEARED.name]
    for told, finding in zip(document["findings"], (VANISHED, BODY, APPEARED), strict=True):
        assert told == json.loads(json.dumps(asdict(finding)))


def test_document_of_a_known_release() -> None:
    """The document of a known torch has the same keys, and no findings."""
    document = as_document(KNOWN)
    assert list(document) == list(as_document(NEW))
    assert (document["verdict"], document["recorded"]) == ("known", True)
    assert document["findings"] == document["notes"] == []


# --- Markdown


def test_markdown() -> None:
    """Markdown has title, verdict, table and a section for each finding, with text escaped and fences long enough."""
    text = as_markdown(NEW)
    assert text.replace(fingerprint(text), "FINGERPRINT") == MARKDOWN


def test_markdown_of_a_known_release() -> None:
    """Of a known torch Markdown has the verdict and no table."""
    text = as_markdown(KNOWN)
    assert text.startswith("# torch 2.15.0: known\n")
    assert "\n**known**: none of 41 names changed. Nothing that automodel-mesh relies on changed.\n" in text
    assert "|" not in text


def test_cells() -> None:
    """Bars, line ends and backticks in a name leave its row one row of four cells."""
    odd = replace(BODY, name="a|b\nc`d", used_by=("x|y",), change="vanished")
    row = as_markdown(replace(NEW, findings=(odd,))).split("\n")[11]
    assert row == "| ``a\\|b c`d`` | vanished | needs a look | `x\\|y` |"


@pytest.mark.parametrize(
    ("prose", "markdown"),
    [
        ("plain", "plain"),
        ("__init__ of <X> is *not* [a](b)", r"\_\_init\_\_ of \<X\> is \*not\* \[a\](b)"),
        ("`__init__` of _x", r"`__init__` of \_x"),
        ("``a`b_`` and _x_ and `_y_`", r"``a`b_`` and \_x\_ and `_y_`"),
        ("an ` open _x", r"an \` open \_x"),
        ("`_a` `_b`", "`_a` `_b`"),
        ("# no heading | no cell\nno line", r"\# no heading \| no cell no line"),
        (r"back\_slash", r"back\\\_slash"),
    ],
)
def test_prose(prose: str, markdown: str) -> None:
    """Text of the ledger keeps its code, and the rest of it is shown as it was written."""
    assert f"- **what to do**: {markdown}\n" in as_markdown(replace(NEW, findings=(replace(BODY, remedy=prose),)))


def test_fingerprint() -> None:
    """The fingerprint is the same while only version, place and the diffs' headers differ, and else another."""
    one = fingerprint(as_markdown(NEW))
    renamed = tuple(
        replace(finding, diff=finding.diff.replace("before", "2.15.0", 1).replace("after", "2.17", 1))
        for finding in NEW.findings
    )
    same = replace(NEW, torch="2.17.0.dev20261120", origin="elsewhere", findings=renamed, names=42)
    assert fingerprint(as_markdown(same)) == one
    for other in (
        replace(VANISHED, diff=VANISHED.diff + "\n-more"),
        replace(VANISHED, verdict="needs a look"),
        replace(VANISHED, before="()"),
        replace(VANISHED, name="torch:other"),
    ):
        assert fingerprint(as_markdown(replace(NEW, findings=(BODY, other, APPEARED)))) != one


def test_long_diffs_are_cut_first() -> None:
    """A report that is too long keeps all findings and all short diffs, and cuts the long ones alike, at line ends."""
    lines = [f"+    line {number} of a function that has become long" for number in range(2000)]
    long = [replace(BODY, name=f"torch:long{number}", diff="\n".join(lines)) for number in range(2)]
    comparison = replace(NEW, findings=(VANISHED, *long, APPEARED))
    text = as_markdown(comparison)
    assert REPORT_LIMIT - 200 < len(text) <= REPORT_LIMIT
    assert "*Shortened to fit into an issue: 2 diffs are cut. `automodel-mesh track` prints all as text.*" in text
    assert VANISHED.diff in text
    assert fences_close(text)
    assert all(line in lines for line in text.split("\n") if line.startswith("+    "))
    shown = text.count("+    line")
    assert text.count(f"\n{2000 - shown // 2} lines of the diff are left out.\n\n</details>") == 2
    assert fingerprint(text) == fingerprint(as_markdown(comparison, limit=10**6))


def test_descriptions_and_rows_are_cut_next() -> None:
    """Where the findings are too many, the last are not described, and if need be not in the table either."""
    many = tuple(replace(BODY, name=f"torch:name{number}") for number in range(150))
    text = as_markdown(replace(NEW, findings=(*many, VANISHED)))
    described = text.count("\n## ")
    assert 10 < described < 151
    assert text.index(VANISHED.name) < text.index("torch:name0`")
    assert f"{described} diffs are cut, {151 - described} of 151 findings are not described. " in text
    assert text.count("needs a look | `groups.known` |") == 150
    more = tuple(replace(BODY, name=f"torch:name{number}") for number in range(700))
    text = as_markdown(replace(NEW, findings=more))
    assert "700 of 700 findings are not described" in text
    rows = text.count("needs a look | `groups.known` |")
    assert 100 < rows < 700
    assert f"{700 - rows} of 700 findings are not in the table" in text
    assert REPORT_LIMIT - 200 < len(text) <= REPORT_LIMIT


def test_two_reports_fit_into_an_issue() -> None:
    """The reports of the newest release and of the nightly fit into one issue, with a few words."""
    assert 2 * REPORT_LIMIT + 500 < ISSUE_LIMIT == 65_536


def test_limit_that_is_too_low() -> None:
    """A limit that leaves no room for the verdict is refused."""
    with pytest.raises(ValueError, match="limit=999 is less than 1000"):
        as_markdown(NEW, limit=999)


TEXTS = st.text(st.sampled_from("ab_`|\n<>\\*# ~\x0c"), max_size=80)
DIFFS = st.lists(st.text(st.sampled_from("+- `ab"), max_size=60), max_size=20).map("\n".join)
NAMES = st.lists(TEXTS, max_size=6).map(tuple)
FINDINGS = st.builds(
    Finding,
    name=TEXTS.filter(str.strip),
    change=st.sampled_from(["vanished", "appeared", "signature", "body"]),
    verdict=st.sampled_from(VERDICTS),
    before=TEXTS,
    after=TEXTS,
    diff=DIFFS,
    used_by=NAMES,
    reaches=NAMES,
    use=TEXTS,
    remedy=TEXTS,
)
COMPARISONS = st.builds(
    Comparison,
    torch=st.just("2.16.0"),
    origin=TEXTS,
    recorded=st.booleans(),
    compared_with=NAMES,
    names=st.integers(0, 99),
    findings=st.lists(FINDINGS, max_size=12).map(tuple),
    notes=NAMES,
)


@settings(deadline=None, max_examples=60)
@given(COMPARISONS, st.integers(1000, 9000))
def test_any_report_fits(comparison: Comparison, limit: int) -> None:
    """Whatever was found, the report fits, begins with the verdict, and shows either a diff's whole lines or none."""
    text = as_markdown(comparison, limit=limit)
    assert len(text) <= limit
    assert text.startswith(f"# torch 2.16.0: {comparison.verdict}\n")
    assert fences_close(text)
    whole = as_markdown(comparison, limit=10**9)
    assert "Shortened" not in whole
    assert text == whole or len(whole) > limit
    rows = [line for line in whole.split("\n") if re.fullmatch(r"\| .* \|", line)]
    cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert cells <= {5}
