"""The built-in classifiers, as Equinox modules that map a batch to logits.

Notable choices:
- Models take a batch, because batch normalisation and convolutions are batched by nature;
  `Batched` lifts a module for one example, such as `eqx.nn.MLP`.
- Images are `batch height width channels`; kernels are HWIO, which XLA prefers on every backend.
- Batch statistics are no parameters: a model that has some says so by a method `statistics`, is
  called as `model(x, statistics, train)` and returns them updated beside the logits.
- ResNet-18 V2 is the CIFAR form: a 3 x 3 stem without pooling, pre-activation, projections where
  the width or the resolution changes.
- He initialisation before ReLU; heads start at zero, so that training starts from the uniform
  prediction whatever the seed.
- Hidden widths carry the name `mlp`, which shards them over the mesh axis `model`. Widths that the
  data fix (inputs, classes) carry no name: they need not divide by anything.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from chapbook.core.sharding import axes

Statistics = PyTree[Float[Array, "..."]]


def forward(
    model: Any, x: Array, statistics: Statistics, *, train: bool
) -> tuple[Float[Array, "batch classes"], Statistics]:
    """Applies a model with or without batch statistics.

    Args:
        model: A module called as `model(x)`, or as `model(x, statistics, train)` if it has a
            method `statistics`.
        x: The inputs of a batch.
        statistics: The batch statistics; `()` for a model without.
        train: Normalise by the batch and update the statistics, or normalise by the statistics.

    Returns:
        The logits and the statistics after this batch.
    """
    if hasattr(model, "statistics"):
        return model(x, statistics, train)
    return model(x), statistics


def initial_statistics(model: Any) -> Statistics:
    """Returns the batch statistics of an untrained model; `()` if it has none."""
    return model.statistics() if hasattr(model, "statistics") else ()


class Batched(eqx.Module):
    """Lifts a module that maps one example to one that maps a batch.

    Args:
        module: A module for one example, for instance `eqx.nn.MLP`.
    """

    module: Callable[[Array], Array]

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch classes"]:
        """Applies the module to each example of the batch."""
        return jax.vmap(self.module)(x)


class Hidden(eqx.Module):
    """Computes `relu(x W + b)`; the output width is sharded over `model`."""

    weight: Float[Array, "inputs outputs"] = axes(None, "mlp")
    bias: Float[Array, " outputs"] = axes("mlp")

    def __init__(self, inputs: int, outputs: int, key: PRNGKeyArray):
        self.weight = _he_normal(key, (inputs, outputs), inputs)
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch outputs"]:
        """Applies the layer."""
        return jax.nn.relu(x @ self.weight + self.bias)


class Head(eqx.Module):
    """Computes `x W + b` into logits; starts at zero; the input width is sharded over `model`."""

    weight: Float[Array, "inputs classes"] = axes("mlp", None)
    bias: Float[Array, " classes"] = axes(None)

    def __init__(self, inputs: int, classes: int):
        self.weight = jnp.zeros((inputs, classes))
        self.bias = jnp.zeros(classes)

    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch classes"]:
        """Applies the layer."""
        return x @ self.weight + self.bias


class Logistic(eqx.Module):
    """Multinomial logistic regression, `x W + b` on flattened inputs.

    Args:
        inputs: Numbers per example.
        classes: Width of the output.
    """

    weight: Float[Array, "inputs classes"] = axes(None, None)
    bias: Float[Array, " classes"] = axes(None)

    def __init__(self, inputs: int, classes: int):
        self.weight = jnp.zeros((inputs, classes))
        self.bias = jnp.zeros(classes)

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        return x.reshape(len(x), -1) @ self.weight + self.bias


class MLP(eqx.Module):
    """A perceptron with ReLU layers on flattened inputs.

    Args:
        inputs: Numbers per example.
        classes: Width of the output.
        key: Randomness of the initial weights.
        hidden: Widths of the hidden layers.
    """

    layers: tuple[Hidden, ...]
    head: Head

    def __init__(
        self, inputs: int, classes: int, key: PRNGKeyArray, hidden: tuple[int, ...] = (256,)
    ):
        widths = (inputs, *hidden)
        keys = jax.random.split(key, max(1, len(hidden)))
        self.layers = tuple(
            Hidden(before, after, k)
            for before, after, k in zip(widths[:-1], widths[1:], keys, strict=False)
        )
        self.head = Head(widths[-1], classes)

    def __call__(self, x: Float[Array, "batch ..."]) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        x = x.reshape(len(x), -1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Convolution(eqx.Module):
    """Computes a convolution without bias, padding `SAME`; output channels shard over `model`."""

    stride: int = eqx.field(static=True)
    kernel: Float[Array, "height width inputs outputs"] = axes(None, None, None, "mlp")

    def __init__(self, inputs: int, outputs: int, size: int, key: PRNGKeyArray, stride: int = 1):
        self.kernel = _he_normal(key, (size, size, inputs, outputs), size * size * inputs)
        self.stride = stride

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch rows columns outputs"]:
        """Applies the convolution."""
        return jax.lax.conv_general_dilated(
            x,
            self.kernel,
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class ConvNet(eqx.Module):
    """Two convolutions with pooling and a hidden layer, for small images.

    Args:
        shape: Height, width and channels of an image.
        classes: Width of the output.
        key: Randomness of the initial weights.
        channels: Channels of the two convolutions.
        hidden: Width of the hidden layer.
    """

    convolutions: tuple[Convolution, ...]
    biases: tuple[Float[Array, " channels"], ...]
    hidden: Hidden
    head: Head

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        key: PRNGKeyArray,
        channels: tuple[int, int] = (16, 32),
        hidden: int = 128,
    ):
        height, width, depth = shape
        first, second, third = jax.random.split(key, 3)
        self.convolutions = (
            Convolution(depth, channels[0], 5, first),
            Convolution(channels[0], channels[1], 3, second),
        )
        self.biases = (jnp.zeros(channels[0]), jnp.zeros(channels[1]))
        # Each pooling halves a side and rounds up, as `SAME` padding does.
        rows, columns = -(-height // 4), -(-width // 4)
        self.hidden = Hidden(rows * columns * channels[1], hidden, third)
        self.head = Head(hidden, classes)

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """Returns the logits."""
        for convolution, bias in zip(self.convolutions, self.biases, strict=True):
            x = _max_pool(jax.nn.relu(convolution(x) + bias))
        return self.head(self.hidden(x.reshape(len(x), -1)))


class BatchNorm(eqx.Module):
    """Normalises each channel by the batch, or by the running statistics; momentum 0.9."""

    scale: Float[Array, " channels"]
    shift: Float[Array, " channels"]

    def __init__(self, channels: int):
        self.scale = jnp.ones(channels)
        self.shift = jnp.zeros(channels)

    def statistics(self) -> Statistics:
        """Returns mean 0 and variance 1 of every channel."""
        return jnp.zeros(self.scale.shape), jnp.ones(self.scale.shape)

    def __call__(
        self, x: Float[Array, "batch height width channels"], statistics: Statistics, train: bool
    ) -> tuple[Float[Array, "batch height width channels"], Statistics]:
        """Returns the normalised values and the updated statistics."""
        mean, variance = statistics
        if train:
            values = x.astype(jnp.float32)
            mean, variance = jnp.mean(values, (0, 1, 2)), jnp.var(values, (0, 1, 2))
            statistics = jax.tree.map(
                lambda old, new: 0.9 * old + 0.1 * jax.lax.stop_gradient(new),
                statistics,
                (mean, variance),
            )
        factor = self.scale * jax.lax.rsqrt(variance + 1e-5)
        return (x * factor + (self.shift - mean * factor)).astype(x.dtype), statistics


class Block(eqx.Module):
    """A pre-activation basic block: norm, ReLU, convolution, twice, beside a shortcut."""

    norms: tuple[BatchNorm, BatchNorm]
    convolutions: tuple[Convolution, Convolution]
    projection: Convolution | None

    def __init__(self, inputs: int, outputs: int, stride: int, key: PRNGKeyArray):
        first, second, third = jax.random.split(key, 3)
        self.norms = (BatchNorm(inputs), BatchNorm(outputs))
        self.convolutions = (
            Convolution(inputs, outputs, 3, first, stride),
            Convolution(outputs, outputs, 3, second),
        )
        changes = stride != 1 or inputs != outputs
        self.projection = Convolution(inputs, outputs, 1, third, stride) if changes else None

    def statistics(self) -> Statistics:
        """Returns the initial statistics of both norms."""
        return tuple(norm.statistics() for norm in self.norms)

    def __call__(
        self, x: Float[Array, "batch height width inputs"], statistics: Statistics, train: bool
    ) -> tuple[Float[Array, "batch rows columns outputs"], Statistics]:
        """Returns the block's output and the updated statistics."""
        active, first = self.norms[0](x, statistics[0], train)
        active = jax.nn.relu(active)
        # The projection sees the activated input, as in the published V2 blocks.
        shortcut = x if self.projection is None else self.projection(active)
        inner, second = self.norms[1](self.convolutions[0](active), statistics[1], train)
        return shortcut + self.convolutions[1](jax.nn.relu(inner)), (first, second)


class ResNet18(eqx.Module):
    """ResNet-18 V2 for small images: a 3 x 3 stem and four groups of two blocks.

    Args:
        shape: Height, width and channels of an image.
        classes: Width of the output.
        key: Randomness of the initial weights.
        width: Channels of the first group; each later group doubles them.

    Reference:
        He et al., "Identity Mappings in Deep Residual Networks" (2016); the CIFAR form of the
        label-dp experiments.
    """

    stem: Convolution
    blocks: tuple[Block, ...]
    norm: BatchNorm
    head: Head

    def __init__(
        self, shape: tuple[int, int, int], classes: int, key: PRNGKeyArray, width: int = 64
    ):
        stem, *keys = jax.random.split(key, 9)
        self.stem = Convolution(shape[2], width, 3, stem)
        outputs = [width * 2**group for group in range(4) for _ in range(2)]
        inputs = [width, *outputs[:-1]]
        strides = [2 if group and not block else 1 for group in range(4) for block in range(2)]
        self.blocks = tuple(
            Block(*sizes, key=k) for *sizes, k in zip(inputs, outputs, strides, keys, strict=True)
        )
        self.norm = BatchNorm(outputs[-1])
        self.head = Head(outputs[-1], classes)

    def statistics(self) -> Statistics:
        """Returns the initial batch statistics."""
        return (*(block.statistics() for block in self.blocks), self.norm.statistics())

    def __call__(
        self, x: Float[Array, "batch height width channels"], statistics: Statistics, train: bool
    ) -> tuple[Float[Array, "batch classes"], Statistics]:
        """Returns the logits and the updated batch statistics."""
        x, after = self.stem(x), []
        for block, before in zip(self.blocks, statistics[:-1], strict=True):
            x, seen = block(x, before, train)
            after.append(seen)
        x, last = self.norm(x, statistics[-1], train)
        pooled = jnp.mean(jax.nn.relu(x), axis=(1, 2))
        return self.head(pooled), (*after, last)


class Rater(eqx.Module):
    """Matrix factorisation into rating classes: `b + b_u + b_i + (U_u * V_i) W`.

    Args:
        users: Number of users.
        items: Number of items.
        classes: Number of rating classes.
        key: Randomness of the initial factors.
        rank: Width of the factors.
    """

    head: Head
    user_factors: Float[Array, "users rank"] = axes(None, "mlp")
    item_factors: Float[Array, "items rank"] = axes(None, "mlp")
    user_bias: Float[Array, "users classes"] = axes(None, None)
    item_bias: Float[Array, "items classes"] = axes(None, None)

    def __init__(self, users: int, items: int, classes: int, key: PRNGKeyArray, rank: int = 16):
        user_key, item_key, head_key = jax.random.split(key, 3)
        self.user_factors = 0.1 * jax.random.normal(user_key, (users, rank))
        self.item_factors = 0.1 * jax.random.normal(item_key, (items, rank))
        self.user_bias = jnp.zeros((users, classes))
        self.item_bias = jnp.zeros((items, classes))
        # A zero head would leave the factors without a gradient at first.
        weight = jax.random.normal(head_key, (rank, classes)) / jnp.sqrt(rank)
        self.head = eqx.tree_at(lambda head: head.weight, Head(rank, classes), weight)

    def __call__(self, x: Int[Array, "batch 2"]) -> Float[Array, "batch classes"]:
        """Returns the logits of (user, item) pairs."""
        user, item = x[:, 0].astype(jnp.int32), x[:, 1].astype(jnp.int32)
        product = self.user_factors[user] * self.item_factors[item]
        return self.user_bias[user] + self.item_bias[item] + self.head(product)


def _he_normal(key: PRNGKeyArray, shape: tuple[int, ...], fan_in: int) -> Array:
    return jax.random.normal(key, shape) * jnp.sqrt(2.0 / fan_in)


def _max_pool(x: Float[Array, "batch height width channels"]) -> Array:
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "SAME")
