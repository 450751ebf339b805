"""FLOPs of a traced function, counted by hand: XLA counts the body of a loop once.

Matrix products and convolutions count, two for each multiplication and addition; the
rest is little beside them. What is computed anew for the backward pass counts again, but
not inside cuDNN's kernel for attention, of whose causal scores only half count.
"""

import math
from collections.abc import Iterator
from typing import Any


def _dot(eqn):
    ((contracted, _), _) = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    inner = math.prod(left[axis] for axis in contracted)
    return 2 * math.prod(eqn.outvars[0].aval.shape) * inner


def _convolution(eqn):
    kernel = eqn.invars[1].aval.shape
    outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    # Of a dilated input, as in the gradient of a strided convolution, most are zeros.
    taps = math.prod(kernel) / outputs / math.prod(eqn.params["lhs_dilation"])
    return 2 * math.prod(eqn.outvars[0].aval.shape) * taps


def _attention(eqn):
    batch, *sizes, head_dim = eqn.invars[0].aval.shape
    heads_first = eqn.params["layout"] == 1
    heads, length = sizes if heads_first else sizes[::-1]
    keys = eqn.invars[1].aval.shape[2 if heads_first else 1]
    seen = 0.5 if "CAUSAL" in eqn.params["mask_type"].name else 1.0
    return 4 * seen * batch * heads * length * keys * head_dim


_PRODUCTS = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "dot_product_attention_fwd_wrapper": _attention,
    "dot_product_attention_bwd_wrapper": lambda eqn: 2 * _attention(eqn),
}


def _inner(value: Any) -> Iterator[Any]:
    """The jaxprs in a parameter of an equation."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _inner(item)
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr
    elif hasattr(value, "eqns"):
        yield value


def count_flops(jaxpr: Any) -> tuple[float, int]:
    """FLOPs of a jaxpr, and how many loops of unknown length were counted once.

    The body of a scan counts as often as it runs, of a conditional the dearest branch.
    """
    flops, unknown = 0.0, 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in _PRODUCTS:
            flops += _PRODUCTS[name](eqn)
            continue
        found = [count_flops(j) for value in eqn.params.values() for j in _inner(value)]
        if not found:
            continue
        counts = [count for count, _ in found]
        times = eqn.params["length"] if name == "scan" else 1
        flops += max(counts) if name == "cond" else times * sum(counts)
        unknown += sum(u for _, u in found)
        unknown += name == "while" and sum(counts) > 0
    return flops, unknown
