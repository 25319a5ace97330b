"""The tables of docs/how-to/replacing-nemo-automodel.md, made from ci_matrix/nemo.toml and ci_matrix/nemo_api.json.

`python -m tests.drop_in.tables` writes them into the page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from tests.drop_in.names import PACKAGE, load_data, load_record, replaced_modules

PAGE: Final = Path(__file__).parents[2] / "docs/how-to/replacing-nemo-automodel.md"


def page_with_tables(text: str) -> str:
    """Return the page with its tables as the data has them: each is between two comments."""
    for name, lines in {"names": names(), "differences": differences(), "left out": left_out()}.items():
        start, end = re.escape(f"<!-- {name}: made by `nox -s drop-in` -->\n"), re.escape("\n<!-- end -->")
        table = "\n".join(lines).replace("\\", r"\\")
        text = re.sub(f"(?s)({start}).*?({end})", rf"\g<1>{table}\g<2>", text)
    return text


def names() -> list[str]:
    """List the names of each module of the newest version, and of 0.4 what differs, with the modules here."""
    lines = ["| in NeMo AutoModel | here | names |", "|---|---|---|"]
    for version, modules in reversed(load_record().items()):
        here = replaced_modules(version)
        newest = version == max(load_record())
        for tail, found in modules.items():
            ours = here[f"{PACKAGE}.{tail}"]
            if newest or ".v0_4" in ours:
                top = [name for name in found if "." not in name and f"{tail}.{name}" not in load_data()["left_out"]]
                there = f"`{PACKAGE}.{tail}`" + ("" if newest else ", 0.4")
                lines.append(f"| {there} | `{ours}` | {', '.join(f'`{name}`' for name in top)} |")
    return lines


def differences() -> list[str]:
    """List what differs on purpose."""
    lines = ["| | in NeMo AutoModel | here | why |", "|---|---|---|---|"]
    data = load_data()
    rows = [(f"`{row['name']}`", row) for row in data["signatures"]] + [
        (row["what"], row) for row in data["behaviours"]
    ]
    return [*lines, *(f"| {what} | {row['there']} | {row['here']} | {row['why']} |" for what, row in rows)]


def left_out() -> list[str]:
    """List the names that are not here."""
    rows = [f"| `{name}` | {why} |" for name, why in load_data()["left_out"].items()]
    return ["| name | why |", "|---|---|", *rows]


def main() -> int:
    """Write the tables."""
    PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
