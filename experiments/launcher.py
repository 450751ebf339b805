"""What the launchers share: flags from dataclasses, and one line for a user's mistake."""

import dataclasses
import logging as stdlib_logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from gm.config import RunConfig, TrainConfig
from gm.errors import InputError
from gm.rundir import cache_dir

FLAGS = flags.FLAGS


def define_train_flags() -> None:
    """Defines one flag for each field of TrainConfig."""
    define: dict[Any, Callable[..., Any]] = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
        bool: flags.DEFINE_bool,
    }
    for field in dataclasses.fields(TrainConfig):
        define[field.type](field.name, field.default, field.metadata["help"])


def define_run_flags() -> None:
    """Defines the flags that say what is trained on what."""
    flags.DEFINE_integer("resolution", None, "side of the images, or length of a text")
    define_data_dir()
    flags.DEFINE_bool("conditional", False, "condition on what the data set offers")
    flags.DEFINE_enum(
        "precision", "float32", ["float32", "bfloat16"], "of the network's activations"
    )
    flags.DEFINE_multi_string("set", [], "field=value of the model; may be repeated")
    flags.DEFINE_string(
        "init_from", None, "run or exported directory whose parameters to begin with"
    )


def define_data_dir() -> None:
    """Defines --data_dir."""
    flags.DEFINE_string(
        "data_dir",
        os.environ.get("GM_DATA_DIR"),
        "where raw archives or prepared data sets lie (default: $GM_DATA_DIR)",
    )


def define_mesh_flags(*, processes: bool = False) -> None:
    """Defines --mesh and, where several processes can share the work, how they meet."""
    flags.DEFINE_string(
        "mesh", None, "devices: data:N, fsdp:M or both (default: all along data)"
    )
    if not processes:
        return
    flags.DEFINE_bool(
        "distributed", False, "one of several processes, which Slurm or a pod started"
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where nothing else tells it"
    )
    flags.DEFINE_integer("num_processes", None, "with --coordinator")
    flags.DEFINE_integer("process_id", None, "with --coordinator; from 0")


def make_mesh() -> Any:
    """The mesh of --mesh, or None; joins the other processes first, where there are any.

    Raises:
      InputError: a mesh or a group of processes that cannot be.
    """
    if "distributed" in FLAGS:
        for name in ("num_processes", "process_id"):
            if FLAGS[name].present and not FLAGS.coordinator:
                raise InputError(
                    f"--{name}={FLAGS[name].value}: give --coordinator=HOST:PORT too"
                )
        if FLAGS.distributed or FLAGS.coordinator:
            _join()
    if FLAGS.mesh is None:
        return None
    from gm import sharding

    return sharding.make_mesh(sharding.parse_mesh(FLAGS.mesh))


def _join():
    """Becomes one of several processes; all but the first speak no more."""
    count, number = FLAGS.num_processes, FLAGS.process_id
    address = FLAGS.coordinator
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"--coordinator={address}: give HOST:PORT of process 0")
        if not count or number is None or not 0 <= number < count:
            raise InputError(
                f"--process_id={number}: with --coordinator give --num_processes=N from "
                "1, and --process_id from 0 to N-1"
            )
    import jax

    try:
        # A process that is lost ends the others within this time, not the default 100 s.
        jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=20)
    except (ValueError, RuntimeError) as error:
        told = " ".join(str(error).split())[:200]
        raise InputError(
            f"--distributed: the processes did not meet ({told}); start them with srun, "
            "or give --coordinator, --num_processes and --process_id"
        ) from None
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")


def train_config() -> TrainConfig:
    """TrainConfig from the flags."""
    config = TrainConfig(
        **{f.name: getattr(FLAGS, f.name) for f in dataclasses.fields(TrainConfig)}
    )
    config.check()
    return config


def parse_set(pairs: Sequence[str]) -> dict[str, str]:
    """`field=value` texts as a dictionary."""
    settings = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name.rpartition(".")[2]:
            raise InputError(f"--set={pair}: give --set=field=value")
        settings[name] = value
    return settings


def with_fields(found: Any, pairs: Sequence[str]) -> Any:
    """A run, a `Trained`, with other values of its model's evaluation fields.

    Raises:
      InputError: no such field, or one that training has fixed.
    """
    from gm.fields import parse_settings

    texts, model = parse_set(pairs), found.model
    values = parse_settings(type(model), texts)
    for name in values:
        if name not in model.evaluation_fields:
            able = ", ".join(model.evaluation_fields) or "none"
            raise InputError(
                f"--set={name}={texts[name]}: fixed by training; fields of "
                f"{type(model).__name__} that may change afterwards: {able}"
            )
    settings = found.config.settings | values
    config = dataclasses.replace(found.config, settings=settings)
    return dataclasses.replace(found, config=config, model=model.clone(**values))


def refuse_arguments(argv: list[str]) -> None:
    """InputError for an argument that is not a flag, in launchers that take none."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]}; flags look like --name=value")


def apply_preset(values: dict[str, Any]) -> None:
    """Sets flags that were not given on the command line; `set` is added to."""
    for name, value in values.items():
        if name == "set":
            given = parse_set(FLAGS.set)
            FLAGS["set"].value = [
                f"{k}={v}"
                for k, v in ({k: str(v) for k, v in value.items()} | given).items()
            ]
        elif name in FLAGS and not FLAGS[name].present:  # `plan` has not all of train's
            FLAGS[name].value = value


def run_config(*required: str) -> RunConfig:
    """RunConfig from the flags; the settings are checked against the model.

    Args:
      required: flags without a default; by default --model, --dataset, --workdir.
    """
    from gm.fields import parse_settings
    from gm.model import load_model

    for name in required or ("model", "dataset", "workdir"):
        if not getattr(FLAGS, name):
            raise InputError(f"--{name} is required; see --help")
    settings = parse_settings(load_model(FLAGS.model).Model, parse_set(FLAGS.set))
    return RunConfig(
        model=FLAGS.model,
        dataset=_absolute(FLAGS.dataset),
        resolution=FLAGS.resolution,
        data_dir=FLAGS.data_dir and os.path.abspath(FLAGS.data_dir),
        conditional=FLAGS.conditional,
        precision=FLAGS.precision,
        settings=settings,
        init_from=FLAGS.init_from and os.path.abspath(FLAGS.init_from),
        train=train_config(),
    )


def load_dataset(found: Any) -> Any:
    """The data set of a run, a `Trained`, read again, from --data_dir if it is given."""
    from gm.trained import read_dataset

    return read_dataset(found, FLAGS.data_dir)


def load_split(found: Any, name: str) -> tuple[Any, Any]:
    """`load_dataset`, and one of its splits; InputError for one that is drawn anew."""
    from gm import data

    dataset = load_dataset(found)
    split = dataset.split(name)
    if isinstance(split, data.Fresh):
        raise InputError(
            f"--split={name}: {dataset.name} draws it anew at each step; "
            "give valid or test"
        )
    return dataset, split


def _absolute(dataset: str) -> str:
    """A data set's name with absolute paths, so that another folder serves as well."""
    for mark in ("files:", "texts:", "folders:"):
        head, found, text = dataset.partition(mark)
        paths = text.split(",") if mark == "folders:" else [text]
        if found and all(os.path.exists(path) for path in paths):
            return head + mark + ",".join(map(os.path.abspath, paths))
    return dataset


def _use_compilation_cache():
    # Compiled programs are native code: the folder is the user's own (mode 0700).
    try:
        path = str(cache_dir("xla"))
    except InputError:
        return  # a home that cannot be written: compile anew each time
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", path)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def _parse_flags(argv):
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    return rest


def _quiet_orbax():
    """Orbax and TensorStore also print, with tracebacks, what they raise."""

    def wanted(record):
        return "/orbax/checkpoint/" not in record.pathname + record.getMessage()

    for name in ("absl", "asyncio"):
        stdlib_logging.getLogger(name).addFilter(wanted)
    show = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":  # a write given up
            show(unraisable)

    sys.unraisablehook = hook


def _wants_help(argv):
    return any(
        a in ("--help", "-h", "--helpfull", "--helpshort", "-help") for a in argv
    )


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a launcher's main: a mistake is one line and status 2, never a traceback."""

    def guarded(argv):
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
            _quiet_orbax()
        try:
            return main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except MemoryError as error:
            print(f"error: {error or 'no memory'}; ask for less", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.stdout.flush()
            # At once: an orderly exit waits for what XLA computes, and can crash in it.
            os._exit(130)

    sys.path.append(os.getcwd())  # --model=my_file finds a file beside you
    _use_compilation_cache()
    if _wants_help(sys.argv):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends in silence
        app.run(guarded)
    app.run(guarded, flags_parser=_parse_flags)
