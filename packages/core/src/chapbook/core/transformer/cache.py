"""Keys and values of tokens already seen, so that each new token costs one step."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from chapbook.core.errors import Error
from chapbook.core.sharding import constrain
from chapbook.core.transformer.attention import KV
from chapbook.core.transformer.block import PLAIN, Past, View
from chapbook.core.transformer.shapes import Tokens


class Cache(eqx.Module):
    """What the layers keep of the tokens so far. Its shapes never change: donate it, or carry it.

    Attributes:
        layers: A `Past` for each block: its keys and values are
            (layers, batch, capacity, kv_heads, head_dim) in a stack, those of the context likewise.
        start: Place of the first real token of each row; those before it are padding.
        length: How many places are filled, the same in all rows.
        context_mask: Which of the context may be seen; None for all.
    """

    layers: Any
    start: Int[Array, " batch"]
    length: Int[Array, ""]
    context_mask: Bool[Array, "batch 1 1 sources"] | None

    @property
    def capacity(self) -> int:
        """How many tokens there is room for."""
        pasts = jax.tree.leaves(self.layers, is_leaf=_is_past)
        return next(past.own.k.shape[-3] for past in pasts if past.own)

    def positions(self, tokens: int = 1) -> Int[Array, "batch {tokens}"]:
        """Returns the positions of the next tokens of each row, counted from its first real one."""
        return self.length + jnp.arange(tokens) - self.start[:, None]

    def rows(self, chosen: Int[Array, " rows"]) -> "Cache":
        """Returns the cache of these rows, which may repeat: the parents of a beam's survivors."""
        start, mask = jax.tree.map(lambda x: x[chosen], (self.start, self.context_mask))
        layers = jax.tree.map(lambda x: jnp.take(x, chosen, axis=-4), self.layers)
        return Cache(layers, start, self.length, mask)


def prefill(
    layers: Any,
    x: Tokens,
    capacity: int,
    view: View = PLAIN,
    *told: Any,
    start: Int[Array, " batch"] | None = None,
) -> tuple[Tokens, Cache, Any]:
    """Applies layers to the first tokens, all at once, and keeps what the next ones need.

    Args:
        layers: A stack, a chain or a block; its attentions are causal.
        x: Tokens. Rows of several lengths are padded on the left.
        capacity: How many tokens there will ever be, padding and these among them.
        view: What they may look at; its context is kept.
        told: Handed to the feed-forward layers.
        start: How many tokens of each row are padding; none if None.

    Returns:
        The tokens, the cache, and the layers' reports.

    Raises:
        Error: There are more tokens than places.
    """
    batch, tokens = x.shape[:2]
    if tokens > capacity:
        raise Error(f"a cache of capacity={capacity} does not hold {tokens} tokens")
    if start is not None:
        real = _real(start, tokens)
        mask = real if view.mask is None else view.mask & real
        view = dataclasses.replace(view, mask=mask)
    x, kept, report = layers.extend(x, None, view, *told)

    def padded(past: Past) -> Past:
        room = [(0, capacity - tokens), (0, 0), (0, 0)]
        own = jax.tree.map(lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 3) + room), past.own)
        return Past(_placed(own), past.cross)

    mask = view.context_mask
    return (
        x,
        Cache(
            jax.tree.map(padded, kept, is_leaf=_is_past),
            jnp.zeros(batch, jnp.int32) if start is None else start.astype(jnp.int32),
            jnp.int32(tokens),
            None if mask is None else jnp.broadcast_to(mask, (batch, *mask.shape[1:])),
        ),
        report,
    )


def decode(layers: Any, x: Tokens, cache: Cache, *told: Any) -> tuple[Tokens, Cache, Any]:
    """Applies layers to the next tokens: the outputs are those of the whole sequence at once.

    Args:
        layers: As in `prefill`.
        x: One token of each row, or several. Beyond the capacity of the cache they become NaN.
        cache: Of the tokens before.
        told: Handed to the feed-forward layers.

    Returns:
        The tokens, the cache with them, and the layers' reports.
    """
    real, length = _real(cache.start, cache.capacity), cache.length + x.shape[1]
    view = View(real, context_mask=cache.context_mask, first=cache.length)
    x = jnp.where(length <= cache.capacity, x, jnp.nan)
    x, kept, report = layers.extend(x, cache.layers, view, *told)

    def longer(past: Past, new: Past) -> Past:
        return Past(past.own and _placed(past.own.written(new.own, cache.length)), past.cross)

    grown = jax.tree.map(longer, cache.layers, kept, is_leaf=_is_past)
    return x, Cache(grown, cache.start, length, cache.context_mask), report


def _real(start: Array, places: int) -> Array:
    return (jnp.arange(places) >= start[:, None])[:, None, None]


def _is_past(node: Any) -> bool:
    return isinstance(node, Past)


def _placed(own: KV | None) -> KV | None:
    return jax.tree.map(lambda x: constrain(x, "batch", "seq", "kv_heads", "head_dim"), own)
