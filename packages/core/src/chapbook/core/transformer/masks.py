"""Which keys a query may attend to: masks that broadcast over heads and combine by `&`."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def near_mask(
    queries: Int[Array, " tokens"],
    keys: Int[Array, " keys"],
    *,
    causal: bool = False,
    window: int | None = None,
) -> Bool[Array, "1 1 tokens keys"]:
    """Shows a query at `i` the keys `j` with `j <= i` if causal, and `|i - j| < window`.

    Args:
        queries: Places of the queries.
        keys: Places of the keys.
        causal: Whether later keys are hidden.
        window: How many places a query sees to each side, its own among them; None for all.
    """
    ahead = keys - queries[:, None]
    seen = ahead <= 0 if causal else jnp.ones_like(ahead, bool)
    return (seen if window is None else seen & (abs(ahead) < window))[None, None]


def padding_mask(lengths: Int[Array, " batch"], keys: int) -> Bool[Array, "batch 1 1 {keys}"]:
    """Shows the first keys of each row.

    Args:
        lengths: How many keys of each row are real.
        keys: How many there are.
    """
    return (jnp.arange(keys) < lengths[:, None])[:, None, None]


def segment_mask(
    queries: Int[Array, "batch tokens"], keys: Int[Array, "batch keys"] | None = None
) -> Bool[Array, "batch 1 tokens keys"]:
    """Shows a query the keys of its own segment: documents packed into one row stay apart.

    Args:
        queries: The segment of each query. Padding is a segment of its own, such as 0.
        keys: The segment of each key; that of the queries if None.
    """
    return (queries[:, :, None] == (queries if keys is None else keys)[:, None])[:, None]
