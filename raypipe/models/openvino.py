"""The network of a sentence-transformers model, run by OpenVINO on a CPU instead of torch: same weights, fused kernels.

Tokens, pooling and all other modules stay torch's. What was converted is compared with torch before it is used, as tracing
a model may lose a branch of its code.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from raypipe.errors import ConfigError

PROBES = ["a", "Write a function that adds two numbers.", "Explain what this program prints, and why. " * 8]
LEAST_COSINE = 0.999  # of a probe, also in bfloat16: a lost branch gives 0.9 and less


def compile_network(model: Any, precision: str) -> None:
    """Replace what the first module's network does; `precision` is bf16 or f32. ConfigError where OpenVINO cannot."""
    network, features = model[0], model.preprocess(PROBES)
    if not {"input_ids", "attention_mask"} <= features.keys():
        raise ConfigError(f"embed.model: OpenVINO cannot run a {type(network).__name__}. Set embed.backend=torch")
    with torch.inference_mode():
        expected = network(dict(features))["token_embeddings"]
        network.model.forward = _compiled(network.model, features, precision)
        got = network(dict(features))["token_embeddings"]
    there = features["attention_mask"].bool()
    cosine = torch.nn.functional.cosine_similarity(expected[there], got[there], dim=-1).min().item()
    if not cosine >= LEAST_COSINE:
        raise ConfigError(
            f"embed.model: OpenVINO gives other token vectors than torch, cosine {cosine:.4f}, wanted at least {LEAST_COSINE}. "
            "Set embed.backend=torch"
        )


def _compiled(network: Any, features: dict[str, Any], precision: str) -> Any:
    import openvino

    names = [name for name in inspect.signature(network.forward).parameters if torch.is_tensor(features.get(name))]
    try:
        graph = openvino.convert_model(_Traced(network, names), example_input=tuple(features[name] for name in names))
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": 1,
            "ENABLE_CPU_PINNING": False,  # two processes would land on one core
        }
        request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"embed.model: OpenVINO cannot convert a {type(network).__name__}. Set embed.backend=torch"
        ) from error

    def forward(**tensors: Any) -> dict[str, Any]:
        outputs = request.infer([tensors[name].numpy() for name in names], share_inputs=True)
        return {"last_hidden_state": torch.from_numpy(outputs[0])}

    return forward


class _Traced(torch.nn.Module):  # type: ignore[misc]  # torch is Any here
    """Tensors in, one tensor out, as the converter wants it."""

    def __init__(self, network: Any, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *tensors: Any) -> Any:
        return self.network(**dict(zip(self.names, tensors, strict=True))).last_hidden_state
