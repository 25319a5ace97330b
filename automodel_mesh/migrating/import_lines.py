"""Rewrites import lines: those of torch's `init_device_mesh`, and of NeMo AutoModel's mesh modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import libcst as cst

from automodel_mesh.migrating import imports, nemo_lines
from automodel_mesh.migrating.calls import NotSureError
from automodel_mesh.migrating.equivalents import MODULES, equivalents


def rewritten_import(updated: cst.SimpleStatementLine, modules: Mapping[str, str], *, keeps_torchs: bool) -> Any:
    """Return the statements for a line with imports, `None` if it stays.

    Args:
        updated: the line.
        modules: the modules that replace NeMo AutoModel's; see `nemo_lines.modules_for`.
        keeps_torchs: whether `init_device_mesh` stays torch's.

    Raises:
        NotSureError: it should be changed, but no equivalent is sure.
    """
    lines = [small for small in updated.body if isinstance(small, (cst.ImportFrom, cst.Import))]
    found = [_import_line(updated, line, modules, keeps_torchs=keeps_torchs) for line in lines]
    changed = [new for new in found if new is not None]
    if changed and len(updated.body) > 1:
        raise NotSureError("several statements are on the line")
    return changed[0] if changed else None


def _import_line(
    updated: cst.SimpleStatementLine,
    line: cst.ImportFrom | cst.Import,
    modules: Mapping[str, str],
    *,
    keeps_torchs: bool,
) -> Any:
    names = [] if isinstance(line.names, cst.ImportStar) else [alias.evaluated_name for alias in line.names]
    if isinstance(line, cst.Import) or not names:
        paths = set(names) if isinstance(line, cst.Import) else {imports.module_of(line)}
        if not paths.isdisjoint(modules):
            raise NotSureError("it names none of the names that are used: import those")
        return None
    path = imports.module_of(line)
    ours, why = nemo_lines.replacement(path, names, modules)
    if why:
        raise NotSureError(why)
    if ours:
        return updated.with_changes(body=[line.with_changes(module=cst.parse_expression(ours))])
    wanted = path in MODULES and not equivalents().module_functions.keys().isdisjoint(names)
    return _torchs_import(updated, line) if wanted and not keeps_torchs else None


def _torchs_import(updated: cst.SimpleStatementLine, line: cst.ImportFrom) -> Any:
    aliases = () if isinstance(line.names, cst.ImportStar) else line.names
    functions = equivalents().module_functions
    taken = {one.evaluated_name: one.evaluated_alias or one.evaluated_name for one in aliases}
    ours = {(functions[name].function, local) for name, local in taken.items() if name in functions}
    rest = imports.with_names(line, [one for one in aliases if one.evaluated_name not in functions])
    new = imports.import_line(ours)
    if isinstance(rest, cst.RemovalSentinel):
        return updated.with_changes(body=new.body)
    return cst.FlattenSentinel(
        [new.with_changes(leading_lines=updated.leading_lines), updated.with_changes(leading_lines=(), body=[rest])]
    )
