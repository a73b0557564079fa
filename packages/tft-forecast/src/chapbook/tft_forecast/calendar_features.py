"""What the calendar tells of a time: known columns that any panel can have."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from chapbook.core.errors import Error, MissingExtra
from chapbook.tft_forecast.frames import like, read_frame
from chapbook.tft_forecast.grid import parse_times
from chapbook.tft_forecast.schema import Schema, require

NO_HOLIDAY = "none"
_MICROSECONDS = {"hour": 3600 * 10**6, "day": 86_400 * 10**6}
_EPOCH = pl.datetime(2000, 1, 1, time_unit="us")
# The names of a country's holidays are taken from these years, so that they are the same for any
# table.
_YEARS = range(1990, 2036)

_Expression = Callable[[pl.Expr], pl.Expr]
_CATEGORIES: dict[str, _Expression] = {
    "minute": lambda t: t.dt.minute(),
    "hour": lambda t: t.dt.hour(),
    "weekday": lambda t: t.dt.weekday(),  # 1 is Monday
    "weekend": lambda t: t.dt.weekday() > 5,
    "day": lambda t: t.dt.day(),
    "week": lambda t: t.dt.week(),
    "month": lambda t: t.dt.month(),
    "quarter": lambda t: t.dt.quarter(),
}


def _since(unit: str) -> _Expression:
    return lambda t: (t - _EPOCH).dt.total_microseconds() / _MICROSECONDS[unit]


def _clock(t: pl.Expr) -> pl.Expr:
    return (t - t.dt.truncate("1d")).dt.total_microseconds() / _MICROSECONDS["day"]


_REALS: dict[str, _Expression] = {
    "year": lambda t: t.dt.year(),
    "day_of_year": lambda t: t.dt.ordinal_day(),
    "hours_from_start": _since("hour"),
    "days_from_start": _since("day"),
}
# The share of its cycle that a time lies at; _sin and _cos are appended to the names.
_CYCLES: dict[str, _Expression] = {
    "time_of_day": _clock,
    "day_of_week": lambda t: (t.dt.weekday() - 1 + _clock(t)) / 7,
    "day_of_year": lambda t: (t.dt.ordinal_day() - 1 + _clock(t)) / 365.2425,
}
FEATURES = (*_CATEGORIES, *_REALS, *(f"{name}_{f}" for name in _CYCLES for f in ("sin", "cos")))


@dataclasses.dataclass(frozen=True)
class CalendarFeatures:
    """Columns that follow from the time alone, and so are known ahead.

    Args:
        features: Of the categories `minute`, `hour`, `weekday` (1 is Monday), `weekend`, `day` (of
            the month), `week`, `month`, `quarter`; the numbers `year`, `day_of_year`,
            `hours_from_start`, `days_from_start` (of the year 2000, so that they are the same in
            every table); and sin and cos of the cycles `time_of_day`, `day_of_week` and
            `day_of_year`, as `time_of_day_sin` and so on.
        holidays: A country of the holidays package such as `US`, or with a part of it `US-CA`; or
            a table with the columns `date` and `holiday`. Adds the category `holiday`, which is
            `none` on all other days.
        distances: Holidays whose distance in days is added as `days_from_<name>`: negative before
            the nearest one and positive after it; all if not given.
        reach: The distance is cut to this many days.
        observed: Whether the days on which a country observes holidays that fall on a weekend are
            holidays, under their own names.

    Raises:
        Error: A feature is unknown.
    """

    features: Sequence[str] = ()
    holidays: Any = None
    distances: Sequence[str] | None = None
    reach: int = 14
    observed: bool = True

    def __post_init__(self):
        for name in self.features:
            if name not in FEATURES:
                raise Error(f'calendar feature "{name}" is none of {", ".join(FEATURES)}')
        if self.reach < 1:
            raise Error(f"reach={self.reach} is below 1")
        if self.distances and self.holidays is None:
            raise Error("distances to holidays need holidays: a country such as US, or a table")

    @property
    def categorical(self) -> tuple[str, ...]:
        """The columns that are categories."""
        holiday = () if self.holidays is None else ("holiday",)
        return (*(name for name in self.features if name in _CATEGORIES), *holiday)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are added."""
        holidays = () if self.holidays is None else ("holiday", *self._distances())
        return (*self.features, *holidays)

    def extend(self, frame: Any, time: str) -> Any:
        """Returns a table with the calendar of its times.

        Args:
            frame: A path, or any frame that `read_frame` takes.
            time: Its column of time; where that has a time zone, the local calendar counts.

        Returns:
            The same kind of frame, Polars for a path, with the new columns last.

        Raises:
            TableError: A time cannot be read.
            Error: A column is there already, or is not there.
            MissingExtra: Holidays of a country are asked for without the holidays package.
        """
        table, where = read_frame(frame)
        require(table, time, where)
        for name in self.columns:
            if name in table.columns:
                raise Error(f'{where}column "{name}" is there already; drop it first')
        times = parse_times(table[time], where)
        if times.dtype.is_integer():
            raise Error(f'{where}column "{time}" holds integers, which have no calendar')
        if times.dtype != pl.Date:
            times = times.dt.replace_time_zone(None)
        made = self._made(times.unique().cast(pl.Datetime("us")))
        keys = times.cast(pl.Datetime("us")).to_frame(" time")
        added = keys.join(made, on=" time", how="left", maintain_order="left").drop(" time")
        return like(frame, table.hstack(added))

    def roles(self, schema: Schema) -> Schema:
        """Returns a schema to which the new columns are known."""
        return dataclasses.replace(
            schema,
            known=(*schema.known, *self.columns),
            categorical=(*schema.categorical, *self.categorical),
        )

    def _made(self, times: pl.Series) -> pl.DataFrame:
        """Returns all columns for some wall-clock times, ` time` being the times."""
        t = pl.col(" time")
        columns = []
        for name in self.features:
            if name in _CATEGORIES or name in _REALS:
                columns.append((_CATEGORIES | _REALS)[name](t).alias(name))
            else:
                cycle, _, wave = name.rpartition("_")
                angle = 2 * np.pi * _CYCLES[cycle](t)
                columns.append((angle.sin() if wave == "sin" else angle.cos()).alias(name))
        table = times.alias(" time").to_frame().with_columns(columns)
        if self.holidays is None:
            return table
        held = times.dt.year().to_list()
        years = range(min(held, default=0) - 1, max(held, default=0) + 2)
        days = self._days(years)
        dates = table[" time"].dt.date().to_numpy().astype("datetime64[D]").astype(np.int64)
        named = days.group_by("date").agg(pl.col("holiday").unique(maintain_order=True).first())
        holiday = pl.Series("date", dates).to_frame().join(
            named.with_columns(pl.col("date").to_physical().cast(pl.Int64)),
            on="date", how="left", maintain_order="left",
        )["holiday"].fill_null(NO_HOLIDAY)  # fmt: skip
        signed = [
            pl.Series(column, _distance(dates, days.filter(pl.col("holiday") == name), self.reach))
            for column, name in self._distances().items()
        ]
        return table.with_columns(holiday, *signed)

    def _days(self, years: Sequence[int]) -> pl.DataFrame:
        """Returns the days of holidays, `date` and `holiday`."""
        if not isinstance(self.holidays, str):
            return _table(self.holidays)
        try:
            import holidays
        except ImportError:
            raise MissingExtra(
                "holidays of a country need the holidays package",
                "pip install 'chapbook-tft-forecast[holidays]'",
            ) from None
        country, _, part = self.holidays.partition("-")
        try:
            found = holidays.country_holidays(
                country, subdiv=part or None, years=years, observed=self.observed
            )
        except NotImplementedError:
            raise Error(
                f'holidays="{self.holidays}" is no country (or part of one) that the holidays'
                " package knows; codes are as in US, DE or US-CA"
            ) from None
        rows = [(day, name) for day in sorted(found) for name in found.get_list(day)]
        return pl.DataFrame(rows, {"date": pl.Date, "holiday": pl.String}, orient="row")

    def _distances(self) -> Mapping[str, str]:
        """Returns the holiday that each column of distances is about."""
        names = self.distances
        if names is None:
            days = self._days(_YEARS)["holiday"]
            names = [n for n in days.unique(maintain_order=True) if not n.endswith("(observed)")]
        slugs = (re.sub(r"\W+", "_", name.replace("'", "").lower()).strip("_") for name in names)
        return {f"days_from_{slug}": name for slug, name in zip(slugs, names, strict=True)}


def _table(table: Any) -> pl.DataFrame:
    days, where = read_frame(table)
    for name in ("date", "holiday"):
        require(days, name, where or "holidays: ")
    dates = parse_times(days["date"], where or "holidays: ").cast(pl.Date)
    return days.select(dates, pl.col("holiday").cast(pl.String)).sort("date")


def _distance(dates: np.ndarray, days: pl.DataFrame, reach: int) -> np.ndarray:
    """Returns days since the nearest of some days, negative before it, within +-reach."""
    marks = days["date"].to_physical().to_numpy().astype(np.int64)
    if not len(marks):
        return np.full(len(dates), reach)
    after = np.searchsorted(marks, dates)
    ahead = dates - marks[np.minimum(after, len(marks) - 1)]
    behind = dates - marks[np.maximum(after - 1, 0)]
    return np.clip(np.where(np.abs(behind) <= np.abs(ahead), behind, ahead), -reach, reach)
