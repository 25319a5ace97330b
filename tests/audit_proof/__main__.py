"""Imports the packages of ci_matrix/audit.toml on the installed torch, audits them, and compares the two.

python -m tests.audit_proof FOLDER           exits with 1 if the audit is wrong and audit.toml does not say so
python -m tests.audit_proof FOLDER record    also records the results in ci_matrix/results/

FOLDER has a folder for each version of a package, named as accelerate==1.15.0.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import tomli

from automodel_mesh.audit.judging import audit
from tests.audit_proof import table
from tests.audit_proof.compare import as_row, compare
from tests.results import FOLDER

CHECKOUT: Final = Path(__file__).parents[2]
OFFLINE: Final = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}
SECONDS: Final = 3600  # for all modules of a package; each has a limit of its own


def find_truth(folder: Path, package: dict[str, Any]) -> dict[str, Any]:
    """Import all modules of a package, and return what came of it."""
    own = folder / table.requirement(package)
    beside = [folder / each for each in package.get("beside", [])]
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": os.pathsep.join(map(str, [own, *beside]))}
    with tempfile.TemporaryDirectory() as place:
        result = Path(place, "truth.json")
        command = [sys.executable, "-W", "ignore", "-m", "tests.audit_proof.truth"]
        arguments = [str(own), str(result), *package.get("parts", [])]
        subprocess.run([*command, *arguments], cwd=CHECKOUT, env=environment, check=True, timeout=SECONDS)
        truth: dict[str, Any] = json.loads(result.read_text())
    return truth


def find_findings(folder: Path) -> list[dict[str, Any]]:
    """Audit a package for all releases of the matrix; files are named below its folder."""
    releases = [row["torch"] for row in tomli.loads((CHECKOUT / "ci_matrix/torch.toml").read_text())["rows"]]
    found = [asdict(finding) for finding in audit([folder], releases).findings]
    return [{**each, "file": str((CHECKOUT / each["file"]).relative_to(folder))} for each in found]


def main(place: str, *options: str) -> int:
    """Compare all packages, say what is wrong, and tell whether that is known."""
    torch = metadata.version("torch").partition("+")[0]
    release = table.label(torch)
    rows: list[dict[str, Any]] = []
    unknown = 0
    for package in table.load()["packages"]:
        name = table.requirement(package)
        truth = find_truth(Path(place).resolve(), package)
        comparison = compare(truth, find_findings(Path(place).resolve() / name))
        sys.stdout.write(
            f"{name}: files {comparison.files}, lines {comparison.lines}, not reached {comparison.excluded}\n"
        )
        for each in comparison.wrong:
            entry = table.known(name, release, each)
            unknown += entry is None
            note = "nobody has looked at it" if entry is None else entry["why"]
            answers = f"the audit says {each['predicted']}, importing it {each['true']} {each['error']}"
            sys.stdout.write(f"  {each['file']}:{each['line']} {each['name']}: {answers} ({note})\n")
        rows.append({"package": name, **as_row(comparison)})
    if "record" in options:  # tests/test_audit_proof.py fails until each wrong answer in it has a reason
        session = f"audit-downstream-{release}"
        today = datetime.now(tz=timezone.utc).date().isoformat()
        result = {"session": session, "date": today, "python": platform.python_version(), "torch": torch, "rows": rows}
        (FOLDER / f"{session}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
