"""The local, sequential part: an LSTM, and the sinusoidal positions that stand in for it."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from chapbook.tft_forecast.gating import glorot, split, uniform

State = tuple[Float[Array, "batch hidden"], Float[Array, "batch hidden"]]


class LSTM(eqx.Module):
    """Computes `c' = s(f) c + s(i) tanh(g)`, `h' = s(o) tanh(c')`, `[i f g o] = x W + h U + b`.

    The products `x W` of all steps are one, and so are the four gates' of a step.

    Args:
        inputs: Width of x.
        hidden: Width of the output h and the cell state c.
        unroll: Steps in one iteration of the loop.
        key: Randomness of the initial kernels: Glorot-uniform W, orthogonal U, and b zero but for
            the forget gate's, which is 1, as Keras has it.

    Reference:
        Hochreiter & Schmidhuber, "Long Short-Term Memory" (1997); the forget gate's bias: Gers et
        al., "Learning to Forget" (2000).
    """

    unroll: int = eqx.field(static=True)
    kernel: Float[Array, "inputs gates"]
    recurrent: Float[Array, "hidden gates"]
    bias: Float[Array, " gates"]

    def __init__(self, inputs: int, hidden: int, *, unroll: int = 1, key: PRNGKeyArray):
        first, second = split(key, 2)
        self.unroll = unroll
        self.kernel = glorot(first, (inputs, 4 * hidden))
        self.recurrent = _orthogonal(second, hidden, 4 * hidden)
        self.bias = jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1)

    def __call__(
        self, x: Float[Array, "batch time inputs"], state: State | None = None
    ) -> tuple[Float[Array, "batch time hidden"], State]:
        """Runs over a sequence.

        Args:
            x: The sequence.
            state: h and c before it; zeros if None.

        Returns:
            h at each step, and h and c after the last.
        """
        if state is None:
            zeros = jnp.zeros((len(x), len(self.recurrent)), x.dtype)
            state = zeros, zeros

        def step(state, projected):
            h, c = state
            i, f, g, o = jnp.split(projected + h @ self.recurrent, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        projected = jnp.swapaxes(x, 0, 1) @ self.kernel + self.bias
        state, outputs = jax.lax.scan(step, state, projected, unroll=self.unroll)
        return jnp.swapaxes(outputs, 0, 1), state


@functools.partial(jax.jit, static_argnums=(1, 2))
def _orthogonal(key: PRNGKeyArray, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """Returns orthonormal rows, all directions alike, from a QR decomposition of normal values."""
    radius, angle = (uniform(k, (columns, rows), 0.5) + 0.5 for k in split(key, 2))
    # 1 - radius is never 0, whose logarithm is infinite (Box & Muller, 1958).
    normal = jnp.sqrt(-2 * jnp.log(1 - radius)) * jnp.cos(2 * jnp.pi * angle)
    q, r = jnp.linalg.qr(normal)
    return (q * jnp.sign(jnp.diagonal(r))).T


def sinusoids(positions: int, width: int) -> Float[Array, "positions width"]:
    """Returns `sin(p / 10000^(2 i / width))`, then `cos` of the same, of each position p.

    Args:
        positions: How many.
        width: Of the vectors.

    Reference:
        Vaswani et al., "Attention Is All You Need" (2017), section 3.5, with the sines and cosines
        side by side instead of by turns.
    """
    half = (width + 1) // 2
    rates = 10000.0 ** (-2 * jnp.arange(half) / width)
    angles = jnp.arange(positions)[:, None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[:, :width]
