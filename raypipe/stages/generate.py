"""Generate: completions of evaluation problems by the base model and by the fine-tuned one.

The base model continues a problem's own text; the fine-tuned one is asked by an instruction, as it was trained (`ops.code_prompts`).
Problems are put first, in `_problems/`, a part for each model and so many completions; then each model makes its parts.

Columns: model (base, tuned), task, problem_id, completion_index, completion (as generated, with what was given as its beginning).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa

from raypipe.config import Config
from raypipe.identity import MODEL_FILES, fetched_model, pinned_model, read_object
from raypipe.models.generator import Sampling, make_generator
from raypipe.models.pretrained import load_tokenizer, max_positions
from raypipe.ops.chat_template import SLOT
from raypipe.ops.code_prompts import BEGINNING, FORMS, instruction, said, stops
from raypipe.ops.problems import PROBLEMS, Problem, read_problems
from raypipe.ops.tokens import prompt_ids, text_ids
from raypipe.part import Footer, Table, commit_part, with_figures
from raypipe.parts import map_parts
from raypipe.sizing import device_of, free_bytes
from raypipe.stage import Inputs, Result
from raypipe.store import Folder

PART_COMPLETIONS = 64
PROMPT_TOKENS = 2048  # more than any problem of the known sets has


def run(config: Config, inputs: Inputs, out: Folder) -> Result:
    if not config.evaluate.tasks:
        return Result()
    names = list(_put_problems(config, out / PROBLEMS))
    parts: dict[str, Footer | None] = dict.fromkeys(names)
    for model in FORMS:
        its = Table(out / PROBLEMS, tuple(name for name in names if _model_of(name) == model))
        make = partial(Generate, config, model, inputs["train"].folder / "model")
        parts |= map_parts(make, [its], out, pool=config.resources.evaluate)
    return Result(parts, {"prompts": {model: said(form) for model, form in FORMS.items()}})


def _put_problems(config: Config, out: Folder) -> Iterator[str]:
    """Names of all parts."""
    there = set(out.list())
    count = max(1, PART_COMPLETIONS // config.evaluate.num_completions)
    for task, uri in config.evaluate.tasks.items():
        problems = read_problems(uri, read_object(f"evaluate.tasks.{task}", uri, config.storage.endpoint))
        for first in range(0, len(problems), count):
            some = problems[first : first + count]
            for model in FORMS:
                part = f"part-{task}-{first // count:05d}-{model}.parquet"
                if part not in there:
                    rows = {"task": [task] * len(some), "problem": [problem.record for problem in some]}
                    commit_part(out, part, pa.table(rows), counts={})
                yield part


def _model_of(part: str) -> str:
    return part.removesuffix(".parquet").rpartition("-")[2]


class Generate:
    def __init__(self, config: Config, model: str, tuned: Folder) -> None:
        self.config, self.model, self.form = config, model, FORMS[model]
        pool, endpoint, lora = config.resources.evaluate, config.storage.endpoint, config.train.lora
        path, adapter = fetched_model(config.model, endpoint), None
        if model == "tuned" and lora is not None and lora.export == "adapter":
            adapter = _released(tuned, endpoint, ("adapter_config.json",))
        elif model == "tuned":
            path = _released(tuned, endpoint)
        self.tokenizer = load_tokenizer(path)
        self.generator = make_generator(
            config.evaluate.backend,
            path,
            adapter,
            self.tokenizer,
            device_of(pool),
            config.evaluate.dtype,
            min(max_positions(path), PROMPT_TOKENS + config.evaluate.max_new_tokens),
            free_bytes(pool),
            pool.max_batch_tokens,
            gpus=pool.gpus,
        )

    def __call__(self, tables: list[pa.Table]) -> pa.Table:
        tasks, asked = tables[0].column("task").to_pylist(), self.config.evaluate
        problems = [Problem(record) for record in tables[0].column("problem").to_pylist()]
        sampling = Sampling(
            asked.num_completions,
            asked.temperature if asked.num_completions > 1 else 0.0,
            asked.max_new_tokens,
            stops(self.form, problems[0].kind),
        )
        made = self.generator.complete([self._prompt(problem) for problem in problems], sampling, self.config.seed)
        rows = [
            (self.model, task, problem.problem_id, n, text)
            for task, problem, texts in zip(tasks, problems, made, strict=True)
            for n, text in enumerate(texts)
        ]
        columns = ("model", "task", "problem_id", "completion_index", "completion")
        table = pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
        tokens = sum(map(len, text_ids(self.tokenizer, table.column("completion").to_pylist())))
        return with_figures(table, num_tokens=tokens)

    def _prompt(self, problem: Problem) -> list[int]:
        if self.form == "completion":
            return prompt_ids(self.tokenizer, SLOT, [problem.prompt])[0]
        asked = prompt_ids(self.tokenizer, self.config.template, [instruction(problem)])[0]
        return asked + text_ids(self.tokenizer, [BEGINNING])[0]


def _released(model: Folder, endpoint: str | None, needs: Sequence[str] = MODEL_FILES) -> str:
    """Where the fine-tuned model is on this machine."""
    return fetched_model(pinned_model("train", model.path, endpoint, needs), endpoint, needs)
