"""Variable selection: which variables matter, for each example and each step."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from chapbook.tft_forecast.gating import GRN, Key, Stack, split


class VariableSelection(eqx.Module):
    """Computes `sum_j v_j GRN_j(x_j)` with the weights `v = softmax(GRN_v([x_1, ..., x_m], c))`.

    Args:
        variables: How many there are, m.
        hidden: Width of their vectors.
        context: Width of c; 0 for none.
        dropout: Rate within the gated residual networks.
        selection: Whether there are weights; without, each is `1 / m`.
        gating: Whether the gated linear units gate.
        key: Randomness of the initial kernels.

    Reference:
        Lim et al. (2021), equations 6 to 8.
    """

    weights: GRN | None
    variables: Stack

    def __init__(
        self,
        variables: int,
        hidden: int,
        *,
        context: int = 0,
        dropout: float = 0.0,
        selection: bool = True,
        gating: bool = True,
        key: PRNGKeyArray,
    ):
        first, second = split(key, 2)
        grn = functools.partial(GRN, dropout=dropout, gating=gating)
        self.weights = (
            grn(variables * hidden, hidden, variables, context=context, key=first)
            if selection
            else None
        )
        self.variables = Stack(
            lambda key: grn(hidden, hidden, hidden, key=key), variables, key=second
        )

    def __call__(
        self,
        x: Float[Array, "variables batch *shape hidden"],
        c: Float[Array, "batch context"] | None = None,
        *,
        key: Key = None,
    ) -> tuple[
        Float[Array, "batch *shape hidden"],
        Float[Array, "batch *shape variables"],
        dict[str, Float[Array, " batch"]],
    ]:
        """Selects the variables.

        Args:
            x: Their vectors.
            c: The context, the same for all of an example; needed if there is one.
            key: Randomness of the dropout; None for inference.

        Returns:
            The sum, the weights, and the mean opening of the gates: of those for the `weights` (if
            there are any) and of those for the `variables`.
        """
        first, second = split(key, 2)
        processed, opening = self.variables(x, key=second)
        openings = {"variables": jnp.mean(opening, axis=0)}
        if self.weights is None:
            weights = jnp.full((*x.shape[1:-1], len(x)), 1 / len(x), x.dtype)
        else:
            flat = jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)
            logits, openings["weights"] = self.weights(flat, c, key=first)
            wide = logits.astype(jnp.promote_types(x.dtype, jnp.float32))
            weights = jax.nn.softmax(wide, axis=-1).astype(x.dtype)
        total = jnp.einsum("...v,v...d->...d", weights, processed)
        return total, weights, openings
