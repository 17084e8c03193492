"""What a run may take of its cluster: how fast, never what, so none of it is part of any identity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raypipe.section import Positive, Section


def _ordered(limits: tuple[int, int] | None) -> tuple[int, int] | None:
    if limits and limits[0] > limits[1]:
        raise ValueError(f"[min, max] expected, got [{limits[0]}, {limits[1]}]")
    return limits


class Pool(Section):
    gpus: Annotated[float, Field(ge=0)] = 0.0  # per actor
    accelerator: str | None = None  # Ray accelerator_type; where it is not given, resources.accelerator
    actors: tuple[Positive, Positive] | None = None  # [min, max]; null: as many as fit
    _ordered = field_validator("actors")(_ordered)


class ScorePool(Pool):
    max_batch_tokens: Annotated[int, Field(ge=16)] = 8192  # per forward pass; on a CPU transformers takes 1,024 at most

    @field_validator("gpus")
    @classmethod
    def _whole(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"a part of one GPU, or a whole number of them that share a model, expected, got {gpus:g}")
        return gpus


class TrainWorkers(Section):
    gpus: Annotated[float, Field(ge=0)] = 0.0  # per worker
    accelerator: str | None = None  # as of the other pools
    placement: Literal["pack", "spread"] = "pack"  # on few nodes, which talk less, or on many, of which one may be lost
    # [min, max]: trains on with fewer where nodes are lost, and with more where they come
    workers: tuple[Positive, Positive] = (1, 1)
    _ordered = field_validator("workers")(_ordered)
    # per forward pass; at least one sample; on a CPU 4,096 at most
    micro_batch_tokens: Annotated[int, Field(ge=16)] = 16384
    activation_checkpointing: bool = True  # activations are made again in backward: less memory, a third more work
    compile: bool = False  # torch.compile, layer by layer


Shape = Pool | TrainWorkers  # what has GPUs and names an accelerator


class Resources(Section):
    """How fast, never what: no part of any identity."""

    accelerator: str | None = None  # Ray accelerator_type of every pool that has GPUs and names no other
    max_gpu_hours: Annotated[float, Field(gt=0)] | None = None  # of scoring; a run that would take more is not started
    embed: Pool = Pool()
    cluster: Pool = Pool()
    score: ScorePool = ScorePool()
    train: TrainWorkers = TrainWorkers()
    evaluate: ScorePool = ScorePool()  # generates; what is generated is run on CPUs

    @model_validator(mode="after")
    def _spread(self) -> Resources:
        """The accelerator of all is that of each."""
        for name, pool in list(self):
            if isinstance(pool, Shape) and "accelerator" not in pool.model_fields_set:
                object.__setattr__(self, name, pool.model_copy(update={"accelerator": self.accelerator}))
        return self
