"""What a data set and a model tell each other. No JAX here: listings stay quick."""

import dataclasses
import enum


class Estimate(enum.Enum):
    """What the number that `log_prob` returns is.

    EXACT: log P(x), deterministic.
    WEIGHT: its exponential is an unbiased estimate of P(x) (a VAE with sampled KL, a
        dequantised flow), so logmeanexp over K draws is a tighter bound (Burda et
        al. 2016).
    ELBO: an unbiased estimate of a lower bound (a sampled diffusion time, an analytic
        KL). Averaging draws is legal, logmeanexp over them is not: it would exceed
        the bound and even log P(x).
    """

    EXACT = "exact"
    WEIGHT = "weight"
    ELBO = "elbo"


@dataclasses.dataclass(frozen=True)
class CondSpec:
    """What a data set conditions on.

    kind "class": int32 [B], a label in {0, ..., size - 1}.
    kind "real": float32 [B, size], coordinate i between low[i] and high[i].

    If it is optional, an example may come without: its class is then `size`, its
    coordinates are NaN.
    """

    kind: str
    size: int
    names: tuple[str, ...] = ()  # of the classes, or of the coordinates
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    optional: bool = False

    def __post_init__(self):
        if self.kind not in ("class", "real"):
            raise ValueError(f"CondSpec.kind is {self.kind!r}; it is 'class' or 'real'")
        if self.kind == "real" and not len(self.low) == len(self.high) == self.size:
            raise ValueError(f"CondSpec: low and high need {self.size} entries each")

    @property
    def label(self) -> str:
        """What a result row says of the condition, such as 'class:10'."""
        return f"{self.kind}:{self.size}"
