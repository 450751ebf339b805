"""The table of a sweep: which cells are queued, run, are done, or failed and why."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.cell import State, printable, read_state

_STYLE = {"done": "green", "failed": "red", "running": "cyan", "stopped": "yellow"}
ENDED = ("done", "failed")


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def table(states: list[State]) -> Table:
    """A line for each cell."""
    counts = Counter(state.word for state in states)
    title = ", ".join(f"{count} {word}" for word, count in counts.items())
    out = Table(title=title, title_justify="left")
    for column in ("cell", "state", "", "time left"):
        out.add_column(column, overflow="fold")
    for state in states:
        word = Text(state.word, _STYLE.get(state.word, ""))
        # As Text: what a run has printed is never markup.
        name, told = (Text(printable(text)) for text in (state.name, state.told))
        out.add_row(name, word, told, _clock(state.seconds_left))
    return out


def watch(
    paths: Sequence[Path],
    judge: Callable[[list[State]], list[State]] = lambda states: states,
    *,
    until_ended: bool | None = None,
    seconds: float = 2.0,
) -> list[State]:
    """Shows the table, anew every few seconds.

    Args:
      paths: of the cells.
      judge: may correct what the files say, by what a queue says.
      until_ended: until all cells are done or failed; None: on a terminal only.
      seconds: between looks.

    Returns:
      The states last seen.
    """
    console = Console(width=None if sys.stdout.isatty() else 200)
    if until_ended is None:
        until_ended = console.is_terminal

    def look():
        return judge([read_state(path) for path in paths])

    states = look()
    # A terminal sees it change; a pipe gets it once, at the end.
    with Live(table(states), console=console, auto_refresh=False) as live:
        while until_ended and not all(s.word in ENDED for s in states):
            time.sleep(seconds)
            states = look()
            live.update(table(states), refresh=console.is_terminal)
    return states
