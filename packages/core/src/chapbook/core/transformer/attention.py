"""Multi-head attention: grouped queries, rotations, windows, biases, a context to look at."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from chapbook.core.errors import Error
from chapbook.core.sharding import axes, constrain
from chapbook.core.transformer.dropout import split
from chapbook.core.transformer.initialisers import Initialiser, fan_in, kernel
from chapbook.core.transformer.masks import near_mask
from chapbook.core.transformer.norms import RMSNorm
from chapbook.core.transformer.positions import rope as rotated
from chapbook.core.transformer.shapes import Bias, Context, Mask, Place, Tokens


class KV(NamedTuple):
    """Keys and values, ready to be attended to; over all layers of a stack, with an axis for them.

    Attributes:
        k: The keys, rotated if the attention rotates.
        v: The values.
    """

    k: Float[Array, "*layers batch keys kv_heads head_dim"]
    v: Float[Array, "*layers batch keys kv_heads head_dim"]

    def written(self, new: "KV", first: int | Array) -> "KV":
        """Returns these with others in their place, from the place `first` on."""
        pairs = ((old, part.astype(old.dtype), first) for old, part in zip(self, new, strict=True))
        return KV(*(jax.lax.dynamic_update_slice_in_dim(*pair, axis=-3) for pair in pairs))


class Attention(eqx.Module):
    """Computes `concat_h(softmax(scale q_h k_h^T + bias) v_h) W_O`.

    The queries `q_h = x W_Q^h`, the keys `k_h = z W_K^h` and the values `v_h = z W_V^h` are maps of
    the tokens x and of what they attend to: x itself, or a context z. Where there are fewer heads
    of keys and values than of queries, neighbouring queries share them.

    Args:
        embed: Width of x and of the result.
        heads: Heads of queries.
        kv_heads: Heads of keys and values, a divisor of `heads`; `heads` if None.
        head_dim: Width of a head; `embed / heads` if None.
        context_embed: Width of the context; `embed` if None.
        causal: Whether a token sees none after it.
        window: How far a token sees to each side, itself included; None for all.
        rope: Base of the rotations by position; None for no rotation.
        qk_norm: Whether queries and keys are normed, each with a learned scale.
        bias: Draws a bias for each of the four maps; None for none.
        position_bias: Makes the bias of the logits from the numbers of queries and of keys and the
            place of the first query, as `RelativeBias` does.
        scale: Of the logits; `head_dim^-1/2` if None.
        attend: With the signature of `jax.nn.dot_product_attention`. For flash attention, a
            `functools.partial` of that with `implementation="cudnn"`, made once.
        init: Draws W_K and W_V, and W_Q too unless `q_init` is given, as matrices.
        q_init: Draws W_Q.
        out_init: Draws W_O.
        key: Randomness of the initial values.

    Raises:
        Error: Heads do not divide what they should, rotated ones have an odd width, or a window
            shows nothing.

    Reference:
        Vaswani et al., "Attention Is All You Need" (2017), section 3.2; Ainslie et al., "GQA"
        (2023).
    """

    causal: bool = eqx.field(static=True)
    window: int | None = eqx.field(static=True)
    rope: float | None = eqx.field(static=True)
    scale: float | None = eqx.field(static=True)
    attend: Callable = eqx.field(static=True)
    position_bias: Callable | None
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    q: Float[Array, "embed heads head_dim"] = axes("embed", "heads", "head_dim")
    k: Float[Array, "context_embed kv_heads head_dim"] = axes("embed", "kv_heads", "head_dim")
    v: Float[Array, "context_embed kv_heads head_dim"] = axes("embed", "kv_heads", "head_dim")
    out: Float[Array, "heads head_dim embed"] = axes("heads", "head_dim", "embed")
    q_bias: Float[Array, "heads head_dim"] | None = axes("heads", "head_dim")
    k_bias: Float[Array, "kv_heads head_dim"] | None = axes("kv_heads", "head_dim")
    v_bias: Float[Array, "kv_heads head_dim"] | None = axes("kv_heads", "head_dim")
    out_bias: Float[Array, " embed"] | None = axes(None)

    def __init__(
        self,
        embed: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        context_embed: int | None = None,
        causal: bool = False,
        window: int | None = None,
        rope: float | None = None,
        qk_norm: bool = False,
        bias: Initialiser | None = None,
        position_bias: Callable | None = None,
        scale: float | None = None,
        attend: Callable = jax.nn.dot_product_attention,
        init: Initialiser = fan_in,
        q_init: Initialiser | None = None,
        out_init: Initialiser = fan_in,
        key: PRNGKeyArray,
    ):
        width = head_dim or embed // heads
        query, pair = (heads, width), (kv_heads or heads, width)
        source = [context_embed or embed]
        if heads % pair[0] or (embed % heads and not head_dim) or (rope and width % 2):
            sizes = f"embed={embed}, heads={heads}, kv_heads={pair[0]}, head_dim={width}"
            told = "kv_heads divides heads, and heads embed; rotated heads have an even width"
            raise Error(f"attention cannot have {sizes}", told)
        if window == 0:
            raise Error("a window of 0 shows a token nothing", "the least is 1: the token itself")
        keys = split(key, 8)
        self.causal, self.window, self.rope = causal, window, rope
        self.scale, self.attend, self.position_bias = scale, attend, position_bias
        self.q_norm, self.k_norm = (RMSNorm(width) if qk_norm else None for _ in "qk")
        self.q = kernel(q_init or init, keys[0], [embed], query)
        self.k = kernel(init, keys[1], source, pair)
        self.v = kernel(init, keys[2], source, pair)
        self.out = kernel(out_init, keys[3], query, [embed])
        self.q_bias = bias and bias(keys[4], query)
        self.k_bias = bias and bias(keys[5], pair)
        self.v_bias = bias and bias(keys[6], pair)
        self.out_bias = bias and bias(keys[7], (embed,))

    def __call__(
        self, x: Tokens, context: Context | None = None, *, mask: Mask = None, bias: Bias = None
    ) -> Tokens:
        """Attends to x itself, or to a context.

        Args:
            x: Tokens.
            context: What they attend to; x if None.
            mask: Which keys each query may see, besides what `causal` and `window` say. A query
                that sees none gets zero before the last map.
            bias: Added to the logits.
        """
        kv = self.keys_values(x if context is None else context)
        return self.look(x, kv, mask=mask, bias=bias)

    def extend(
        self, x: Tokens, past: KV | None, first: Place = 0, *, mask: Mask = None, bias: Bias = None
    ) -> tuple[Tokens, KV]:
        """Attends to x and to what came before it.

        Args:
            x: Tokens.
            past: Keys and values with room for those of x, (batch, capacity, kv_heads, head_dim);
                None if x is all there is.
            first: How many tokens came before, with which `past` is filled; 0 without `past`.
            mask: Over all of `past`.
            bias: Over all of `past`.

        Returns:
            The attention's output, and the keys and values of x.
        """
        new = kv = self.keys_values(x, first)
        if past is not None:
            kv = past.written(new, first)
            queries, places = first + jnp.arange(x.shape[1]), jnp.arange(kv.k.shape[1])
            filled = near_mask(queries, places, causal=True)
            mask = filled if mask is None else mask & filled
        return self.look(x, kv, first, mask=mask, bias=bias), new

    def keys_values(self, z: Context, first: Place = 0) -> KV:
        """Maps what is attended to, once for as many `look`s as follow.

        Args:
            z: Tokens.
            first: Place of the first one.
        """
        k = _heads(z, self.k, self.k_bias, "kv_heads")
        return KV(self._placed(k, self.k_norm, first), _heads(z, self.v, self.v_bias, "kv_heads"))

    def look(
        self, x: Tokens, kv: KV, first: Place = 0, *, mask: Mask = None, bias: Bias = None
    ) -> Tokens:
        """Attends to keys and values.

        Args:
            x: Tokens.
            kv: Of which the first has the place 0.
            first: Place of the first token; 0 without a mask.
            mask: As in a call.
            bias: As in a call.
        """
        tokens, keys = x.shape[1], kv.k.shape[1]
        q = self._placed(_heads(x, self.q, self.q_bias, "heads"), self.q_norm, first)
        if self.position_bias is not None:
            by_place = self.position_bias(tokens, keys, first)
            bias = by_place if bias is None else by_place + bias
        if mask is None:
            ahead = 0 if self.causal else (self.window or 1) - 1
            window = self.window and (self.window - 1, ahead)
            limits = {"is_causal": self.causal, "local_window_size": window}
            attended = self.attend(q, *kv, bias, None, scale=self.scale, **limits)
        else:
            places = first + jnp.arange(tokens), jnp.arange(keys)
            mask &= near_mask(*places, causal=self.causal, window=self.window)
            attended = self.attend(q, *kv, bias, mask, scale=self.scale)
            seeing = jnp.any(mask, -1).swapaxes(1, 2)[..., None]
            attended = jnp.where(seeing, attended, 0)
        out = jnp.einsum("bthk,hke->bte", attended, self.out)
        return out if self.out_bias is None else out + self.out_bias

    def _placed(self, y: Array, norm: RMSNorm | None, first: int | Array) -> Array:
        y = y if norm is None else norm(y)
        return y if self.rope is None else rotated(y, first + jnp.arange(y.shape[1]), self.rope)


def _heads(x: Array, weight: Array, bias: Array | None, name: str) -> Array:
    y = jnp.einsum("bte,enh->btnh", x, weight)
    return constrain(y if bias is None else y + bias, "batch", "seq", name, "head_dim")
