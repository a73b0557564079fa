"""The Temporal Fusion Transformer, from a batch of windows to quantiles and their explanation.

Notable choices:
- Everything is batched, and nothing loops over variables, heads or examples. The vectors of
  variables have the shape (variable, batch, time, hidden), so that each variable's gated residual
  network is a plain product.
- The encoder has k steps, as in the published code; the paper's text has k + 1.
- Attention is computed for the H future steps only: no other rows are ever used.
- A past step that has no row is missing in all its variables, and no step attends to it.
- Without static variables there are no contexts, and the LSTM starts from zeros.
"""

import functools

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from chapbook.tft_forecast.attention import InterpretableAttention, visible
from chapbook.tft_forecast.config import TFTConfig
from chapbook.tft_forecast.embedding import Embedding
from chapbook.tft_forecast.gating import GRN, GatedSkip, Key, Linear, split
from chapbook.tft_forecast.inputs import Interpretation, Layout, Windows
from chapbook.tft_forecast.recurrence import LSTM, sinusoids
from chapbook.tft_forecast.static_encoders import Contexts, StaticEncoders
from chapbook.tft_forecast.variable_selection import VariableSelection

Openings = dict[str, Float[Array, " batch"]]


class TemporalFusionTransformer(eqx.Module):
    """Forecasts quantiles of all steps of the horizon at once, and tells what they rest on.

    Args:
        layout: The variables.
        config: Widths, rates and the parts that are there.
        key: Randomness of the initial parameters.

    Reference:
        Lim, Arik, Loeff, Pfister, "Temporal Fusion Transformers for Interpretable Multi-horizon
        Time Series Forecasting" (2021), section 4.
    """

    layout: Layout = eqx.field(static=True)
    config: TFTConfig = eqx.field(static=True)
    static_embedding: Embedding | None
    static_selection: VariableSelection | None
    static_encoders: StaticEncoders | None
    embedding: Embedding
    past_selection: VariableSelection
    future_selection: VariableSelection
    encoder: LSTM | None
    decoder: LSTM | None
    local_skip: GatedSkip | None
    enrichment: GRN
    attention: InterpretableAttention | None
    attention_skip: GatedSkip | None
    position_wise: GRN
    final_skip: GatedSkip
    head: Linear

    def __init__(self, layout: Layout, config: TFTConfig, *, key: PRNGKeyArray):
        keys = iter(split(key, 15))
        width, past = config.hidden, layout.past
        told = config.static_encoders and len(layout.static) > 0
        context = width if told else 0
        rates = {"dropout": config.dropout, "gating": config.gating}
        embedding = functools.partial(Embedding, hidden=width, unknown_rate=config.unknown_rate)
        selection = functools.partial(
            VariableSelection, hidden=width, selection=config.selection, **rates
        )
        lstm = functools.partial(LSTM, width, width, unroll=config.unroll)
        skip = functools.partial(GatedSkip, width, **rates)
        grn = functools.partial(GRN, width, width, width, **rates)
        self.layout, self.config = layout, config
        self.static_embedding = embedding(layout.static, key=next(keys)) if told else None
        self.static_selection = selection(len(layout.static), key=next(keys)) if told else None
        self.static_encoders = StaticEncoders(width, key=next(keys), **rates) if told else None
        self.embedding = embedding(past, key=next(keys))
        self.past_selection = selection(len(past), context=context, key=next(keys))
        self.future_selection = selection(len(layout.known), context=context, key=next(keys))
        self.encoder = lstm(key=next(keys)) if config.lstm else None
        self.decoder = lstm(key=next(keys)) if config.lstm else None
        self.local_skip = skip(key=next(keys)) if config.lstm else None
        self.enrichment = grn(context=context, key=next(keys))
        self.attention = (
            InterpretableAttention(width, config.heads, dropout=config.dropout, key=next(keys))
            if config.attention
            else None
        )
        self.attention_skip = skip(key=next(keys)) if config.attention else None
        self.position_wise = grn(key=next(keys))
        # The published code drops nothing here.
        self.final_skip = GatedSkip(width, gating=config.gating, key=next(keys))
        self.head = Linear(width, layout.targets * len(config.quantiles), key=next(keys))

    def __call__(
        self, windows: Windows, *, key: Key = None
    ) -> tuple[Float[Array, "batch horizon targets quantiles"], Interpretation]:
        """Forecasts a batch of windows.

        Args:
            windows: Scaled inputs.
            key: Randomness of dropout and of replacement by unknown categories in training; None
                for inference.

        Returns:
            The quantiles in scaled units, which may cross, and what they rest on. Without
            attention its weights are equal over the positions that could have been attended to;
            without selection, the variables' are; static variables that give no contexts have
            weight 0.
        """
        keys = split(key, 8)
        batch, horizon = windows.mask.shape[0], self.config.horizon
        contexts, static, openings = self._contexts(windows, keys[0])
        local, past, future, opening = self._local(windows, contexts, keys[1])
        openings |= opening
        enriching = contexts.enrichment if contexts else None
        enriched, openings["enrichment"] = self.enrichment(local, enriching, key=keys[2])
        fused = enriched[:, -horizon:]
        allowed = visible(windows.mask, horizon)
        if self.attention is None or self.attention_skip is None:
            attention = allowed / jnp.sum(allowed, -1, keepdims=True, dtype=local.dtype)
        else:
            attended, attention = self.attention(enriched, allowed, key=keys[3])
            fused, openings["attention"] = self.attention_skip(attended, fused, key=keys[4])
        fused, openings["position_wise"] = self.position_wise(fused, key=keys[5])
        fused, openings["final"] = self.final_skip(fused, local[:, -horizon:])
        quantiles = self.head(fused).reshape(batch, horizon, self.layout.targets, -1)
        return quantiles, Interpretation(static, past, future, attention, openings)

    def _contexts(
        self, windows: Windows, key: Key
    ) -> tuple[Contexts | None, Float[Array, "batch statics"], Openings]:
        """Returns what the static variables tell, their weights, and their gates' openings."""
        if (
            self.static_embedding is None
            or self.static_selection is None
            or self.static_encoders is None
        ):
            return None, jnp.zeros((len(windows.mask), len(self.layout.static))), {}
        first, second, third = split(key, 3)
        vectors = self.static_embedding(windows.static, key=first)
        selected, weights, opening = self.static_selection(vectors, key=second)
        contexts, openings = self.static_encoders(selected, key=third)
        return contexts, weights, _named("static", opening) | _named("context", openings)

    def _local(
        self, windows: Windows, contexts: Contexts | None, key: Key
    ) -> tuple[
        Float[Array, "batch positions hidden"],
        Float[Array, "batch k pasts"],
        Float[Array, "batch horizon knowns"],
        Openings,
    ]:
        """Returns the temporal features, the variables' weights, and their gates' openings."""
        keys = split(key, 5)
        k = self.config.encoder
        absent = windows.past.missing | ~windows.mask[:, :k, None]
        past = self.embedding(windows.past._replace(missing=absent), key=keys[0])
        future = self.embedding(windows.future, key=keys[1])
        context = contexts.selection if contexts else None
        past, past_weights, past_opening = self.past_selection(past, context, key=keys[2])
        future, future_weights, opening = self.future_selection(future, context, key=keys[3])
        openings = _named("past", past_opening) | _named("future", opening)
        selected = jnp.concatenate([past, future], axis=1)
        if self.encoder is None or self.decoder is None or self.local_skip is None:
            local = selected + sinusoids(*selected.shape[1:]).astype(selected.dtype)
        else:
            start = (contexts.hidden, contexts.cell) if contexts else None
            encoded, state = self.encoder(past, start)
            decoded, _ = self.decoder(future, state)
            sequence = jnp.concatenate([encoded, decoded], axis=1)
            local, openings["local"] = self.local_skip(sequence, selected, key=keys[4])
        return local, past_weights, future_weights, openings


def _named(prefix: str, openings: Openings) -> Openings:
    return {f"{prefix}_{name}": opening for name, opening in openings.items()}
