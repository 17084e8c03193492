"""The one YAML file as frozen models, one a section, strict in keys and types. config_file reads it.

A key exists only if two users would set it differently. What a stage's rows depend on is `Section.content()`: everything
but the keys a section names in `NOT_CONTENT`; `resources` are in no recipe at all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, model_validator

from raypipe.resources import Resources
from raypipe.section import Fraction01, Positive, Section
from raypipe.sources import Clean, Ingest

TEMPLATES = {
    "paper": "Question:\n{instruction}\n\nAnswer:\n",  # what the paper's code scores with; below what it trains each model with
    "deepseek": "### Instruction:\n{instruction}\n### Response:\n",
    "starcoder2": "### Instruction:\n{instruction}\n### Response:\n",
    "codellama": "[INST] {instruction} [/INST]",
    "codegemma": "<start_of_turn>user\n{instruction}<end_of_turn>\n<start_of_turn>model\n",
    "codeqwen": "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n{instruction}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:",
}


def _template(template: str) -> str:
    """The text of a known one, so that a recipe holds the text."""
    text = TEMPLATES.get(template, template)
    if text != "chat" and "{instruction}" not in text:
        raise ValueError(f"must contain {{instruction}}, or be one of chat, {', '.join(TEMPLATES)}")
    return text


Template = Annotated[str, pydantic.AfterValidator(_template)]


def _as_paths(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


# Parquet files, folders or globs of rows of your own, keyed by sample_id, in any order; null: computed here
Given = Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, pydantic.BeforeValidator(_as_paths)]


class Embed(Section):
    NOT_CONTENT = frozenset({"model", "given"})  # their files' digests are in the recipe instead
    model: str | None = None
    given: Given = None  # sample_id, embedding (a list of floats): in place of a model
    text: Literal["instruction", "response", "both"] = "instruction"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # cosine 0.9999 to float32, which a CPU without it computes
    backend: Literal["torch", "openvino"] = "torch"  # openvino: CPUs only, needs raypipe[openvino]

    @model_validator(mode="after")
    def _one_source(self) -> Embed:
        if (self.model is None) == (self.given is None):
            raise ValueError(
                f"got {'neither' if self.model is None else 'both'} of embed.model and embed.given, wanted one: a sentence-transformers model, "
                "or Parquet files of embeddings (sample_id, embedding)"
            )
        return self


class Cluster(Section):
    NOT_CONTENT = frozenset({"given"})
    num_clusters: Positive = 10
    metric: Literal["cosine", "euclidean"] = "cosine"
    max_cluster_fraction: Annotated[float, Field(gt=0, le=1)] | None = None  # of samples; a larger cluster is split
    # cosine of embeddings: of two samples of a cluster at least so near the later one is never selected; null: not looked for
    semantic_similarity: Annotated[float, Field(ge=0.5, le=1)] | None = None
    centers: str | None = None  # frozen centers.npy of another run: rows are assigned to these, nothing is fitted
    given: Given = None  # sample_id, cluster_id (from 0): in place of a fit

    @model_validator(mode="after")
    def _one_source(self) -> Cluster:
        if self.centers is not None and self.given is not None:
            raise ValueError("got both centers and given, wanted one: each says which cluster a sample is in")
        return self


class Score(Section):
    NOT_CONTENT = frozenset({"model", "given"})
    model: str | None = None  # null: the top-level model
    given: Given = None  # sample_id, num_instruction_tokens, num_response_tokens, nll_conditional, nll_unconditional: in place of a model
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    rule: Literal["exact", "authors"] = "exact"  # authors: tokenised and cut as the paper's code does
    template: Template | None = None  # null: the top-level template; with rule authors, the paper's
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    max_length: Annotated[int, Field(ge=2)] = 4096  # tokens, instruction and response together
    on_overflow: Literal["drop", "truncate"] = (
        "drop"  # a longer sample: not scored, or scored on what fits of its response
    )


SIZES = ("keep_fraction", "num_samples", "num_tokens")


class Select(Section):
    strategy: Literal["paper", "global_ifd", "random", "cluster_random", "longest", "column"] = "paper"
    column: str | None = None  # of ingest.carry: what strategy column takes the highest of
    keep_fraction: Annotated[float, Field(gt=0, le=1)] | None = 0.4  # of each cluster's samples in the band of IFD
    fraction_of: Literal["survivors", "cluster"] = "survivors"  # cluster: of all its samples, as far as survivors last
    num_samples: Positive | None = None  # instead of a fraction: in all, each cluster in proportion to its survivors
    num_tokens: Positive | None = None  # the same in tokens, instruction and response, as score counts them
    per: str | None = None  # of ingest.carry: every value of it, in every cluster, is a group of its own
    min_ifd: Annotated[float, Field(ge=0)] = 0.0  # inclusive
    max_ifd: Annotated[float, Field(gt=0)] = 1.0  # exclusive
    held_out_fraction: Fraction01 = 0.01  # of samples, by hash of sample_id

    @model_validator(mode="before")
    @classmethod
    def _no_default_beside(cls, keys: Any) -> Any:
        given = isinstance(keys, dict) and any(keys.get(name) is not None for name in SIZES[1:])
        return {"keep_fraction": None, **keys} if given else keys

    @model_validator(mode="after")
    def _coherent(self) -> Select:
        if (self.strategy == "column") != (self.column is not None):
            raise ValueError("strategy column and a column go together: give both or neither")
        given = [name for name in SIZES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"got {' and '.join(given) or 'none'} of {', '.join(SIZES)}, wanted one: each says how much to keep"
            )
        if self.keep_fraction is None and self.fraction_of == "cluster":
            raise ValueError(f"fraction_of says what keep_fraction is of: leave it out with {given[0]}")
        if self.min_ifd >= self.max_ifd:
            raise ValueError(f"no IFD is at least min_ifd={self.min_ifd:g} and below max_ifd={self.max_ifd:g}")
        return self


class Pack(Section):
    strategy: Literal["best_fit", "dynamic_pack", "pad"] = "best_fit"  # dynamic_pack: the paper's
    max_length: Annotated[int, Field(ge=2)] = 2048  # tokens per pack
    on_overflow: Literal["drop", "split"] = "drop"  # a longer sample: left out, or cut into pieces, each a sample


class Lora(Section):
    r: Positive
    alpha: Positive  # adapters are scaled by alpha / r
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"  # layers' names; or all but the head
    export: Literal["merged", "adapter"] = "merged"  # the whole model, or adapters for peft and vLLM


class Budget(Section):
    """Training goes through as many epochs as it takes, and ends with the step that reaches it."""

    samples: Positive | None = None
    target_tokens: Positive | None = None  # of responses, and an end of text each
    steps: Positive | None = None  # of the optimiser

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if len(self.given()) != 1:
            raise ValueError(
                f"got {' and '.join(self.given()) or 'none'} of samples, target_tokens, steps, wanted one: each says when training ends"
            )
        return self

    def given(self) -> dict[str, int]:
        return self.model_dump(exclude_none=True)


class Train(Section):
    NOT_CONTENT = frozenset({"checkpoint_every_s", "report_to"})
    epochs: Positive = 3
    budget: Budget | None = None  # in place of epochs: {samples: N}, {target_tokens: N} or {steps: N}
    samples_per_step: Positive = 512  # per optimiser step, over all workers
    learning_rate: Annotated[float, Field(gt=0)] = 5.0e-5  # peak; cosine to 0
    warmup_steps: Annotated[int, Field(ge=0)] = 15
    lora: Lora | None = None  # null: every weight is trained
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of compute; trained weights and optimiser stay float32
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 900.0
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()  # beside metrics.jsonl

    def content(self) -> dict[str, Any]:
        """Either epochs or a budget."""
        unused = "budget" if self.budget is None else "epochs"
        return {name: value for name, value in super().content().items() if name != unused}


class Evaluate(Section):
    # of tasks their files' digests are in the recipe instead
    NOT_CONTENT = frozenset({"tasks", "execute", "execute_without_sandbox"})
    # name: a JSONL file laid out as HumanEval's or evalplus's
    tasks: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")], str] = Field(default_factory=dict)
    num_completions: Positive = 1  # of each problem; 1: greedy
    temperature: Annotated[float, Field(gt=0)] = 0.8  # where there are more
    max_new_tokens: Positive = 1024
    backend: Literal["auto", "vllm", "transformers"] = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    execute: bool = False  # run what the models wrote, in a sandbox
    # where a machine has none: it may then read, write and reach all that raypipe may
    execute_without_sandbox: bool = False


class Report(Section):
    exemplars_per_cluster: Annotated[int, Field(ge=0)] = 5  # 0 hides all text


class Storage(Section):
    root: str
    endpoint: Annotated[str, Field(pattern=r"^https?://[^@\s]+$")] | None = (
        None  # of S3, other than AWS; for every s3:// path here
    )


class Config(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    model: str
    template: Template = "### Instruction:\n{instruction}\n### Response:\n"  # or: chat (the tokenizer's own)
    ingest: Ingest
    clean: Clean = Clean()
    embed: Embed
    cluster: Cluster = Cluster()
    score: Score = Score()
    select: Select = Select()
    pack: Pack = Pack()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    report: Report = Report()
    storage: Storage
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _carried(self) -> Config:
        for key in ("column", "per"):
            name = getattr(self.select, key)
            if name is not None and name not in self.ingest.carry:
                raise ValueError(
                    f"select.{key}: {name} is not carried. Add it to ingest.carry, which has {list(self.ingest.carry)}"
                )
        return self

    @property
    def score_model(self) -> str:
        return self.score.model or self.model

    @property
    def score_template(self) -> str:
        return self.score.template or (TEMPLATES["paper"] if self.score.rule == "authors" else self.template)
