"""Lists of releases are written as spans, and read from `--releases`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_mesh.audit.errors import AuditError
from automodel_mesh.audit.selection import select
from automodel_mesh.audit.spans import labels, spans

pytestmark = pytest.mark.release_independent

ALL = ("2.6.0", "2.7.1", "2.8.0", "2.9.0", "2.9.1", "2.10.0", "2.11.0")


@pytest.mark.parametrize(
    ("some", "written"),
    [
        ((), ""),
        (ALL, "2.6 - 2.11"),
        (("2.7.1",), "2.7"),
        (("2.7.1", "2.6.0"), "2.6, 2.7"),
        (("2.6.0", "2.7.1", "2.8.0", "2.11.0"), "2.6 - 2.8, 2.11"),
        (("2.9.0", "2.9.1"), "2.9"),
        (("2.9.0",), "2.9.0"),
        (("2.7.1", "2.8.0", "2.9.0"), "2.7 - 2.9.0"),
        (("2.9.1", "2.10.0", "2.11.0"), "2.9.1 - 2.11"),
        (("2.7.1", "2.8.0", "2.9.0", "2.9.1"), "2.7 - 2.9"),
        (("2.9.0", "2.10.0"), "2.9.0, 2.10"),
    ],
)
def test_releases_that_follow_each_other_are_a_span(some: tuple[str, ...], written: str) -> None:
    """Three or more in a row are a span; a minor release stands for all of its patches, and never for some."""
    assert spans(some, ALL) == written


def test_a_release_that_is_none_of_all_is_refused() -> None:
    """A release that could not be written is an error, and is not left out."""
    with pytest.raises(ValueError, match=r"2\.5\.0 is not one of the releases 2\.6\.0, "):
        spans(["2.5.0", "2.6.0"], ALL)


def test_a_label_has_a_patch_number_where_two_have_the_same_minor() -> None:
    """The label is the minor release, and the full version where that would be ambiguous among these releases."""
    assert list(labels(ALL).values()) == ["2.6", "2.7", "2.8", "2.9.0", "2.9.1", "2.10", "2.11"]
    assert labels(ALL[4:]) == {"2.9.1": "2.9", "2.10.0": "2.10", "2.11.0": "2.11"}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("newest", ALL[-1:]),
        ("2.6-2.11", ALL),
        ("2.9", ALL[3:5]),
        ("2.9.1", ALL[4:5]),
        ("2.7-2.9", ALL[1:5]),
        ("2.9.1 - 2.10", ALL[4:6]),
        ("2.11, 2.6,2.6", (ALL[0], ALL[-1])),
        ("2.6,newest", (ALL[0], ALL[-1])),
        (">=2.8", ALL[2:]),
        (">=2.8,<2.11", ALL[2:-1]),
        ("~=2.9.0", ALL[3:5]),
        ("!=2.9.0", (*ALL[:3], *ALL[4:])),
    ],
)
def test_releases_are_chosen(text: str, chosen: tuple[str, ...]) -> None:
    """`--releases` takes releases, spans that have both ends, the newest, and specifiers; the oldest is first."""
    assert select(text, ALL) == chosen


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not a recorded torch release: give some of 2.6 - 2.11"),
        ("2", "'2' is not a recorded"),
        ("2.1", r"'2\.1' is not a recorded"),
        ("2.9,", "'' is not a recorded"),
        ("2.5-2.9", r"'2\.5' is not a recorded"),
        ("2.6-2.20", r"'2\.20' is not a recorded"),
        ("2.6-", "'' is not a recorded"),
        ("2.11-2.6", r"write the older release first, as in '2\.6-2\.11'"),
        (">=3", r"'>=3' has none of the recorded torch releases 2\.6 - 2\.11"),
        (">=2.8,oldest", r"'>=2\.8,oldest' is no specifier of versions"),
    ],
)
def test_what_is_no_release_is_refused(text: str, reason: str) -> None:
    """A release that is not recorded is an error, so that no report seems to be about it."""
    with pytest.raises(AuditError, match=reason):
        select(text, ALL)


@given(st.sets(st.sampled_from(ALL), min_size=1))
def test_spans_can_be_read_back(some: set[str]) -> None:
    """What `spans` writes, `select` reads."""
    assert set(select(spans(some, ALL), ALL)) == some
