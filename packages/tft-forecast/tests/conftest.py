"""Small panels that the tests share."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from chapbook.tft_forecast.forecaster import Forecaster
from chapbook.tft_forecast.schema import Schema

SMALL: dict[str, Any] = {"encoder": 14, "horizon": 7, "hidden": 8, "heads": 2, "batch_size": 32}


def weekly(days: int = 200, shops: int = 3, seed: int = 0) -> pl.DataFrame:
    """Daily sales of some shops with a weekly rhythm, a promotion and the weather."""
    rng = np.random.default_rng(seed)
    day = np.arange(days)
    parts = []
    for shop in range(shops):
        promo = rng.random(days) < 0.2
        sales = 20 * (shop + 1) * (1 + 0.5 * np.sin(2 * np.pi * day / 7) + 0.5 * promo)
        table = {
            "shop": [f"s{shop}"] * days,
            "date": pl.date_range(pl.date(2024, 1, 1), pl.date(2026, 1, 1), eager=True)[:days],
            "sales": sales + rng.normal(0, 1, days),
            "promo": promo,
            "weekday": (day % 7).astype(str),
            "warmth": rng.normal(15, 5, days),
            "region": ["north" if shop % 2 else "south"] * days,
        }
        parts.append(pl.DataFrame(table))
    return pl.concat(parts)


SCHEMA = Schema(
    "shop", "date", "sales", "1d",
    static=["shop", "region"], known=["promo", "weekday"], observed="warmth",
)  # fmt: skip


@pytest.fixture(scope="session")
def table() -> pl.DataFrame:
    return weekly()


@pytest.fixture(scope="session")
def schema() -> Schema:
    return SCHEMA


@pytest.fixture(scope="session")
def trained(table) -> Forecaster:
    """A forecaster that knows the first 150 of 200 days; the 21 before are for validation."""
    past = table.filter(pl.col("date") < pl.date(2024, 5, 30))
    return Forecaster(SCHEMA, **SMALL).fit(past, valid_steps=21, steps=120, evaluate_every=40)
