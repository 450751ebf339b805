"""Writes a trained run as one directory to share: weights, configuration, rows, a card.

  python -m experiments.export --workdir=runs/vae --output=vae-digits --license=apache-2.0
  python -m experiments.evaluate --workdir=vae-digits
  python -m experiments.train --preset=digits/vae --init_from=vae-digits --workdir=runs/more

The weights are the averaged parameters, as safetensors. Every launcher that takes the
--workdir of a trained run takes the directory too, and so does `gm.load`.
"""

from absl import flags

from experiments import launcher
from gm.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "directory of a trained run")
flags.DEFINE_string("checkpoint", "best", "best by validation, latest, or a step")
flags.DEFINE_string("output", None, "the new directory")
flags.DEFINE_string("license", "", "of the weights, for the card: such as apache-2.0")


def main(argv: list[str]) -> None:
    """Exports one run."""
    launcher.refuse_arguments(argv)
    for name in ("workdir", "output"):
        if not getattr(FLAGS, name):
            raise InputError(f"--{name} is required; see --help")
    from gm import trained
    from gm.export import export

    found = trained.load(FLAGS.workdir, FLAGS.checkpoint)
    out = export(found, FLAGS.output, license=FLAGS.license)
    size = sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"{found.run.path.name} ({found.checkpoint}): {out}, {size:,} bytes")


if __name__ == "__main__":
    launcher.run(main)
