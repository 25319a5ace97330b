"""Names of torch that torchtitan and NeMo AutoModel import are found to be missing on the releases without them.

Each is as it stands in the version that is named. Which releases have the names was asked of these releases themselves.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from automodel_mesh.audit.judging import audit

pytestmark = pytest.mark.release_independent

MATRIX = Path(__file__).parents[2] / "ci_matrix/torch.toml"
RELEASES = tuple(row["torch"] for row in tomli.loads(MATRIX.read_text(encoding="utf-8"))["rows"])


def before(release: str) -> tuple[str, ...]:
    """Return the releases of the matrix that are older than one of them."""
    return RELEASES[: RELEASES.index(release)]


HISTORY = {
    "torchtitan 0.2.2, models/attention.py": (
        "from torch.nn.attention.varlen import varlen_attn\n",
        "torch.nn.attention.varlen",
        before("2.10.0"),
    ),
    "torchtitan 0.2.2, distributed/context_parallel.py": (
        "from torch.distributed.tensor.experimental._attention import _ContextParallel\n",
        "torch.distributed.tensor.experimental._attention._ContextParallel",
        before("2.10.0"),
    ),
    "torchtitan 0.2.2, components/checkpoint.py, of Hugging Face": (
        "from torch.distributed.checkpoint import HuggingFaceStorageWriter\n",
        "torch.distributed.checkpoint.HuggingFaceStorageWriter",
        before("2.8.0"),
    ),
    "torchtitan 0.2.2, components/checkpoint.py, of the stager": (
        "from torch.distributed.checkpoint.staging import DefaultStager\n",
        "torch.distributed.checkpoint.staging.DefaultStager",
        before("2.9.0"),
    ),
    "torchtitan 0.2.2, components/checkpoint.py, of saving": (
        "from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType\n",
        "torch.distributed.checkpoint.state_dict_saver.AsyncCheckpointerType",
        before("2.7.1"),
    ),
    "torchtitan 0.2.2, models/llama4/infra/parallelize.py": (
        "from torch.distributed.tensor.parallel import PrepareModuleInputOutput\n",
        "torch.distributed.tensor.parallel.PrepareModuleInputOutput",
        before("2.8.0"),
    ),
    "torchtitan 0.2.2, distributed/pipeline_parallel.py": (
        "from torch.distributed.pipelining.schedules import ScheduleDualPipeV\n",
        "torch.distributed.pipelining.schedules.ScheduleDualPipeV",
        before("2.9.0"),
    ),
    "torchtitan 0.3.0, tests/test_trace_module.py": (
        "from torch.optim import swap_in_optimizer_params_and_state\n",
        "torch.optim.swap_in_optimizer_params_and_state",
        before("2.13.0"),
    ),
    "torchtitan 0.3.0, experiments/graph_trainer/common_utils.py": (
        "from torch.fx.traceback import annotate_fn\n",
        "torch.fx.traceback.annotate_fn",
        before("2.10.0"),
    ),
    "nemo-automodel 0.7.0, the microbatches": (
        "from torch.distributed.pipelining.microbatch import BlockMask\n",
        "torch.distributed.pipelining.microbatch.BlockMask",
        before("2.10.0"),
    ),
}

FITS = {
    "torchtitan 0.1.0, a module under the name of a function": (
        "from torch.distributed._composable.fsdp.fully_shard import FSDPModule\n"
    ),
    "torchtitan 0.1.0, the registry": "from torch.distributed.device_mesh import DeviceMesh, _mesh_resources\n",
    "accelerate 1.15.0, context parallelism": (
        "from torch.distributed.tensor.experimental import context_parallel\n"
        "from torch.distributed.tensor.experimental._attention import set_rotate_method\n"
    ),
    "accelerate 1.15.0, FSDP2": "from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard\n",
}


@pytest.mark.parametrize(("source", "name", "releases"), HISTORY.values(), ids=HISTORY)
def test_a_name_that_did_not_exist_yet_is_found(
    tmp_path: Path, source: str, name: str, releases: tuple[str, ...]
) -> None:
    """The import breaks on exactly the releases that do not have the name."""
    (tmp_path / "program.py").write_text(source)
    (found,) = audit([tmp_path], RELEASES).findings
    assert (found.name, found.breaks, found.cannot_tell, found.when) == (name, releases, (), "import")


@pytest.mark.parametrize("source", FITS.values(), ids=FITS)
def test_a_private_name_of_all_releases_is_not_a_finding(tmp_path: Path, source: str) -> None:
    """What has stayed through all releases, in whichever module, is not reported."""
    (tmp_path / "program.py").write_text(source)
    assert [each for each in audit([tmp_path], RELEASES).findings if not each.is_harmless] == []
