"""Each block of each page of the documentation is run by a test, or is here with the reason why it is not."""

from __future__ import annotations

import ast
from itertools import zip_longest
from pathlib import Path
from typing import Final

import pytest

from tests import pages

pytestmark = pytest.mark.release_independent

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

NETWORK: Final = "not run: it installs from a package index"
PRIVATE: Final = "not run: what the next block replaces, private calls that not every torch has"
LOST_RANK: Final = "not compared: a rank that fails on purpose; tests/test_doctor_launched.py has such launches"

AUDIT: Final = "tests/test_page_commands.py::test_audit_as_the_page_writes_it"
AUDIT_YAML: Final = "tests/audit/test_hooks.py::test_the_page_names_what_there_is"
CONCEPTS: Final = "tests/test_pages.py::test_the_concepts_hold"
BACKPORT: Final = "tests/test_pages.py::test_the_calls_of_a_newer_torch_run_as_the_page_says"
DISAGREE: Final = "tests/compat/test_agreement.py::test_the_example_of_the_documentation_prints_what_it_says"
DOCTOR: Final = "tests/test_page_commands.py::test_doctor_reports_what_the_page_shows"
DRAWING: Final = "tests/test_pictures.py::test_a_drawing_is_what_its_command_draws"
EXAMPLES: Final = "tests/test_examples.py::test_commands_of_the_page_train_as_one_process_does"
MANY: Final = "tests/test_pages.py::test_what_replaces_the_patterns_of_frameworks_gives_the_right_ranks"
MIGRATED: Final = "tests/migrating/test_migrated.py::test_the_program_of_the_page_becomes_what_the_page_shows"
NEMO: Final = "tests/test_drop_in.py::test_the_changed_scripts_run"
PLAN: Final = "tests/test_planning.py::test_commands_of_the_page_print_what_it_shows"
PLAN_PYTHON: Final = "tests/test_planning.py::test_python_of_the_page_prints_what_it_shows"
PRINTED: Final = "tests/test_printing.py::test_the_page_shows_what_is_printed"
PROGRAM: Final = "tests/test_pages.py::test_a_program_prints_what_its_page_shows"
STRATEGY: Final = "tests/test_strategies.py::test_the_how_to_prints_what_it_says"
SUITE: Final = "tests/test_pages.py::test_the_suite_of_the_page_has_the_results_that_it_says"

BLOCKS: Final[dict[str, list[tuple[str, str, str]]]] = {
    "command.md": [
        (
            "bash",
            'eval "$(register-python-argcomplete automodel-mesh)"',
            "tests/test_page_commands.py::test_completion_is_switched_on_as_the_page_writes_it",
        ),
    ],
    "concepts.md": [
        ("python", "from automodel_mesh import compat", CONCEPTS),
        ("python", "dp = compat.flatten(", CONCEPTS),
        ("python", "hsdp = compat.slice_mesh(", CONCEPTS),
    ],
    "eras.md": [
        (
            "bash",
            "python -c",
            "tests/test_page_commands.py::test_the_markers_of_the_installed_torch_are_those_of_the_table",
        ),
        ("bash", "python -m tests.plain_torch", "tests/audit/test_behaviours.py::test_torch_does_what_is_recorded"),
        (
            "bash",
            "pytest tests/compat --plain-torch",
            "not run: it is the suite itself; the nox session plain-2.9 runs it",
        ),
    ],
    "glossary.md": [
        (
            "python",
            "from automodel_mesh import compat",
            "tests/test_pages.py::test_the_example_of_the_glossary_has_the_ranks_and_layouts_that_it_says",
        ),
    ],
    "how-to/audit.md": [
        ("bash", "automodel-mesh audit src", AUDIT),
        ("bash", "automodel-mesh audit src --releases", AUDIT),
        ("bash", "pip install 'automodel-mesh[record,track]'", NETWORK),
        ("bash", "pip install --no-deps --target downloaded megatron-fsdp", NETWORK),
        ("text", "torch releases that the code fits", "not compared: the report on a package from a package index"),
        ("yaml", "permissions:", AUDIT_YAML),
        ("bash", "pip install --no-deps packaging DIR", NETWORK),
        ("yaml", "repos:", AUDIT_YAML),
        ("bash", "PIP_NO_DEPS=1 pre-commit install-hooks", NETWORK),
        ("bash", "automodel-mesh audit src --write-baseline", AUDIT),
        (
            "python",
            "from torch.distributed.pipelining.microbatch",
            "tests/test_page_commands.py::test_an_accepted_place_is_left_out",
        ),
        (
            "bash",
            "automodel-mesh audit src --json | jq",
            "tests/test_page_commands.py::test_a_program_reads_the_results_as_the_page_writes_it",
        ),
    ],
    "how-to/backends.md": [
        ("python", "from datetime import timedelta", PROGRAM),
        ("text", "('dp',) (0, 2, 4, 6) gloo", PROGRAM),
        (
            "console",
            "$ AUTOMODEL_MESH_LOG=INFO torchrun",
            "tests/test_pages.py::test_the_log_has_the_line_that_the_page_shows",
        ),
    ],
    "how-to/backport.md": [
        ("python", "from automodel_mesh.compat import backport", BACKPORT),
        ("bash", "automodel-mesh run train.py", "tests/test_page_commands.py::test_run_as_the_page_writes_it"),
        ("python", "with backport():", BACKPORT),
        ("python", "from automodel_mesh.compat import NewestDeviceMesh, newest", BACKPORT),
    ],
    "how-to/check-a-launch.md": [
        ("text", "torchrun --standalone --nproc-per-node 8 -m automodel_mesh doctor", DOCTOR),
        ("text", "automodel-mesh 0.1.0 doctor", DOCTOR),
        ("text", "FAILED   12.00 s  arrival", LOST_RANK),
        ("text", "versions: rank 2 on vm has", LOST_RANK),
    ],
    "how-to/compiled-code.md": [
        ("python", "import torch", PROGRAM),
        ("console", "$ torchrun --nproc-per-node 4 compiled.py", PROGRAM),
    ],
    "how-to/many-releases.md": [
        ("python", "from automodel_mesh import compat", MANY),
        ("py", 'mesh["dp", "cp"]._flatten(', PRIVATE),
        ("python", "compat.flatten(", MANY),
        ("py", "root = mesh._get_root_mesh() if", PRIVATE),
        ("python", "dp_cp = compat.flattened_meshes(", MANY),
        ("py", 'if hasattr(mesh, "_unflatten"):', PRIVATE),
        ("python", "parts = compat.unflatten(", MANY),
        ("py", "dense = DeviceMesh._concatenate(", PRIVATE),
        ("python", "dense = compat.concatenate(", MANY),
        ("py", 'ring = mesh["cp", "tp"]["cp"]', PRIVATE),
        ("python", "ring = compat.slice_mesh(", MANY),
        ("py", "other = init_device_mesh(", PRIVATE),
        ("python", "other = compat.init_device_mesh(", MANY),
    ],
    "how-to/migrate.md": [
        ("python", "import torch", MIGRATED),
        ("bash", "pip install '.[migrate]'", "tests/test_page_commands.py::test_migrate_as_the_page_writes_it"),
        ("python", "import torch", MIGRATED),
    ],
    "how-to/part-of-the-world.md": [
        ("python", "import torch", PROGRAM),
        ("text", "0 student 6", PROGRAM),
    ],
    "how-to/plan.md": [
        ("bash", "automodel-mesh plan --world-size 1024", PLAN),
        ("text", "fsdp2 on 1,024 ranks, 8 per node (128 nodes)", PLAN),
        ("bash", "automodel-mesh plan --world-size 1024", DRAWING),
        ("bash", "automodel-mesh plan --world-size 1000", PLAN),
        ("text", "automodel-mesh: fsdp2: world_size=1000 is not divisible", PLAN),
        ("bash", "automodel-mesh plan --world-size 64", PLAN),
        ("text", "sizes that fit, the best first", PLAN),
        ("python", "from automodel_mesh.topology import plan", PLAN_PYTHON),
        ("text", "fsdp2 on 64 ranks", PLAN_PYTHON),
        ("python", "from automodel_mesh import FSDP2Config, MeshContext", PRINTED),
        ("text", "MeshContext(FSDP2Config;", PRINTED),
    ],
    "how-to/ranks-that-disagree.md": [
        ("python", "from datetime import timedelta", DISAGREE),
        ("text", "the ranks ask for different things", DISAGREE),
    ],
    "how-to/replacing-nemo-automodel.md": [
        ("python", "from nemo_automodel.components.distributed import DistributedSetup", NEMO),
        ("bash", "sed -i", NEMO),
        ("text", "stages: 2", NEMO),
        (
            "python",
            "from automodel_mesh import replace_nemo_automodel",
            "not run: NeMo AutoModel is not installed; tests/test_replacement.py has a stand-in",
        ),
        ("python", "from torch.distributed.device_mesh import init_device_mesh", NEMO),
        ("bash", "sed -i", NEMO),
        ("text", "tensor parallel ranks: 2", NEMO),
    ],
    "how-to/strategies.md": [
        ("python", "from dataclasses import dataclass", STRATEGY),
        ("text", "axes: ('pp',", STRATEGY),
    ],
    "how-to/testing.md": [
        ("python", 'pytest_plugins = ["automodel_mesh.testing"]', SUITE),
        ("python", "import pytest", SUITE),
    ],
    "how-to/train-a-transformers-model.md": [
        ("bash", "pip install '.[examples]'", NETWORK),
        ("bash", "export OMP_NUM_THREADS=1", EXAMPLES),
        ("text", "Mesh of 8: pp 1,", "not compared: losses differ in the last digits between releases of torch"),
    ],
    "index.md": [
        (
            "python",
            "import torch.distributed as dist",
            "tests/test_front_page.py::test_plain_torch_does_what_the_page_says",
        ),
        (
            "python",
            "import torch.distributed as dist",
            "tests/test_front_page.py::test_our_program_does_what_the_page_says",
        ),
        ("bash", "pip install '.[cli,plots]'", DRAWING),
    ],
    "installation.md": [
        ("bash", "python3 -m venv .venv", NETWORK),
        ("bash", "pip install '.[cli]' 'torch==2.9.*'", NETWORK),
    ],
    "private-api-ledger.md": [
        ("bash", "pip install '.[track]'", NETWORK),
    ],
    "tutorial.md": [
        ("bash", "python3 -m venv .venv", NETWORK),
        ("python", "import torch", PROGRAM),
        ("bash", "torchrun --nproc-per-node 8 first_mesh.py", PROGRAM),
        ("text", "('pp', 'dp_replicate',", PROGRAM),
        ("python", "import torch.distributed as dist", PROGRAM),
        ("text", "0 [0, 2, 4, 6]", PROGRAM),
    ],
}
"""By page, its blocks in order: the language, how the block begins, and the test that runs it or why none does.

A block of output is with the test that compares it. Lines that install, at the head of a block, are not run.
"""


def test_each_block_is_run_or_is_here_with_a_reason() -> None:
    """The table has the blocks of all pages, in order: a block that was added, moved or taken out is noticed."""
    found = {
        page.relative_to(DOCS).as_posix(): pages.all_blocks(page.read_text(encoding="utf-8"))
        for page in DOCS.rglob("*.md")
        if "_build" not in page.parts
    }
    assert {page for page, blocks in found.items() if blocks} == BLOCKS.keys()
    different = [
        (page, block, entry)
        for page, entries in BLOCKS.items()
        for block, entry in zip_longest(found[page], entries)
        if not block or not entry or block[0] != entry[0] or not block[1].startswith(entry[1])
    ]
    assert different == []


@pytest.mark.parametrize("runner", sorted({runner for blocks in BLOCKS.values() for _, _, runner in blocks}))
def test_each_test_of_the_table_exists(runner: str) -> None:
    """What runs a block is a test that is there; all else says why a block is not run."""
    file, _, name = runner.partition("::")
    if not name:
        assert runner.startswith(("not run: ", "not compared: "))
        return
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
