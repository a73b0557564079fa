import numpy as np
import polars as pl
import pytest

from chapbook.core.errors import Error, TableError
from chapbook.glam.pareto import keep_probability, pareto_sample


def scored(count: int = 20_000) -> pl.DataFrame:
    draw = np.random.default_rng(0)
    ids = [f"doc-{i}" for i in range(count)]
    return pl.DataFrame({"id": ids, "score": draw.random(count), "more": range(count)})


@pytest.mark.parametrize("alpha", [1.0, 9.0])
def test_the_closed_form_is_numpys_pareto_rule(alpha):
    draws = np.random.default_rng(1).pareto(alpha, 200_000)
    for score in (0.0, 0.5, 0.9, 1.0):
        wanted = keep_probability(np.array(score), alpha)
        spread = 4 * np.sqrt(wanted * (1 - wanted) / len(draws))
        assert abs((draws > 1 - score).mean() - wanted) <= spread


@pytest.mark.parametrize("alpha", [1.0, 9.0])
def test_each_score_is_kept_at_its_rate(alpha):
    table = scored()
    kept = pareto_sample(table, alpha=alpha)["id"].to_list()
    table = table.with_columns(kept=pl.col("id").is_in(kept))
    for low in (0.0, 0.25, 0.5, 0.75):
        part = table.filter(pl.col("score").is_between(low, low + 0.25))
        rates = (2 - part["score"].to_numpy()) ** -alpha
        spread = 3 * np.sqrt((rates * (1 - rates)).sum())
        assert abs(part["kept"].sum() - rates.sum()) < spread


def test_what_stays_depends_on_no_other_row():
    table = scored()
    kept = pareto_sample(table)
    assert kept.columns == table.columns
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=2)
    assert pareto_sample(shuffled).sort("more").equals(kept)
    parts = [pareto_sample(part) for part in table.iter_slices(777)]
    assert pl.concat(parts).equals(kept)
    assert not pareto_sample(table, seed=1).equals(kept)


def test_a_smaller_alpha_keeps_the_same_and_more():
    table = scored()
    few, many = (set(pareto_sample(table, alpha=alpha)["id"]) for alpha in (9.0, 2.0))
    assert few < many


def test_a_perfect_score_always_stays_and_no_rows_are_fine():
    table = scored().with_columns(score=pl.lit(1))
    assert pareto_sample(table).equals(table)
    assert pareto_sample(table[:0]).height == 0


def test_bad_scores_and_missing_columns_are_named():
    table = pl.DataFrame({"id": ["a", "b"], "score": [0.5, 1.5]})
    for df, told in [
        (table, "document b: score 1.5 is not in"),
        (
            table.with_columns(score=pl.Series([0.5, float("nan")])),
            "document b: score nan is not in",
        ),
        (table.with_columns(score=pl.Series([None, 0.5])), "row 0: score is empty"),
        (table.with_columns(score=pl.lit("x")), "column score is String"),
        (table.drop("score"), 'no column "score"; it has id'),
        (table.drop("id"), 'no column "id"; it has score'),
    ]:
        with pytest.raises(TableError, match=told):
            pareto_sample(df)
    with pytest.raises(Error, match="alpha=0"):
        pareto_sample(table, alpha=0.0)
