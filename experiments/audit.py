"""Examines models: does each describe a distribution, and the one that it samples from?

  python -m experiments.audit --model=vae
  python -m experiments.audit --model=mypackage.mymodel --set=width=64
  python -m experiments.audit --all

The exit status is 1 if a check fails, 2 for a mistake. `--all` examines every file in
gm/models and gm's evaluator. `pytest --gm-audit=mypackage.mymodel` runs the same checks
as tests.
"""

import os
import sys
import time
from collections import Counter

from absl import flags

from experiments import launcher
from gm.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("model", [], "name or import path; may be repeated")
flags.DEFINE_bool("all", False, "every file in gm/models, and the evaluator")
flags.DEFINE_multi_string("set", [], "field=value in place of TINY; may be repeated")
flags.DEFINE_list("checks", None, "which checks (default: all that apply)")


def _two_devices():
    """Shows JAX two CPU devices, for the check that compares their number."""
    option = "--xla_force_host_platform_device_count"
    if "jax" not in sys.modules and option not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {option}=2"


def _print_table(title, verdicts):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else 400)
    table = Table(title=title, title_justify="left")
    for header in ("check", "verdict", "figure"):
        table.add_column(header, no_wrap=header != "figure")
    colours = {"pass": "green", "fail": "bold red", "skip": "dim"}
    for v in verdicts:
        table.add_row(v.check, Text(v.status, style=colours[v.status]), Text(v.figure))
    console.print(table)


def _examine(name, verdicts, total):
    """Prints the verdicts as a table and their numbers; returns how many failed."""
    from gm.writer import Progress

    start, found = time.monotonic(), []
    progress = Progress(name, total)
    for verdict in verdicts:
        found.append(verdict)
        progress.update(len(found), verdict.check)
    progress.close()
    _print_table(f"{name} ({time.monotonic() - start:.0f} s)", found)
    count = Counter(v.status for v in found)
    verb = "does" if count["skip"] == 1 else "do"
    passed = f"{count['pass']} passed, {count['fail']} failed"
    print(f"{passed}, {count['skip']} {verb} not apply")
    return count["fail"]


def main(argv: list[str]) -> int:
    """Examines the models; 1 if a check fails."""
    launcher.refuse_arguments(argv)
    if bool(FLAGS.model) == FLAGS.all:
        raise InputError("give --model=NAME (may be repeated) or --all")
    _two_devices()
    import jax

    from gm import audit
    from gm.model import model_names

    settings = launcher.parse_set(FLAGS.set)
    names = model_names() if FLAGS.all else FLAGS.model
    for name in names:  # mistakes come before the work
        audit.load(name, settings)
    count = len(audit.CHECKS if FLAGS.checks is None else FLAGS.checks)
    failures = 0
    for name in names:
        verdicts = audit.audit_model(name, settings=settings, checks=FLAGS.checks)
        failures += _examine(name, verdicts, count)
        jax.clear_caches()  # too many programs at once pass the limit of memory maps
    if FLAGS.all and FLAGS.checks is None:
        from gm.evaluate import evaluate

        verdicts = audit.audit_evaluator(evaluate)
        failures += _examine("evaluator", verdicts, len(audit.EVALUATOR_CHECKS))
    if failures:
        print(f"{failures} check{'s' * (failures > 1)} failed", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    launcher.run(main)
