"""The example in docs/examples: the commands of its page, and more topologies on forked ranks."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from automodel_mesh import DDPConfig, FSDP2Config, compat
from automodel_mesh.config import DistributedSetup

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "how-to" / "train-a-transformers-model.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^((?:torchrun|python) .*train_transformers\.py.*)$", PAGE, flags=re.MULTILINE)
ARGUMENTS = re.findall(r"^\| `(--[^`]+)` \|", PAGE, flags=re.MULTILINE)

FSDP2_IS_RIGHT_ON_CPU = compat.torch_at_least("2.9")
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
CAN_RUN = FSDP2_IS_RIGHT_ON_CPU and HAS_TRANSFORMERS

REASON = (
    "transformers is not installed: `nox -s examples` runs this"
    if FSDP2_IS_RIGHT_ON_CPU
    else f"the example needs torch 2.9 or newer: FSDP2 of torch {compat.TORCH_VERSION} cannot train on CPU ranks"
)
needs_transformers = pytest.mark.skipif(not CAN_RUN, reason=REASON)

sys.path.insert(0, str(EXAMPLES))  # as Python does for a script in that folder
example: Any = importlib.import_module("train_transformers")
if CAN_RUN:
    # Imported once, before the ranks are forked: transformers, and torch's compiler, which the first DTensor imports.
    training: Any = importlib.import_module("training")
    torch.compiler.reset()
sys.path.remove(str(EXAMPLES))


def test_the_page_shows_what_is_tested() -> None:
    """The page has commands for a launcher and for one process, and a table of other arguments."""
    assert [line.split()[0] for line in COMMANDS] == ["torchrun", "torchrun", "python"]
    assert len(ARGUMENTS) == 4


def run(arguments: str) -> int:
    """Run the script in this process, on each rank of a test, and return its exit status."""
    status: int = example.main(arguments.split())
    dist.barrier()  # no rank destroys its groups while another one still creates some
    return status


@pytest.mark.skipif(CAN_RUN, reason="the example can run here")
def test_the_script_says_why_it_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    """If torch is too old or transformers is missing, the script says so and exits with 3."""
    assert example.main([]) == 3
    output = capsys.readouterr()
    assert not output.out
    assert output.err.startswith("train_transformers.py cannot run here: ")
    assert ("transformers is not installed" if FSDP2_IS_RIGHT_ON_CPU else "Use torch 2.9 or newer") in output.err


@pytest.fixture
def start_line(tmp_path: Path) -> Any:
    """Return a function that runs a command line of the page and returns the completed process."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": python_path, "PATH": path, "OMP_NUM_THREADS": "1"}

    def start(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    return start


@needs_transformers
def test_commands_of_the_page_train_as_one_process_does(start_line: Any) -> None:
    """Each command of the page, in order, has the losses of one process; only rank 0 prints; there is no warning."""
    for line in COMMANDS:
        done = start_line(line)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.count("The losses agree") == 1
        assert "Warning" not in done.stderr


@needs_transformers
@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.ranks(8, timeout=120)
def test_losses_on_every_topology_equal_those_of_one_process(arguments: str) -> None:
    """With the arguments that the page lists, the losses of eight ranks are those of one process."""
    assert run(arguments) == 0


@needs_transformers
@pytest.mark.ranks(8, timeout=120)
def test_a_checkpoint_is_loaded_on_other_topologies(tmp_path: Path) -> None:
    """Training continues from a checkpoint with the same losses, with FSDP alone and on a mesh of `tp`."""
    folder = tmp_path / "checkpoint"
    assert run(f"--cp 2 --tp 2 --steps 2 --checkpoint {folder}") == 0
    assert run(f"--load {folder}") == 0
    assert run(f"--device-mesh tp=8 --load {folder}") == 0


@needs_transformers
@pytest.mark.ranks(2, timeout=120)
def test_different_losses_exit_with_1(tmp_path: Path) -> None:
    """A run that continues from the checkpoint of a different run exits with 1 on all ranks."""
    assert run(f"--tp 2 --steps 1 --checkpoint {tmp_path}") == 0
    assert run(f"--tp 2 --seed 1 --load {tmp_path}") == 1


@needs_transformers
@pytest.mark.ranks(8, timeout=120)
def test_parameters_are_sharded() -> None:
    """With two replicas and tensor parallelism a rank has a quarter of each layer's matrices."""
    sharded = example.start_run(example.read_arguments(shlex.split("--dp-replicate 2 --tp 2")))
    for parameter in sharded.model.model.layers.parameters():
        parts = 4 if parameter.ndim == 2 else 2
        assert parameter.to_local().numel() * parts == parameter.numel()
    dist.barrier()


@needs_transformers
@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (DistributedSetup(strategy_config=DDPConfig()), r"strategy DDPConfig\("),
        (DistributedSetup(strategy_config=FSDP2Config(sequence_parallel=True)), "sequence_parallel=True"),
        (DistributedSetup(activation_checkpointing="selective"), "activation_checkpointing='selective'"),
    ],
)
def test_the_loader_refuses_unsupported_settings(setup: DistributedSetup, message: str) -> None:
    """A setting that the loader does not support is an error that names it."""
    with pytest.raises(NotImplementedError, match=message):
        training.start(0, setup)


@needs_transformers
def test_the_loader_takes_a_setup_or_a_mesh() -> None:
    """The loader takes one of `distributed_setup` and `device_mesh`, and none of the retired keywords."""
    with pytest.raises(TypeError, match="tp_size"):
        training.TinyCausalLM.from_config(training.new_config(), tp_size=2)
    whole = training.TinyCausalLM.from_config(training.new_config())
    assert not any(hasattr(parameter, "to_local") for parameter in whole.parameters())
