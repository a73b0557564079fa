"""A tiny model and tokenizer that the tests share."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chapbook.core import transformer
from chapbook.core.transformer import (
    FFN,
    Attention,
    Block,
    Embedding,
    RelativeBias,
    RMSNorm,
    Stack,
    View,
)
from chapbook.glam.tokenizer import ByteTokenizer

VOCAB, CONTEXT, EMBED = 257, 48, 16


class Tiny(eqx.Module):
    """Two layers with a relative bias. Tied logits would prefer one long row of the table."""

    embedding: Embedding
    head: Embedding
    stack: Stack
    config: Any = eqx.field(static=True)

    def __init__(self, key: Any):
        def layer(key: Any) -> Block:
            bias = RelativeBias(2, 8, 16, key=key)
            attention = Attention(EMBED, 2, causal=True, position_bias=bias, key=key)
            return Block(EMBED, attention=attention, ffn=FFN(EMBED, 32, key=key), norm=RMSNorm)

        self.embedding = Embedding(VOCAB, EMBED, key=key)
        self.head = Embedding(VOCAB, EMBED, key=key)
        self.stack = Stack(layer, 2, key=key)
        self.config = SimpleNamespace(vocab_size=VOCAB, context=CONTEXT)

    def __call__(self, tokens: Any, *, segments: Any = None) -> Any:
        view = View() if segments is None else View(transformer.segment_mask(segments))
        x, _ = self.stack(self.embedding(tokens), view)
        return self.head.logits(x), {}

    def prefill(self, tokens: Any, capacity: int, *, start: Any = None) -> Any:
        x, cache, _ = transformer.prefill(self.stack, self.embedding(tokens), capacity, start=start)
        return self.head.logits(x[:, -1:]), cache

    def decode(self, tokens: Any, cache: Any) -> Any:
        x, cache, _ = transformer.decode(self.stack, self.embedding(tokens), cache)
        return self.head.logits(x), cache


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture(scope="session")
def model() -> Tiny:
    """Has arbitrary values, large enough that its likely tokens depend on what came before."""
    rng = np.random.default_rng(0)

    def value(leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype)

    return jax.tree.map(value, eqx.filter_eval_shape(Tiny, jax.random.key(0)))


@pytest.fixture(scope="session")
def next_logs(model: Tiny) -> Any:
    """Returns log-probabilities of each next token of one row, in float64, without any batch."""
    forward = eqx.filter_jit(lambda model, tokens: model(tokens)[0])

    def found(tokens: Sequence[int]) -> np.ndarray:
        held = np.zeros((1, CONTEXT), np.int32)
        held[0, : len(tokens)] = tokens
        logits = np.asarray(forward(model, jnp.asarray(held)), np.float64)[0, : len(tokens)]
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return found
