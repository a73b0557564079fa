"""The Vision Transformer with experts, from pixels to logits.

Notable choices, those of the official code:

- Norms in front, with epsilon 1e-6; biases everywhere; GELU in its tanh form, unless asked.
- Attention and feed-forward kernels are Xavier-uniform, biases of the latter normal(1e-6); the head
  begins with zeros.
- Without a key a model infers: no dropout, no noise on the routers.
- Routing is part of the configuration, so that another capacity or K is another compiled program,
  which every call of the same setting shares. `with_routing` shares the parameters.
"""

import dataclasses
import functools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from chapbook.core.errors import Error
from chapbook.core.sharding import RULES as CORE_RULES
from chapbook.core.sharding import axes, constrain
from chapbook.core.transformer import FFN, Attention, Block, LayerNorm, View, dropout
from chapbook.core.transformer.dropout import split
from chapbook.vmoe.config import VMoEConfig
from chapbook.vmoe.moe import LayerRouting, MoE, gelu
from chapbook.vmoe.patches import PatchEmbedding, positions, waves

XAVIER = jax.nn.initializers.xavier_uniform()
NORM = functools.partial(LayerNorm, epsilon=1e-6)
# A batch is spread over all devices that hold different experts, too.
RULES = {**CORE_RULES, "batch": ("data", "fsdp", "expert"), "mlp": ("model", "tensor")}


class RoutingMetrics(eqx.Module):
    """What the routers of a model did with a batch.

    Attributes:
        layers: Of each layer with experts, in order.
        loss: Sum over the layers of their weighted losses; 0 in a dense model.
    """

    layers: tuple[LayerRouting, ...]
    loss: Float[Array, ""]

    @property
    def dropped(self) -> Float[Array, ""]:
        """Mean over the layers of the share of choices that found no room."""
        return self._mean([layer.dropped for layer in self.layers])

    @property
    def untouched(self) -> Float[Array, ""]:
        """Mean over the layers of the share of tokens that no expert saw."""
        return self._mean([layer.untouched for layer in self.layers])

    def _mean(self, values: Sequence[Array]) -> Float[Array, ""]:
        return jnp.mean(jnp.stack(values)) if values else jnp.zeros(())


class Linear(eqx.Module):
    """Computes `x W + b`."""

    kernel: Float[Array, "embed features"] = axes("embed", None)
    bias: Float[Array, " features"] = axes(None)

    def __call__(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch features"]:
        """Maps the last axis."""
        return x @ self.kernel + self.bias


class AttentionPooling(eqx.Module):
    """What a learned probe attends to: `y + MLP(LN(y))` with `y = MHA(probe, x)`.

    Args:
        config: Of the model.
        key: Randomness of the initial values.
    """

    attention: Attention
    norm: LayerNorm
    ffn: FFN
    probe: Float[Array, "1 embed"] = axes(None, "embed")

    def __init__(self, config: VMoEConfig, *, key: Key[Array, ""]):
        keys = jax.random.split(key, 3)
        self.probe = XAVIER(keys[0], (1, config.hidden_size))
        self.attention, self.norm = attention(config, keys[1]), NORM(config.hidden_size)
        self.ffn = feed_forward(config, keys[2])

    def __call__(self, x: Float[Array, "batch tokens embed"]) -> Float[Array, "batch embed"]:
        """Pools each image's tokens."""
        probe = jnp.broadcast_to(self.probe.astype(x.dtype), (len(x), *self.probe.shape))
        y = self.attention(probe, x)
        return (y + self.ffn(self.norm(y)))[:, 0]


class VisionTransformerMoE(eqx.Module):
    """A Vision Transformer whose feed-forward blocks are experts in chosen layers.

    Args:
        config: What shapes it.
        key: Randomness of the initial values.

    Reference:
        Riquelme et al., "Scaling Vision with Sparse Mixture of Experts" (2021).
    """

    config: VMoEConfig  # a leaf, not a static field, so that another can take its place
    remat: bool
    embedding: PatchEmbedding
    blocks: tuple[Block, ...]
    norm: LayerNorm
    pooling: AttentionPooling | None
    representation: Linear | None
    head: Linear | None
    token: Float[Array, " embed"] | None = axes("embed")
    position: Float[Array, "tokens embed"] | None = axes(None, "embed")

    def __init__(self, config: VMoEConfig, *, key: Key[Array, ""]):
        c, width = config, config.hidden_size
        keys = jax.random.split(key, c.num_layers + 4)
        self.config, self.remat = config, False
        self.embedding = PatchEmbedding(c, key=keys[0])
        self.token = jnp.zeros(width) if c.classifier == "token" else None
        self.position = positions(c, keys[1])
        self.blocks = tuple(block(c, layer, keys[4 + layer]) for layer in range(c.num_layers))
        self.norm = NORM(width)
        self.pooling = AttentionPooling(c, key=keys[2]) if c.classifier == "map" else None
        self.representation = None
        if c.representation:
            init = jax.nn.initializers.lecun_normal()
            kernel = init(keys[3], (width, c.representation))
            self.representation = Linear(kernel, jnp.zeros(c.representation))
        self.head = None
        if c.num_classes:
            kernel = jnp.zeros((c.representation or width, c.num_classes))
            self.head = Linear(kernel, jnp.full(c.num_classes, c.head_bias))

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        valid: Bool[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch classes"], RoutingMetrics]:
        """Returns the logits of images, or their features without a head, and what routers did.

        Args:
            images: Pixels, on the scale that the model was trained with; ours is -1 to 1.
            valid: False marks images that are padding, and take no room at the experts.
            key: Randomness of dropout and of the routers' noise; None for inference.
        """
        x, aux = self.features(images, valid=valid, key=key)
        return (x if self.head is None else self.head(x)), aux

    def features(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        valid: Bool[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch features"], RoutingMetrics]:
        """Returns what the head sees, and what the routers did.

        Args:
            images: As in a call.
            valid: As in a call.
            key: As in a call.
        """
        tokens, layers = self.tokens(images, valid=valid, key=key)
        if self.pooling is not None:
            x = self.pooling(tokens)
        else:
            x = tokens.mean(1) if self.config.classifier == "gap" else tokens[:, 0]
        if self.representation is not None:
            x = jnp.tanh(self.representation(x))
        loss = sum((layer.loss for layer in layers), jnp.zeros(()))
        return x, RoutingMetrics(layers, loss)

    def tokens(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        valid: Bool[Array, " batch"] | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "batch tokens embed"], tuple[LayerRouting, ...]]:
        """Returns the tokens after the last norm, and what the router of each layer did.

        Args:
            images: As in a call.
            valid: As in a call.
            key: As in a call.
        """
        c = self.config
        first, *keys = split(key, 1 + len(self.blocks))
        x = self.embedding(images)
        if self.token is not None:
            token = jnp.broadcast_to(self.token.astype(x.dtype), (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([token, x], 1)
        if x.shape[1] != c.num_tokens:
            raise Error(
                f"images of {images.shape[1]} x {images.shape[2]} pixels give {x.shape[1]} tokens, "
                f"the model has positions for {c.num_tokens}; it takes {c.image_size} x "
                f"{c.image_size}"
            )
        if c.position != "none":
            position = waves(c) if self.position is None else self.position
            x = x + position.astype(x.dtype)
        x = constrain(dropout(x, c.dropout, first), "batch", "seq", "embed")
        layers = []
        for each, part in zip(self.blocks, keys, strict=True):
            x, report = (eqx.filter_checkpoint(each) if self.remat else each)(
                x, View(), valid, key=part
            )
            if report is not None:
                layers.append(report)
        return self.norm(x), tuple(layers)

    def with_routing(
        self,
        *,
        capacity_factor: float | None = None,
        num_selected_experts: int | None = None,
        batch_priority: bool | None = None,
        normalize: str | None = None,
        group_size: int | None = None,
        capacity_multiple: int | None = None,
        dispatch: str | None = None,
        layers: Sequence[int] | None = None,
    ) -> "VisionTransformerMoE":
        """Returns a model of the same parameters that routes in another way; None keeps a value.

        Args:
            capacity_factor: Room in the experts' buffers, C.
            num_selected_experts: Experts of a token, K.
            batch_priority: Whether tokens of high score are placed first.
            normalize: What is done to the K weights.
            group_size: Tokens that compete for the same buffers.
            capacity_multiple: What buffers are rounded up to.
            dispatch: How tokens reach experts.
            layers: Those that change; all with experts if None.

        Raises:
            Error: A value is out of its range, or a layer has no experts.
        """
        given = {
            "capacity_factor": capacity_factor, "num_selected_experts": num_selected_experts,
            "batch_priority": batch_priority, "normalize": normalize, "group_size": group_size,
            "capacity_multiple": capacity_multiple, "dispatch": dispatch,
        }  # fmt: skip
        changes = {name: value for name, value in given.items() if value is not None}
        chosen = self.config.moe_layers if layers is None else tuple(layers)
        wrong = sorted(set(chosen) - set(self.config.moe_layers))
        if wrong:
            raise Error(f"layer {wrong[0]} has no experts; {self.config.moe_layers} have")
        changed = self
        for layer in chosen:
            config = dataclasses.replace(self.blocks[layer].ffn.config, **changes)
            changed = eqx.tree_at(lambda m, n=layer: m.blocks[n].ffn.config, changed, config)
        if layers is None:
            config = dataclasses.replace(self.config, **changes)
            changed = eqx.tree_at(lambda m: m.config, changed, config)
        return changed


def attention(config: VMoEConfig, key: Key[Array, ""]) -> Attention:
    """Makes the attention of a block."""
    return Attention(
        config.hidden_size, config.num_heads, bias=jax.nn.initializers.zeros, init=XAVIER,
        out_init=XAVIER, key=key,
    )  # fmt: skip


def feed_forward(config: VMoEConfig, key: Key[Array, ""]) -> FFN:
    """Makes the feed-forward part of a block without experts."""
    return FFN(
        config.hidden_size, config.mlp_dim, act=gelu(config.gelu_approximate),
        bias=jax.nn.initializers.normal(1e-6), dropout=config.dropout, init=XAVIER,
        out_init=XAVIER, key=key,
    )  # fmt: skip


def block(config: VMoEConfig, layer: int, key: Key[Array, ""]) -> Block:
    """Makes a block, with experts if its layer has them."""
    first, second = jax.random.split(key)
    ffn = MoE(config, key=second) if layer in config.moe_layers else feed_forward(config, second)
    return Block(
        config.hidden_size, attention=attention(config, first), ffn=ffn, norm=NORM,
        dropout=config.dropout,
    )  # fmt: skip
