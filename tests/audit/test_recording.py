"""What of torch's sources is recorded."""

from __future__ import annotations

import ast

import pytest

from automodel_mesh.audit.recording import without_type_checking

pytestmark = pytest.mark.release_independent


@pytest.mark.parametrize("first", ["@deprecated('x')\n    def f(): ...", "@final\n    class f: ...", "from x import f"])
def test_what_type_checkers_see_leaves_code_that_can_be_read(first: str) -> None:
    """The decorators of what is blanked go too, as in torch/_utils.py; what runs stays."""
    text = without_type_checking(f"if TYPE_CHECKING:\n    {first}\nelse:\n    f = 1\nvalue = 2\n")
    assert [ast.unparse(node) for node in ast.parse(text).body[1:]] == ["value = 2"]
    assert "f = 1" in text
    assert "deprecated" not in text
