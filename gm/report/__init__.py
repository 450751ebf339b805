"""One self-contained page from run directories: it needs no network and opens from disk.

Plotly draws the charts, Jinja escapes every name. The page may run its own scripts and
load nothing: its Content-Security-Policy names the sha256 of each script.
"""

import base64
import datetime
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from gm import __version__
from gm.report.content import Beside, script_data, section, unfinished
from gm.results import Row
from gm.rundir import write_whole
from gm.tables import Table, pivot

__all__ = ["write_report"]

_HERE = Path(__file__).parent


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing is loaded, and no script runs but these."""
    digests = [hashlib.sha256(s.encode()).digest() for s in scripts]
    allowed = " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def write_report(
    path: str | Path,
    rows: Sequence[Row],
    tables: Sequence[Table],
    *,
    beside: Beside,
    paths: Sequence[str] = (),
    refused: str = "",
    refresh: int | None = None,
) -> None:
    """Writes the page whole.

    Args:
      path: of the page.
      rows: what was read.
      tables: of these rows, as `gm.tables.make_tables` gives them.
      beside: gives (header, lines) of published numbers of a row's protocol.
      paths: where runs without a row yet are looked for.
      refused: why what was asked for cannot be compared; "" if it can.
      refresh: seconds after which a browser loads the page again; None: never.

    Raises:
      InputError: the page cannot be written, or a file of a run is damaged.
    """
    sections = [section(table, i, beside) for i, table in enumerate(tables)]
    data = f"const CHARTS = {script_data(sections)};\n"
    scripts = [get_plotlyjs(), data + (_HERE / "page.js").read_text()]
    page = _template().render(
        scripts=scripts,
        policy=_policy(scripts),
        style=(_HERE / "page.css").read_text(),
        sections=sections,
        overview=pivot(rows) if len(tables) > 1 else None,
        unfinished=unfinished(paths),
        refused=refused,
        refresh=refresh,
        version=__version__,
        time=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_whole(Path(path), page.encode())
