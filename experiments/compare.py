"""Compares runs: ranked tables of what may be ranked, and plots.

python -m experiments.compare runs/made runs/vae
python -m experiments.compare runs --format=markdown --plots=runs/plots
"""

import sys

from absl import flags

from experiments import launcher
from gm.errors import InputError

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "format", "table", ["table", "markdown", "csv", "json"], "of the output"
)
flags.DEFINE_string("plots", None, "directory for learning curves and bits as PNG")


def _print_tables(rows):
    from rich.console import Console
    from rich.table import Table

    from gm.results import describe, group_rows, pivot, unit_name

    console = Console(width=None if sys.stdout.isatty() else 200)

    def show(title, header, lines):
        table = Table(title=title, title_justify="left")
        for name in header:
            right = name not in ("model", "estimate", "run", "checkpoint")
            table.add_column(
                name, justify="right" if right else "left", no_wrap=name != "run"
            )
        for line in lines:
            table.add_row(*line)
        console.print(table)

    tables = group_rows(rows)
    if len(tables) > 1:
        header, lines = pivot(rows)
        show("bits (lower is better; <= is an upper bound on them)", header, lines)
    for title, ranked, apart in tables:
        lines = [list(describe(r).values()) for r in ranked]
        show(title, list(describe(ranked[0])), lines)
        for row in apart:
            cells = describe(row)
            console.print(
                f"not ranked: {cells['model']} ({cells['run']}), "
                f"{cells[unit_name(row)]} {unit_name(row)}: {row['apart']}",
                markup=False,
            )


def main(argv: list[str]) -> None:
    """Reads rows below the given paths and shows them."""
    from gm import results

    if len(argv) < 2:
        raise InputError("give one or more run directories, or directories of them")
    rows = results.read_rows(argv[1:])
    if FLAGS.format == "table":
        _print_tables(rows)
    else:
        form = {
            "markdown": results.to_markdown,
            "csv": results.to_csv,
            "json": results.to_json,
        }[FLAGS.format]
        sys.stdout.write(form(rows))
    if FLAGS.plots:
        from gm.plots import write_plots

        for path in write_plots(rows, FLAGS.plots):
            print(path, file=sys.stderr)


if __name__ == "__main__":
    launcher.run(main)
