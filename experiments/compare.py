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
    "format",
    "table",
    ["table", "markdown", "csv", "json", "board"],
    "of the output; board: bits above the entropy where it is known",
)
flags.DEFINE_bool("published", False, "also the published numbers of the same protocol")
flags.DEFINE_string("plots", None, "directory for learning curves and bits as PNG")


_LEFT = ("estimate", "run", "checkpoint", "checked", "source")


def _published(row):
    """Published numbers to show beside a row, where they are asked for."""
    from experiments import published

    return published.HEADER, published.lines(row) if FLAGS.published else []


def _print_tables(rows):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gm.tables import make_tables, pivot

    console = Console(width=None if sys.stdout.isatty() else 240)

    def show(title, header, lines):
        # As Text: a name that a row brings along is never markup.
        table = Table(title=Text(title), title_justify="left")
        for name in header:
            left = "model" in name or name in _LEFT
            table.add_column(
                Text(name),
                justify="left" if left else "right",
                no_wrap=name not in ("run", "source"),
            )
        for line in lines:
            table.add_row(*map(Text, line))
        console.print(table)

    tables = make_tables(rows)
    if len(tables) > 1:
        header, lines = pivot(rows)
        show("bits (lower is better; <= is an upper bound on them)", header, lines)
    for table in tables:
        show(table.title, table.header, table.lines)
        for note in table.notes:
            console.print(note, markup=False, highlight=False)
        header, lines = _published(table.example)
        if lines:
            show(f"published, {table.title}", header, lines)
        elif FLAGS.published:
            told = f"{table.title}: no published number of this protocol"
            console.print(told, markup=False, highlight=False)


def main(argv: list[str]) -> int:
    """Reads rows below the given paths and shows them."""
    from gm import results, tables

    if len(argv) < 2:
        raise InputError("give one or more run directories, or directories of them")
    rows = results.read_rows(argv[1:])
    results.refuse_incomparable(rows)
    if FLAGS.format == "table":
        _print_tables(rows)
    elif FLAGS.format == "markdown":
        sys.stdout.write(tables.to_markdown(rows, _published))
    else:
        form = {
            "csv": tables.to_csv,
            "json": tables.to_json,
            "board": tables.to_board,
        }[FLAGS.format]
        sys.stdout.write(form(rows))
    if FLAGS.plots:
        from gm.plots import write_plots

        for path in write_plots(rows, FLAGS.plots):
            print(path, file=sys.stderr)
    bugs = [row for row in rows if results.below_floor(row)]
    for row in bugs:
        print(f"error: {tables.bug_text(row)}", file=sys.stderr)
    return 1 if bugs else 0


if __name__ == "__main__":
    launcher.run(main)
