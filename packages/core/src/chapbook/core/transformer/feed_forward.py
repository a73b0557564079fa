"""The dense feed-forward layer, plain or gated."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from chapbook.core.sharding import axes, constrain
from chapbook.core.transformer.dropout import dropout, split
from chapbook.core.transformer.initialisers import Initialiser, fan_in, kernel
from chapbook.core.transformer.shapes import Key, Tokens


class FFN(eqx.Module):
    """Computes `act(x U + a) V + c`, or gated `(act(x G + g) * (x U + a)) V + c`.

    GEGLU is `gated=True`, SwiGLU is `act=jax.nn.silu, gated=True`.

    Args:
        embed: Width of x and of the result.
        mlp: Width within.
        act: The activation. A function with a name, not a new lambda for each model: models
            are alike only if their activations are the same.
        gated: Whether there is G.
        bias: Draws a, g and c; None for none.
        dropout: Rate at which the hidden units, and those of the result, are dropped.
        init: Draws U and G, as matrices (embed, mlp).
        out_init: Draws V, as a matrix (mlp, embed).
        key: Randomness of the initial values.

    Reference:
        Shazeer, "GLU Variants Improve Transformer" (2020), equations 1 and 6.
    """

    act: Callable[[Array], Array] = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    up: Float[Array, "embed mlp"] = axes("embed", "mlp")
    gate: Float[Array, "embed mlp"] | None = axes("embed", "mlp")
    down: Float[Array, "mlp embed"] = axes("mlp", "embed")
    up_bias: Float[Array, " mlp"] | None = axes("mlp")
    gate_bias: Float[Array, " mlp"] | None = axes("mlp")
    down_bias: Float[Array, " embed"] | None = axes(None)

    def __init__(
        self,
        embed: int,
        mlp: int,
        *,
        act: Callable = jax.nn.gelu,
        gated: bool = False,
        bias: Initialiser | None = None,
        dropout: float = 0.0,
        init: Initialiser = fan_in,
        out_init: Initialiser = fan_in,
        key: PRNGKeyArray,
    ):
        keys = split(key, 6)
        self.act, self.dropout = act, dropout
        self.up = kernel(init, keys[0], [embed], [mlp])
        self.gate = kernel(init, keys[1], [embed], [mlp]) if gated else None
        self.down = kernel(out_init, keys[2], [mlp], [embed])
        self.up_bias = bias and bias(keys[3], (mlp,))
        self.gate_bias = bias(keys[4], (mlp,)) if bias and gated else None
        self.down_bias = bias and bias(keys[5], (embed,))

    def __call__(self, x: Tokens, *told: Any, key: Key = None) -> Tokens:
        """Applies the layer to each token.

        Args:
            x: Tokens.
            told: What a block tells any feed-forward layer; a dense one needs none of it.
            key: Randomness of the dropout; None for inference.
        """
        within, after = split(key, 2)
        hidden = _linear(x, self.up, self.up_bias)
        if self.gate is None:
            hidden = self.act(hidden)
        else:
            hidden = self.act(_linear(x, self.gate, self.gate_bias)) * hidden
        hidden = dropout(constrain(hidden, "batch", "seq", "mlp"), self.dropout, within)
        return dropout(_linear(hidden, self.down, self.down_bias), self.dropout, after)


def _linear(x: Array, weight: Array, bias: Array | None) -> Array:
    return x @ weight if bias is None else x @ weight + bias
