"""Blocks: convolutions against the definition, rotary attention, conditioning."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm.nn import attention, convolution
from gm.nn.causal import concat_elu
from gm.nn.conditioning import CondEmbedding
from gm.spec import CondSpec


def by_patches(x, kernel):
    """The definition: the sum over taps of shifted images times matrices."""
    kh, kw = kernel.shape[:2]
    pads = ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0))
    padded = jnp.pad(x, pads)
    height, width = x.shape[1:3]
    taps = [
        padded[:, i : i + height, j : j + width] @ kernel[i, j]
        for i in range(kh)
        for j in range(kw)
    ]
    return sum(taps)


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 7), (5, 3)])
@pytest.mark.parametrize("channels", [(1, 3), (5, 2)])
@pytest.mark.parametrize("image", [(9, 11), (2, 3)])  # also smaller than the kernel
def test_conv_and_its_gradients(size, channels, image):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, *image, channels[0]))
    kernel = jax.random.normal(keys[1], (*size, *channels))
    weight = jax.random.normal(keys[2], (3, *image, channels[1]))

    def loss(conv):
        return jax.grad(lambda x, k: (conv(x, k) * weight).sum(), argnums=(0, 1))

    np.testing.assert_allclose(
        convolution.conv(x, kernel), by_patches(x, kernel), rtol=1e-4, atol=1e-4
    )
    for a, b in zip(
        loss(convolution.conv)(x, kernel), loss(by_patches)(x, kernel), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_two_chained_convs_under_jit():
    """XLA once folded paddings of chained convolutions wrongly."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 2))
    kernels = [
        jax.random.normal(jax.random.key(1), (3, 3, 2, 3)),
        jax.random.normal(jax.random.key(2), (3, 3, 3, 2)),
    ]

    def grads(conv):
        def loss(x, kernels):
            return (conv(conv(x, kernels[0]), kernels[1]) ** 2).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernels)

    found, expected = grads(convolution.conv), grads(by_patches)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4), found, expected
    )


def test_gradient_in_a_loop_stays_in_the_canonical_layout():
    """What the speed depends on: every convolution of the backward pass is NHWC."""
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def step(kernel, _):
        grad = jax.grad(lambda k: convolution.conv(x, k).sum())(kernel)
        return kernel - grad, None

    lowered = jax.jit(lambda k: jax.lax.scan(step, k, None, length=3)[0]).lower(kernel)
    convs = [t for t in lowered.as_text().splitlines() if "stablehlo.convolution" in t]
    assert convs
    if jax.default_backend() == "cpu":
        assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in t for t in convs)


def test_concat_elu_and_its_slope():
    x = jnp.asarray([-30.0, -2.0, -1e-3, 0.0, 1e-3, 2.0, 30.0])
    both = [concat_elu, lambda x: nn.elu(jnp.concatenate([x, -x]))]
    found, expected = ([f(x), jax.jacrev(f)(x)] for f in both)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_even_kernels_are_refused():
    with pytest.raises(ValueError, match="even"):
        convolution.conv(jnp.ones((1, 4, 4, 1)), jnp.ones((2, 2, 1, 1)))


def test_space_to_depth_is_a_bijection():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    deep = convolution.space_to_depth(x)
    assert deep.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(deep[0, 0, 0].reshape(2, 2, 3), x[0, :2, :2])
    np.testing.assert_array_equal(convolution.depth_to_space(deep), x)


@pytest.mark.parametrize(
    ("shape", "smallest", "count"),
    [((8, 8, 1), 2, 2), ((28, 28, 1), 4, 2), ((7, 7, 1), 2, 0), ((8, 12, 3), 2, 2)],
)
def test_num_halvings(shape, smallest, count):
    assert convolution.num_halvings(shape, smallest) == count


def test_rotary_scores_depend_on_the_difference_of_positions():
    positions = np.arange(12)[:, None]
    cos, sin = attention.rotary_table(positions, 8)
    q, k = jax.random.normal(jax.random.key(0), (2, 8))
    rotated_q = attention.rotate(
        jnp.tile(q, (12, 1)), jnp.asarray(cos), jnp.asarray(sin)
    )
    rotated_k = attention.rotate(
        jnp.tile(k, (12, 1)), jnp.asarray(cos), jnp.asarray(sin)
    )
    scores = rotated_q @ rotated_k.T
    np.testing.assert_allclose(np.diag(scores, 3), scores[0, 3], rtol=1e-4, atol=1e-5)
    assert abs(scores[0, 3] - scores[0, 4]) > 1e-3


def test_rotary_axes_share_the_pairs():
    cos, _ = attention.rotary_table(attention.coordinates((3, 4, 1)), 8)
    assert cos.shape == (12, 4)
    same_row = cos[:4]
    assert (
        same_row[:, :2] == same_row[0, :2]
    ).all()  # the first pairs turn with the row
    assert len(np.unique(same_row[:, 2])) == 4  # the others with the column


def test_conditioning_embeds_classes_and_reals():
    classes = CondEmbedding(CondSpec("class", 4), 6)
    params = classes.init(jax.random.key(0), jnp.zeros(2, jnp.int32))
    out = classes.apply(params, jnp.asarray([0, 3]))
    assert out.shape == (2, 6)
    assert (out[0] != out[1]).all()
    spec = CondSpec("real", 2, low=(0.0, 10.0), high=(1.0, 30.0))
    reals = CondEmbedding(spec, 6)
    params = reals.init(jax.random.key(0), jnp.zeros((2, 2)))
    assert reals.apply(params, jnp.asarray([[0.0, 10.0], [1.0, 30.0]])).shape == (2, 6)
    unconditional = CondEmbedding(None, 6)
    assert (unconditional.apply({}, None) == 0).all()
    with pytest.raises(ValueError, match="unconditional"):
        unconditional.apply({}, jnp.zeros(2))


@pytest.mark.parametrize("length", [5, 600])
def test_causal_attention_in_spans_is_that_of_all_scores(length):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 2, length, 4))

    def defined(q, k, v):
        scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / 2
        scores = jnp.where(np.tri(length, dtype=bool), scores, -jnp.inf)
        return jnp.einsum("bhts,bhsd->bhtd", jax.nn.softmax(scores), v)

    def value(attend, *args):
        out = attend(*args)
        return (out**2).sum(), out

    def ours(*args):
        return attention.attend_to_all(*args, causal=True)

    def slopes(attend):
        of_sum = functools.partial(value, attend)
        (_, out), found = jax.jit(jax.value_and_grad(of_sum, (0, 1, 2), has_aux=True))(
            q, k, v
        )
        return [out, *found]

    for found, expected in zip(slopes(ours), slopes(defined), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
