"""A Transformer in parts: attention, feed-forward layers, blocks, stacks of them, and a cache.

Notable choices:
- Activations are batched, (batch, tokens, embed). The dimensions of all weights are named, and
  activations are constrained at the borders of blocks, so that `model=k` in a mesh gives Megatron's
  two all-reduces a block.
- Parts are made first and given to the whole: a block takes an attention and a feed-forward layer
  (which may be a mixture of experts), a stack takes a function that makes a layer.
- A layer returns its tokens and a report, as the body of `jax.lax.scan` does. A stack runs its
  layers by a scan and stacks their reports.
- Tokens are numbered by their place in the sequence. Rotary and relative positions depend on
  differences only, so padding on the left and packed documents need no positions of their own.
- Softmax, norms and logits are computed in float32, whatever the activations' type.
"""

from chapbook.core.transformer.attention import KV, Attention
from chapbook.core.transformer.block import Block, Past, View
from chapbook.core.transformer.cache import Cache, decode, prefill
from chapbook.core.transformer.dropout import dropout
from chapbook.core.transformer.embedding import Embedding
from chapbook.core.transformer.feed_forward import FFN
from chapbook.core.transformer.initialisers import fan_in, residual
from chapbook.core.transformer.masks import near_mask, padding_mask, segment_mask
from chapbook.core.transformer.norms import LayerNorm, RMSNorm, layer_norm, rms_norm
from chapbook.core.transformer.positions import RelativeBias, relative_buckets, rope, sincos_2d
from chapbook.core.transformer.stack import Chain, Stack

__all__ = [
    "FFN", "KV", "Attention", "Block", "Cache", "Chain", "Embedding", "LayerNorm", "Past",
    "RMSNorm", "RelativeBias", "Stack", "View", "decode", "dropout", "fan_in", "layer_norm",
    "near_mask", "padding_mask", "prefill", "relative_buckets", "residual", "rms_norm", "rope",
    "segment_mask", "sincos_2d",
]  # fmt: skip
