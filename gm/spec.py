"""What a data set and a model tell each other. No JAX here: listings stay quick."""

import dataclasses
import enum
import math
from typing import Any


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
    kind "image": integers [B, *shape], from 0 to num_values - 1; size entries in all.

    If it is optional, an example may come without: its class is then `size`, its
    coordinates are NaN. Images are not optional.
    """

    kind: str
    size: int
    names: tuple[str, ...] = ()  # of the classes or coordinates; what the image is
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    optional: bool = False
    shape: tuple[int, ...] = ()  # of an image: (H, W, C)
    num_values: int = 0  # of an image

    def __post_init__(self):
        if self.kind not in ("class", "real", "image"):
            raise ValueError(f"CondSpec.kind is {self.kind!r}; class, real or image")
        if self.kind == "real" and not len(self.low) == len(self.high) == self.size:
            raise ValueError(f"CondSpec: low and high need {self.size} entries each")
        if self.kind == "image" and (
            len(self.shape) != 3 or math.prod(self.shape) != self.size
        ):
            raise ValueError(f"CondSpec: {self.shape} has not {self.size} entries")
        if self.kind == "image" and self.optional:
            raise ValueError("CondSpec: an image is not optional")

    @property
    def label(self) -> str:
        """What a result row says of the condition, such as 'class:10'."""
        if self.kind == "image":  # another task is another condition
            return "image:" + ",".join((*self.names, "x".join(map(str, self.shape))))
        return f"{self.kind}:{self.size}"

    def to_json(self) -> dict[str, Any]:
        """Its fields; those of images only for images, `optional` only where it is so.

        So runs have the configuration that older versions gave them.
        """
        fields = dataclasses.asdict(self)
        if self.kind != "image":
            del fields["shape"], fields["num_values"]
        if not self.optional:
            del fields["optional"]
        return fields
