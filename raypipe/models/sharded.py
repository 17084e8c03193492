"""A model ready to train: FSDP2 over its layers, LoRA, activation checkpointing and compilation as asked for.

Trained weights, and the optimiser's state, are float32; computation is in `dtype`, gradients are summed in float32. Frozen ones are
kept in `dtype`. Every rank holds its share of each, gathers a layer's weights just before they are used, and drops them after.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from raypipe.models.flops import Cost, cost_of
from raypipe.models.packed import PackedModel, load_model


@dataclass(frozen=True)
class Lora:
    """Adapters of rank r on the linear layers named, "all-linear" for all but the head; scaled by alpha / r."""

    r: int
    alpha: int
    target_modules: str | tuple[str, ...] = "all-linear"


@dataclass(frozen=True)
class Tuning:
    model: str
    dtype: str  # of compute
    lora: Lora | None  # None: every weight is trained
    seed: int  # adapters start at random
    activation_checkpointing: bool
    compile: bool


def shard(model: Any, tuning: Tuning, device: str) -> tuple[PackedModel, Cost]:
    """A collective of all ranks of the default process group. The cost is of the whole model."""
    cost = cost_of(model)
    if tuning.activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = MixedPrecisionPolicy(param_dtype=getattr(torch, tuning.dtype), reduce_dtype=torch.float32)
    mesh = dist.init_device_mesh(device, (dist.get_world_size(),))
    blocks = set(model._no_split_modules or ())  # transformers' names for a model's layers
    for layer in [module for module in model.modules() if type(module).__name__ in blocks]:
        if tuning.compile:
            layer.compile(dynamic=True)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    packed = PackedModel(model)
    fully_shard(packed, mesh=mesh, mp_policy=policy)
    for module in packed.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)  # sum, not mean: the loss is already divided by the step's tokens
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled reduction
    return packed, cost


def load_tuned(tuning: Tuning) -> Any:
    """On the CPU."""
    return tuned(load_model(tuning.model, "float32" if tuning.lora is None else tuning.dtype, "cpu"), tuning)


def tuned(model: Any, tuning: Tuning) -> Any:
    """The model with its adapters, if it is to have any: what is trained in float32, what is not as it is."""
    if tuning.lora is None:
        return model
    model = adapted(tuning.lora, model, tuning.seed).get_base_model()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model


def adapted(lora: Lora, model: Any, seed: int = 0) -> Any:
    """A model of peft's with fresh adapters, the same on every rank, which keeps its share of them."""
    from peft import LoraConfig, get_peft_model  # takes seconds

    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    torch.manual_seed(seed)
    return get_peft_model(
        model, LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=modules, task_type="CAUSAL_LM")
    )
