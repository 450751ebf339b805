"""How a contender is told from the others: the same in every figure of a report."""

import dataclasses
import html

# Each is at least 3:1 against the page, light (#ffffff) and dark (#14171c): WCAG 1.4.11.
_COLORS = (
    "#3a7fd5",
    "#d1652b",
    "#2f9461",
    "#c9457a",
    "#8b6bd6",
    "#8f7f1f",
    "#1f8f9a",
    "#b0596a",
    "#77828f",
    "#6a8f2a",
)
_DASHES = {"solid": "solid", "dash": "dashed", "dot": "dotted"}  # Plotly's: CSS's
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")


@dataclasses.dataclass(frozen=True)
class Style:
    """Line and marker; with ten colours, three dashes and seven markers none is alike."""

    color: str
    dash: str
    symbol: str

    @property
    def css(self) -> str:
        """Of the swatch in the legend."""
        return f"border-top: 3px {_DASHES[self.dash]} {self.color}"


def style_of(index: int) -> Style:
    """The style of the contender of this rank."""
    dashes = list(_DASHES)
    return Style(
        _COLORS[index % len(_COLORS)],
        dashes[index // len(_COLORS) % len(dashes)],
        _SYMBOLS[index % len(_SYMBOLS)],
    )


def plain(text: str) -> str:
    """A text for a figure: Plotly reads some HTML in its labels, here there is none."""
    return html.escape(text, quote=False)


def short(text: str, most: int) -> str:
    """`plain`, of this many letters at most."""
    return plain(text if len(text) <= most else text[: most - 1] + "…")
