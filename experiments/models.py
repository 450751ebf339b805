"""Lists the models: family, estimate, paper, presets and parameters.

python -m experiments.models                     # the table
python -m experiments.models --references        # parameters against reference counts
"""

import dataclasses
import math
import re
from typing import Any

from absl import flags

from experiments import launcher

FLAGS = flags.FLAGS
flags.DEFINE_bool("references", False, "compare parameter counts with references")

_RESOLUTION = {"solids": 16, "photos": 32, "tiny_shakespeare": 256}  # "R" of the table


@dataclasses.dataclass(frozen=True)
class Reference:
    """The number of parameters that a reference implementation has."""

    model: str
    shape: tuple[int, ...]
    num_values: int
    settings: dict[str, Any]
    count: int
    source: str
    tolerance: float = 0.0  # relative


REFERENCES = (
    Reference(
        "made",
        (28, 28, 1),
        2,
        dict(width=500),
        785_284,
        "784-500 of Germain et al. (2015)",
    ),
    Reference(
        "glow",
        (32, 32, 3),
        256,
        dict(width=64, depth=4),
        411_840,
        "3 blocks of 4 steps, rosinality/glow-pytorch",
    ),
    Reference(
        "nice",
        (28, 28, 1),
        256,
        {},
        19_158_352,
        "4 couplings of 5 layers of 1000, Dinh et al. (2015)",
    ),
    # Ours has no position for the last patch, of which nothing follows.
    Reference(
        "tarflow",
        (64, 64, 3),
        256,
        dict(width=768, num_blocks=8, depth=8, num_heads=12),
        460_142_784,
        "patches of 2, 8 blocks of 8 layers of 768, apple/ml-tarflow",
        1e-4,
    ),
)


def num_params(model: Any) -> int:
    """The number of parameters of a module; nothing is computed."""
    import jax

    from gm.model import init_params

    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _short(count: int) -> str:
    """785284 -> "785k"."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def _preset_params(name: str) -> int:
    """Parameters of a preset; its data set is not loaded."""
    from experiments.presets import PRESETS
    from gm import data
    from gm.model import load_model

    given = PRESETS[name]["flags"]
    entry = data.DATASETS[given["dataset"]]
    side = given.get("resolution", _RESOLUTION.get(given["dataset"]))
    shape = tuple(int(n) for n in entry.shape.replace("R", str(side)).split("x"))
    cls = load_model(given["model"]).Model
    return num_params(cls(shape=shape, num_values=entry.num_values, **given["set"]))


def table() -> tuple[list[str], list[list[str]]]:
    """Header and a line for each file of gm/models."""
    from experiments.presets import PRESETS
    from gm.model import load_model, model_names

    lines = []
    for name in model_names():
        module = load_model(name)
        # "MADE: masked autoencoder (Germain et al. 2015)." is how each file begins.
        title = " ".join((module.__doc__ or "").split("\n\n")[0].split()).rstrip(".")
        found = re.fullmatch(r"(.*?)(?: \(([^()]*\d{4}[^()]*)\))?", title)
        what, paper = found.groups() if found else (title, None)
        presets = [p for p, v in PRESETS.items() if v["flags"]["model"] == name]
        shown = [f"`{p}` {_short(_preset_params(p))}" for p in presets]
        cls = module.Model
        estimate = cls.estimate.value
        lines.append([name, what, paper or "", cls.family, estimate, ", ".join(shown)])
    header = ["model", "what", "paper", "family", "estimate", "presets, parameters"]
    return header, lines


def references() -> tuple[list[str], list[list[str]], bool]:
    """Header, lines, and whether all counts are within their tolerance."""
    from gm.model import load_model

    lines, good = [], True
    for ref in REFERENCES:
        cls = load_model(ref.model).Model
        model = cls(shape=ref.shape, num_values=ref.num_values, **ref.settings)
        count = num_params(model)
        off = count / ref.count - 1
        within = abs(off) <= ref.tolerance
        good = good and within
        lines.append(
            [
                ref.model,
                "x".join(map(str, ref.shape)) + f" of {ref.num_values}",
                f"{count:,}",
                f"{ref.count:,}",
                "equal" if not off else f"{off:+.2%}" + ("" if within else ", TOO FAR"),
                ref.source,
            ]
        )
    header = ["model", "data", "parameters", "reference", "difference", "source"]
    return header, lines, good


def main(argv: list[str]) -> int:
    """Prints a Markdown table; status 1 if a count is not the reference's."""
    from gm.tables import markdown

    launcher.refuse_arguments(argv)
    good = True
    if FLAGS.references:
        header, lines, good = references()
    else:
        header, lines = table()
    print(markdown(header, lines))
    return 0 if good else 1


if __name__ == "__main__":
    launcher.run(main)
