"""The commands that made a run and its rows, from what they left behind."""

import shlex
from pathlib import Path
from typing import Any

from gm.config import RunConfig


def field_text(value: Any) -> str:
    """A field's value as `--set` reads it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def set_flags(settings: dict[str, Any]) -> list[str]:
    """The flags that give a model's fields these values."""
    return [f"--set={name}={field_text(value)}" for name, value in settings.items()]


def train_command(config: RunConfig, workdir: str) -> str:
    """The `train` command of a run: every flag that is not at its default."""
    defaults = RunConfig(model="", dataset="").to_json()
    words = []
    for name, value in config.to_json().items():
        if name == "settings":
            words += set_flags(value)
        elif value is True:
            words.append(f"--{name}")
        elif value != defaults[name]:
            words.append(f"--{name}={value}")
    words.append(f"--workdir={workdir}")
    return shlex.join(["python", "-m", "experiments.train", *words])


def evaluate_command(row: dict[str, Any], config: RunConfig) -> str:
    """The `evaluate` command of a row that was read, of a run of this configuration."""
    words = [f"--workdir={row['run']}", f"--split={row['split']}"]
    if row["num_importance_samples"] > 1:
        words.append(f"--num_importance_samples={row['num_importance_samples']}")
    fields = {"k_curve": "k_curve", "interval": "interval_nats", "bit_map": "bit_map"}
    words += [f"--{flag}" for flag, field in fields.items() if row.get(field)]
    if row.get("evaluation_seed"):
        words.append(f"--seed={row['evaluation_seed']}")
    kind, _, step = str(row.get("checkpoint", "best")).partition(", step ")
    # A step that was asked for is written as of the latest checkpoints.
    by_number = kind == "latest" and Path(row["file"]).stem.endswith(f"-{step}")
    if kind != "best":
        words.append(f"--checkpoint={step if by_number else kind}")
    # A row of another data set than the run's is named after it.
    if not Path(row["file"]).stem.startswith(row["split"]):
        words.append(f"--dataset={row['dataset']}")
    own, settings = config.settings, row.get("settings", {})
    words += set_flags({k: v for k, v in settings.items() if v != own.get(k, v)})
    return shlex.join(["python", "-m", "experiments.evaluate", *words])
