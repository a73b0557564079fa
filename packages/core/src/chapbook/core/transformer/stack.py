"""Layers in a row: alike, run by one scan, or each of its own kind."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from chapbook.core.transformer.dropout import split
from chapbook.core.transformer.shapes import Key, Tokens

Step = Callable[[Any, Any, Any, Key], tuple[Any, Any, Any]]

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class _Layers(eqx.Module):
    """What stacks and chains share: they are layers themselves."""

    def __call__(self, x: Tokens, *inputs: Any, key: Key = None) -> tuple[Tokens, Any]:
        """Applies all layers.

        Args:
            x: Tokens.
            inputs: Handed to every layer: a `View`, and what is told to feed-forward layers.
            key: Randomness, split over the layers; None for inference.

        Returns:
            The tokens, and the layers' reports.
        """

        def step(layer: Any, x: Array, past: None, key: Key) -> tuple[Array, None, Any]:
            x, report = layer(x, *inputs, key=key)
            return x, past, report

        x, _, report = self._run(step, x, None, key)
        return x, report

    def extend(
        self, x: Tokens, past: Any, *inputs: Any, key: Key = None
    ) -> tuple[Tokens, Any, Any]:
        """Applies all layers to tokens that follow others.

        Args:
            x: Tokens.
            past: What each layer kept of those before; None if there are none.
            inputs: As in a call.
            key: As in a call.

        Returns:
            The tokens, what each layer keeps of them, and the reports.
        """

        def step(layer: Any, x: Array, past: Any, key: Key) -> tuple[Array, Any, Any]:
            return layer.extend(x, past, *inputs, key=key)

        return self._run(step, x, past, key)

    def _run(self, step: Step, x: Array, past: Any, key: Key) -> tuple[Array, Any, Any]:
        raise NotImplementedError


class Chain(_Layers):
    """Layers of several kinds, one after the other. Reports are a tuple.

    As the layer of a stack it is a pattern that repeats, such as a dense block and one of experts.

    Args:
        layers: Blocks, stacks, chains, or any `layer(x, *inputs, key=key)` that returns tokens and
            a report.
    """

    layers: tuple[Any, ...]

    def __init__(self, *layers: Any):
        self.layers = layers

    def _run(self, step: Step, x: Array, past: Any, key: Key) -> tuple[Array, Any, Any]:
        count = len(self.layers)
        pasts, kept, reports = past or (None,) * count, [], []
        for layer, before, each in zip(self.layers, pasts, split(key, count), strict=True):
            x, new, report = step(layer, x, before, each)
            kept.append(new)
            reports.append(report)
        return x, tuple(kept), tuple(reports)


class Stack(_Layers):
    """Layers that are alike: each array has a leading axis over them. So have reports.

    Compiling takes as long for a hundred layers as for one.

    Args:
        make_layer: Makes a layer from a key.
        n: How many there are.
        remat: What the gradient computes anew: nothing, all within a layer (`full`), or all but
            the products with weights (`dots`).
        unroll: Run a Python loop in place of the scan, to look at single layers.
        key: Randomness of the initial values.
    """

    n: int = eqx.field(static=True)
    remat: Literal["none", "full", "dots"] = eqx.field(static=True)
    unroll: bool = eqx.field(static=True)
    layers: Any

    def __init__(
        self,
        make_layer: Callable[[PRNGKeyArray], Any],
        n: int,
        *,
        remat: Literal["none", "full", "dots"] = "none",
        unroll: bool = False,
        key: PRNGKeyArray,
    ):
        self.n, self.remat, self.unroll = n, remat, unroll
        self.layers = eqx.filter_vmap(make_layer)(split(key, n))

    def unrolled(self) -> Chain:
        """Returns the layers one by one, with arrays of their own.

        On CPUs a scan copies the weights of each layer before it uses them. That is nothing beside
        the products of many tokens, and most of the time of a few, as in decoding. Compiling takes
        as much longer as there are layers; their reports are a tuple, and are not computed anew.
        """
        arrays, static = eqx.partition(self.layers, eqx.is_array)
        each = (jax.tree.map(lambda a, at=layer: a[at], arrays) for layer in range(self.n))
        return Chain(*(eqx.combine(layer, static) for layer in each))

    def _run(self, step: Step, x: Array, past: Any, key: Key) -> tuple[Array, Any, Any]:
        arrays, static = eqx.partition(self.layers, eqx.is_array)
        each = (arrays, past, None if key is None else split(key, self.n))

        def body(x: Array, each: Any) -> tuple[Array, Any]:
            arrays, past, key = each
            x, *rest = step(eqx.combine(arrays, static), x, past, key)
            return x, rest

        if self.remat != "none":
            # A scan keeps the two computations apart by itself.
            body = jax.checkpoint(body, prevent_cse=self.unroll, policy=POLICIES[self.remat])
        if not self.unroll:
            x, (kept, reports) = jax.lax.scan(body, x, each)
            return x, kept, reports
        every = []
        for layer in range(self.n):
            x, rest = body(x, jax.tree.map(lambda a, at=layer: a[at], each))
            every.append(rest)
        kept, reports = jax.tree.map(lambda *one: jnp.stack(one), *every)
        return x, kept, reports
