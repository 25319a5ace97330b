"""What torch's own calls on meshes do on each release: the table of docs/eras.md, and the rules of an audit.

`tests/plain_torch.py` makes each call on the installed torch, and `tests/audit/test_behaviours.py` compares its results
with these, on every release. `python -m tests.leftovers` reads the releases: each result has a line of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from packaging.version import Version

from automodel_mesh.audit import patterns
from automodel_mesh.audit.patterns import Condition, MeshCall

Severity: TypeAlias = Literal["fits", "differs", "breaks"]

OLDEST: Final = "0"
"""Stands for the oldest supported release."""

_MESH: Final = "torch.distributed.device_mesh.DeviceMesh"
_COMPAT: Final = "automodel_mesh.compat"


@dataclass(frozen=True)
class Rule:
    """How source text shows that a call is one that a behaviour is about.

    Attributes:
        call: the dotted path of the function or method; a subscript is `DeviceMesh.__getitem__`.
        condition: what must be true of the call besides.
        differs: the results that are other than what the code is written for. Errors are found without them.
    """

    call: str
    condition: Condition
    differs: tuple[str, ...] = ()

    def matches(self, call: MeshCall) -> bool:
        """Tell whether the behaviour is that of a call, whose function or method is `self.call`."""
        return self.condition(call)


@dataclass(frozen=True)
class Behaviour:
    """What a call of torch does, on each release.

    Attributes:
        program: the function of `tests/plain_torch.py` that makes the call.
        title: what is called.
        results: what it does from `OLDEST` on, and from each release on that changes it: `absent` if torch has no such
            call or argument, the class of the error that torch raises, or a few words; then `warns` if it warns.
        remedy: the function to call instead, which does the same on all releases.
        rules: how source text shows the call.
        not_seen: why source text does not show it; empty if there are rules.
    """

    program: str
    title: str
    results: Mapping[str, str]
    remedy: str
    rules: tuple[Rule, ...] = ()
    not_seen: str = ""

    def result(self, release: str) -> str:
        """Return what the call does on a release, such as `"2.9"` or `"2.9.1"`."""
        return [result for since, result in self.results.items() if Version(since) <= Version(release)][-1]

    def severity(self, rule: Rule, release: str) -> Severity:
        """Return how serious it is on a release that a rule matches; what is absent there is no matter of behaviour."""
        result = self.result(release)
        if raises(result):
            return "breaks"
        return "differs" if result in rule.differs else "fits"


def raises(result: str) -> bool:
    """Tell whether a result is the class of an error."""
    return result.partition(",")[0].endswith(("Error", "Unsupported"))


_WARNS: Final = "works, warns"
_WHEN_IT_RUNS: Final = "which names are in use is known only when the code runs"
_COMPILED: Final = "which code is compiled is known only when it runs"
_MISSING: Final = "it does the same wherever it exists; the reader of names finds where it does not"

BEHAVIOURS: Final = (
    Behaviour(
        program="slice_of_a_slice",
        title="A slice of a slice",
        results={
            OLDEST: "RuntimeError",
            "2.9": "its root is not the root, warns",
            "2.10": "works",
        },
        remedy=f"{_COMPAT}.slice_mesh",
        rules=(Rule(f"{_MESH}.__getitem__", patterns.slices_a_slice, ("its root is not the root, warns",)),),
    ),
    Behaviour(
        program="name_of_a_flattened_axis",
        title="Flattening under the name of another flattened axis",
        results={
            OLDEST: "wrong ranks",
            "2.10": "ValueError",
        },
        remedy=f"{_COMPAT}.flatten",
        not_seen=_WHEN_IT_RUNS,
    ),
    Behaviour(
        program="name_of_a_native_axis",
        title="Flattening under the name of a native axis, then slicing that axis",
        results={
            OLDEST: "KeyError",
            "2.9": "RuntimeError",
            "2.10": "ValueError",
        },
        remedy=f"{_COMPAT}.flatten",
        not_seen=_WHEN_IT_RUNS,
    ),
    Behaviour(
        program="own_name",
        title="Flattening one axis to its own name",
        results={
            OLDEST: "a duplicate",
            "2.9": "RuntimeError",
            "2.10": "the mesh itself",
        },
        remedy=f"{_COMPAT}.flatten",
        rules=(Rule(f"{_MESH}._flatten", patterns.flattens_to_its_own_name, ("a duplicate",)),),
    ),
    Behaviour(
        program="flattened_from_the_root",
        title="Slicing a flattened axis from the root",
        results={
            OLDEST: "works",
            "2.10": _WARNS,
        },
        remedy=f"{_COMPAT}.slice_mesh",
        rules=(Rule(f"{_MESH}.__getitem__", patterns.slices_a_flattened_axis, (_WARNS,)),),
    ),
    Behaviour(
        program="flattened_across_a_gap",
        title="Slicing a flattened axis from the root, of axes that are not contiguous",
        results={
            OLDEST: "wrong ranks",
            "2.10": "NotImplementedError, warns",
            "2.13": _WARNS,
        },
        remedy=f"{_COMPAT}.slice_mesh",
        rules=(Rule(f"{_MESH}.__getitem__", patterns.slices_a_flattened_axis_with_a_gap, ("wrong ranks", _WARNS)),),
    ),
    Behaviour(
        program="flattened_from_a_slice",
        title="Slicing a flattened axis from a slice of the root",
        results={
            OLDEST: "RuntimeError",
            "2.9": "KeyError, warns",
            "2.10": "KeyError",
        },
        remedy=f"{_COMPAT}.slice_mesh",
        rules=(Rule(f"{_MESH}.__getitem__", patterns.slices_a_flattened_axis_from_a_slice),),
    ),
    Behaviour(
        program="split_by_index",
        title="Splitting an axis, by its index",
        results={
            OLDEST: "absent",
            "2.10": "works; again: 2 new groups",
        },
        remedy=f"{_COMPAT}.unflatten",
        not_seen="how often it is called is known only when the code runs",
    ),
    Behaviour(
        program="split_by_last_index",
        title="Splitting an axis, by the index -1",
        results={
            OLDEST: "absent",
            "2.10": "AssertionError",
        },
        remedy=f"{_COMPAT}.unflatten",
        rules=(Rule(f"{_MESH}._unflatten", patterns.splits_by_last_index),),
    ),
    Behaviour(
        program="split_by_name",
        title="Splitting an axis, by its name",
        results={
            OLDEST: "absent",
            "2.10": "ValueError",
            "2.12": "works; again: 2 new groups",
        },
        remedy=f"{_COMPAT}.unflatten",
        rules=(Rule(f"{_MESH}._unflatten", patterns.splits_by_name),),
    ),
    Behaviour(
        program="split_to_a_taken_name",
        title="Splitting an axis, to a name the mesh has",
        results={
            OLDEST: "absent",
            "2.10": "two axes of one name",
        },
        remedy=f"{_COMPAT}.unflatten",
        rules=(Rule(f"{_MESH}._unflatten", patterns.splits_to_a_taken_name, ("two axes of one name",)),),
    ),
    Behaviour(
        program="override_of_a_split",
        title="`backend_override` of splitting an axis",
        results={
            OLDEST: "absent",
            "2.10": "empties your dictionary",
        },
        remedy=f"{_COMPAT}.unflatten",
        rules=(Rule(f"{_MESH}._unflatten", patterns.keeps_its_dictionary, ("empties your dictionary",)),),
    ),
    Behaviour(
        program="joined",
        title="Joining meshes",
        results={
            OLDEST: "absent",
            "2.10": "works",
        },
        remedy=f"{_COMPAT}.concatenate",
        not_seen=_MISSING,
    ),
    Behaviour(
        program="override",
        title="`backend_override` of `init_device_mesh`",
        results={
            OLDEST: "absent",
            "2.9": "empties your dictionary",
        },
        remedy=f"{_COMPAT}.init_device_mesh",
        rules=(
            Rule(
                "torch.distributed.device_mesh.init_device_mesh",
                patterns.keeps_its_dictionary,
                ("empties your dictionary",),
            ),
        ),
    ),
    Behaviour(
        program="axes_of_one_rank",
        title="Groups for three axes of one rank",
        results={
            OLDEST: "3 groups",
        },
        remedy=f"{_COMPAT}.init_device_mesh",
        not_seen="it is the same on all releases",
    ),
    Behaviour(
        program="another_thread",
        title="The root of a slice, in a second thread",
        results={
            OLDEST: "not found",
            "2.10": "found",
        },
        remedy=f"{_COMPAT}.get_root_mesh",
        not_seen="which thread runs a call is known only when the code runs",
    ),
    Behaviour(
        program="equal_roots",
        title="Flattened axes of two equal roots",
        results={
            OLDEST: "shared",
            "2.10": "separate",
        },
        remedy=f"{_COMPAT}.flatten",
        not_seen="which roots exist at a time is known only when the code runs",
    ),
    Behaviour(
        program="dropped",
        title="A root and a slice of it without references",
        results={
            OLDEST: "stay in memory",
            "2.10": "are freed",
        },
        remedy=f"{_COMPAT}.init_device_mesh",
        not_seen="when the last reference goes is known only when the code runs",
    ),
    Behaviour(
        program="dynamo",
        title="The first slice of a process imports `torch._dynamo`",
        results={
            OLDEST: "no",
            "2.14": "yes",
        },
        remedy=f"{_COMPAT}.slice_mesh",
        not_seen="it costs time and memory, and changes no result",
    ),
    Behaviour(
        program="sliced_in_compiled_code",
        title="Slicing inside `torch.compile(fullgraph=True)`",
        results={
            OLDEST: "Unsupported",
            "2.12": "works",
        },
        remedy=f"{_COMPAT}.slice_mesh",
        not_seen=_COMPILED,
    ),
    Behaviour(
        program="size_in_compiled_code",
        title="The size of a slice inside `torch.compile(fullgraph=True)`",
        results={
            OLDEST: "works",
        },
        remedy=f"{_COMPAT}.slice_mesh",
        not_seen="it is the same on all releases",
    ),
    Behaviour(
        program="group_in_compiled_code",
        title="`get_group` of an axis inside `torch.compile(fullgraph=True)`",
        results={
            OLDEST: "InternalTorchDynamoError",
            "2.7": "Unsupported",
            "2.12": "works",
        },
        remedy=f"{_COMPAT}.get_group",
        not_seen=_COMPILED,
    ),
    Behaviour(
        program="coordinate",
        title="The type of a coordinate",
        results={
            OLDEST: "list",
            "2.11": "tuple",
        },
        remedy=f"{_COMPAT}.get_coordinate",
        rules=(
            Rule(f"{_MESH}.get_coordinate", patterns.needs_a_tuple, ("list",)),
            Rule(f"{_MESH}.get_coordinate", patterns.needs_a_list, ("tuple",)),
        ),
    ),
    Behaviour(
        program="outside",
        title="`get_group` on a rank outside of the mesh",
        results={
            OLDEST: "IndexError",
        },
        remedy=f"{_COMPAT}.get_group",
        not_seen="which ranks run a call is known only when the code runs",
    ),
)
"""In the order of the table."""
