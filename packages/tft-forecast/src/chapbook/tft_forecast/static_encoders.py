"""Static covariate encoders: what the static variables tell each part of the network."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from chapbook.tft_forecast.gating import GRN, Key, Stack


class Contexts(NamedTuple):
    """What the static variables tell.

    Attributes:
        selection: To the selection of the variables that change in time.
        enrichment: To the static enrichment.
        hidden: Initial output of the LSTM.
        cell: Initial cell state of the LSTM.
    """

    selection: Float[Array, "batch hidden"]
    enrichment: Float[Array, "batch hidden"]
    hidden: Float[Array, "batch hidden"]
    cell: Float[Array, "batch hidden"]


class StaticEncoders(eqx.Module):
    """Computes each context by a gated residual network of its own from the selected vector.

    Args:
        hidden: Width of the vector and of each context.
        dropout: Rate within the networks.
        gating: Whether the gated linear units gate.
        key: Randomness of the initial kernels.

    Reference:
        Lim et al. (2021), section 4.3.
    """

    encoders: Stack

    def __init__(
        self, hidden: int, *, dropout: float = 0.0, gating: bool = True, key: PRNGKeyArray
    ):
        grn = functools.partial(GRN, hidden, hidden, hidden, dropout=dropout, gating=gating)
        self.encoders = Stack(lambda key: grn(key=key), len(Contexts._fields), key=key)

    def __call__(
        self, x: Float[Array, "batch hidden"], *, key: Key = None
    ) -> tuple[Contexts, dict[str, Float[Array, " batch"]]]:
        """Returns the contexts and the mean opening of the gate of each.

        Args:
            x: The static variables' selected vector.
            key: Randomness of the dropout; None for inference.
        """
        copies = jnp.broadcast_to(x, (len(Contexts._fields), *x.shape))
        contexts, openings = self.encoders(copies, key=key)
        return Contexts(*contexts), dict(zip(Contexts._fields, openings, strict=True))
