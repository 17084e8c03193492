"""IFD scoring on one GPU: tokens a second, and how much of what the GPU can do, for a 7B Llama shape in bfloat16.

    python benchmarks/gpu_score.py ROWS.jsonl.gz     # 5 minutes on a GPU of 140 GB; json lines with instruction, input, output

The ceiling is 2 x parameters x tokens at the rate of a large bfloat16 matmul, measured here. Weights are of chance, ids too;
lengths are those of the rows (3.5 bytes a token, as no tokenizer is at hand) and 1,000 tokens. Needs raypipe.ops and
raypipe.models, no Ray. `--small` is a try on a CPU, with nothing recorded.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig

from benchmarks.record import circumstances, record
from raypipe.models.packed import ATTENTION, packed_attention
from raypipe.models.scorer import Scorer, TransformersScorer, VllmScorer
from raypipe.ops.ifd import Passes, exact_passes

GOAL = 0.5  # of the ceiling, by the packed backend, at the best of BATCH_TOKENS
BATCH_TOKENS = (8192, 16384, 32768)
ROUNDS, NUM_ROWS, NUM_LONG, MAX_LENGTH, BYTES_A_TOKEN = 3, 2000, 300, 2048, 3.5
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def matmul_flops(device: str, size: int) -> float:
    """Operations a second of a square bfloat16 matmul."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for seconds in (0.5, 2.0):  # the first warms up
        count, started = 0, time.perf_counter()
        while (spent := time.perf_counter() - started) < seconds:
            torch.matmul(a, b)
            wait(device)
            count += 1
    return 2 * size**3 * count / spent


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def passes_of(lengths: list[tuple[int, int]], vocab_size: int) -> Passes:
    """Both passes of samples with so many tokens in prompt and response, ids of chance."""
    rng = np.random.default_rng(0)
    prompts, responses = (
        [rng.integers(0, vocab_size, n).tolist() for n in some] for some in zip(*lengths, strict=True)
    )
    return exact_passes([1], prompts, responses, MAX_LENGTH)


def row_lengths(path: Path) -> list[tuple[int, int]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = [json.loads(line) for line in file][:NUM_ROWS]
    texts = [("\n".join([row["instruction"], row.get("input") or ""]), row["output"]) for row in rows]
    sizes = [[len(text.encode()) / BYTES_A_TOKEN for text in pair] for pair in texts]
    return [(round(prompt) + 12, max(round(response), 1)) for prompt, response in sizes]  # 12 of the template


def packed(config: LlamaConfig, device: str) -> Callable[[int], Scorer]:
    AttentionInterface.register(ATTENTION, packed_attention)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=ATTENTION)
    return lambda batch_tokens: TransformersScorer(model, batch_tokens)


def rate(scorer: Scorer, passes: Passes, device: str) -> float:
    """Tokens a second, of both passes, context too."""
    sequences = [tokens for pair in passes.sequences for tokens in pair]
    started = time.perf_counter()
    sums = scorer.nll(sequences, passes.num_context_N2.ravel().tolist())
    wait(device)
    assert np.isfinite(sums).all(), "a sum is not finite"
    return sum(map(len, sequences)) / (time.perf_counter() - started)


def measure(start: Callable[[int], Scorer], lakes: dict[str, Passes], device: str) -> dict[str, dict[str, list[float]]]:
    """Rates by tokens a batch and lake, in interleaved rounds; the first is not counted."""
    found: dict[str, dict[str, list[float]]] = {str(tokens): {name: [] for name in lakes} for tokens in BATCH_TOKENS}
    for number in range(ROUNDS + 1):
        for tokens in BATCH_TOKENS:
            scorer = start(tokens)
            for name, passes in lakes.items():
                got = rate(scorer, passes, device)
                found[str(tokens)][name] += [round(got)] * bool(number)
                print(f"round {number}  {tokens:6} tokens a batch  {name:12} {got:9,.0f} tokens/s", flush=True)
    return found


def vllm_rates(config: LlamaConfig, lakes: dict[str, Passes], device: str, folder: Path) -> dict[str, list[float]]:
    """Weights of chance too, so a folder with nothing but the configuration is enough."""
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    free = torch.cuda.mem_get_info()[0]
    scorer = VllmScorer(str(folder), device, "bfloat16", MAX_LENGTH, free, 8192, load_format="dummy")
    return {name: [rate(scorer, passes, device) for _ in range(ROUNDS + 1)][1:] for name, passes in lakes.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--small", action="store_true")
    words = parser.parse_args()
    device = "cpu" if words.small else "cuda"
    found = circumstances()
    config = LlamaConfig(vocab_size=1024, **SMALL) if words.small else LlamaConfig()  # its defaults are the 7B shape
    lengths = row_lengths(words.rows)[: 50 if words.small else None]
    long = [(500, 500)] * (5 if words.small else NUM_LONG)
    lakes = {"CodeAlpaca": passes_of(lengths, config.vocab_size), "1,000 tokens": passes_of(long, config.vocab_size)}
    flops = matmul_flops(device, 1024 if words.small else 8192)
    start = packed(config, device)
    model: Any = start(1).model  # type: ignore[attr-defined]
    parameters = sum(weight.numel() for weight in model.parameters())
    ceiling = flops / (2 * parameters)
    print(f"{parameters / 1e9:.2f}e9 parameters, matmul {flops / 1e12:.1f} TFLOP/s: at most {ceiling:,.0f} tokens/s")
    rates = measure(start, lakes, device)
    best = {name: max(statistics.median(by_lake[name]) for by_lake in rates.values()) for name in lakes}
    found |= {"parameters": parameters, "matmul_tflops": round(flops / 1e12, 1), "packed": rates}
    if device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "peak_bytes": torch.cuda.max_memory_allocated()}
        print(f"{found['gpu']}, peak memory {found['peak_bytes'] / 1e9:.1f} GB")
        del start, model
        torch.cuda.empty_cache()
        if find_spec("vllm"):
            found["vllm"] = vllm_rates(config, lakes, device, Path("build/gpu-score-model"))
            print(f"vLLM {found['vllm']}")
    shares = {name: got / ceiling for name, got in best.items()}
    if not words.small:
        record("gpu_score", {**found, "share_of_ceiling": shares, "goal": GOAL})
    for name, share in shares.items():
        missed = "" if share >= GOAL else "  MISSED"
        print(f"{name:12} {best[name]:9,.0f} tokens/s, {share:.3f} of the ceiling (goal {GOAL}){missed}")
    return int(min(shares.values()) < GOAL)


if __name__ == "__main__":
    sys.exit(main())
