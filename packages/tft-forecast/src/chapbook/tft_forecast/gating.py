"""What everything else is made of: linear maps, gated linear units, gated residual networks.

Notable choices:
- Initialisation and constants are Keras', as in the paper's code: Glorot-uniform kernels, zero
  biases, layer normalisation with epsilon 1e-3. PyTorch's give other learning curves.
- Where widths differ, the skip of a gated residual network is a learned linear map.
- Random bits come from a hash of positions under a key of JAX's, which costs CPUs a
  thirtieth of JAX's own generator.
- A gate also tells how open it was. Whoever does not use that does not pay: `jit` leaves it out.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

Key = PRNGKeyArray | None

EPSILON = 1e-3


@functools.partial(jax.jit, static_argnums=(1, 2))
def uniform(key: PRNGKeyArray, shape: tuple[int, ...], limit: float) -> Float[Array, "..."]:
    """Returns values drawn evenly between -limit and limit.

    Args:
        key: Randomness.
        shape: Of the result.
        limit: Bound of the values.
    """
    steps = random_bits(key, shape) >> 8  # as many as float32 tells apart
    return (steps.astype(float) * 2**-24 * 2 - 1) * limit


def glorot(
    key: PRNGKeyArray, shape: tuple[int, ...], fans: tuple[int, int] | None = None
) -> Float[Array, "..."]:
    """Returns a kernel from uniform(-l, l), `l = sqrt(6 / (fan_in + fan_out))`.

    Args:
        key: Randomness.
        shape: Of the kernel.
        fans: Inputs and outputs; those of a matrix of this shape if None.

    Reference:
        Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
        networks" (2010), equation 16.
    """
    return uniform(key, shape, (6 / sum(fans or shape[-2:])) ** 0.5)


def dropout(x: Float[Array, "*shape"], rate: float, key: Key) -> Float[Array, "*shape"]:
    """Sets each element to 0 with probability `rate`, and divides the others by `1 - rate`.

    Args:
        x: Activations.
        rate: Rounded to a multiple of 2^-32.
        key: Randomness; None leaves `x` as it is.
    """
    if key is None or rate == 0:
        return x
    keep = random_bits(key, x.shape) >= jnp.uint32(round(rate * 2**32))
    return jnp.where(keep, x / (1 - rate), 0)


@functools.partial(jax.jit, static_argnums=1)
def random_bits(key: PRNGKeyArray, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Returns random words, `h(h(i ^ k1) + k2)` at position i, where h mixes the bits of a word.

    They pass for independent where statistics are concerned, not where secrets are. JAX's own
    would also take half a minute to compile in all places where a network needs some.

    Args:
        key: k1 and k2 are its last two words.
        shape: Of the result, of fewer than 2^32 elements.

    Reference:
        h is the finaliser of MurmurHash3 with the constants of C. Wellons, "Prospecting for hash
        functions" (2018), there called `lowbias32`.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    words = jax.random.key_data(key) if typed else key
    positions = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    return _mixed(_mixed(positions ^ words[-2]) + words[-1])


def _mixed(word: Array) -> Array:
    word = (word ^ (word >> 16)) * jnp.uint32(0x7FEB352D)
    word = (word ^ (word >> 15)) * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def split(key: Key, count: int) -> Any:
    """Returns as many keys by the same hash, which compile faster than JAX's; None from None."""
    if key is None:
        return (None,) * count
    return jax.random.wrap_key_data(random_bits(key, (count, 2)), impl="threefry2x32")


class Linear(eqx.Module):
    """Computes `x W + b`.

    Args:
        inputs: Width of x.
        outputs: Width of the result.
        bias: Whether there is b.
        key: Randomness of the initial kernel.
    """

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"] | None

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, key: PRNGKeyArray):
        self.weight = glorot(key, (inputs, outputs))
        self.bias = jnp.zeros(outputs) if bias else None

    def __call__(self, x: Float[Array, "*shape inputs"]) -> Float[Array, "*shape outputs"]:
        """Applies the map."""
        # One long axis: over several, XLA's product of a stack of blocks takes three times as long.
        flat = x.reshape(-1, x.shape[-1]) @ self.weight
        y = flat.reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class LayerNorm(eqx.Module):
    """Computes `(x - mean) / sqrt(variance + 1e-3) * scale + shift` over the last axis.

    Args:
        width: Of the last axis.

    Reference:
        Ba et al., "Layer Normalization" (2016); the epsilon is Keras'.
    """

    scale: Float[Array, " width"]
    shift: Float[Array, " width"]

    def __init__(self, width: int):
        self.scale = jnp.ones(width)
        self.shift = jnp.zeros(width)

    def __call__(self, x: Float[Array, "*shape width"]) -> Float[Array, "*shape width"]:
        """Normalises; in float32 at least."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - jnp.mean(wide, -1, keepdims=True)
        variance = jnp.mean(centred**2, -1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + EPSILON)
        return (normal * self.scale + self.shift).astype(x.dtype)


class GLU(eqx.Module):
    """Gated linear unit: `sigmoid(x W4 + b4) * (x W5 + b5)`, after dropout of x.

    Args:
        inputs: Width of x.
        outputs: Width of the result.
        dropout: Rate at which x is dropped.
        gating: Whether there is the sigmoid factor.
        key: Randomness of the initial kernels.

    Reference:
        Lim et al. (2021), equation 5.
    """

    dropout: float = eqx.field(static=True)
    gate: Linear | None
    value: Linear

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        dropout: float = 0.0,
        gating: bool = True,
        key: PRNGKeyArray,
    ):
        first, second = split(key, 2)
        self.dropout = dropout
        self.gate = Linear(inputs, outputs, key=first) if gating else None
        self.value = Linear(inputs, outputs, key=second)

    def __call__(
        self, x: Float[Array, "batch *shape inputs"], *, key: Key = None
    ) -> tuple[Float[Array, "batch *shape outputs"], Float[Array, " batch"]]:
        """Applies the unit.

        Args:
            x: Its input.
            key: Randomness of the dropout; None for inference.

        Returns:
            The output, and the mean of the sigmoid factor in each example (1 without one).
        """
        x = dropout(x, self.dropout, key)
        if self.gate is None:
            return self.value(x), jnp.ones(len(x), x.dtype)
        # One product of twice the width would be slower: its halves would have to be copied apart.
        opening = jax.nn.sigmoid(self.gate(x))
        value = self.value(x)
        return opening * value, jnp.mean(opening, axis=tuple(range(1, opening.ndim)))


class GatedSkip(eqx.Module):
    """Computes `LayerNorm(skip + GLU(x))`.

    Args:
        width: Of x and of the skip.
        dropout: Rate at which x is dropped.
        gating: Whether the gated linear unit gates.
        key: Randomness of the initial kernels.

    Reference:
        Lim et al. (2021), equation 17.
    """

    glu: GLU
    norm: LayerNorm

    def __init__(self, width: int, *, dropout: float = 0.0, gating: bool = True, key: PRNGKeyArray):
        self.glu = GLU(width, width, dropout=dropout, gating=gating, key=key)
        self.norm = LayerNorm(width)

    def __call__(
        self,
        x: Float[Array, "batch *shape width"],
        skip: Float[Array, "batch *shape width"],
        *,
        key: Key = None,
    ) -> tuple[Float[Array, "batch *shape width"], Float[Array, " batch"]]:
        """Returns the output and the gate's mean opening in each example."""
        gated, opening = self.glu(x, key=key)
        return self.norm(skip + gated), opening


class GRN(eqx.Module):
    """Gated residual network: `LayerNorm(skip(a) + GLU(ELU(a W2 + c W3 + b2) W1 + b1))`.

    Args:
        inputs: Width of a.
        hidden: Width within.
        outputs: Width of the result. Where it is not that of a, the skip is a linear map.
        context: Width of c; 0 for none.
        dropout: Rate at which the gated linear unit's input is dropped.
        gating: Whether the gated linear unit gates.
        key: Randomness of the initial kernels.

    Reference:
        Lim et al. (2021), equations 2 to 4.
    """

    first: Linear
    context: Linear | None
    second: Linear
    skip: Linear | None
    glu: GLU
    norm: LayerNorm

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: int,
        *,
        context: int = 0,
        dropout: float = 0.0,
        gating: bool = True,
        key: PRNGKeyArray,
    ):
        keys = split(key, 5)
        self.first = Linear(inputs, hidden, key=keys[0])
        self.context = Linear(context, hidden, bias=False, key=keys[1]) if context else None
        self.second = Linear(hidden, hidden, key=keys[2])
        self.skip = Linear(inputs, outputs, key=keys[3]) if inputs != outputs else None
        self.glu = GLU(hidden, outputs, dropout=dropout, gating=gating, key=keys[4])
        self.norm = LayerNorm(outputs)

    def __call__(
        self,
        a: Float[Array, "batch *shape inputs"],
        c: Float[Array, "batch context"] | None = None,
        *,
        key: Key = None,
    ) -> tuple[Float[Array, "batch *shape outputs"], Float[Array, " batch"]]:
        """Applies the network.

        Args:
            a: Its input.
            c: The context, the same for all of an example; needed if the network has one.
            key: Randomness of the dropout; None for inference.

        Returns:
            The output, and the gate's mean opening in each example.

        Raises:
            ValueError: There is a context and no map of it, or the other way round.
        """
        if (self.context is None) != (c is None):
            raise ValueError("a context is needed where the network maps one, and only there")
        skip = a if self.skip is None else self.skip(a)
        hidden = self.first(a)
        if self.context is not None and c is not None:
            shift = self.context(c)
            hidden = hidden + shift.reshape(len(a), *[1] * (a.ndim - 2), -1)
        gated, opening = self.glu(self.second(jax.nn.elu(hidden)), key=key)
        return self.norm(skip + gated), opening


class Stack(eqx.Module):
    """Blocks that are alike, in one: each array has a leading axis over the blocks.

    They are applied together, without a loop. The optimizer knows them as blocks of their own.

    Args:
        make: Makes a block from a key.
        count: How many there are.
        key: Randomness.
    """

    blocks: Any

    def __init__(self, make: Callable[[PRNGKeyArray], PyTree], count: int, *, key: PRNGKeyArray):
        self.blocks = eqx.filter_vmap(make)(split(key, count))

    def __call__(self, x: Float[Array, "blocks batch ..."], *, key: Key = None) -> Any:
        """Applies each block to its entry of `x`.

        Returns:
            What the block returns, with a leading axis over the blocks.
        """
        keys = None if key is None else split(key, len(x))
        return eqx.filter_vmap(lambda block, x, key: block(x, key=key))(self.blocks, x, keys)
