"""Lists the models: family, estimate, paper, presets and parameters.

  python -m experiments.models                     # the table
  python -m experiments.models --references        # parameters against reference counts
  python -m experiments.models --quality           # presets of real data against papers

`scripts/into_readme` puts them into the pages.
"""

import dataclasses
import re
from typing import Any

from absl import flags

from experiments import launcher
from experiments.presets import PRESETS
from gm.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_bool("references", False, "compare parameter counts with references")
flags.DEFINE_bool("quality", False, "what presets of real data reached, and papers")

_RESOLUTION = {"solids": 16, "photos": 32, "tiny_shakespeare": 256}  # "R" of the table


@dataclasses.dataclass(frozen=True)
class Reference:
    """The number of parameters that a paper or a reference implementation has."""

    model: str
    shape: tuple[int, ...]
    num_values: int
    settings: dict[str, Any]
    count: int
    source: str
    tolerance: float = 0.0  # relative

    def ours(self) -> int:
        """The number of parameters that our model has."""
        from gm.model import count_params, load_model

        given = dict(shape=self.shape, num_values=self.num_values)
        return count_params(load_model(self.model).Model(**given, **self.settings))


def _binary(model: str, settings: dict[str, Any], count: int, source: str) -> Reference:
    """On 28 x 28 binary pixels."""
    return Reference(model, (28, 28, 1), 2, settings, count, source)


REFERENCES = (
    _binary("independent", {}, 784, "a logit per pixel"),
    _binary("mixture", dict(num_components=10), 11 * 784 + 10, "10 components"),
    _binary("made", dict(depth=0), 784 * 784 + 784, "FVSBN, counted unmasked"),
    _binary("made", dict(width=500), 785_284, "784-500, Germain et al. (2015)"),
    _binary("made_ensemble", dict(width=500, num_orders=32), 785_284, "the same"),
    _binary(
        "nade", dict(width=500), 785_284, "W, c, V, b of Larochelle & Murray (2011)"
    ),
    Reference(
        "transformer",
        (28, 28, 1),
        256,
        dict(style="gpt2", width=128, depth=4),
        920_704,
        "nanoGPT, 784 tokens, 4 layers, width 128",
    ),
    Reference(
        "pixelcnn",
        (28, 28, 1),
        2,
        dict(width=32, depth=5, head_width=32),
        115_361,
        "EugenHotaj/pytorch-generative, 5 gated layers of width 32",
    ),
    Reference(
        "pixelcnnpp",
        (28, 28, 1),
        256,
        dict(width=40, num_resnets=1),
        897_500,
        "pclucas14/pixel-cnn-pp, nr_resnet 1, 40 filters",
    ),
    Reference(
        "pixelcnnpp",
        (32, 32, 3),
        256,
        dict(width=160, num_resnets=5),
        53_659_080,
        "pclucas14/pixel-cnn-pp, nr_resnet 5, 160 filters",
    ),
    # Our keys also see the channel of ones that marks the image's inside.
    Reference(
        "pixelsnail",
        (32, 32, 3),
        256,
        dict(width=256, num_blocks=12, num_resnets=4, num_mixtures=10),
        91_371_816,
        "neocxi/pixelsnail-public, h12_noup_smallkey, counted by its layers",
        1e-3,
    ),
    Reference(
        "vdvae",
        (32, 32, 3),
        256,
        PRESETS["cifar10/vdvae"]["flags"]["set"],
        39_145_700,
        "openai/vdvae, cifar10 of hps.py",
    ),
    Reference(
        "vdm",
        (32, 32, 3),
        256,
        dict(width=128, depth=32),
        30_578_181,
        "google-research/vdm; 512 of them weigh a condition that is always 0",
        tolerance=1e-4,
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


def _short(count: int) -> str:
    """785284 -> "785k"."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def _example_shape(
    name: str, text: str, resolution: int | None = None
) -> tuple[int, ...]:
    """The shape of an example, from the table's text.

    Raises:
      InputError: a resolution that the data set, once loaded, would refuse.
    """
    told = f"--resolution={resolution}"
    if resolution is not None and resolution < 1:
        raise InputError(f"{told}: give a whole number of pixels from 1")
    if "R" in text or resolution is None:
        text = text.replace("R", str(resolution or _RESOLUTION.get(name)))
        return tuple(map(int, text.split("x")))
    sizes = tuple(map(int, text.split("x")))
    if len(sizes) != 3:
        raise InputError(f"{told}: {name} has no resolution; leave the flag out")
    side = min(sizes[:2])
    if resolution > side:
        raise InputError(
            f"{told}: the images have a side of {side} pixels; give a resolution from "
            f"1 to {side}"
        )
    return (resolution, resolution, sizes[2])


def described(
    name: str, resolution: int | None = None, data_dir: str | None = None
) -> Any:
    """A data set without its data, from the table; one that is not there is loaded.

    Raises:
      InputError: no such data set, or no such resolution of it.
    """
    import numpy as np

    from gm import data
    from gm.spec import CondSpec

    entry = data.DATASETS.get(name)
    if entry is None:
        return data.load(name, resolution=resolution, data_dir=data_dir)
    shape = _example_shape(name, entry.shape, resolution)
    kind, _, size = entry.cond.partition(":")
    cond = CondSpec("class", int(size)) if kind == "class" else None
    if kind == "real":  # of ranges that no parameter depends on
        cond = CondSpec("real", int(size), low=(0,) * int(size), high=(1,) * int(size))
    none = data.ArraySplit(np.zeros((0, *shape), np.uint8))
    return data.Dataset(name, shape, entry.num_values, "dim", none, none, none, cond)


def _preset_params(name: str) -> int:
    """Parameters of a preset; its data set is not loaded."""
    from gm.model import count_params, load_model

    given = PRESETS[name]["flags"]
    data = described(given["dataset"], given.get("resolution"))
    shape = dict(shape=data.shape, num_values=data.num_values)
    return count_params(load_model(given["model"]).Model(**shape, **given["set"]))


def table() -> tuple[list[str], list[list[str]]]:
    """Header and a line for each file of gm/models."""
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
        model = module.Model(shape=(4,), num_values=2)
        about = [name, what, paper or "", model.family, model.estimate.value]
        lines.append([*about, ", ".join(shown)])
    header = ["model", "what", "paper", "family", "estimate", "presets, parameters"]
    return header, lines


def references() -> tuple[list[str], list[list[str]], bool]:
    """Header, lines, and whether all counts are within their tolerance."""
    lines, good = [], True
    for ref in REFERENCES:
        count = ref.ours()
        off = count - ref.count
        within = abs(off) <= ref.tolerance * ref.count
        good = good and within
        data = "x".join(map(str, ref.shape)) + f" of {ref.num_values}"
        difference = f"{off:+,} ({100 * off / ref.count:+.2g}%)" if off else "equal"
        if not within:
            difference += f", MORE THAN {100 * ref.tolerance:g}%"
        given = ", ".join(f"{k}={v}" for k, v in ref.settings.items())
        lines.append(
            [ref.model, data, given, f"{count:,}", f"{ref.count:,}", difference]
            + [ref.source]
        )
    header = ["model", "data", "settings", "parameters", "reference", "difference"]
    return [*header, "reference is"], lines, good


def quality() -> tuple[list[str], list[list[str]]]:
    """Header, and a line for each preset that has a published number or a cost."""
    from experiments.published import target

    lines = []
    for name, values in sorted(PRESETS.items()):
        published, measured = values["published"], values["measured"]
        if published or measured:
            dataset = values["flags"]["dataset"]
            aim = target(dataset, published) if published else ""
            lines.append([f"`{name}`", values["obtained"], aim, measured])
    return ["preset", "reached", "published (`?`: not checked)", "measured"], lines


def main(argv: list[str]) -> int:
    """Prints a Markdown table; status 1 if a count is not the reference's."""
    from gm.tables import markdown

    launcher.refuse_arguments(argv)
    if FLAGS.references and FLAGS.quality:
        raise InputError("--references, --quality: give one of them")
    good = True
    if FLAGS.references:
        header, lines, good = references()
    elif FLAGS.quality:
        header, lines = quality()
    else:
        header, lines = table()
    print(markdown(header, lines))
    return 0 if good else 1


if __name__ == "__main__":
    launcher.run(main)
