"""Where tokens go: how often each expert is chosen for each token, position and script."""

import unicodedata
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import polars as pl

from chapbook.core.errors import Error
from chapbook.glam.language_model import opened
from chapbook.glam.model import GLaM
from chapbook.glam.tokenizer import Tokenizer

ROWS = 8  # that are computed at once


def routes(model: GLaM, tokenizer: Tokenizer, texts: Sequence[str]) -> pl.DataFrame:
    """Returns the experts of every token of some texts, which are cut at the model's context.

    Args:
        model: With experts.
        tokenizer: Its own.
        texts: Documents.

    Returns:
        A row for each layer, token and choice: `document`, `position` from 0, `id`, `token` as
        text, `kind` (the script or kind of its letters), `layer`, `rank` (0 is the best), `expert`
        and `weight`.

    Raises:
        Error: The model has no experts, or no text has a token.
    """
    layers = np.asarray(model.config.moe_layers)
    if not len(layers) or model.config.num_experts < 2:
        raise Error("the model is dense and routes nothing")
    length = model.config.context
    ids = [opened(tokenizer, text)[:length] for text in texts]
    if not any(len(each) > 1 for each in ids):
        raise Error("no text has a token")
    pieces = {int(i): tokenizer.decode([int(i)]) for i in np.unique(np.concatenate(ids))}
    call = eqx.filter_jit(lambda model, tokens, segments: model(tokens, segments=segments)[1])
    parts = []
    for first in range(0, len(ids), ROWS):
        some = ids[first : first + ROWS]
        tokens = np.zeros((ROWS, length), np.int32)
        segments = np.zeros((ROWS, length), np.int32)
        for row, each in enumerate(some):
            tokens[row, : len(each)], segments[row, : len(each)] = each, 1
        # An end stands before each text, as in training. It has no row.
        told = call(model, jnp.asarray(tokens), jnp.asarray(segments)).layers
        expert, weight = np.asarray(told.expert), np.asarray(told.weight)
        text = segments[:, 1:, None]
        expert, weight, tokens = expert[:, :, 1:], weight[:, :, 1:], tokens[:, 1:]
        layer, row, position, rank = np.nonzero(np.broadcast_to(text, expert.shape))
        parts.append(
            pl.DataFrame(
                {
                    "document": (first + row).astype(np.int32),
                    "position": position.astype(np.int32),
                    "id": tokens[row, position],
                    "layer": layers[layer].astype(np.int16),
                    "rank": rank.astype(np.int8),
                    "expert": expert[layer, row, position, rank].astype(np.int16),
                    "weight": weight[layer, row, position, rank].astype(np.float32),
                }
            )
        )
    names = pl.DataFrame(
        {
            "id": list(pieces),
            "token": list(pieces.values()),
            "kind": [kind(each) for each in pieces.values()],
        },
        schema={"id": pl.Int32, "token": pl.String, "kind": pl.String},
    )
    return pl.concat(parts).join(names, on="id", how="left", maintain_order="left")


def kind(piece: str) -> str:
    """Returns what a token is made of: the script of its first letter, digits, marks or space.

    Args:
        piece: A token as text.
    """
    for letter in piece.strip():
        if letter.isalpha():
            return unicodedata.name(letter, "OTHER").split()[0].lower()
    stripped = piece.strip()
    if not stripped:
        return "space"
    return "digits" if stripped[0].isdigit() else "marks"


def favourites(table: pl.DataFrame, count: int = 10) -> pl.DataFrame:
    """Returns, for each layer and expert, the tokens that go there more often than by chance.

    Args:
        table: As `routes` returns it.
        count: Tokens of an expert.

    Returns:
        Columns `layer`, `expert`, `load` (share of the layer's first choices), `tokens`, the most
        characteristic first: by `n log(p(expert | token) / p(expert))` over first choices.
    """
    first = table.filter(pl.col("rank") == 0)
    pairs = first.group_by("layer", "expert", "token").len("n")
    whole, share = pl.col("n").sum(), pl.col("n").sum().over("layer", "expert")
    total = whole.over("layer")
    given = pl.col("n") / pl.col("n").sum().over("layer", "token")
    scored = pairs.with_columns(
        (share / total).alias("load"),
        (pl.col("n") * (given / (share / total)).log()).alias("score"),
    )
    return (
        scored.sort("score", "token", descending=[True, False])
        .group_by("layer", "expert", maintain_order=True)
        .agg(pl.col("load").first(), pl.col("token").head(count).alias("tokens"))
        .sort("layer", "expert")
    )
