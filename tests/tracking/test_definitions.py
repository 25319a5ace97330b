"""Names are looked up in sources, and only differences that can change behaviour count."""

from __future__ import annotations

import hashlib

import pytest

from automodel_mesh.tracking.definitions import Definition, Definitions
from automodel_mesh.tracking.sources import SourcesError

SOURCE = '''
"""A module."""
from torch.other import borrowed

if not available():
    class _Stub: ...
else:
    class Mesh(Base):
        """A mesh."""

        _layout: Layout  # of the root
        kind: int = 1

        def __init__(self, names, /, shape=(1, 2), *more, _layout=None, **rest):
            """Make it."""
            self._layout = _layout
            self.names, self.shape = names, shape

        @property
        def size(self) -> int:
            # a comment
            return 1

        @overload
        def get(self, dim: int) -> int: ...
        @overload
        def get(self, dim: str) -> str: ...
        def get(self, dim):

            return "#" + dim

        @staticmethod
        async def join(a, *, b): return a

        class Inner:
            def deep(self): ...

    registry: Registry = Registry()

@dataclass
class Pair:
    left: int
    right: int = 0
    def __post_init__(self): check()
'''
STUB = "class Group:\n    @overload\n    def send(self, a): ...\n    @overload\n    def send(self, a, b): ...\n"
FILES = {"torch/m.py": SOURCE, "torch/_C/g.pyi": STUB, "torch/p/__init__.py": "def f(): ...\n"}


def find(name: str, source: str = SOURCE) -> Definition | None:
    """Look up a name in the sources above."""
    return Definitions({**FILES, "torch/m.py": source}).find(name)


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("torch.m", "module"),
        ("torch.m:Mesh", "(self, names, /, shape=(1, 2), *more, _layout=None, **rest)"),
        ("torch.m:Mesh.__init__(_layout)", "_layout=None"),
        ("torch.m:Mesh.__init__(more)", "*more"),
        ("torch.m:Mesh._layout", "attribute"),
        ("torch.m:Mesh.kind", "attribute"),
        ("torch.m:Mesh.names", "attribute"),
        ("torch.m:Mesh.size", "property"),
        ("torch.m:Mesh.get", "(self, dim)"),
        ("torch.m:Mesh.join", "(a, *, b)"),
        ("torch.m:Mesh.Inner.deep", "(self)"),
        ("torch.m:Mesh.*", "Inner, _layout, get, join, kind, names, shape, size"),
        ("torch.m:*", "Mesh, Pair, _Stub, registry"),
        ("torch.m:registry", "attribute"),
        ("torch.m:borrowed", "attribute"),
        ("torch.m:Pair", "(left, right)"),
        ("torch.p:f", "()"),
        ("torch._C.g:Group.send", "(self, a, b)"),
    ],
)
def test_a_name_is_found_with_its_signature(name: str, signature: str) -> None:
    """Each kind of name is found with its signature, in modules, packages and stubs."""
    found = find(name)
    assert found is not None
    assert found.signature == signature


@pytest.mark.release_independent
@pytest.mark.parametrize(
    "name",
    ["torch.q", "torch.q:f", "torch.m:Other", "torch.m:Mesh.other", "torch.m:Mesh.get(other)", "torch.m:Other.*"],
)
def test_an_unknown_name_is_not_found(name: str) -> None:
    """Nothing is found under the name of an unknown module, class, attribute or parameter."""
    assert find(name) is None


def test_the_text_is_the_same_on_every_python() -> None:
    """The text of a definition has no comments, docstrings and blank lines, keeps strings, and sets the fingerprint."""
    found, size, mesh = find("torch.m:Mesh.get"), find("torch.m:Mesh.size"), find("torch.m:Mesh")
    assert found is not None
    assert size is not None
    assert mesh is not None
    assert found.text == 'def get(self, dim):\n    return "#" + dim'
    assert found.fingerprint == hashlib.sha256(found.text.encode()).hexdigest()[:16]
    assert size.text == "@property\ndef size(self) -> int:\n    return 1"
    assert mesh.text.splitlines()[:4] == [
        "class Mesh(Base):",
        "_layout: Layout",
        "kind: int = 1",
        "def __init__(self, names, /, shape=(1, 2), *more, _layout=None, **rest):",
    ]


@pytest.mark.release_independent
@pytest.mark.parametrize(
    ("name", "old", "new", "changes"),
    [
        ("torch.m:Mesh.size", "# a comment", "# another one", False),
        ("torch.m:Mesh", '"""Make it."""', '"""Make a mesh."""', False),
        ("torch.m:Mesh.size", "return 1", "return 2", True),
        ("torch.m:Mesh", "return 1", "return 2", False),
        ("torch.m:Mesh", "(Base)", "(Another)", True),
        ("torch.m:Mesh._layout", "self._layout = _layout", "self._layout = _layout or 1", True),
        ("torch.m:Mesh.__init__(_layout)", "_layout=None", "_layout=1", True),
        ("torch.m:Mesh.__init__(_layout)", "shape=(1, 2)", "shape=(2,)", False),
        ("torch.m:Mesh.*", "def join", "def joined", True),
        ("torch.m:Mesh.*", "return 1", "return 2", False),
        ("torch.m:Pair", "right: int = 0", "right: int = 1", True),
        ("torch.m:Pair", "check()", "check(1)", True),
    ],
)
def test_only_a_change_of_the_code_counts(name: str, old: str, new: str, changes: bool) -> None:
    """A definition differs if its own code differs, and not if a comment, docstring or other definition does."""
    assert SOURCE.count(old) == 1
    assert (find(name) != find(name, SOURCE.replace(old, new))) == changes


@pytest.mark.release_independent
def test_sources_for_a_newer_python_are_refused() -> None:
    """An error names the file and line that the running Python cannot parse, and says what to do."""
    with pytest.raises(SourcesError, match=r"torch/m.py, line 1, is not valid for Python 3.*use the newest"):
        find("torch.m:f", "def f(: ...")
