"""A framework's model loader, in small: it builds a Hugging Face model and shards it as `distributed_setup=` says.

Tensor parallelism is torch's `parallelize_module`, data parallelism is FSDP2's `fully_shard`, and context parallelism
the attention of context_attention.py. Which mesh each of them gets is what automodel_mesh answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from context_attention import register_context_attention
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM

from automodel_mesh import FSDP2Config, compat, get_flat_mesh, get_fsdp_dp_mesh
from automodel_mesh.loaders import accepts_distributed_setup

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.parallel import ParallelStyle
    from transformers import PretrainedConfig, PreTrainedModel

    from automodel_mesh.config import DistributedSetup


class TinyCausalLM:
    """Loads causal language models of the Llama family, sharded as the caller says."""

    @classmethod
    @accepts_distributed_setup
    def from_config(
        cls, config: PretrainedConfig, *, distributed_setup: DistributedSetup | None = None, **model_kwargs: Any
    ) -> PreTrainedModel:
        """Make a model with new weights. On every rank of the setup, after seeding torch alike on all of them.

        Args:
            config: the model's configuration.
            distributed_setup: how to shard it; `None` leaves it whole. A plain `device_mesh=` may be given instead.
            model_kwargs: handed on to transformers.

        Returns:
            The model, of which each rank has its part.

        Raises:
            NotImplementedError: the setup asks for what this loader cannot do, such as pipeline stages.
        """
        setup = distributed_setup
        if setup is None:
            return AutoModelForCausalLM.from_config(config, **model_kwargs)
        strategy = read_strategy(setup, config)
        cp = find_axis(setup.device_mesh, "cp")
        if cp is not None and cp.size() > 1:
            model_kwargs["attn_implementation"] = register_context_attention(cp)
        model = AutoModelForCausalLM.from_config(config, **model_kwargs)
        if setup.activation_checkpointing:
            enable_activation_checkpointing(model)
        shard(model, setup.device_mesh, strategy)
        return model


def shard(model: PreTrainedModel, mesh: DeviceMesh | None, strategy: FSDP2Config) -> None:
    """Apply tensor parallelism, then FSDP2: each if the mesh has axes for it."""
    tp = find_axis(mesh, "tp")
    if tp is not None and tp.size() > 1:
        parallelize_module(model, tp, llama_plan() if strategy.tp_plan is None else dict(strategy.tp_plan))
    fsdp = find_fsdp_mesh(mesh)
    if fsdp is not None:
        policies = {name: getattr(strategy, name) for name in ("mp_policy", "offload_policy", "reshard_after_forward")}
        given = {name: policy for name, policy in policies.items() if policy is not None}
        for layer in model.model.layers:
            fully_shard(layer, mesh=fsdp, **given)
        fully_shard(model, mesh=fsdp, **given)


def find_fsdp_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Return the mesh for `fully_shard`: one axis, or (replicate, shard); `None` for a mesh of `tp` alone."""
    if mesh is not None and "dp_shard" in (mesh.mesh_dim_names or ()):
        return get_fsdp_dp_mesh(mesh)
    return find_axis(mesh, "dp")


def find_axis(mesh: DeviceMesh | None, *names: str) -> DeviceMesh | None:
    """Return the first of these axes that the mesh has, native or derived; `None` if it has none of them."""
    if mesh is None:
        return None
    there = {*(mesh.mesh_dim_names or ()), *compat.flattened_meshes(mesh)}
    return next((get_flat_mesh(mesh, name) for name in names if name in there), None)


def llama_plan() -> dict[str, ParallelStyle]:
    """Split a Llama over `tp`: columns first and then rows, so that attention and MLP need one sum each."""
    return {
        "model.embed_tokens": RowwiseParallel(input_layouts=Replicate()),
        "model.layers.*.self_attn.q_proj": ColwiseParallel(),
        "model.layers.*.self_attn.k_proj": ColwiseParallel(),
        "model.layers.*.self_attn.v_proj": ColwiseParallel(),
        "model.layers.*.self_attn.o_proj": RowwiseParallel(),
        "model.layers.*.mlp.gate_proj": ColwiseParallel(),
        "model.layers.*.mlp.up_proj": ColwiseParallel(),
        "model.layers.*.mlp.down_proj": RowwiseParallel(),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }


def enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Let each layer compute its activations again in the backward pass."""
    # Transformers 5 has renamed it on the way, and warns of the older name.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()


def read_strategy(setup: DistributedSetup, config: PretrainedConfig) -> FSDP2Config:
    """Return the strategy; raise for what this loader cannot do, since nothing asked for is left out in silence."""
    mesh = setup.device_mesh
    single = FSDP2Config(mp_policy=MixedPrecisionPolicy())  # a plain mesh says nothing of the precision
    strategy = single if setup.strategy_config is None else setup.strategy_config
    asked = {
        f"strategy {strategy!r}": not isinstance(strategy, FSDP2Config),
        "sequence_parallel=True": getattr(strategy, "sequence_parallel", False),
        "a tp_plan by name": isinstance(getattr(strategy, "tp_plan", None), str),
        "activation_checkpointing='selective'": setup.activation_checkpointing == "selective",
        "cp without dp_shard_cp": setup.mesh_context.cp_size > 1 and find_axis(mesh, "dp_shard_cp") is None,
        "pp_size > 1": setup.mesh_context.pp_size > 1,
        "ep_size > 1": setup.mesh_context.ep_size > 1,
        "tie_word_embeddings=True": config.tie_word_embeddings,
    }
    refused = [what for what, is_asked in asked.items() if is_asked]
    if refused:
        raise NotImplementedError(f"TinyCausalLM is an example and cannot do {', '.join(refused)}: leave that out.")
    return strategy
