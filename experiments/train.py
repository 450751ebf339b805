r"""Fits a model to a data set by maximum likelihood.

  python -m experiments.train --model=vae --dataset=digits --workdir=runs/vae
  python -m experiments.train --preset=digits/vae --workdir=runs/vae --evaluate=test
  python -m experiments.train --preset=digits/vae --init_from=runs/vae --seed=1 \
      --workdir=runs/more --tensorboard

Starting the same command again resumes the run, bit for bit. Ctrl-C saves it first.
"""

import dataclasses
import shlex
import signal
import sys

from absl import flags

from experiments import launcher
from gm.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "name of a model, or import path of your own file")
flags.DEFINE_string(
    "dataset", None, "name of a data set, tfds:NAME, files:PATH or texts:PATH"
)
flags.DEFINE_string("workdir", None, "directory of the run")
flags.DEFINE_string(
    "preset", None, "flags of a file of experiments/presets, such as digits/vae"
)
flags.DEFINE_enum(
    "evaluate", None, ["train", "valid", "test"], "split to evaluate at the end"
)
flags.DEFINE_integer("num_importance_samples", 1, "with --evaluate")
flags.DEFINE_bool(
    "tensorboard", False, "also event files for TensorBoard, in RUN/tensorboard"
)
flags.DEFINE_bool("dry_run", False, "print parameters, FLOPs and memory; do not train")
launcher.define_run_flags()
launcher.define_train_flags()
launcher.define_mesh_flags(processes=True)
flags.adopt_module_key_flags(launcher)

STOPPED = 83  # exit status after SIGTERM with the state saved


def _configure():
    """(config, dataset, model, mesh): what can be wrong with the flags is found here."""
    from gm import data
    from gm.evaluate import check_importance_samples
    from gm.feed import check_feed
    from gm.model import build

    if FLAGS.preset:
        from experiments import presets

        launcher.apply_preset(presets.find(FLAGS.preset)["flags"])
    config = launcher.run_config()
    mesh = launcher.make_mesh()
    dataset = data.load(
        config.dataset, resolution=config.resolution, data_dir=config.data_dir
    )
    if config.train.cond_drop_rate:
        if not config.conditional or dataset.cond is None:
            raise InputError(
                f"--cond_drop_rate={config.train.cond_drop_rate}: there is no condition "
                "to drop; give --conditional, or leave it out"
            )
        if dataset.cond.kind == "image":
            raise InputError(
                f"--cond_drop_rate={config.train.cond_drop_rate}: an image is not "
                "dropped; leave it out"
            )
        cond = dataclasses.replace(dataset.cond, optional=True)
        dataset = dataclasses.replace(dataset, cond=cond)
    check_feed(dataset, config.train, mesh)
    model = build(
        config.model,
        dataset,
        config.settings,
        conditional=config.conditional,
        precision=config.precision,
    )
    check_importance_samples(model, config.train.valid_samples, "valid_samples")
    if FLAGS.evaluate:
        check_importance_samples(model, FLAGS.num_importance_samples)
    if FLAGS.evaluate and isinstance(dataset.split(FLAGS.evaluate), data.Fresh):
        raise InputError(
            f"--evaluate={FLAGS.evaluate}: {dataset.name} draws it anew at each step; "
            "give valid or test"
        )
    return config, dataset, model, mesh


def _dry_run(config, dataset, model, mesh):
    """Prints what XLA says of a dispatch, from shapes alone."""
    from gm.fit import trace_steps
    from gm.flops import count_flops
    from gm.model import count_params

    traced = trace_steps(model, dataset, config.train, mesh)
    memory = traced.lower().compile().memory_analysis()
    flops = count_flops(traced.jaxpr.jaxpr)[0] / config.train.steps_per_dispatch
    peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    print(
        f"{count_params(model):,} parameters, "
        f"{flops / 1e9:.3g} GFLOP per step, "
        f"{peak / 1e6:.0f} MB"
    )


def _open_run(config, dataset, start):
    """The run directory: locked, writable, and of this configuration."""
    from gm import data
    from gm.checkpoint import state_digest
    from gm.config import TrainConfig
    from gm.rundir import RunDirectory
    from gm.trained import describe

    run = RunDirectory.open_for_training(FLAGS.workdir)
    valid_sha256, _ = data.identify(dataset, dataset.valid)
    may_change = config.may_change
    if config.train.schedule == "constant":  # then its steps do not depend on the end
        may_change = (*may_change, "num_steps")
    described = describe(dataset, config.conditional) | {"valid_sha256": valid_sha256}
    defaults = dataclasses.asdict(TrainConfig())
    given = {} if start is None else {"init_sha256": state_digest(start)}
    values = config.to_json() | {"data": described} | given
    run.claim(values, may_change, defaults)
    return run


def _prepare(config, dataset, model, mesh):
    """A trainer of the run, restored; nothing is compiled before this."""
    from experiments import presets
    from gm.fit import Trainer
    from gm.plan import check_state
    from gm.rundir import RunDirectory
    from gm.sharding import agree, is_primary
    from gm.trained import initial_params

    check_state(model, config, mesh)
    start = initial_params(config.init_from, model) if config.init_from else None
    there = RunDirectory(FLAGS.workdir)
    run = _open_run(config, dataset, start) if is_primary() else there
    agree(True)  # the others wait until the directory is there
    given = (dataset, config.train, run, mesh, start)
    recorded = presets.find(FLAGS.preset)["curve"] if FLAGS.preset else {}
    return Trainer(model, *given, tensorboard=FLAGS.tensorboard, recorded=recorded)


def main(argv: list[str]) -> int:
    """Trains, then evaluates where asked."""
    launcher.refuse_arguments(argv)
    configured = _configure()
    if FLAGS.dry_run:
        _dry_run(*configured)
        return 0
    from gm.sharding import is_primary

    trainer = _prepare(*configured)
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(n, lambda n, _: received.append(n)) for n in numbers]
    try:
        ended = trainer.fit(should_stop=lambda: bool(received))
        digest = trainer.digest()
    finally:
        trainer.close()
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if is_primary():
        print(f"step {trainer.step}, state sha256 {digest}", file=sys.stderr)
    if not ended:
        again = shlex.join(["python", "-m", "experiments.train", *sys.argv[1:]])
        print(
            f"stopped and saved; start the same command again to resume:\n  {again}",
            file=sys.stderr,
        )
        return 130 if received[:1] == [signal.SIGINT] else STOPPED
    if FLAGS.evaluate:
        from experiments.evaluate import evaluate_run

        evaluate_run(
            FLAGS.workdir,
            split=FLAGS.evaluate,
            num_importance_samples=FLAGS.num_importance_samples,
            data_dir=FLAGS.data_dir,
            mesh=configured[-1],
        )
    return 0


if __name__ == "__main__":
    launcher.run(main)
