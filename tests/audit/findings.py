"""Findings for tests."""

from __future__ import annotations

from typing import Any

from automodel_mesh.audit.findings import Audit, Finding

RELEASES = ("2.6.0", "2.7.1", "2.8.0", "2.9.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
OLD, NEW = RELEASES[:5], RELEASES[5:]
BLOCK_MASK = "torch.distributed.pipelining.microbatch.BlockMask"


def finding(**fields: Any) -> Finding:
    """Make a finding: a name that is missing up to 2.9, imported at the top of a file, unless fields say otherwise."""
    usual: dict[str, Any] = {
        "file": "src/train.py",
        "line": 3,
        "column": 8,
        "kind": "missing-name",
        "name": BLOCK_MASK,
        "breaks": OLD,
        "cannot_tell": (),
        "guarded": (),
        "when": "import",
        "message": "torch has no BlockMask there before 2.10.",
    }
    return Finding(**{**usual, **fields})


def audit_of(*findings: Finding, **fields: Any) -> Audit:
    """Make an audit of the files that have these findings."""
    files = tuple(sorted({one.file for one in findings}))
    usual: dict[str, Any] = {"releases": RELEASES, "files": files, "findings": findings}
    return Audit(**{**usual, **fields})
