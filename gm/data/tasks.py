"""Image-to-image tasks: s = g(y), a source s of each image y by integer arithmetic.

Since s is a function of y, P(y) = P(s) P(y | s): the bits of s and those of y given s are
together a figure for the whole image. Mass that a model of y given s has on images with
another source is lost, so that the sum is an upper bound, never too small.

Every function takes numpy and JAX arrays alike and gives the same for both.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from gm.errors import InputError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Task:
    """What becomes of images of one shape."""

    name: str  # as in the data set's name, such as "superres:2"
    apply: Callable[[Any], Any]
    """y [n, H, W, C] integers -> s [n, *shape], of the type of y."""
    shape: tuple[int, ...]
    num_values: int
    # Whether g(y') = s says that y' belongs to s; not of noise, which is another for y'.
    checkable: bool = True


def parse(text: str) -> tuple[list[str], str]:
    """Splits TASK:NAME into the task's parts and the name of a data set.

    Raises:
      InputError: an unknown task, or no data set.
    """
    first, _, rest = text.partition(":")
    if first not in TASKS:
        raise InputError(
            f"--dataset=translate:{text}: {first or 'no task'} is unknown"
            f"{did_you_mean(first, TASKS)} (one of {', '.join(_USAGE)}, "
            "folders:PATH_A,PATH_B)"
        )
    from gm.data import PREFIXES

    words, (argument, _, name) = [first], rest.partition(":")
    given = argument.isdecimal() or argument in REGIONS
    if given or (name and argument not in PREFIXES):
        words, rest = [first, argument], name
    if not rest:
        raise InputError(
            f"--dataset=translate:{text}: no data set; give translate:TASK:NAME, "
            f"such as translate:{':'.join(words)}:digits"
        )
    return words, rest


def make(words: Sequence[str], shape: tuple[int, ...], num_values: int) -> Task:
    """The task on images of a shape and number of values.

    Raises:
      InputError: not images, or images or an argument that the task cannot take.
    """
    name = ":".join(words)
    if len(shape) != 3:
        raise InputError(f"--dataset=translate:{name}: takes images, not {shape}")
    return TASKS[words[0]](name, words[1:], shape, num_values)


def _refuse(name: str, why: str) -> InputError:
    return InputError(f"--dataset=translate:{name}: {why}")


def _number(name: str, words: Sequence[str], default: int | None) -> int:
    """The task's argument, a whole number from 2."""
    if not words and default is not None:
        return default
    if not words or not words[0].isdecimal() or not 2 <= float(words[0]) < 1e9:
        raise _refuse(name, f"give {name.split(':')[0]}:N with a whole number from 2")
    return int(words[0])


def _colorize(name, words, shape, num_values):
    """Grey: s = floor((r + 2g + b) / 4)."""
    if shape[2] != 3 or words:
        why = "takes no argument" if words else f"needs images in colour, not {shape}"
        raise _refuse(name, why)

    def grey(y):
        y = y.astype("int32")
        return (y[..., :1] + 2 * y[..., 1:2] + y[..., 2:]) // 4

    return Task(name, grey, (*shape[:2], 1), num_values)


def _superres(name, words, shape, num_values):
    """Low resolution: s = the floor of the mean of each F x F block."""
    factor = _number(name, words, None)
    height, width, channels = shape
    if height % factor or width % factor:
        raise _refuse(name, f"{factor} does not divide {height}x{width} pixels")
    small = (height // factor, width // factor)

    def means(y):
        y = y.astype("int32").reshape(-1, small[0], factor, small[1], factor, channels)
        return y.sum((2, 4), dtype="int32") // factor**2

    return Task(name, means, (*small, channels), num_values)


REGIONS = ("left", "right", "top", "bottom", "box")


def _inpaint(name, words, shape, num_values):
    """Hides: s = the image with a region set to 0: a half of it, or its central quarter."""
    height, width = shape[:2]
    region = words[0] if words else "box"
    if region not in REGIONS:
        raise _refuse(name, f"give inpaint:REGION, one of {', '.join(REGIONS)}")
    if min(height, width) < 2:
        raise _refuse(name, f"{height}x{width} pixels are too few to hide some")
    rows, columns = {
        "left": (slice(None), slice(width // 2)),
        "right": (slice(None), slice(width - width // 2, None)),
        "top": (slice(height // 2), slice(None)),
        "bottom": (slice(height - height // 2, None), slice(None)),
        "box": (
            slice((height + 2) // 4, height - (height + 2) // 4),
            slice((width + 2) // 4, width - (width + 2) // 4),
        ),
    }[region]
    import numpy as np

    seen = np.ones((height, width, 1), np.int32)
    seen[rows, columns] = 0
    if seen.all():
        raise _refuse(name, f"{height}x{width} pixels are too few to hide a box")
    return Task(name, lambda y: y.astype("int32") * seen, shape, num_values)


def _edges(name, words, shape, num_values):
    """Edges: s = Sobel's |dx| + |dy| of the summed channels, in N levels.

    A level is as wide as a quarter of the largest |dx|; the last is open.
    """
    levels = _number(name, words, 3)
    if levels > 7:  # |dx| + |dy| is at most 6 times the largest value
        raise _refuse(name, f"{levels} levels, of which 7 can occur")
    height, width, channels = shape

    def magnitude(y):
        import numpy as np

        y = y.astype("int32").sum(3, dtype="int32")  # up to C (K - 1)
        # Beyond the border lies what is on it: an edge of the image is none in it.
        rows = np.clip(np.arange(-1, height + 1), 0, height - 1)
        columns = np.clip(np.arange(-1, width + 1), 0, width - 1)
        y = y[:, rows][:, :, columns]
        smooth = y[:, :-2] + 2 * y[:, 1:-1] + y[:, 2:]
        across = abs(smooth[:, :, 2:] - smooth[:, :, :-2])
        smooth = y[:, :, :-2] + 2 * y[:, :, 1:-1] + y[:, :, 2:]
        down = abs(smooth[:, 2:] - smooth[:, :-2])
        level = (across + down) // (channels * (num_values - 1))
        return level.clip(0, levels - 1)[..., None]

    return Task(name, magnitude, (height, width, 1), levels)


def _style(name, words, shape, num_values):
    """A poster: s = every channel in N even tones, flat where the image is shaded."""
    tones = _number(name, words, 4)
    if tones >= num_values:
        raise _refuse(name, f"{tones} tones of {num_values} values")

    def poster(y):
        return y.astype("int32") * tones // num_values

    return Task(name, poster, shape, tones)


def _denoise(name, words, shape, num_values):
    """Noise: s = y plus noise from {-N, ..., N}, cut off at the ends of the range.

    The noise is pseudo-random, seeded by a hash of the image: data sets are the same in
    each run. A model cannot see through the hash, so s is to it as if drawn: bits of s
    plus bits of y given s are a legal figure, but far above that of y alone.
    """
    amount = _number(name, words, max(num_values // 8, 2))
    if amount >= num_values:
        raise _refuse(name, f"noise of up to {amount} on {num_values} values")
    size = shape[0] * shape[1] * shape[2]

    def noisy(y):
        import numpy as np

        place = np.arange(1, size + 1, dtype=np.uint32)
        flat = y.reshape(-1, size).astype("uint32")
        seed = _mix(flat * place * np.uint32(2654435761) + place)
        seed = _mix(seed.sum(1, keepdims=True, dtype="uint32"))
        u = _mix(seed + place * np.uint32(2246822519)) >> 8
        noise = (u % np.uint32(2 * amount + 1)).astype("int32") - amount
        s = y.astype("int32") + noise.reshape(-1, *shape)
        return s.clip(0, num_values - 1)

    return Task(name, noisy, shape, num_values, checkable=False)


def _mix(h: Any) -> Any:
    """The finaliser of MurmurHash3, on uint32."""
    import numpy as np

    h = (h ^ (h >> 16)) * np.uint32(2246822507)
    h = (h ^ (h >> 13)) * np.uint32(3266489909)
    return h ^ (h >> 16)


TASKS: dict[str, Callable[..., Task]] = {
    "colorize": _colorize,
    "superres": _superres,
    "inpaint": _inpaint,
    "edges": _edges,
    "style": _style,
    "denoise": _denoise,
}
_USAGE = (
    "colorize",
    "superres:FACTOR",
    "inpaint:REGION",
    "edges:LEVELS",
    "style:TONES",
    "denoise:AMOUNT",
)
