"""Where tokens are: rotations, fixed tables, and biases of the attention by distance."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from chapbook.core.errors import Error
from chapbook.core.sharding import axes
from chapbook.core.transformer.initialisers import Initialiser, fan_in
from chapbook.core.transformer.shapes import Heads, Place


def rope(x: Heads, positions: Int[Array, " tokens"], base: float = 10_000.0) -> Heads:
    """Rotates the pair `(x_i, x_{i + d/2})` at position p by the angle `p base^(-2 i / d)`.

    The scalar product of a rotated query and a rotated key depends on the difference of their
    positions alone.

    Args:
        x: Queries or keys, of an even width d. The pairs are the halves of a head, as in GPT-NeoX
            and Llama, not neighbours.
        positions: Of the tokens.
        base: The slowest of the rotations takes about `2 pi base` positions.

    Reference:
        Su et al., "RoFormer" (2021), equation 34.
    """
    half = x.shape[-1] // 2
    angles = positions[:, None, None] * base ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def sincos_2d(
    height: int, width: int, embed: int, base: float = 10_000.0
) -> Float[np.ndarray, "patches {embed}"]:
    """Returns the table `[sin x w, cos x w, sin y w, cos y w]`, `w_i = base^(-i / (embed/4 - 1))`.

    Args:
        height: Rows of patches.
        width: Patches in a row.
        embed: Width of a token, a multiple of 4 and at least 8.
        base: Ratio of the fastest frequency to the slowest.

    Returns:
        The table in float32, row by row.

    Raises:
        Error: `embed` is none of those.

    Reference:
        Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers" (2021),
        in the order of its code.
    """
    if embed % 4 or embed < 8:
        raise Error(f"embed={embed} is not a multiple of 4 from 8 on, which sincos_2d needs")
    quarter = embed // 4
    frequencies = base ** (-np.arange(quarter) / (quarter - 1))
    y, x = (p.reshape(-1, 1) * frequencies for p in np.mgrid[:height, :width])
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1).astype(np.float32)


def relative_buckets(
    ahead: Int[Array, "*shape"],
    buckets: int = 32,
    max_distance: int = 128,
    *,
    bidirectional: bool = False,
) -> Int[Array, "*shape"]:
    """Returns T5's buckets, one for each short distance and wider and wider ones after those.

    `b(d) = d if d < e else min(n - 1, e + floor((n - e) ln(d / e) / ln(max_distance / e)))`, where
    e is half of the n buckets.

    Args:
        ahead: Place of the key minus that of the query.
        buckets: How many there are.
        max_distance: From there on all distances share the last bucket.
        bidirectional: Whether keys ahead have buckets of their own, the second half of all;
            otherwise their distance counts as 0.

    Reference:
        Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
        Transformer" (2020), section 2.1, and its code.
    """
    count = buckets // 2 if bidirectional else buckets
    exact = count // 2
    # A table, since a logarithm in float32 can miss the border of a bucket.
    far = np.log(np.arange(exact, max_distance + 1) / exact) / np.log(max_distance / exact)
    logarithmic = exact + np.floor(far * (count - exact) + 1e-9).astype(int)
    table = jnp.asarray(np.append(np.arange(exact), np.minimum(count - 1, logarithmic)))
    distance = abs(ahead) if bidirectional else jnp.maximum(-ahead, 0)
    bucket = table[jnp.minimum(distance, max_distance)]
    return bucket + count * (ahead > 0) if bidirectional else bucket


class RelativeBias(eqx.Module):
    """Adds `table[head, bucket(j - i)]` to the attention's logit of query i and key j.

    Args:
        heads: How many there are.
        buckets: As `relative_buckets` takes them, like what follows.
        max_distance: From there on all distances share a bucket.
        bidirectional: Whether keys ahead have buckets of their own.
        init: Draws the table, (heads, buckets).
        key: Randomness of the table.

    Reference:
        Raffel et al. (2020), section 2.1.
    """

    max_distance: int = eqx.field(static=True)
    bidirectional: bool = eqx.field(static=True)
    table: Float[Array, "heads buckets"] = axes("heads", None)

    def __init__(
        self,
        heads: int,
        buckets: int = 32,
        max_distance: int = 128,
        *,
        bidirectional: bool = False,
        init: Initialiser = fan_in,
        key: PRNGKeyArray,
    ):
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.table = init(key, (heads, buckets))

    def __call__(
        self, tokens: int, keys: int, first: Place = 0
    ) -> Float[Array, "1 heads {tokens} {keys}"]:
        """Returns the bias.

        Args:
            tokens: Queries, one after the other.
            keys: Keys, one after the other from place 0.
            first: Place of the first query.
        """
        heads, buckets = self.table.shape
        ahead = jnp.arange(1 - tokens, keys) - first
        bucket = relative_buckets(
            ahead, buckets, self.max_distance, bidirectional=self.bidirectional
        )
        # One value a distance, padded by one and repeated: each row of the wider matrix then starts
        # one place further left. The gradient is a sum; that of a gather of the whole matrix would
        # be a scatter, which takes CPUs many times as long.
        row = jnp.pad(self.table[:, bucket], ((0, 0), (0, 1)))
        skewed = jnp.tile(row, tokens)[:, : tokens * len(ahead)].reshape(heads, tokens, -1)
        return skewed[None, :, :, tokens - 1 :]
