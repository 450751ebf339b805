"""Multiscale: a small image, then the pixels between the pixels (Reed et al. 2017).

x_{l+1} = x_l[::2, ::2], down to an image of at most `base_size` pixels a side, which any
model of gm describes (`base_model`, with `base_fields`). Of every finer level the other
three phases of its 2 x 2 blocks follow, one after another, each given all that is known:

  log P(x) = log P(x_L) + sum_{l < L} sum_{p = 1, 2, 3} sum_i log P(x_l^{p, i} | known)

The pixels i of a phase are independent given what is known around them; a network for each
level and phase sees a window of it and gives the distributions of them all at once. So P
is the exact mass of the full image if that of the base is; any size will do; and an image
of N pixels is drawn in (3/2) log2 N parallel steps after its base. A sequence is an image
of one row, of which one phase follows.

Windows of `tile` by `tile` go one after the other and are recomputed in reverse mode, so
that memory is that of one window beside the image itself. A training step sees a random
window of each level, weighed by their number: an unbiased estimate of log P(x).

Deviations from the paper: the diagonal phase comes first, so that the others have known
pixels on all sides; pixels of a phase are independent, not in patches of a pixel network; a
network sees a window of a fixed size; values of the nearest pixels are components of the
mixture.
"""

import contextlib
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gm.autoregressive import SymbolModel
from gm.errors import InputError, check_positive
from gm.fields import parse_settings
from gm.model import LikelihoodModel, load_model
from gm.nn import pyramid
from gm.nn.conditioning import CondEmbedding, grid_of
from gm.nn.refinement import Refinement
from gm.spec import Estimate


class Multiscale(SymbolModel):
    """Another model's small image, and networks that refine it level by level."""

    base_model: str = "pixelcnn"  # of the coarsest image: any name that --model takes
    base_fields: str = ""  # its own --set, such as width=16,depth=2
    base_size: int = 8  # the largest side of that image
    width: int = 32
    depth: int = 3  # residual blocks of a context
    tile: int = 32  # side of a window, in pixels of the coarser image
    copies: bool = True  # whether values of known pixels are components
    num_mixtures: int | None = None  # None: a table up to 32 values, else 10 logistics
    one_hot: bool = True  # inputs of 3 to 32 values; else one number each
    dropout_rate: float = 0.0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """H, W, C; a sequence is one row."""
        if len(self.shape) == 1:
            return 1, self.shape[0], 1
        height, width, channels = self.shape
        return height, width, channels

    @property
    def sizes(self) -> list[pyramid.Size]:
        """(H, W) of the levels, the image first."""
        return pyramid.sizes(*self.image_shape[:2], self.base_size)

    @property
    def window(self) -> pyramid.Size:
        """(h, w) of a window without its border."""
        rows, columns = (min(self.tile, -(-side // 2)) for side in self.sizes[0])
        return rows, columns

    @property
    def estimate(self) -> Estimate:  # type: ignore[override]
        """That of the base model."""
        return self.make_base().estimate

    @nn.nowrap
    def make_base(self) -> LikelihoodModel:
        """The model of the coarsest image, unbound.

        Raises:
          InputError: fields that cannot be meant.
        """
        check_positive(self, "base_size", "tile")
        said = f"--set=base_model={self.base_model}"
        try:
            cls = load_model(self.base_model).Model
        except InputError as error:
            raise InputError(f"{said}: {error}") from None
        if issubclass(cls, Multiscale):
            raise InputError(
                f"{said}: it would need a base again; give another, such as pixelcnn"
            )
        with self._naming_the_base():
            pairs = (pair.partition("=") for pair in self.base_fields.split(","))
            texts = {name: value for name, _, value in pairs if name}
            fields = parse_settings(cls, texts)
        height, width = self.sizes[-1]
        shape = (width,) if len(self.shape) == 1 else (height, width, self.shape[2])
        fields |= dict(cond=self.cond, precision=self.precision, parent=None)
        return cls(shape=shape, num_values=self.num_values, **fields)

    @nn.nowrap
    @contextlib.contextmanager
    def _naming_the_base(self):
        """Says of which model a field is that cannot be so: ours may have the same name."""
        try:
            yield
        except InputError as error:
            told = str(error).replace("--set=", "")
            said = f"--set=base_model={self.base_model}"
            if self.base_fields:
                said += f" --set=base_fields={self.base_fields}"
            raise InputError(f"{said}: {told}") from None

    @nn.nowrap
    def make_refinement(self) -> Refinement:
        """The networks of a level, unbound."""
        height, width, channels = self.image_shape
        shifts = enumerate(pyramid.PHASES)
        symbols = SymbolModel(
            self.shape, self.num_values, num_mixtures=self.num_mixtures, parent=None
        )
        return Refinement(
            symbols,
            channels,
            tuple(i for i, (a, b) in shifts if i and a < height and b < width),
            self.width,
            self.depth,
            self.copies,
            self.one_hot,
            self.dropout_rate,
            self.dtype,
            parent=None,
        )

    def setup(self) -> None:
        """The base, and the parameters of the levels above it, [levels, ...] leaves."""
        self.base = self.make_base()
        self.embed = CondEmbedding(
            self.cond, self.width, self.dtype, grid_of(self.shape)
        )
        self.num_levels = len(self.sizes) - 1
        if self.num_levels:
            self.levels = self.param("levels", self._init_levels)

    def _init_levels(self, key):
        refinement, channels = self.make_refinement(), self.image_shape[2]
        pairs = zip(self.window, refinement.border, strict=True)
        grid = (1, *(side + 2 * border for side, border in pairs))
        phases = jnp.zeros((*grid, 4, channels), jnp.int32)
        inside, told = jnp.ones((*grid, 4), bool), jnp.zeros((1, 1, 1, self.width))

        def init(key):
            given = phases, inside, told.astype(self.dtype), False
            return refinement.init(key, *given, method="log_probs")["params"]

        return jax.vmap(init)(jax.random.split(key, self.num_levels))

    def log_prob(
        self, x: jax.Array, cond: jax.Array | None = None, *, train: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Log P(x) [B], a term for the base and for each level; in training estimated."""
        levels = [x.reshape(-1, *self.image_shape)]
        for _ in range(self.num_levels):
            levels.append(levels[-1][:, ::2, ::2])
        coarsest = levels.pop().reshape(len(x), *self.base.shape)
        with self._naming_the_base():  # it is set up here
            terms = {"base": self.base.log_prob(coarsest, cond, train=train)[0]}
        if levels:
            terms |= self._refined(levels, self.embed(cond), train)
        return functools.reduce(jnp.add, terms.values()), terms

    def _refined(self, levels, told, train):
        """The terms of the levels above the base: a loop over windows of all of them."""
        batch = len(levels[0])
        border = self.make_refinement().border
        cut = functools.partial(pyramid.windows, tile=self.window, border=border)
        dtype = jnp.uint8 if self.num_values <= 256 else jnp.int32
        key = self.make_rng("sample") if train else None
        items: list[Any] = []
        counts = []
        for level, (image, size) in enumerate(zip(levels, self.sizes, strict=False)):
            phases = pyramid.split(image.astype(dtype))
            inside = jnp.asarray(pyramid.inside(size))[None]
            count = pyramid.num_windows(phases.shape[1:3], self.window)
            number = jnp.broadcast_to(jnp.arange(count)[:, None], (count, batch))
            if key is not None and count > 1:
                drawn = jax.random.fold_in(key, level)
                number = jax.random.randint(drawn, (1, batch), 0, count)
            local = cut(_of_level(told, level), number) if told.ndim == 4 else None
            item = jnp.full(len(number), level), cut(phases, number)
            items.append((*item, cut(inside, number), local))
            counts.append((len(number), count / len(number)))
        log_p = self._loop(items, told, train)  # [windows, B]
        terms, first = {}, 0
        for (count, weight), size in zip(counts, self.sizes, strict=False):
            part = log_p[first : first + count].sum(0) * weight
            terms["x".join(map(str, size))] = part
            first += count
        return terms

    def _loop(self, items, told, train):
        """Log P of windows: a list of (levels [n], windows [n, B, ...], ...) -> [N, B]."""
        refinement = self.make_refinement()
        items = jax.tree.map(lambda *parts: jnp.concatenate(parts), *items)
        drop = self.make_rng("dropout") if train and self.dropout_rate else None

        @jax.checkpoint
        def body(index, item):
            level, phases, inside, local = item
            params = jax.tree.map(lambda p: p[level], self.levels)
            found = refinement.apply(
                {"params": params},
                phases.astype(jnp.int32),
                inside,
                told[:, None, None] if told.ndim == 2 else local,
                train,
                rngs={}
                if drop is None
                else {"dropout": jax.random.fold_in(drop, index)},
                method="log_probs",
            )
            return index + 1, found.sum((1, 2, 3, 4))

        return jax.lax.scan(body, jnp.int32(0), items)[1]

    def sample(
        self,
        num_samples: int,
        cond: jax.Array | None = None,
        *,
        temperature: float = 1.0,
    ) -> jax.Array:
        """Draws the coarsest image, then level by level the phases that it lacks."""
        x = self.base.sample(num_samples, cond, temperature=temperature)
        x = x.reshape(num_samples, *self.sizes[-1], self.image_shape[2])
        if not self.num_levels:
            return x.reshape(num_samples, *self.shape)
        key, told = self.make_rng("sample"), self.embed(cond)
        refinement = self.make_refinement()
        pads = [(0, 0), *((side, side) for side in refinement.border), (0, 0)]
        for level in reversed(range(self.num_levels)):
            params = jax.tree.map(lambda p, i=level: p[i], self.levels)
            noise = jax.random.fold_in(key, level)
            local = told[:, None, None]
            if told.ndim == 4:
                local = jnp.pad(_of_level(told, level), pads)
            given = noise, x, self.sizes[level], local, temperature
            finer: Any = refinement.apply({"params": params}, *given, method="draw")
            x = finer
        return x.reshape(num_samples, *self.shape)


def _of_level(told, level):
    """What a condition's map of the image tells the pixels of the coarser level."""
    step = 2 ** (level + 1)
    return told[:, ::step, ::step]


Model = Multiscale
TINY = dict(base_model="independent", base_size=1, width=8, depth=1, tile=2)
