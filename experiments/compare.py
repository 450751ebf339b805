"""Compares runs: ranked tables of what may be ranked, plots, and a report as one page.

  python -m experiments.compare runs/made runs/vae
  python -m experiments.compare runs --format=markdown --plots=runs/plots
  python -m experiments.compare runs --html=report.html
  python -m experiments.compare runs/sweep --html=report.html --watch

The page needs no network and no server: open the file. With --watch tables and page are
made again whenever a run below the paths has written something, until Ctrl-C.
"""

import contextlib
import signal
import sys
import time
from pathlib import Path

from absl import flags

from experiments import launcher
from gm.errors import InputError, check_whole

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "format",
    "table",
    ["table", "markdown", "csv", "json", "board"],
    "of the output; board: bits above the entropy where it is known",
)
flags.DEFINE_bool("published", False, "also the published numbers of the same protocol")
flags.DEFINE_string("plots", None, "directory for learning curves and bits as PNG")
flags.DEFINE_string("html", None, "also a report: one page that opens from disk")
flags.DEFINE_bool("watch", False, "do it again whenever a run has written something")
flags.DEFINE_integer("refresh_seconds", 10, "with --watch: how often to look")

_LEFT = ("estimate", "run", "checkpoint", "checked", "source")
# Names go on in a next line, from this many letters on where there is no more room.
_FOLDED = {"model": 20, "run": 20, "source": 20}
# Where a terminal is narrow, these go first, for the sake of the numbers.
_LEAST = (
    "checkpoint",
    "seed",
    "examples seen",
    "params",
    "nats",
    "train time",
    "interval",
    "estimate",
)


def _published(row):
    """Published numbers to show beside a row, where they are asked for."""
    from experiments import published

    return published.HEADER, published.lines(row) if FLAGS.published else []


def _shown(width, header, lines):
    """The columns that a terminal has room for, and whether their lines stay whole."""

    def room(column):
        name = header[column]
        cells = max(len(text) for text in [name, *(line[column] for line in lines)])
        return 3 + min(cells, _FOLDED.get(name, cells))

    shown = list(range(len(header)))
    for name in _LEAST:
        if name in header and 1 + sum(map(room, shown)) > width:
            shown.remove(header.index(name))
    return shown, 1 + sum(map(room, shown)) <= width


def _print_tables(rows, tables):
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gm.tables import pivot

    console = Console(width=None if sys.stdout.isatty() else 240)

    def show(title, header, lines):
        shown, fits = _shown(console.width, header, lines)
        # As Text: a name that a row brings along is never markup.
        table = Table(title=Text(title), title_justify="left")
        for name in (header[c] for c in shown):
            left = "model" in name or name in _LEFT
            table.add_column(
                Text(name),
                justify="left" if left else "right",
                no_wrap=fits and name not in _FOLDED,
                overflow="fold",
            )
        for line in lines:
            table.add_row(*(Text(line[c]) for c in shown))
        console.print(table)
        gone = [name for c, name in enumerate(header) if c not in shown]
        if gone:
            told = f"no room for: {', '.join(gone)}; --html and --format=markdown have them"
            console.print(told, markup=False, highlight=False)

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


def _show(rows, made):
    """Prints the rows in the form that was asked for."""
    from gm import tables

    if FLAGS.format == "table":
        _print_tables(rows, made)
    elif FLAGS.format == "markdown":
        sys.stdout.write(tables.to_markdown(rows, _published))
    else:
        form = {
            "csv": tables.to_csv,
            "json": tables.to_json,
            "board": tables.to_board,
        }[FLAGS.format]
        sys.stdout.write(form(rows))


def _compare(
    paths: list[str],
    *,
    may_be_empty: bool = False,
    refresh: int | None = None,
    show: bool = True,
) -> int:
    """Reads, shows and writes once; returns the exit status.

    Args:
      may_be_empty: whether there may be no row yet.
      refresh: seconds after which the page loads itself again.
      show: also the tables, not the page and the plots alone.
    """
    from gm import results, tables

    rows = results.read_rows(paths, may_be_empty=may_be_empty)
    refused = results.incomparable(rows)
    made = tables.make_tables(rows)
    if FLAGS.html:
        from experiments import published
        from gm.report import write_report

        write_report(
            FLAGS.html,
            rows,
            made,
            beside=lambda row: (published.HEADER, published.lines(row)),
            paths=paths,
            refused=refused,
            refresh=refresh,
        )
        if show:
            print(FLAGS.html, file=sys.stderr)
    if refused and refresh is None:
        raise InputError(refused)
    if refused:  # of what is there so far
        print(refused, file=sys.stderr)
    if show:
        _show(rows, made)
    if FLAGS.plots:
        from gm.plots import write_plots

        for path in write_plots(rows, FLAGS.plots):
            if show:
                print(path, file=sys.stderr)
    bugs = [text for table in made for text in table.bugs]
    for text in bugs:
        print(f"error: {text}", file=sys.stderr)
    return 1 if bugs else 0


def _written(paths: list[str], *names: str) -> list[tuple[str, int]]:
    """What runs have written by these names, and when."""
    files = {f for p in paths for name in names for f in Path(p).glob(f"**/{name}")}
    found = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # it was renamed meanwhile
            found.append((str(file), file.stat().st_mtime_ns))
    return sorted(found)


def _watch(paths: list[str]) -> int:
    """Compares again and again; Ctrl-C ends it, and leaves a page that stays as it is."""
    seen = None
    for path in paths:
        if not Path(path).exists():
            print(f"{path}: nothing there yet; waiting for it", file=sys.stderr)
    # Also where it was started in the background, which lets it ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            rows = _written(paths, "results/*.json")
            others = ("config.json", "metrics.jsonl", "samples/*", "applications/*")
            now = rows, _written(paths, *others)
            if now != seen:
                try:
                    _compare(
                        paths,
                        may_be_empty=True,
                        refresh=FLAGS.refresh_seconds,
                        show=seen is None or rows != seen[0],
                    )
                except InputError as error:
                    if seen is None:
                        raise
                    # A run that is being written, or was moved: the others go on.
                    print(f"error: {error}; still watching", file=sys.stderr)
            seen = now
            time.sleep(FLAGS.refresh_seconds)
    except KeyboardInterrupt:
        return _compare(paths, may_be_empty=True)


def main(argv: list[str]) -> int:
    """Reads rows below the given paths and shows them."""
    if len(argv) < 2:
        raise InputError("give one or more run directories, or directories of them")
    check_whole(1, refresh_seconds=FLAGS.refresh_seconds)
    if FLAGS.html and Path(FLAGS.html).is_dir():
        name = str(Path(FLAGS.html) / "report.html")
        raise InputError(f"--html={FLAGS.html}: a folder; give a file, such as {name}")
    return (_watch if FLAGS.watch else _compare)(argv[1:])


if __name__ == "__main__":
    launcher.run(main)
