"""A trained run as one directory to share: weights, configuration, rows and a card.

It is a run directory whose checkpoint is one safetensors file: whatever takes a
--workdir of a trained run takes it, and so do --init_from and `gm.load`.
"""

import dataclasses
import json
from pathlib import Path

from gm.commands import evaluate_command, train_command
from gm.data import DATASETS
from gm.errors import InputError
from gm.evaluate import num_params
from gm.model import load_model, model_names
from gm.results import Row, read_rows, unit_name
from gm.rundir import write_json, write_whole
from gm.tables import markdown, value_text
from gm.trained import Trained, own_file
from gm.weights import write_weights


def export(found: Trained, output: str | Path, *, license: str = "") -> Path:
    """Writes a directory to share.

    Args:
      found: the run, with the parameters to export.
      output: a directory that is new or empty.
      license: of the weights, such as "apache-2.0"; "": that of the run if it was
        exported itself, else none.

    Returns:
      The directory.

    Raises:
      InputError: something is there already, or it cannot be written; a license that
        is more than a line.
    """
    if not license.isprintable():
        raise InputError(f"--license={license!r}: give one line, such as apache-2.0")
    out = Path(output)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--output={out}: is there already; give a new directory")
    meta = {k: v for k, v in found.meta.items() if k not in ("digests", "sha256")}
    rows = _rows(found)
    config = found.run.config() | {"data_dir": None}  # a path of this machine
    config.setdefault("trained_in", str(found.run.path))
    config["license"] = license or config.get("license", "")
    target = type(found.run)(out)
    digest = write_weights(target.weights, found.params, found.checkpoint, meta)
    write_json(out / "config.json", config)
    for row in rows:
        source = Path(row["file"])
        for file in (source, *source.parent.glob(f"{source.stem}.*.npy")):
            write_whole(target.results / file.name, file.read_bytes())
    own = found.config.model not in model_names()
    if own:
        code = Path(str(load_model(found.config.model).__file__))
        write_whole(own_file(out, found.config.model), code.read_bytes())
    card = _card(found, rows, digest, config["trained_in"], config["license"], own)
    write_whole(out / "README.md", card.encode())
    return out


def _rows(found: Trained) -> list[Row]:
    """The run's rows of these parameters."""
    rows = read_rows([str(found.run.path)], may_be_empty=True)
    return [r for r in rows if r.get("checkpoint") == found.checkpoint]


# What a number of each kind is, for who has not read gm's pages.
_KINDS = {
    "exact": "are exact",
    "weight": "are lower bounds, which more importance samples tighten",
    "elbo": "are lower bounds (ELBO)",
}


def _card(
    found: Trained, rows: list[Row], digest: str, path: str, license: str, own: bool
) -> str:
    """What the weights are, what they were fitted to, and how good they are."""
    config = found.config
    head = {"library_name": "gm", "tags": ["likelihood", found.model.family]}
    head |= {"license": license} if license else {}
    parts = [
        "\n".join(["---", *(f"{k}: {json.dumps(v)}" for k, v in head.items()), "---"])
    ]
    parts.append(f"# {config.model} on {config.dataset}")
    kind = (
        "conditional on " + found.model.cond.label
        if found.model.cond
        else "unconditional"
    )
    parts.append(
        f"Of the {found.model.family} family, {kind}, with {num_params(found.params):,} "
        f"parameters. It assigns a probability to integers 0 to "
        f"{found.model.num_values - 1} of shape {list(found.model.shape)}; its "
        f"log-likelihoods {_KINDS[found.model.estimate.value]}."
    )
    parts.append("## Numbers")
    parts += (
        _numbers(rows) if rows else ["None: `evaluate` was not run on these weights."]
    )
    parts.append("## How they came about")
    commands = [train_command(config, path)] + [
        evaluate_command(row | {"run": path}, config)
        for row in rows
        if "evaluation_seed" in row
    ]
    parts.append("```bash\n" + "\n".join(commands) + "\n```")
    parts.append(_facts(found, digest))
    parts.append("## Data")
    source = DATASETS[config.dataset].source if config.dataset in DATASETS else ""
    parts.append(
        f"{config.dataset}{f' ({source})' if source else ''}, preprocessing: "
        f"{found.data['preprocessing']}. The licence of the data is that of its source, "
        "which this directory does not change."
    )
    parts.append("## Licence of the weights")
    parts.append(license or "Not stated by who exported them: ask before you use them.")
    parts.append("## Use")
    again = train_command(dataclasses.replace(config, init_from="THIS"), "NEW")
    parts.append(_USE.format(again=again))
    if own:
        file = own_file(Path(), config.model)
        parts.append(
            f"The model is no part of gm: `{config.model}` is the file `{file}` here, "
            "which must be on the path (start Python in this directory, as `python -m`, or "
            "put it into PYTHONPATH). It is code: read it first."
        )
    return "\n\n".join(parts) + "\n"


_USE = """```python
import gm

run = gm.load("this directory")
x = run.sample(16)
nats = -run.log_prob(x)
```

The first measures the numbers again, the second goes on from these weights:

```bash
python -m experiments.evaluate --workdir=THIS
{again}
```"""


def _numbers(rows: list[Row]) -> list[str]:
    lines = [
        [
            f"{row['dataset']}, {row['split']}",
            f"{value_text(row)} {unit_name(row)}",
            row["estimate"]
            + (f", {k} draws" if (k := row["num_importance_samples"]) > 1 else ""),
            f"{row['num_examples']:,}",
            row["split_sha256"][:16],
            f"{row.get('device', '')}, {row.get('commit', '')}",
        ]
        for row in rows
    ]
    header = ["data", "value ± standard error", "estimate", "examples", "split sha256"]
    table = markdown([*header, "device, commit of gm"], lines)
    return [table, "`<=` is an upper bound on the bits; the rows are in `results/`."]


def _facts(found: Trained, digest: str) -> str:
    meta = found.meta
    facts = {
        "checkpoint": f"{found.checkpoint} of {found.config.train.num_steps}",
        "examples seen": f"{meta.get('examples_seen', 0):,}",
        "seconds of training": f"{meta.get('train_seconds', 0.0):.0f}",
        "training FLOPs": f"{meta.get('train_flops', 0.0):.3g}",
        "parameters sha256": digest,
    }
    return "\n".join(f"- {k}: {v}" for k, v in facts.items())
