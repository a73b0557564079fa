"""The regular axis of time that a panel lies on.

Steps shorter than a day are counted in absolute time, so that a column with a time zone has its
23- and 25-hour days; days and longer ones are counted on the local calendar.
"""

import dataclasses
import re
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from chapbook.core.errors import Error, TableError

FREQ = re.compile(r"(\d+)(i|us|ms|s|m|h|d|bd|w|mo|q|y)")
_MICROSECONDS = {"us": 1, "ms": 10**3, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6}
_DAYS = {"d": 1, "w": 7}
_MONTHS = {"mo": 1, "q": 3, "y": 12}
_DAY = 86_400 * 10**6
_FORMATS = (
    "%Y-%m-%d", "%Y-%m", "%Y/%m/%d",
    "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Grid:
    """A regular axis of time, whose steps are numbered from 0.

    Attributes:
        freq: Its step, see `Schema`.
        dtype: Of the times: Polars dates, dates with times, or integers.
        start: Of step 0: microseconds since 1970, months since year 0, business days since 1970,
            or the integer itself.
        day: Where steps are months: the day of the month, or its last day if that comes first.
        clock: Where steps are months: microseconds since midnight.
    """

    freq: str
    dtype: Any
    start: int
    day: int = 1
    clock: int = 0

    def index(self, times: pl.Series) -> Int[np.ndarray, " rows"]:
        """Returns the step that each time lies in, that is the last one that is not after it."""
        return (_positions(times, self.freq) - self.start) // _size(self.freq)

    def from_step(self, step: int) -> "Grid":
        """Returns the same axis, numbered from another step."""
        return dataclasses.replace(self, start=self.start + step * _size(self.freq))

    def times(self, index: Int[np.ndarray, " rows"]) -> pl.Series:
        """Returns the times at which steps begin; the steps may lie before 0 and have no end."""
        _, unit = _parts(self.freq)
        position = self.start + np.asarray(index, np.int64) * _size(self.freq)
        if unit == "i":
            return pl.Series(position).cast(self.dtype)
        if unit in _MONTHS:
            first = (position - 1970 * 12).astype("datetime64[M]").astype("datetime64[us]")
            months = pl.Series(first)
            length = months.dt.month_end().dt.day().to_numpy().astype(np.int64)
            wall = months.to_physical().to_numpy() + (np.minimum(self.day, length) - 1) * _DAY
            wall = wall + self.clock
        elif unit == "bd":
            days = np.busday_offset(np.datetime64(0, "D"), position, roll="forward")
            wall = days.astype(np.int64) * _DAY + self.clock
        else:
            wall = position
        return self._stamped(pl.Series(wall).cast(pl.Datetime("us")))

    def on_grid(self, times: pl.Series) -> np.ndarray:
        """Returns which times are those at which a step begins."""
        return (self.times(self.index(times)) == times).to_numpy()

    def _stamped(self, wall: pl.Series) -> pl.Series:
        """Returns wall-clock times, or absolute ones if steps are short, in the column's type."""
        zone = getattr(self.dtype, "time_zone", None)
        if zone is None:
            return wall.cast(self.dtype)
        if _parts(self.freq)[1] in _MICROSECONDS:
            return wall.dt.replace_time_zone("UTC").dt.convert_time_zone(zone).cast(self.dtype)

        def local(times: pl.Series) -> pl.Series:
            return times.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")

        # Where summer time begins at midnight, that day begins an hour late.
        later = local(wall.dt.offset_by("1h"))
        return local(wall).zip_with(local(wall).is_not_null(), later).cast(self.dtype)


def fit_grid(times: pl.Series, freq: str, where: str = "") -> Grid:
    """Returns the grid that most of some times lie on; step 0 is at the first of them.

    Args:
        times: Times, none of them null.
        freq: The step.
        where: What an error begins with.

    Raises:
        TableError: The type of the column cannot have such a step.
    """
    count, unit = _parts(freq)
    name, dtype = times.name, times.dtype
    if dtype.is_integer() != (unit == "i"):
        fix = 'a freq such as "1i"' if dtype.is_integer() else "a freq such as 1d"
        raise TableError(f'{where}column "{name}" is {dtype}; it needs {fix}', column=name)
    if dtype == pl.Date and unit in _MICROSECONDS and count * _MICROSECONDS[unit] % _DAY:
        raise TableError(
            f'{where}column "{name}" holds dates, which freq={freq} is finer than', column=name
        )
    position, size = _positions(times, freq), _size(freq)
    phase = _commonest(position % size)
    start = int(position.min() - (position.min() - phase) % size)
    if unit not in _MONTHS and unit != "bd":
        return Grid(freq, dtype, start)
    wall = _wall(times)
    clock = _commonest(wall.to_physical().to_numpy() % _DAY)
    if unit == "bd":
        return Grid(freq, dtype, start, clock=clock)
    # The last days of months, 28 to 31, are one grid too.
    days = (31, _commonest(wall.dt.day().to_numpy().astype(np.int64)))
    grids = [Grid(freq, dtype, start, day, clock) for day in days]
    return max(grids, key=lambda grid: grid.on_grid(times).sum())


def parse_times(times: pl.Series, where: str = "") -> pl.Series:
    """Returns a column of time as Polars dates, dates with times, or integers.

    Args:
        times: The column; text must be ISO 8601, all in the format of the first.
        where: What an error begins with.

    Raises:
        TableError: A time is missing or cannot be read; the first such row is named.
    """
    name, dtype = times.name, times.dtype
    if times.null_count():
        row = times.is_null().arg_max() or 0
        raise TableError(f"{where}row {row}: {name} is missing", column=name, row=row)
    if dtype == pl.String:
        texts = times.str.strip_chars()
        read = (_read(texts, form) for form in _FORMATS)
        found = next((column for column in read if column[:1].null_count() == 0), None)
        failed = times.is_not_null() if found is None else found.is_null()
        if found is not None and not failed.any():
            return found
        row = failed.arg_max() or 0
        raise TableError(
            f'{where}row {row}: {name} "{times[row]}" is no time such as 2024-03-31 or'
            " 2024-03-31T23:00:00, or is not written as the first one is",
            column=name,
            row=row,
        )
    if not (dtype.is_integer() or dtype in (pl.Date, pl.Datetime)):
        raise TableError(
            f'{where}column "{name}" is {dtype}; it must hold dates, times or integers', column=name
        )
    if dtype.is_integer():
        return times.cast(pl.Int64)
    # One unit for all, so that frames from different libraries can be compared.
    return times if dtype == pl.Date else times.dt.cast_time_unit("us")


def infer_freq(keys: pl.DataFrame) -> str:
    """Returns the commonest step of a table of ids and, as its last column, times."""
    *ids, time = keys.columns
    gap = pl.col(time).diff().over(ids) if ids else pl.col(time).diff()
    sorted_ = keys.sort(*ids, time)
    steps = sorted_.select(gap.alias("gap")).to_series().drop_nulls()
    if steps.dtype.is_integer():
        return f"{_commonest(steps.filter(steps > 0).to_numpy(), 1)}i"
    steps = steps.cast(pl.Duration("us")).to_physical()
    found = _commonest(steps.filter(steps > 0).to_numpy(), _DAY)
    days = found // _DAY
    for low, high, name in ((28, 31, "1mo"), (90, 92, "1q"), (365, 366, "1y")):
        if low <= days <= high and not (name == "1mo" and days == 28 and _regular(steps)):
            return name
    if found % _DAY == 0:
        weekdays = _wall(keys[time]).dt.weekday()
        if days == 1 and keys.height > 5 and weekdays.max() == 5:
            return "1bd"
        return f"{days // 7}w" if days % 7 == 0 else f"{days}d"
    unit = next(u for u in ("h", "m", "s", "ms", "us") if found % _MICROSECONDS[u] == 0)
    return f"{found // _MICROSECONDS[unit]}{unit}"


def _regular(steps: pl.Series) -> bool:
    return steps.n_unique() == 1 and len(steps) > 2


def _parts(freq: str) -> tuple[int, str]:
    found = FREQ.fullmatch(freq)
    if found is None or int(found[1]) < 1 or (found[2] == "bd" and int(found[1]) > 1):
        raise Error(f'freq "{freq}" is no step such as 30m, 1h, 1d, 1bd, 1w, 1mo or 1i')
    return int(found[1]), found[2]


def _size(freq: str) -> int:
    """Returns how many of the units that `_positions` counts a step is."""
    count, unit = _parts(freq)
    if unit in _DAYS:
        return count * _DAYS[unit] * _DAY
    return count * {"i": 1, "bd": 1, **_MONTHS, **_MICROSECONDS}[unit]


def _positions(times: pl.Series, freq: str) -> np.ndarray:
    """Returns times as whole numbers: microseconds, months, business days or plain integers."""
    _, unit = _parts(freq)
    if unit == "i":
        return times.to_numpy().astype(np.int64)
    if unit in _MICROSECONDS and times.dtype != pl.Date:
        return times.cast(pl.Datetime("us", zone_of(times))).to_physical().to_numpy()
    wall = _wall(times)
    if unit in _MONTHS:
        return wall.dt.year().to_numpy().astype(np.int64) * 12 + wall.dt.month().to_numpy() - 1
    if unit == "bd":
        days = wall.dt.date().to_numpy().astype("datetime64[D]")
        return np.busday_count(np.datetime64(0, "D"), days).astype(np.int64)
    return wall.to_physical().to_numpy()


def zone_of(times: pl.Series) -> str | None:
    """Returns the time zone of a column, if it has one."""
    return getattr(times.dtype, "time_zone", None)


def _wall(times: pl.Series) -> pl.Series:
    """Returns what a local clock shows, as microseconds."""
    if zone_of(times) is not None:
        times = times.dt.replace_time_zone(None)
    return times.cast(pl.Datetime("us"))


def _read(texts: pl.Series, form: str) -> pl.Series:
    if form == "%Y-%m":  # Polars reads no date without a day
        return (texts + "-01").str.to_date("%Y-%m-%d", strict=False)
    if "H" in form:
        zone = "UTC" if "z" in form else None
        return texts.str.to_datetime(form, strict=False, time_unit="us", time_zone=zone)
    return texts.str.to_date(form, strict=False)


def _commonest(values: np.ndarray, default: int = 0) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()]) if len(found) else default
