r"""Compresses a split, or your own files, with a trained run; and decompresses.

  python -m experiments.compress --workdir=runs/vae --split=test --archive=test.gm
  python -m experiments.compress --workdir=runs/vae --input=images.npy --archive=a.gm
  python -m experiments.compress --decompress --workdir=runs/vae --archive=a.gm \
      --output=images.npy

The values, their shape and their type come back exactly, a text byte for byte; of a
folder of images it is the pixels, without the names. What would be lost is refused.
"""

import os
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments import launcher
from gm.errors import InputError, check_whole

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "directory of a trained run")
flags.DEFINE_string("checkpoint", "best", "best by validation, latest, or a step")
flags.DEFINE_enum("split", "test", ["train", "valid", "test"], "which examples")
flags.DEFINE_string("input", None, "your .npy, .npz, folder of images or text instead")
flags.DEFINE_string("archive", None, "the compressed file")
flags.DEFINE_bool("decompress", False, "from --archive to --output")
flags.DEFINE_string("output", None, "to decompress to: .npy, .npz (x, labels), text")
flags.DEFINE_integer("batch_size", None, "examples at a time (default: the codec's)")
flags.DEFINE_integer("seed", 0, "of the random bits that bits-back begins with")
flags.DEFINE_bool("baselines", True, "measure PNG, WebP, zlib and lzma too")
launcher.define_data_dir()
launcher.define_mesh_flags()
flags.adopt_module_key_flags(launcher)


def _measured_nats(found: Any, x: Any, cond: Any, mesh: Any) -> float:
    """The mean of one draw per example; x of any type and byte order."""
    import numpy as np

    from gm.data import ArraySplit
    from gm.evaluate import evaluate_nats

    if found.model.cond and found.model.cond.kind == "class":
        cond = cond.astype(np.int32)
    split = ArraySplit(x.astype(np.int32), cond)
    order = np.arange(len(x))
    nats, _ = evaluate_nats(found.model, found.params, split, order, mesh=mesh)
    return float(nats.mean())


def _compress(found: Any, mesh: Any) -> None:
    """Writes the archive and prints what it took."""
    import numpy as np

    from gm import codec
    from gm.data.whole import Whole, read_whole
    from gm.rundir import write_whole
    from gm.trained import own_row
    from gm.writer import Progress

    row = None
    if FLAGS.input is not None:
        path = Path(FLAGS.input).expanduser()
        whole = read_whole(
            path,
            found.model.shape,
            found.model.cond,
            found.data["symbols"],
            found.data.get("end"),
        )
        name = path.name
    else:
        dataset, split = launcher.load_split(found, FLAGS.split)
        x, cond = split.batch(np.arange(len(split)))
        source = {"kind": "array", "shape": list(x.shape)}
        whole = Whole(x, cond if found.model.cond else None, source)
        have = own_row(found, dataset, FLAGS.split)
        row, name = have and have[0], f"{dataset.name} {FLAGS.split}"
    progress = Progress("compressing", len(whole.x))
    begin = time.monotonic()
    data = codec.compress(
        found,
        whole.x,
        whole.cond,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        source=whole.source,
        progress=lambda done, mean: progress.update(done, f"{mean:.1f} bits each"),
        mesh=mesh,
    )
    seconds = time.monotonic() - begin
    progress.close()
    if row and row["num_importance_samples"] == 1:
        nats = row["nats"]
    else:  # bits-back pays for one draw of the bound: a row of several does not compare
        nats = _measured_nats(found, whole.x, whole.cond, mesh)
    write_whole(Path(FLAGS.archive), data)
    _report(found, whole.x, name, data, nats, row, seconds)


def _report(found, x, name, data, nats, row, seconds):
    """Prints the sizes, beside what the model reports and other compressors need."""
    from gm import codec
    from gm.codec.baselines import baseline_bits
    from gm.likelihood import bits
    from gm.spec import Estimate

    header, model = codec.read_header(data), found.model
    count, dims = len(x), len(x) * model.num_dims
    reported, net = bits(nats) * count, header["net_bits"]
    side = 8 * header["cond"][2] if header["cond"] else 0
    print(
        f"{name}: {count} examples of {'x'.join(map(str, model.shape))}, "
        f"{model.num_values} values; {found.config.model} ({found.checkpoint})"
    )

    def line(label, size, note=""):
        print(f"  {label:<18}{size / dims:10.4f} bits/dim{note}")

    kind = "exact" if model.estimate is Estimate.EXACT else "bound, one draw each"
    line("reported", reported, f"  ({kind})")
    if row and row["num_importance_samples"] > 1:
        note = f"  (bound, {row['num_importance_samples']} draws each)"
        line("its result row", bits(row["nats"]) * count, note)
    line("coded, net", net, f"  {100 * (net / reported - 1):+.3f} % of reported")
    borrowed = 32 * header["initial_words"]
    note = f"  {len(data)} bytes, with header and {borrowed} initial bits"
    line("coded, gross", 8 * len(data), note)
    if side:
        line("  of it, conditions", side)
    if FLAGS.baselines:
        for label, size in baseline_bits(x, model.num_values).items():
            line(label, size)
    speed = f"{count / seconds:.1f} examples/s, {dims / seconds / 1e6:.3f} M symbols/s"
    batch = header["batch_size"]
    print(f"  {seconds:.1f} s with compilation: {speed}, batches of {batch}")


def _decompress(found: Any, mesh: Any) -> None:
    """Writes what the archive holds."""
    from gm import codec
    from gm.data.whole import check_suffix, write_again
    from gm.rundir import write_whole
    from gm.writer import Progress

    archive = Path(FLAGS.archive)
    try:
        data = archive.read_bytes()
    except OSError as error:
        raise InputError(
            f"--archive={archive}: cannot be read ({error.strerror})"
        ) from None
    header, output = codec.read_header(data, str(archive)), Path(FLAGS.output)
    check_suffix(header["cond"] is not None, header["source"], output.suffix)
    if FLAGS.batch_size not in (None, header["batch_size"]):
        print(
            f"--batch_size={FLAGS.batch_size} is not used: what was coded in batches of "
            f"{header['batch_size']} is decoded in the same"
        )
    progress = Progress("decompressing", header["shape"][0])
    begin = time.monotonic()
    x, cond = codec.decompress(
        found,
        data,
        where=str(archive),
        progress=lambda done, mean: progress.update(done, f"{mean:.1f} bits each"),
        mesh=mesh,
    )
    seconds = time.monotonic() - begin
    progress.close()
    symbols = found.data["symbols"]
    write_whole(output, write_again(x, cond, header["source"], symbols, output.suffix))
    print(
        f"{output}: {len(x)} examples, sha256 {header['sha256'][:16]} as compressed; "
        f"{seconds:.1f} s with compilation, {len(x) / seconds:.1f} examples/s"
    )


def _refuse_same(one: str, other: str) -> None:
    """InputError where two flags name one file, which would be overwritten."""
    paths = [
        Path(str(FLAGS[name].value)).expanduser().resolve() for name in (one, other)
    ]
    if paths[0] == paths[1]:
        raise InputError(
            f"--{one}={FLAGS[one].value}: is the --{other} itself, which would be "
            "overwritten; give another name"
        )


def main(argv: list[str]) -> None:
    """Compresses or decompresses."""
    launcher.refuse_arguments(argv)
    if not FLAGS.workdir:
        raise InputError("--workdir is required: the directory of a trained run")
    if not FLAGS.archive:
        raise InputError("--archive is required: the compressed file")
    if FLAGS.decompress and not FLAGS.output:
        raise InputError("--output is required: where to decompress to")
    if FLAGS.input == "":
        raise InputError("--input is empty: give a file or a folder, or leave it out")
    if FLAGS.decompress:
        _refuse_same("output", "archive")
    elif FLAGS.input:
        _refuse_same("archive", "input")
    if FLAGS.batch_size is not None:
        check_whole(1, batch_size=FLAGS.batch_size)
    check_whole(0, seed=FLAGS.seed)
    target = FLAGS.output if FLAGS.decompress else FLAGS.archive
    if os.path.isdir(target):
        raise InputError(f"{target}: is a folder; give the name of a file")
    from gm import trained

    mesh = launcher.make_mesh()
    found = trained.load(FLAGS.workdir, FLAGS.checkpoint)
    (_decompress if FLAGS.decompress else _compress)(found, mesh)


if __name__ == "__main__":
    launcher.run(main)
