"""Findings are reported as text, as JSON, and as Markdown that GitHub renders as intended."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automodel_mesh.tracking.comparison import VERDICTS, Comparison, Finding
from automodel_mesh.tracking.report import ISSUE_LIMIT, REPORT_LIMIT, as_document, as_lines, as_markdown, as_text

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
    """Return the fingerprint of the findings in a Markdown report."""
    (found,) = re.findall(r"^<!-- findings ([0-9a-f]{16}) -->$", text, re.MULTILINE)
    return str(found)


def fences_close(text: str) -> bool:
    """Tell whether each code fence of a Markdown text is closed, and each folded part ends outside of fences."""
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


def test_text_has_all_findings() -> None:
    """Text begins with the verdict, and lists the findings, breaks first, with the affected functions and the diff."""
    assert as_text(NEW) == TEXT


def test_text_of_a_known_release_says_that_nothing_changed() -> None:
    """Text about a known torch says what it was compared with, and that nothing we rely on changed."""
    assert as_text(KNOWN) == (
        "torch 2.15.0 (from the installed torch in /env): known - none of 41 names changed\n"
        "compared with what the ledger has recorded of 2.15.0.\n"
        "Nothing that automodel-mesh relies on changed."
    )
    between = as_text(replace(KNOWN, recorded=False, compared_with=("2.14.0", "2.15.0")))
    assert "\ncompared with 2.14.0 and 2.15.0, the nearest releases in the ledger.\n" in between


def test_text_of_changes_that_do_not_affect_us_lists_them() -> None:
    """Text about a known torch with findings does not say that nothing changed."""
    text = as_text(replace(KNOWN, findings=(replace(BODY, verdict="known"),)))
    assert "known - 1 of 41 names changed" in text
    assert "What changed does not affect automodel-mesh." in text
    assert "\n\nKNOWN (1)\n\n" in text
    assert "Nothing that" not in text


def test_a_name_with_two_findings_is_counted_once() -> None:
    """A name with two findings counts as one changed name."""
    twice = replace(NEW, findings=(BODY, replace(BODY, change="signature")))
    assert "needs a look - 1 of 41 names changed\n" in as_text(twice)


def test_text_is_wrapped_at_a_width() -> None:
    """With a width, sentences are wrapped with a hanging indent, and diffs and names are not wrapped."""
    long = replace(VANISHED, use="words " * 40, diff="-" + "x" * 90)
    lines = as_text(replace(NEW, findings=(long,)), width=60).split("\n")
    first = next(place for place, line in enumerate(lines) if line.startswith("    relied on   words"))
    assert lines[first + 1].startswith("                words words")
    assert sum(line.count("words") for line in lines) == 40
    assert f"    -{'x' * 90}" in lines
    too_long = [line for line in lines if len(line) > 60]
    assert [line.split()[0] for line in too_long] == ["torch", long.name, "-" + "x" * 90]


def test_text_has_a_smallest_width() -> None:
    """On a terminal that reports no columns, text is wrapped at 40."""
    assert "    relied on   Asked for the root of a\n                mesh, whose" in as_text(NEW, width=0)


def test_each_line_has_a_kind() -> None:
    """Each line has a kind, which decides its colour."""
    kinds = {line.text.strip(): line.kind for line in as_lines(NEW)}
    assert kinds["BREAKS (1)"] == "breaks"
    assert kinds["NEEDS A LOOK (2)"] == "needs a look"
    assert kinds[f"{VANISHED.name}  vanished"] == "name"
    assert kinds["-def get_root_mesh(self, device_mesh):"] == "removed"
    assert kinds['+"""```` new"""'] == "added"
    assert kinds["@@ -1 +1 @@"] == "hunk"
    assert kinds["relied on   Read."] == "plain"


@pytest.mark.parametrize("write", [as_text, as_markdown])
def test_control_characters_are_escaped(write: Any) -> None:
    """Control characters of a source are escaped, not sent to the terminal, and a form feed does not end a line."""
    nasty = replace(BODY, diff="-a\x1b[2Jb\n+c\x0cd\te\x9b\n f\r\u202e\u2067")
    text = write(replace(NEW, torch="2.16.0\x07", findings=(nasty,), origin="a\nb"))
    assert "-a\\x1b[2Jb\n" in text
    assert "+c\\x0cd\te\\x9b\n" in text
    assert " f\\x0d\\u202e\\u2067\n" in text + "\n"
    assert "a b" in text.partition("2.16.0")[2]
    assert not set(text) & {"\x1b", "\x07", "\x0c", "\r", "\x9b"}


# --- JSON


def test_the_document_has_all_fields() -> None:
    """The JSON document has all fields of the comparison and of its findings, breaks first, in types that JSON has."""
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
    for written, finding in zip(document["findings"], (VANISHED, BODY, APPEARED), strict=True):
        assert written == json.loads(json.dumps(asdict(finding)))


def test_document_of_a_known_release_has_no_findings() -> None:
    """The JSON document of a known torch has the same keys, and no findings."""
    document = as_document(KNOWN)
    assert list(document) == list(as_document(NEW))
    assert (document["verdict"], document["recorded"]) == ("known", True)
    assert document["findings"] == document["notes"] == []


# --- Markdown


def test_markdown_has_all_findings() -> None:
    """Markdown has a title, the verdict, a table and a section for each finding, with text escaped and diffs fenced."""
    text = as_markdown(NEW)
    assert text.replace(fingerprint(text), "FINGERPRINT") == MARKDOWN


def test_markdown_of_a_known_release_has_no_table() -> None:
    """Markdown about a known torch has the verdict and no table."""
    text = as_markdown(KNOWN)
    assert text.startswith("# torch 2.15.0: known\n")
    assert "\n**known**: none of 41 names changed. Nothing that automodel-mesh relies on changed.\n" in text
    assert "|" not in text


def test_a_row_has_four_cells() -> None:
    """A name with bars, newlines and backticks is one row of four cells."""
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
        ("thanks @somebody, `@code`", "thanks @<!-- -->somebody, `@code`"),
        ("a\u202eb\u2066c\u200fd", r"a\\u202eb\\u2066c\\u200fd"),
    ],
)
def test_prose_is_escaped(prose: str, markdown: str) -> None:
    """Code spans in a text of the ledger are kept, and the rest is escaped."""
    assert f"- **what to do**: {markdown}\n" in as_markdown(replace(NEW, findings=(replace(BODY, remedy=prose),)))


def test_the_fingerprint_depends_on_the_findings_only() -> None:
    """The fingerprint is the same if only the version and the origin differ, and another if a finding does."""
    one = fingerprint(as_markdown(NEW))
    same = replace(NEW, torch="2.17.0.dev20261120", origin="elsewhere", names=42)
    assert fingerprint(as_markdown(same)) == one
    for other in (
        replace(VANISHED, diff=VANISHED.diff + "\n-more"),
        replace(VANISHED, verdict="needs a look"),
        replace(VANISHED, before="()"),
        replace(VANISHED, name="torch:other"),
    ):
        assert fingerprint(as_markdown(replace(NEW, findings=(BODY, other, APPEARED)))) != one


def test_long_diffs_are_cut_first() -> None:
    """A report that is too long keeps all findings and short diffs, and cuts the long diffs equally, at line ends."""
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
    """If there are too many findings, the last are not described, and if need be not in the table either."""
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
    """The reports of the newest release and of the nightly fit into one issue, with room for a few words."""
    assert 2 * REPORT_LIMIT + 500 < ISSUE_LIMIT == 65_536


def test_a_limit_that_is_too_low_is_refused() -> None:
    """A limit without room for the verdict is refused."""
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
    """Any report fits the limit, begins with the verdict, closes its fences, and has rows of four cells."""
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
