"""The language model, from token ids to logits.

Notable choices, those of the public configuration:

- Norms in front, RMSNorm with epsilon 1e-6; no biases in any map; one table for both ends.
- Every layer has a bias of its attention by distance, of its own; there are no other positions.
- Logits of the attention are not divided by `sqrt(d)`: queries are drawn that much smaller.
- Layers run by a scan over pairs, one with experts and a dense one, so that compiling takes as long
  for sixty layers as for two.
- Without a key a model infers: no expert has a limit, and no token is dropped.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from chapbook.core.sharding import RULES as CORE_RULES
from chapbook.core.transformer import (
    FFN,
    Attention,
    Block,
    Cache,
    Chain,
    Embedding,
    RelativeBias,
    RMSNorm,
    Stack,
    View,
    decode,
    prefill,
    segment_mask,
)
from chapbook.glam.config import GLaMConfig
from chapbook.glam.moe import ACTIVATIONS, GAUSSIAN, LayerRouting, MoE

NORM = functools.partial(RMSNorm, epsilon=1e-6)
# A batch is spread over all devices that hold different experts, too.
RULES = {**CORE_RULES, "batch": ("data", "fsdp", "expert"), "mlp": ("model", "tensor"),
         "heads": ("model", "tensor"), "kv_heads": ("model", "tensor")}  # fmt: skip


class RoutingMetrics(eqx.Module):
    """What the routers of a model did with a batch.

    Attributes:
        layers: Of the layers with experts, whose arrays have a leading axis over them; None in a
            dense model.
        loss: Sum over the layers of their losses for even loads, before its weight.
    """

    layers: LayerRouting | None
    loss: Float[Array, ""]

    @property
    def dropped(self) -> Float[Array, ""]:
        """The share of choices that found no room."""
        if self.layers is None:
            return jnp.zeros(())
        told = self.layers.metrics
        return told.dropped.sum() / jnp.maximum(told.chosen.sum(), 1)


class GLaM(eqx.Module):
    """A decoder in which every other feed-forward layer is a bank of experts.

    Args:
        config: What shapes it; without experts it is a dense model.
        key: Randomness of the initial values.

    Reference:
        Du et al., "GLaM: Efficient Scaling of Language Models with Mixture-of-Experts" (2022),
        section 4.
    """

    config: GLaMConfig = eqx.field(static=True)
    embedding: Embedding
    layers: Stack | Chain
    norm: RMSNorm

    def __init__(self, config: GLaMConfig, *, key: Key[Array, ""]):
        first, second = jax.random.split(key)
        self.config = config
        normal = jax.nn.initializers.normal(1.0)
        self.embedding = Embedding(config.vocab_size, config.embed, init=normal, key=first)
        make = functools.partial(_pair if config.num_experts else _dense, config)
        count = config.num_layers // (2 if config.num_experts else 1)
        self.layers = Stack(make, count, remat=config.remat, key=second)
        self.norm = NORM(config.embed)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        *,
        segments: Int[Array, "batch tokens"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch tokens vocab"], RoutingMetrics]:
        """Returns the logits of what follows each token, in float32, and what the routers did.

        Args:
            tokens: Ids.
            segments: The document of each token, counted from 1; 0 is padding. Documents do not
                see each other. None is one document a row.
            key: Randomness of the routers, in training, where experts have limits; None for
                inference.
        """
        view = View() if segments is None else View(segment_mask(segments))
        valid = None if segments is None else segments > 0
        x, reports = self.layers(self._embedded(tokens), view, valid, key=key)
        return self._logits(x), _metrics(reports)

    def prefill(
        self,
        tokens: Int[Array, "batch tokens"],
        capacity: int,
        *,
        start: Int[Array, " batch"] | None = None,
    ) -> tuple[Float[Array, "batch 1 vocab"], Cache]:
        """Returns the logits of what follows the first tokens, and the cache with them.

        Logits of the tokens before are not computed: of a long prompt and a large vocabulary they
        would take more memory than the model. `__call__` has them all.

        Args:
            tokens: Ids. Rows of several lengths are padded on the left.
            capacity: How many tokens there will ever be, padding and these among them.
            start: How many tokens of each row are padding; none if None.

        Raises:
            Error: There are more tokens than places.
        """
        valid = None
        if start is not None:
            valid = jnp.arange(tokens.shape[1]) >= start[:, None]
        x, cache, _ = prefill(
            self.layers, self._embedded(tokens), capacity, View(), valid, start=start
        )
        return self._logits(x[:, -1:]), cache

    def decode(
        self, tokens: Int[Array, "batch tokens"], cache: Cache
    ) -> tuple[Float[Array, "batch tokens vocab"], Cache]:
        """Returns the logits of the next tokens, and the cache with them.

        Args:
            tokens: Ids, one of each row or several. Beyond the cache's capacity logits are NaN.
            cache: Of the tokens before.
        """
        x, cache, _ = decode(self.layers, self._embedded(tokens), cache)
        return self._logits(x), cache

    def unrolled(self) -> "GLaM":
        """Returns the model with layers one by one: on a CPU it decodes a few times as fast.

        A scan copies each layer's weights before it uses them. The copy made here takes as much
        memory as the model, unless that is let go, and compiling takes longer the more layers there
        are. It is for generating, not for saving.
        """
        if isinstance(self.layers, Chain):
            return self
        return eqx.tree_at(lambda model: model.layers, self, self.layers.unrolled())

    def _embedded(self, tokens: Array) -> Array:
        x = self.embedding(tokens)
        return x * self.config.embed**0.5 if self.config.scale_input else x

    def _logits(self, x: Array) -> Array:
        return self.embedding.logits(self.norm(x)) * self.config.embed**-0.5


def _metrics(reports: Any) -> RoutingMetrics:
    found = jax.tree.leaves(reports, is_leaf=lambda each: isinstance(each, LayerRouting))
    if not found:
        return RoutingMetrics(None, jnp.zeros(()))
    # A scan tells of all layers at once: of each pair, one has experts.
    layers = found[0] if found[0].loss.ndim else jax.tree.map(lambda *each: jnp.stack(each), *found)
    return RoutingMetrics(layers, layers.loss.sum())


def _pair(config: GLaMConfig, key: Key[Array, ""]) -> Chain:
    """Makes a layer with experts and a dense one, in the configuration's order."""
    first, second = jax.random.split(key)
    inner = jax.random.fold_in(first, 1)
    experts = MoE(config, key=inner) if config.num_experts > 1 else FFN(
        config.embed, config.expert_width, act=ACTIVATIONS[config.activation], init=GAUSSIAN,
        out_init=GAUSSIAN, key=inner,
    )  # fmt: skip
    pair = (_block(config, experts, first), _dense(config, second))
    return Chain(*(pair if config.moe_offset == 0 else pair[::-1]))


def _dense(config: GLaMConfig, key: Key[Array, ""]) -> Block:
    ffn = FFN(
        config.embed, config.hidden, gated=config.gated, init=GAUSSIAN, out_init=GAUSSIAN,
        key=jax.random.fold_in(key, 1),
    )  # fmt: skip
    return _block(config, ffn, key)


def _block(config: GLaMConfig, ffn: Any, key: Key[Array, ""]) -> Block:
    c = config
    first, second = jax.random.split(jax.random.fold_in(key, 0))
    attention = Attention(
        c.embed, c.num_heads, head_dim=c.head_dim, causal=True, scale=1.0,
        position_bias=RelativeBias(c.num_heads, c.buckets, c.max_distance, key=second),
        attend=capped(c.attention_cap) if c.attention_cap else jax.nn.dot_product_attention,
        init=GAUSSIAN, q_init=jax.nn.initializers.normal((c.embed * c.head_dim) ** -0.5),
        out_init=GAUSSIAN, key=first,
    )  # fmt: skip
    return Block(c.embed, attention=attention, ffn=ffn, norm=NORM)


@functools.cache
def capped(cap: float) -> Callable[..., Array]:
    """Returns an attention whose logits are `cap tanh(x / cap)` before anything is hidden.

    Args:
        cap: Which no logit exceeds.

    Returns:
        A function with the signature of `jax.nn.dot_product_attention`, the same for each cap.
    """

    def attend(
        q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, *, scale: float,
        is_causal: bool = False, local_window_size: None = None,
    ) -> Array:  # fmt: skip
        logits = jnp.einsum("btnh,bsnh->bnts", q, k, preferred_element_type=jnp.float32) * scale
        logits = logits if bias is None else logits + bias
        logits = cap * jnp.tanh(logits / cap)
        seen = jnp.tri(q.shape[1], k.shape[1], dtype=bool) if is_causal else True
        seen = seen if mask is None else seen & mask
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), v).astype(q.dtype)

    return attend
