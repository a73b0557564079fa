"""One layer of a Transformer: attention, cross attention, feed-forward, each beside a skip."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Bool

from chapbook.core.sharding import constrain
from chapbook.core.transformer.attention import KV, Attention
from chapbook.core.transformer.dropout import dropout, split
from chapbook.core.transformer.norms import LayerNorm
from chapbook.core.transformer.shapes import Bias, Context, Key, Mask, Place, Tokens


class View(eqx.Module):
    """What tokens may look at, the same in all layers.

    Attributes:
        mask: Which tokens each token may see, besides what its attention hides.
        bias: Added to the logits of the attention.
        context: Another sequence, for cross attention.
        context_mask: Which of it may be seen.
        first: How many tokens came before; `decode` counts them.
    """

    mask: Mask = None
    bias: Bias = None
    context: Context | None = None
    context_mask: Bool[Array, "#batch 1 1 sources"] | None = None
    first: Place = 0


PLAIN = View()


class Past(NamedTuple):
    """What a block keeps for the tokens to come.

    Attributes:
        own: Keys and values of the tokens; None in a block without attention.
        cross: Those of the context, made once; None in a block without cross attention.
    """

    own: KV | None
    cross: KV | None


class Block(eqx.Module):
    """Computes `x + part(norm(x))` for each part in turn, or `norm(x + part(x))`.

    The parts are those of attention, cross attention and feed-forward layer that are given.

    Args:
        embed: Width of a token.
        attention: Attention of the tokens to themselves.
        cross: Attention to a context.
        ffn: Any `ffn(x, *told, key=key)` that returns tokens, or tokens and a report: `FFN`, or a
            mixture of experts. It does its own dropout.
        norm: Makes a norm of a width, such as `RMSNorm` or
            `functools.partial(LayerNorm, epsilon=1e-5)`.
        post_norm: Whether the norm stands behind the sum, not in front of the part.
        dropout: Rate at which the outputs of the attentions are dropped.

    Reference:
        Vaswani et al. (2017), section 3.1; norms in front: Xiong et al., "On Layer Normalization
        in the Transformer Architecture" (2020).
    """

    post_norm: bool = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    attention: Attention | None
    attention_norm: Any
    cross: Attention | None
    cross_norm: Any
    ffn: Any
    ffn_norm: Any

    def __init__(
        self,
        embed: int,
        *,
        attention: Attention | None = None,
        cross: Attention | None = None,
        ffn: Any = None,
        norm: Callable[[int], Any] = LayerNorm,
        post_norm: bool = False,
        dropout: float = 0.0,
    ):
        self.post_norm, self.dropout = post_norm, dropout
        self.attention, self.cross, self.ffn = attention, cross, ffn
        self.attention_norm = attention and norm(embed)
        self.cross_norm = cross and norm(embed)
        self.ffn_norm = ffn and norm(embed)

    def __call__(
        self, x: Tokens, view: View = PLAIN, *told: Any, key: Key = None
    ) -> tuple[Tokens, Any]:
        """Applies the block.

        Args:
            x: Tokens.
            view: What they may look at.
            told: Handed to the feed-forward layer, such as which tokens are real.
            key: Randomness of dropout and of the feed-forward layer; None for inference.

        Returns:
            The tokens, and the report of the feed-forward layer; None if it makes none.
        """
        x, _, report = self.extend(x, None, view, *told, key=key)
        return x, report

    def extend(
        self, x: Tokens, past: Past | None, view: View = PLAIN, *told: Any, key: Key = None
    ) -> tuple[Tokens, Past, Any]:
        """Applies the block to tokens that follow others.

        Args:
            x: Tokens.
            past: What it kept of those before; None if there are none.
            view: What they may look at. A context that `past` holds is not needed again.
            told: As in a call.
            key: As in a call.

        Returns:
            The tokens, what they add to the past, and the report.
        """
        keys = split(key, 3)
        own = context = report = None
        x = constrain(x, "batch", "seq", "embed")
        if self.attention is not None:
            h, before = self._in(self.attention_norm, x), past and past.own
            limits = {"mask": view.mask, "bias": view.bias}
            y, own = self.attention.extend(h, before, view.first, **limits)
            x = self._out(self.attention_norm, x, dropout(y, self.dropout, keys[0]))
        if self.cross is not None:
            context = self.cross.keys_values(view.context) if past is None else past.cross
            y = self.cross.look(self._in(self.cross_norm, x), context, mask=view.context_mask)
            x = self._out(self.cross_norm, x, dropout(y, self.dropout, keys[1]))
        if self.ffn is not None:
            y = self.ffn(self._in(self.ffn_norm, x), *told, key=keys[2])
            y, report = y if isinstance(y, tuple) else (y, None)
            x = self._out(self.ffn_norm, x, y)
        return x, Past(own, context if past is None else None), report

    def _in(self, norm: Any, x: Array) -> Array:
        return x if self.post_norm else norm(x)

    def _out(self, norm: Any, x: Array, y: Array) -> Array:
        total = constrain(x + y, "batch", "seq", "embed")
        return norm(total) if self.post_norm else total
