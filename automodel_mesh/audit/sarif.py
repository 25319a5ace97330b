"""Writes an audit as SARIF 2.1.0, which code hosts and editors show at the lines of the code.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from automodel_mesh.audit.findings import Audit, Finding, Kind
from automodel_mesh.audit.spans import spans
from automodel_mesh.terminal import one_line

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT: Final = "%SRCROOT%"
_FINGERPRINT: Final = "automodelMeshAudit/v1"

_RULES: Final[dict[Kind, tuple[str, str]]] = {
    "missing-name": (
        "A name that some torch releases do not have",
        "The code uses a module, class, function, method or other name of torch that is absent in some releases.",
    ),
    "missing-argument": (
        "An argument that some torch releases do not take",
        "The code calls a function of torch with an argument that it does not have in some releases.",
    ),
    "changed-behaviour": (
        "A call that does not do the same on all torch releases",
        "The code makes a call that warns, fails or gives another result in some releases.",
    ),
}
_IDS: Final = tuple(_RULES)


def as_sarif(audit: Audit, *, version: str, root: Path) -> dict[str, Any]:
    """Make the SARIF document of an audit.

    Args:
        audit: the audit. A finding that breaks on a release is an error, one of which it cannot tell a warning, and one
            that the code takes care of a note.
        version: the version of this library.
        root: the absolute path of the folder that paths are relative to, usually that of the checkout; a file outside
            of it has its full path.

    Returns:
        A dict of types that JSON has.
    """
    rules = [
        {
            "id": kind,
            "name": "".join(part.capitalize() for part in kind.split("-")),
            "shortDescription": {"text": title},
            "fullDescription": {"text": text},
            "help": {"text": f"{text} To accept one, write # audit: ignore[NAME] REASON at the end of its line."},
            "defaultConfiguration": {"level": "error"},
        }
        for kind, (title, text) in _RULES.items()
    ]
    unread = [
        {
            "level": "error",
            "message": {"text": one_line(one.why)},
            "locations": [{"physicalLocation": {"artifactLocation": _artifact(one.file, root)}}],
        }
        for one in audit.unread
    ]
    run = {
        "tool": {"driver": {"name": "automodel-mesh audit", "version": version, "rules": rules}},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The folder in which the audit was run."}}},
        "invocations": [{"executionSuccessful": not unread, "toolExecutionNotifications": unread}],
        "results": list(_results(audit, root)),
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _results(audit: Audit, root: Path) -> Iterator[dict[str, Any]]:
    seen = Counter[str]()
    for finding in audit.findings:
        identity = json.dumps([finding.file, finding.kind, finding.name, finding.breaks, finding.cannot_tell])
        seen[identity] += 1
        fingerprint = hashlib.sha256(f"{identity} {seen[identity]}".encode()).hexdigest()
        yield {
            "ruleId": finding.kind,
            "ruleIndex": _IDS.index(finding.kind),
            "level": _level(finding),
            "message": {"text": one_line(_message(finding, audit))},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": _artifact(finding.file, root),
                        "region": {"startLine": finding.line, "startColumn": finding.column},
                    }
                }
            ],
            "partialFingerprints": {_FINGERPRINT: fingerprint},
            "properties": {
                "name": finding.name,
                "breaks": list(finding.breaks),
                "cannot_tell": list(finding.cannot_tell),
                "guarded": list(finding.guarded),
            },
        }


def _level(finding: Finding) -> Literal["error", "warning", "note"]:
    return "error" if finding.breaks else "warning" if finding.cannot_tell else "note"


def _message(finding: Finding, audit: Audit) -> str:
    """Say what breaks where, and what to do, in one line that does without the code."""
    breaks, cannot_tell = spans(finding.breaks, audit.releases), spans(finding.cannot_tell, audit.releases)
    where = [f"breaks on torch {breaks}"] * bool(breaks) + [f"may break on torch {cannot_tell}"] * bool(cannot_tell)
    sentence = f"{finding.name} {' and '.join(where) or 'is guarded'}: {finding.message}"
    return f"{sentence} Instead: {finding.instead}" if finding.instead else sentence


def _artifact(file: str, root: Path) -> dict[str, str]:
    """Return the address of a file, relative to the root if it is below it."""
    path = Path(os.path.normpath(root / file))
    if not path.is_relative_to(root):
        return {"uri": path.as_uri()}
    return {"uri": quote(path.relative_to(root).as_posix(), errors="surrogateescape"), "uriBaseId": _ROOT}
