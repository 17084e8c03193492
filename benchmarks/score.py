"""IFD of the same rows by the same model: tokens a CPU second, beside what others run.

    .venv/bin/python benchmarks/score.py             # about 15 minutes; rows of ../shared/data, or of --rows FILE (json lines)

From instruction and response as text to an IFD a row, one thread, in interleaved rounds; loading is not counted. Each engine has
a process of its own, and vLLM's raw rate, `generate` alone on ready token ids, is that of the very engine of our vLLM backend.
The tokens are those of exact scoring, both passes, whoever scores: what is compared is the cost of the same rows. Data-Juicer is
installed beside the environment (build/rivals); its operator gives ratios of losses, in its own template. At the end, what
bfloat16 does to an IFD.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import answer
from benchmarks.record import PROJECT, circumstances, record

RAW_SHARE = 0.95  # of vLLM's raw rate, by our vLLM backend with the same settings
ROW_BY_ROW, PADDED = 1.5, 3.0  # times their rates, by the packed backend in bfloat16
ROUNDS, NUM_ROWS, TRAINED_ON, MAX_LENGTH, BATCH_TOKENS = 5, 200, 5000, 2048, 4096
ROWS = PROJECT.parent / "shared" / "data" / "code_alpaca_20k" / "part-00.jsonl.gz"
TEMPLATE = "Question:\n{instruction}\n\nAnswer:\n"
RIVALS = PROJECT / "build" / "rivals"
DATA_JUICER = """
py-data-juicer==1.6.1 tomli==2.5.0 zstandard==0.25.0 datasets==5.2.0 multiprocess==0.70.19 xxhash==4.1.0 wget==3.2
emoji==2.16.0 jsonargparse==4.53.0 beautifulsoup4==4.15.0 soupsieve==4.1.2 tabulate==0.10.0
"""
Rows = list[tuple[str, str]]
Ways = dict[str, Callable[[], Any]]  # by name; each scores all rows once


def authors(model: str, rows: Rows, name: str, num_batch: int = 1) -> Ways:
    """Two passes a batch of rows, padded on the right; with batches of 1 what the paper's script does, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    engine = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)

    @torch.inference_mode()
    def losses(texts: list[str], masked: list[int]) -> list[float]:
        batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=MAX_LENGTH)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, end in enumerate(masked):
            labels[row, :end] = -100
        if num_batch == 1:
            return [engine(batch["input_ids"], labels=labels).loss.item()]
        logits = engine(**batch).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        return (nll.sum(1) / (labels[:, 1:] != -100).sum(1)).tolist()

    def way() -> list[float]:
        ratios = []
        for first in range(0, len(rows), num_batch):
            some = rows[first : first + num_batch]
            prompts = [TEMPLATE.replace("{instruction}", instruction) for instruction, _ in some]
            ends = [len(tokenizer.encode(prompt)) for prompt in prompts]
            joint = [prompt + response for prompt, (_, response) in zip(prompts, some, strict=True)]
            alone = losses([response for _, response in some], [0] * len(some))
            ratios += [a / b for a, b in zip(losses(joint, ends), alone, strict=True)]
        return ratios

    return {name: way}


def data_juicer(model: str, rows: Rows, name: str) -> Ways:
    sys.path.append(str(RIVALS))  # after this environment, whose packages it shares
    from data_juicer.utils.lazy_loader import LazyLoader

    def refuse(*words: object, **_: object) -> None:
        raise ImportError(f"Data-Juicer wants {words}: name it in DATA_JUICER")

    LazyLoader._install_package = classmethod(refuse)  # it would install into this environment
    from data_juicer.ops.filter.instruction_following_difficulty_filter import InstructionFollowingDifficultyFilter

    operator = InstructionFollowingDifficultyFilter(
        hf_model=model,
        accelerator="cpu",
        model_params={"torch_dtype": "float32"},
        query_template="{q}",
        response_template="{a}",
        query_key="q",
        response_key="a",
    )
    operator.model_params = {"max_length": MAX_LENGTH}  # of the tokenizer; it refuses them where they belong

    def way() -> list[float]:
        samples = [{"q": TEMPLATE.replace("{instruction}", q), "a": a, "__dj__stats__": {}} for q, a in rows]
        return [operator.compute_stats_single(sample)["__dj__stats__"]["ifd_score"] for sample in samples]

    return {name: way}


def packed(model: str, rows: Rows, name: str, dtype: str) -> Ways:
    return {name: ours(make_score(model, "transformers", dtype), rows)}


def vllm(model: str, rows: Rows, name: str, dtype: str) -> Ways:
    score = make_score(model, "vllm", dtype)
    engine, sampling = score.scorer.engine.engine, score.scorer.engine.sampling
    prompts = [{"prompt_token_ids": tokens} for tokens in sequences(model, rows)]
    return {
        name.replace("raypipe vllm", "vLLM raw"): lambda: engine.generate(prompts, sampling, use_tqdm=False),
        name: ours(score, rows),
    }


def ours(score: Any, rows: Rows) -> Callable[[], Any]:
    import pyarrow as pa

    instructions, responses = map(list, zip(*rows, strict=True))
    ids = [str(n) for n in range(len(rows))]
    samples = pa.table({"sample_id": ids, "instruction": instructions, "response": responses})
    return lambda: score(score.prepare([samples, pa.table({"status": ["ok"] * len(rows)})]))


def error_of_bfloat16(model: str, rows: Rows, backend: str) -> dict[str, float]:
    """Against float32 of the packed backend: quantiles over rows of the error of an IFD, and how the order of rows changes."""
    import numpy as np
    from scipy.stats import spearmanr

    exact, rounded = (
        ours(make_score(model, *which), rows)().column("ifd").to_numpy()
        for which in (("transformers", "float32"), (backend, "bfloat16"))
    )
    error = np.abs(rounded / exact - 1)
    quantiles = {f"p{round(100 * q)}": float(np.quantile(error, q)) for q in (0.5, 0.9, 0.99, 1.0)}
    return {**quantiles, "rank correlation": float(spearmanr(exact, rounded).statistic)}


def make_score(model: str, backend: str, dtype: str) -> Any:
    from raypipe.config import Config
    from raypipe.stages.score import Score

    tree = {
        "name": "benchmark", "model": model, "template": "paper",
        "ingest": {"paths": ["-"]}, "embed": {"model": "-"}, "storage": {"root": "-"},
        "score": {"backend": backend, "dtype": dtype, "max_length": MAX_LENGTH},
        "resources": {"score": {"max_batch_tokens": BATCH_TOKENS}},
    }  # fmt: skip
    return Score(Config.model_validate_json(json.dumps(tree)))


def sequences(model: str, rows: Rows) -> list[list[int]]:
    from raypipe.models.pretrained import load_tokenizer
    from raypipe.ops.ifd import exact_passes
    from raypipe.ops.tokens import anchor_ids, prompt_ids, text_ids

    tokenizer, (instructions, responses) = load_tokenizer(model), zip(*rows, strict=True)
    prompts = prompt_ids(tokenizer, TEMPLATE, instructions)
    passes = exact_passes(anchor_ids(tokenizer), prompts, text_ids(tokenizer, responses), MAX_LENGTH)
    return [tokens for pair in passes.sequences for tokens in pair]


CONTESTANTS: dict[str, Callable[[str, Rows, str], Ways]] = {
    "row by row, fp32": authors,
    "batches of 16, fp32": partial(authors, num_batch=16),
    "Data-Juicer, fp32": data_juicer,
    "raypipe vllm, fp32": partial(vllm, dtype="float32"),
    "raypipe vllm, bf16": partial(vllm, dtype="bfloat16"),
    "raypipe packed, fp32": partial(packed, dtype="float32"),
    "raypipe packed, bf16": partial(packed, dtype="bfloat16"),
}


def contest(name: str, model: str, rows: Rows) -> None:
    """In a process of its own: says its ways; each line of standard input is one of them, and its CPU seconds the answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    ways = CONTESTANTS[name](model, rows, name)
    for way in ways.values():
        way()
    print(json.dumps(list(ways)), file=answers, flush=True)
    for line in sys.stdin:
        started = time.process_time()
        ways[line.strip()]()
        print(time.process_time() - started, file=answers, flush=True)


@contextmanager
def contestant(name: str, model: str, rows: Path, log: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, "--contestant", name, "--model", model, "--rows", str(rows)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def rounds(model: str, rows: Path, log: Path) -> dict[str, list[float]]:
    """CPU seconds of each way by round. An engine gets ready alone, as some measure the memory that is free."""
    with ExitStack() as stack, log.open("w") as said:
        running: dict[str, subprocess.Popen[str]] = {}
        for name in CONTESTANTS:
            process = stack.enter_context(contestant(name, model, rows, said))
            running |= dict.fromkeys(json.loads(answer(process, name, log)), process)
        seconds: dict[str, list[float]] = {name: [] for name in running}
        for number, (name, process) in itertools.product(range(ROUNDS), running.items()):
            assert process.stdin
            print(name, file=process.stdin, flush=True)
            seconds[name].append(float(answer(process, name, log)))
            print(f"round {number + 1}  {name:22} {seconds[name][-1]:6.2f} CPU s", flush=True)
    return seconds


def read_rows(path: Path, most: int = NUM_ROWS) -> Rows:
    """Of CodeAlpaca's columns, those with an instruction and a response."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        samples = [json.loads(line) for line in file]
    pairs = [("\n".join(filter(None, (s["instruction"], s.get("input")))), s["output"]) for s in samples]
    return [pair for pair in pairs if all(map(str.strip, pair))][:most]


def set_up(rows: Rows) -> str:
    """Installs the rival that is not part of raypipe, and trains a small Qwen2 on the rows, so that scores mean something."""
    from raypipe.models.tiny import train_tiny_model

    if not (RIVALS / "data_juicer").is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(RIVALS)]
        subprocess.run([*install, *DATA_JUICER.split()], check=True)
    folder = RIVALS.parent / "score-model"
    if not folder.is_dir():
        shape = {"vocab_size": 4096, "hidden_size": 256, "num_layers": 4}
        train_tiny_model(rows, folder, template=TEMPLATE, **shape)
    return str(folder)


def check(rate: dict[str, float]) -> dict[str, tuple[float, float]]:
    """What is promised: (got, goal)."""
    return {
        "raypipe vllm / vLLM raw, fp32": (rate["raypipe vllm, fp32"] / rate["vLLM raw, fp32"], RAW_SHARE),
        "raypipe vllm / vLLM raw, bf16": (rate["raypipe vllm, bf16"] / rate["vLLM raw, bf16"], RAW_SHARE),
        "raypipe packed bf16 / row by row": (rate["raypipe packed, bf16"] / rate["row by row, fp32"], ROW_BY_ROW),
        "raypipe packed bf16 / batches of 16": (rate["raypipe packed, bf16"] / rate["batches of 16, fp32"], PADDED),
        "raypipe packed fp32 / vLLM raw fp32": (rate["raypipe packed, fp32"] / rate["vLLM raw, fp32"], 1.0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS, help="json lines with instruction, input, output")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    words = parser.parse_args()
    rows = read_rows(words.rows)
    if words.contestant:
        contest(words.contestant, words.model, rows)
        return 0
    found = circumstances()
    model = set_up(read_rows(words.rows, TRAINED_ON))
    lengths = list(map(len, sequences(model, rows)))
    print(f"{len(rows)} rows, {sum(lengths)} tokens in both passes, the longest sequence {max(lengths)}")
    seconds = rounds(model, words.rows, RIVALS.parent / "score.log")
    rates = {name: sorted(sum(lengths) / s for s in by_round) for name, by_round in seconds.items()}
    median = {name: statistics.median(by_round) for name, by_round in rates.items()}
    for name, by_round in rates.items():
        print(f"{name:22} {median[name]:8,.0f} tokens a CPU second ({by_round[0]:,.0f} to {by_round[-1]:,.0f})")
    errors = {backend: error_of_bfloat16(model, rows, backend) for backend in ("transformers", "vllm")}
    for backend, error in errors.items():
        print(f"bfloat16, {backend}: error of IFD {', '.join(f'{name} {value:.2g}' for name, value in error.items())}")
    promises = check(median)
    goals = {name: {"got": round(got, 3), "goal": goal} for name, (got, goal) in promises.items()}
    record(
        "score",
        {**found, "rows": len(rows), "tokens": sum(lengths), "rates": rates, "bfloat16": errors, "goals": goals},
    )
    for name, (got, goal) in promises.items():
        print(f"{name:36} {got:.3f} (goal {goal}){'' if got >= goal else '  MISSED'}")
    return int(any(got < goal for got, goal in promises.values()))


if __name__ == "__main__":
    sys.exit(main())
