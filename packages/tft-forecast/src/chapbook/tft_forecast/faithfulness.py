"""Whether selection weights tell what a forecast rests on: a check by permutation.

A weight is a property of the model. How much worse its forecasts become when a variable is taken
from another window says what it makes of the variable, and the two need not agree.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Array, Bool, Float, Int, PyTree

from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.forecaster import Forecaster
from chapbook.tft_forecast.inputs import Inputs, Layout
from chapbook.tft_forecast.quantile_loss import pinball
from chapbook.tft_forecast.training import run
from chapbook.tft_forecast.windows import Store, gather

AGREEING = 0.5  # rank correlation from which on weights and losses are said to agree
FEWEST = 3  # variables that make a rank correlation


@dataclasses.dataclass(frozen=True)
class Check:
    """Weights beside losses.

    Attributes:
        table: A row per variable: `group` (static, past or future), `variable`, `weight` (its mean
            selection weight) and `loss_rise` (of the mean pinball loss when the variable comes
            from another window, as a share of the loss).
        correlation: Spearman's rank correlation of the two, by group of three variables or more.
    """

    table: pl.DataFrame
    correlation: dict[str, float]

    @property
    def verdict(self) -> str:
        """One line that says whether the weights can be read as importance here."""
        parts = []
        for group, value in self.correlation.items():
            agree = "agree with" if value >= AGREEING else "DISAGREE with"
            parts.append(f"{group}: weights {agree} losses (rank correlation {value:.2f})")
        return "; ".join(parts) or "too few variables in each group to tell"


def check(
    forecaster: Forecaster,
    frame: Any,
    *,
    origins: Sequence[Any],
    repeats: int = 3,
    batch_size: int = 256,
    seed: int = 0,
) -> Check:
    """Permutes each variable among windows, and measures what that costs.

    The past and the future half of a known variable are permuted apart.

    Args:
        forecaster: Fitted.
        frame: A table with targets for a horizon after each origin.
        origins: Times of the last observed step.
        repeats: Permutations of each variable, whose losses are averaged.
        batch_size: Windows among which a variable is permuted.
        seed: Of the permutations.

    Returns:
        Weights, rises of the loss and their rank correlation.

    Raises:
        Error: An origin is none of the table's steps.

    Reference:
        Breiman, "Random Forests" (2001), section 10, on permuted variables.
    """
    prepared = forecaster.prepare(frame)
    entity, origin = forecaster.pairs(prepared, origins)
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(len(entity))
    size = min(batch_size, len(entity))
    batches = [mixed[i : i + size] for i in range(0, len(mixed) - size + 1, size)]
    groups = {
        "static": forecaster.layout.static,
        "past": forecaster.layout.past,
        "future": forecaster.layout.known,
    }

    def measured(group: str, column: int) -> tuple[float, np.ndarray]:
        """Returns the mean loss, and the mean weights of the group's variables."""
        total = count = 0.0
        weights = []
        for batch in batches:
            order = rng.permutation(size) if column >= 0 else np.arange(size)
            loss, told, weighed = _permuted(
                forecaster.network, prepared.store, forecaster.layout, forecaster.config,
                jnp.asarray(entity[batch]), jnp.asarray(origin[batch]), jnp.asarray(order),
                group, jnp.arange(len(groups[group])) == column,
            )  # fmt: skip
            total, count = total + float(loss), count + float(weighed)
            weights.append(np.asarray(told))
        return total / count, np.mean(weights, 0)

    rows, correlation = [], {}
    for name, group in groups.items():
        if not len(group):
            continue
        honest, weights = measured(name, -1)
        rises = [
            np.mean([measured(name, column)[0] for _ in range(repeats)]) / honest - 1
            for column in range(len(group))
        ]
        rows += [
            (name, variable, float(weight), float(rise))
            for variable, weight, rise in zip(group.names, weights, rises, strict=True)
        ]
        if len(group) >= FEWEST:
            pair = pl.DataFrame({"weight": weights, "rise": rises})
            ranks = pair.select(pl.corr("weight", "rise", method="spearman"))
            correlation[name] = float(ranks.item())
    names = ["group", "variable", "weight", "loss_rise"]
    return Check(pl.DataFrame(rows, schema=names, orient="row"), correlation)


@eqx.filter_jit
def _permuted(
    network: PyTree,
    store: Store,
    layout: Layout,
    config: TFTConfig,
    entity: Int[Array, " batch"],
    origin: Int[Array, " batch"],
    order: Int[Array, " batch"],
    group: str,
    chosen: Bool[Array, " variables"],
) -> tuple[Float[Array, ""], Float[Array, " variables"], Float[Array, ""]]:
    """Returns the sum of the losses with a variable in another order, weights, and the count."""
    sample = gather(store, layout, config, entity, origin)
    windows = sample.windows
    inputs: Inputs = getattr(windows, group)
    reals = inputs.real.shape[-1]
    picked = (chosen[:reals], chosen[reals:], chosen)
    mixed = Inputs(*(jnp.where(pick, x[order], x) for x, pick in zip(inputs, picked, strict=True)))
    found, told = run(network, config, windows._replace(**{group: mixed}))
    losses = jnp.sum(pinball(jnp.mean(found, 0), sample.target, config.quantiles), -1)
    weights = jnp.mean(getattr(told, group), 0).reshape(-1, len(chosen)).mean(0)
    return jnp.sum(losses * sample.weight), weights, jnp.sum(sample.weight)
