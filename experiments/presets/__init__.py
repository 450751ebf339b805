"""Flags that were tried, with what they gave; one file per family, and one of
APPLICATIONS.md.

`train --preset=NAME` sets these flags; those given on the command line win. A preset
named DATASET/MODEL is also what `sweep --presets` uses for that cell; DATASET/MODEL-WORD
is another of the same. `obtained` is what a run of the preset printed for the test split
(seed 0, CPU); another should come near. NOT_RUN marks configurations, most of them of
papers, that were not run to the end.

`digits` has 17 ordered grey levels, so logistics say more with less than a table does;
over-fitting is the limit there. The cells of scripts/run and scripts/board are those of
made, transformer, realnvp and vae.
"""

from typing import Any

from experiments.presets import (
    applications,
    autoregressive,
    flow,
    flow_attention,
    latent,
    multiscale,
)
from gm.errors import InputError, did_you_mean

PRESETS: dict[str, dict[str, Any]] = {
    **autoregressive.PRESETS,
    **flow.PRESETS,
    **flow_attention.PRESETS,
    **latent.PRESETS,
    **multiscale.PRESETS,
    **applications.PRESETS,
}
for _name, _values in PRESETS.items():
    _dataset, _model = _name.rsplit("/", 1)
    _values["flags"] |= {"dataset": _dataset, "model": _model.split("-")[0]}


def find(name: str) -> dict[str, Any]:
    """Returns a preset; InputError lists those of its data set, or the data sets."""
    if name not in PRESETS:
        dataset = name.rpartition("/")[0]
        of = {p: p.rpartition("/")[0] for p in PRESETS}
        same = [p for p, own in of.items() if own == dataset]
        valid = ", ".join(
            same or [f"{own}/MODEL" for own in dict.fromkeys(of.values())]
        )
        raise InputError(
            f"--preset={name}: unknown{did_you_mean(name, PRESETS)} (one of {valid})"
        )
    return PRESETS[name]
