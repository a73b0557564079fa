import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.glam import plots
from chapbook.glam.config import GLaMConfig
from chapbook.glam.model import GLaM
from chapbook.glam.routing_analysis import favourites, kind, routes
from chapbook.glam.tokenizer import load_tokenizer

LINE = "desk/4E,vocab=257,context=12,layers=2,width=16,hidden=24,heads=2,head=8"
WORDS = load_tokenizer("bytes")


@functools.cache
def made(line: str = LINE) -> GLaM:
    return eqx.filter_jit(GLaM)(GLaMConfig.from_string(line), key=jax.random.key(0))


def test_every_token_has_a_row_for_each_layer_and_choice():
    texts = ["a cat", "", "two dogs and more than fits"]
    table = routes(made(), WORDS, texts)
    assert table.height == 2 * (5 + 0 + 11)
    last = table.filter(pl.col("document") == 2, pl.col("rank") == 0)
    assert "".join(last["token"]) == "two dogs an"  # an end stands in front
    tokens = jnp.asarray([[WORDS.end, *WORDS.encode("a cat")]])
    told = eqx.filter_jit(lambda m, t: m(t)[1])(made(), tokens).layers
    first = table.filter(pl.col("document") == 0).sort("rank", "position")
    np.testing.assert_array_equal(first["expert"].to_numpy().reshape(2, 5), told.expert[0, 0, 1:].T)
    np.testing.assert_allclose(
        first["weight"].to_numpy().reshape(2, 5), told.weight[0, 0, 1:].T, rtol=1e-5
    )


def test_a_dense_model_and_no_text_are_refused():
    with pytest.raises(Error, match="the model is dense"):
        routes(made(LINE.replace("/4E", "")), WORDS, ["a"])
    with pytest.raises(Error, match="no text has a token"):
        routes(made(), WORDS, [""])


def test_kinds_of_tokens():
    found = [kind(each) for each in ("a", " The", "42", ";", " ", "\n", "ж", "漢")]
    assert found == ["latin", "latin", "digits", "marks", "space", "space", "cyrillic", "cjk"]


def test_the_tokens_that_an_expert_draws_come_first(tmp_path):
    rows = [("x", 0)] * 9 + [("y", 1)] * 6 + [("z", 0)] * 5 + [("z", 1)] * 5
    table = pl.DataFrame(
        [{"layer": 0, "rank": 0, "expert": e, "token": t, "kind": "latin"} for t, e in rows]
    )
    found = favourites(table, count=1)
    assert found["tokens"].to_list() == [["x"], ["y"]]
    np.testing.assert_allclose(found["load"], [14 / 25, 11 / 25])
    plots.routing(tmp_path / "experts.png", table, 2)
    shares = pl.read_csv(tmp_path / "experts.csv")["share"].to_list()
    np.testing.assert_allclose(shares, [14 / 25, 11 / 25])
