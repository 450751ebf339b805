"""What a run is: the model, the data and how to fit. No JAX here: --help stays quick."""

import dataclasses
import math
import os
import typing
from typing import Any

from gm.errors import InputError, check_seed, check_whole


def _flag(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to fit. The launchers' flags have these names, types and defaults."""

    num_steps: int = _flag(1000, "updates of the parameters")
    batch_size: int = _flag(64, "examples per update, over all devices")
    learning_rate: float = _flag(1e-3, "of AdamW, after the warm-up")
    warmup_steps: int = _flag(100, "steps over which the learning rate rises linearly")
    schedule: str = _flag("cosine", "after the warm-up: cosine (down to 0) or constant")
    weight_decay: float = _flag(0.0, "of AdamW, on matrices and kernels")
    clip_norm: float = _flag(1.0, "largest global norm of the gradient (bits/dim)")
    ema_decay: float = _flag(0.999, "of the averaged parameters that are evaluated")
    augmentation: str = _flag(
        "none",
        "of training examples: none, flip (images, left to right) or mutate:RATE "
        "(that part of the symbols drawn anew)",
    )
    cond_drop_rate: float = _flag(
        0.0, "share of examples that come without their condition, for guidance"
    )
    accumulate: int = _flag(1, "parts of a batch whose gradients are averaged")
    remat: bool = _flag(
        False, "keep only products and convolutions for the backward pass: less memory"
    )
    seed: int = _flag(0, "of initial parameters, data order and noise")
    steps_per_dispatch: int = _flag(20, "steps fused into one dispatch to the device")
    log_every: int = _flag(100, "steps between rows of metrics.jsonl")
    valid_every: int = _flag(200, "steps between passes over the validation split")
    save_every: int = _flag(500, "steps between checkpoints")
    num_valid_examples: int = _flag(2000, "validation examples at most")
    valid_samples: int = _flag(1, "importance samples per validation example")
    on_nonfinite: str = _flag("abort", "NaN or infinity: abort, skip or rollback")

    def check(self) -> None:
        """Raises InputError, naming the flag, for a value that cannot be meant."""
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"--{name}={value}: give a finite number above 0")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"--weight_decay={self.weight_decay}: give 0 or more")
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"--ema_decay={self.ema_decay}: give 0 <= decay < 1")
        if not 0 <= self.cond_drop_rate < 1:
            raise InputError(
                f"--cond_drop_rate={self.cond_drop_rate}: give 0 <= rate < 1"
            )
        check_whole(0, warmup_steps=self.warmup_steps)
        check_seed(self.seed)
        counts = ("num_steps", "batch_size", "accumulate", "steps_per_dispatch")
        every = ("log_every", "valid_every", "save_every")
        for name in (*counts, *every, "num_valid_examples", "valid_samples"):
            check_whole(1, **{name: getattr(self, name)})
        if self.batch_size % self.accumulate:
            raise InputError(
                f"--accumulate={self.accumulate}: does not divide "
                f"--batch_size={self.batch_size}"
            )
        choices = {
            "schedule": ("cosine", "constant"),
            "on_nonfinite": ("abort", "skip", "rollback"),
        }
        for name, valid in choices.items():
            if getattr(self, name) not in valid:
                raise InputError(
                    f"--{name}={getattr(self, name)}: give {' or '.join(valid)}"
                )
        if self.augmentation not in ("none", "flip") and not 0 < self.mutation_rate < 1:
            raise InputError(
                f"--augmentation={self.augmentation}: give none or flip, or "
                "mutate:RATE with a rate between 0 and 1, such as mutate:0.2"
            )

    @property
    def mutation_rate(self) -> float:
        """The rate of --augmentation=mutate:RATE; 0 for any other augmentation."""
        kind, _, rate = self.augmentation.partition(":")
        try:
            return float(rate) if kind == "mutate" else 0.0
        except ValueError:
            return 0.0


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run, as config.json holds it."""

    model: str
    dataset: str
    resolution: int | None = None
    data_dir: str | None = None
    conditional: bool = False
    precision: str = "float32"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    init_from: str | None = None  # the run whose parameters it began with
    train: TrainConfig = TrainConfig()

    # What may differ when a run is resumed, since it changes no number (the parameters
    # that a run began with are told by their sha256).
    may_change = ("data_dir", "init_from", "log_every", "save_every")

    def to_json(self) -> dict[str, Any]:
        """A flat dictionary, so that a differing field is named as its flag."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        train = values.pop("train")
        return values | dataclasses.asdict(train)

    @classmethod
    def from_json(
        cls, values: dict[str, Any], where: str | os.PathLike = "config.json"
    ) -> "RunConfig":
        """The inverse of `to_json`; other keys are left alone.

        Raises:
          InputError: not that of a run; `where` it was read is named.
        """
        if not isinstance(values, dict):
            raise InputError(f"{where}: not that of a run")
        own, train = (
            {f.name: f.type for f in dataclasses.fields(c) if f.name != "train"}
            for c in (cls, TrainConfig)
        )
        told = [f"{n} is missing" for n in ("model", "dataset") if n not in values]
        told += [
            f"{n} is {values[n]!r:.80}"
            for n, kind in (own | train).items()
            if n in values and not _is(values[n], kind)
        ]
        if told:
            raise InputError(f"{where}: not that of a run ({', '.join(told)})")
        given = [{n: values[n] for n in c if n in values} for c in (own, train)]
        return cls(**given[0], train=TrainConfig(**given[1]))


def _is(value: Any, kind: Any) -> bool:
    """Whether a JSON value may be that of a field of this type."""
    if typing.get_origin(kind) is dict:
        kind = dict
    return isinstance(value, int | float if kind is float else kind)
