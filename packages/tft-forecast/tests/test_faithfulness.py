"""Selection weights beside what permuting a variable costs."""

import datetime as dt

import polars as pl

from chapbook.tft_forecast.faithfulness import AGREEING, Check, check

# On several weekdays: among windows that begin on one, permuting the weekday changes nothing.
ORIGINS = [dt.date(2024, 5, 29) + dt.timedelta(5 * n) for n in range(8)]


def test_permuting_what_decides_costs_and_noise_does_not(trained, table):
    found = check(trained, table, origins=ORIGINS, repeats=2)
    rise = dict(
        found.table.filter(pl.col("group") == "future").select("variable", "loss_rise").iter_rows()
    )
    assert rise["weekday"] > 0.05
    past = dict(
        found.table.filter(pl.col("group") == "past").select("variable", "loss_rise").iter_rows()
    )
    assert rise["weekday"] > abs(past["warmth"])
    weights = found.table.group_by("group").agg(pl.col("weight").sum())["weight"]
    assert len(weights) == 3 and ((weights - 1).abs() < 1e-4).all()


def test_the_verdict_says_where_weights_and_losses_disagree(trained, table):
    found = check(trained, table, origins=ORIGINS[:2], repeats=1)
    assert set(found.correlation) == {"past"}  # the others have two variables
    word = "agree" if found.correlation["past"] >= AGREEING else "DISAGREE"
    assert f"past: weights {word} with losses" in found.verdict
    assert Check(found.table, {}).verdict == "too few variables in each group to tell"
