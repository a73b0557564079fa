"""What forecasts rest on, as tidy tables: variables, patterns in time, and unusual times.

Notable choices:

- Weights are those of the model, not causes: of two variables that say the same, either may carry
  the weight.
- The period of the attention is looked for in the autocorrelation of each step's own curve,
  averaged over the steps. Weights that follow the time of the step (the same weekday) shift from
  step to step, and averaging the curves first would flatten them.
- A period counts only where red noise of the same length and smoothness has none as strong.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from chapbook.core.errors import Error
from chapbook.tft_forecast.inputs import Interpretation, Layout
from chapbook.tft_forecast.schema import require

SHARES = (10, 50, 90)  # percentiles, as in the paper's tables
SURROGATES = 999
CHANCE = 0.01  # how often noise may show a period
SHORTEST = 8  # past steps; fewer hold no period that a quadratic would not take away


class Period(NamedTuple):
    """A pattern that returns.

    Attributes:
        steps: After how many steps.
        time: The same in units of time, such as `7d`.
        strength: The autocorrelation at that lag, at most 1.
        p_value: How often red noise shows one as strong.
    """

    steps: int
    time: str
    strength: float
    p_value: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a network tells of its forecasts of many windows.

    Args:
        told: NumPy arrays, whose first axis is the windows.
        layout: Of the network's variables.
        windows: One row per window: the id columns, and `origin`.
        freq: The step of time, such as `1d`.
        mask: Which past steps have a row, (windows, k); all of them if not given. Weights of
            steps without a row are left out.
    """

    told: Interpretation
    layout: Layout
    windows: pl.DataFrame
    freq: str
    mask: Bool[np.ndarray, "windows k"] | None = None

    def __post_init__(self):
        if len(self._attention) != self.windows.height:
            counts = f"{self.windows.height} rows for {len(self._attention)} windows"
            raise Error(f"the frame of windows has {counts}")
        require(self.windows, "origin")

    @property
    def positions(self) -> np.ndarray:
        """The steps of a window, from -k + 1 up to the origin, 0, and on to H."""
        horizon, count = self._attention.shape[1:]
        return np.arange(horizon - count + 1, horizon + 1)

    def importance(self, by: Sequence[str] = ()) -> pl.DataFrame:
        """Returns the percentiles of each variable's selection weight.

        Static weights are taken over windows; past and future ones over windows and steps.

        Args:
            by: Columns of the windows, such as an id or `origin`, whose groups are shown apart;
                `step` shows past steps (up to 0) and future ones (from 1) apart, and leaves out
                the static variables.

        Returns:
            One row per variable: `by`, `group` (`static`, `past` or `future`), `variable`, `mean`,
            `p10`, `p50` and `p90`; the weights of a group sum to 1 in the mean.

        Reference:
            Lim et al. (2021), section 7.1.
        """
        horizon = self._attention.shape[1]
        past, future = self.positions[:-horizon], self.positions[-horizon:]
        groups = (
            ("static", self.layout.static, np.asarray(self.told.static)[:, None], None),
            ("past", self.layout.past, np.asarray(self.told.past), past),
            ("future", self.layout.known, np.asarray(self.told.future), future),
        )
        parts = []
        for name, variables, weights, steps in groups:
            if not len(variables) or (steps is None and "step" in by):
                continue
            mask = np.ones(weights.shape[:2], bool)
            if name == "past" and self.mask is not None:
                mask = self.mask
            for keys, values in self._grouped(weights, mask, steps, by):
                columns = {
                    "group": [name] * len(variables),
                    "variable": list(variables.names),
                    **_percentiles(values, 0),
                }
                parts.append(pl.DataFrame(columns).select(*keys, pl.all()))
        return pl.concat(parts)

    def gates(self, by: Sequence[str] = ()) -> pl.DataFrame:
        """Returns how far each gated linear unit is open, from 0 (its block is skipped) to 1.

        Args:
            by: Columns of the windows whose groups are shown apart.

        Returns:
            One row per gate: `by`, `gate`, `mean`, `p10`, `p50` and `p90` over the windows.

        Raises:
            Error: The network has none.
        """
        names = list(self.told.gates)
        if not names:
            raise Error("this network has no gates")
        values = np.stack([np.asarray(self.told.gates[name]) for name in names], -1)[:, None]
        parts = []
        for keys, found in self._grouped(values, np.ones(values.shape[:2], bool), None, by):
            table = pl.DataFrame({"gate": names, **_percentiles(found, 0)})
            parts.append(table.select(*keys, pl.all()))
        return pl.concat(parts)

    def patterns(self) -> pl.DataFrame:
        """Returns where each step of the horizon looks, over all windows.

        Returns:
            One row per `step` and each `position` that it sees (0 is the origin): the attention's
            `mean`, `p10`, `p50` and `p90`.

        Reference:
            Lim et al. (2021), section 7.2.
        """
        parts = []
        for row, step in enumerate(self._steps()):
            seen = self.positions <= step
            columns = {
                "step": np.full(seen.sum(), step, np.int32),
                "position": self.positions[seen].astype(np.int32),
                **_percentiles(self._attention[:, row, seen], 0),
            }
            parts.append(pl.DataFrame(columns))
        return pl.concat(parts)

    def summary(self) -> pl.DataFrame:
        """Returns where forecasts look, averaged over windows and steps.

        Returns:
            One row per past `position`: `attention`, and whether it is a `peak`: above both
            neighbours, and one standard deviation above the curve's trend.
        """
        curve = self._curves().mean(0)
        residual = _residual(_logarithm(curve))
        inner = (curve[1:-1] > curve[:-2]) & (curve[1:-1] >= curve[2:])
        peak = np.pad(inner, 1) & (residual > residual.std())
        position = self.positions[: len(curve)].astype(np.int32)
        return pl.DataFrame({"position": position, "attention": curve, "peak": peak})

    def period(self) -> Period | None:
        """Returns after how many steps the attention's pattern returns, or None if it does not.

        Each step's curve over the past positions is taken as a logarithm, since attention is a
        softmax, and freed of a quadratic trend. A period is a lag at whose multiples their mean
        autocorrelation is higher than around them; how much higher is compared with red noise (a
        first-order autoregression) of the same memory. It must fit twice into the past.
        """
        curves = _residual(_logarithm(self._curves()))
        length = curves.shape[1]
        if length < SHORTEST or not curves.any():
            return None
        found = _autocorrelation(curves).mean(0)
        lags, strength = _peak(found[None])
        lag, memory = int(lags[0]), float(np.clip(found[1], 0, 0.99))
        noise = _red_noise(np.random.default_rng(0), memory, (SURROGATES, length))
        by_chance = _peak(_autocorrelation(_residual(noise)))[1]
        p_value = (1 + int((by_chance >= strength[0]).sum())) / (1 + SURROGATES)
        if not lag or p_value > CHANCE:
            return None
        return Period(lag, _times(lag, self.freq), float(found[lag]), p_value)

    def distances(self) -> Float[np.ndarray, " windows"]:
        """Returns how far each window's attention lies from the mean pattern, from 0 to 1.

        `dist(t) = mean over steps of sqrt(1 - Σ_j sqrt(p_j q_j))` with q the step's mean attention.

        Reference:
            Lim et al. (2021), section 7.3.
        """
        attention = self._attention
        mean = np.sqrt(attention.mean(0, dtype=np.float64))
        found = np.zeros(len(attention))
        for row, pattern in enumerate(mean):  # step by step, to bound memory
            overlap = np.sqrt(attention[:, row].astype(np.float64)) @ pattern
            found += np.sqrt(np.clip(1 - overlap, 0, None))
        return found / len(mean)

    def events(
        self, threshold: float | None = None, *, quantile: float | None = None
    ) -> pl.DataFrame:
        """Returns which forecasts look elsewhere than usual: signs of another regime.

        Args:
            threshold: The distance from which a window is significant; 0.3, as in the paper, if
                nothing is given.
            quantile: Takes the threshold from the distances: 0.95 marks the upper twentieth.

        Returns:
            The windows, in order, with `distance` and `significant`.

        Raises:
            Error: Both or impossible thresholds are given.
        """
        if threshold is not None and quantile is not None:
            raise Error("give a threshold or a quantile, not both")
        for name, given in (("threshold", threshold), ("quantile", quantile)):
            if given is not None and not 0 <= given <= 1:
                raise Error(f"{name}={given} is not in [0, 1]")
        found = self.distances()
        if quantile is not None:
            threshold = float(np.quantile(found, quantile))
        limit = 0.3 if threshold is None else threshold
        return self.windows.with_columns(distance=found, significant=found > limit)

    def attention(self, id: Any, origin: Any) -> pl.DataFrame:  # noqa: A002 (as in Schema)
        """Returns where one forecast looks.

        Args:
            id: The value of the id column, or a tuple of values if there are several.
            origin: The last observed time, of the type of the column.

        Returns:
            One row per `step` and each `position` that it sees: `attention`.

        Raises:
            Error: There is no such window.
        """
        names = [name for name in self.windows.columns if name != "origin"]
        values = id if isinstance(id, tuple) else (id,)
        if len(values) != len(names):
            raise Error(f"{id} is not one value for each of {', '.join(names)}")
        same = [pl.col(n).cast(pl.String) == str(v) for n, v in zip(names, values, strict=True)]
        place = self.windows.with_row_index("window").filter(*same, pl.col("origin") == origin)
        if not place.height:
            shown = ", ".join(f"{n}={v}" for n, v in zip(names, values, strict=True))
            held = self.windows.filter(*same)["origin"]
            known = f"it has {held.min()} to {held.max()}" if len(held) else "there is no such id"
            raise Error(f"no window of {shown} starts from {origin}; {known}")
        weights = self._attention[place["window"][0]]
        row, position = np.nonzero(self.positions[None] <= self._steps()[:, None])
        return pl.DataFrame(
            {
                "step": self._steps()[row].astype(np.int32),
                "position": self.positions[position].astype(np.int32),
                "attention": weights[row, position],
            }
        )

    def plot(self, folder: str | Path, **options: Any) -> list[Path]:
        """Draws importance, attention and distances; see `plots.explanation`."""
        from chapbook.tft_forecast import plots

        return plots.explanation(self, folder, **options)

    @property
    def _attention(self) -> np.ndarray:
        return np.asarray(self.told.attention)

    def _steps(self) -> np.ndarray:
        return np.arange(1, self._attention.shape[1] + 1)

    def _curves(self) -> np.ndarray:
        """Returns the mean attention of each step on the past positions."""
        return self._attention.mean(0, dtype=np.float64)[:, self.positions <= 0]

    def _grouped(
        self, values: np.ndarray, mask: np.ndarray, steps: np.ndarray | None, by: Sequence[str]
    ) -> Iterator[tuple[list[pl.Expr], np.ndarray]]:
        """Yields each group's columns, and its values (rows, variables) where the mask is set."""
        names = [name for name in by if name != "step"]
        for name in names:
            require(self.windows, name)
        whole = self.windows.with_row_index("window")
        rows = pl.col("window").implode() if not names else pl.col("window")
        groups = whole.group_by(names).agg(rows).sort(names) if names else whole.select(rows)
        for row in groups.iter_rows(named=True):
            chosen = np.array(row["window"])
            types = self.windows.schema
            keys = {name: pl.lit(row[name], types[name]).alias(name) for name in names}
            if "step" not in by:
                yield list(keys.values()), values[chosen][mask[chosen]]
                continue
            for place, step in enumerate(() if steps is None else steps):
                there = chosen[mask[chosen, place]]
                if len(there):
                    keys["step"] = pl.lit(int(step), pl.Int32).alias("step")
                    yield [keys[name] for name in by], values[there, place]


def _percentiles(values: np.ndarray, axis: int) -> dict[str, np.ndarray]:
    values = np.asarray(values, np.float64)
    found = np.percentile(values, SHARES, axis=axis)
    named = {f"p{share}": row for share, row in zip(SHARES, found, strict=True)}
    return {"mean": values.mean(axis), **named}


def _logarithm(curves: np.ndarray) -> np.ndarray:
    """Returns the logarithm of attention; what is hardly looked at is not told apart."""
    return np.log(np.maximum(curves, 1e-3 * curves.mean(-1, keepdims=True) + 1e-30))


def _residual(curves: np.ndarray) -> np.ndarray:
    """Returns what a quadratic in time leaves of rows; 0 where that is a rounding error."""
    trend, _ = np.linalg.qr(np.vander(np.linspace(-1, 1, curves.shape[-1]), 3))
    rest = curves - curves @ trend @ trend.T
    noise = 1e-9 * (1 + np.abs(curves).max(-1, keepdims=True))
    return np.where(np.abs(rest).max(-1, keepdims=True) > noise, rest, 0)


def _autocorrelation(rows: np.ndarray) -> np.ndarray:
    """Returns the (biased, so never exaggerated) autocorrelation of rows, by lag."""
    count = rows.shape[-1]
    power = np.abs(np.fft.rfft(rows - rows.mean(-1, keepdims=True), 2 * count)) ** 2
    found = np.fft.irfft(power)[..., :count]
    return found / np.maximum(found[..., :1], 1e-300)


def _peak(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lag of each autocorrelation's strongest period, and how strong it is.

    A period's strength is the mean at its multiples less the mean at the lags around them, times
    the root of the number of multiples; a lag that is no peak has none.
    """
    rows = rows[:, : rows.shape[1] // 2 + 1]
    lags = np.arange(rows.shape[1])
    weights = np.zeros((len(lags), len(lags)))
    for lag in lags[2:-1]:
        multiple = (lags > 0) & (lags % lag == 0)
        around = ~multiple & (2 * lags >= lag) & (lags <= multiple.sum() * lag + lag / 2)
        contrast = multiple / multiple.sum() - around / around.sum()
        weights[:, lag] = np.sqrt(multiple.sum()) * contrast
    high = (rows[:, 1:-1] > rows[:, :-2]) & (rows[:, 1:-1] >= rows[:, 2:]) & (rows[:, 1:-1] > 0)
    strength = np.where(np.pad(high, ((0, 0), (1, 1))), rows @ weights, 0)
    return strength.argmax(1), strength.max(1)


def _red_noise(rng: np.random.Generator, memory: float, shape: tuple[int, int]) -> np.ndarray:
    """Returns rows of a stationary first-order autoregression of variance 1."""
    fresh = rng.standard_normal(shape) * np.sqrt(1 - memory**2)
    rows = np.empty(shape)
    rows[:, 0] = rng.standard_normal(shape[0])
    for place in range(1, shape[1]):
        rows[:, place] = memory * rows[:, place - 1] + fresh[:, place]
    return rows


def _times(count: int, freq: str) -> str:
    number, unit = re.fullmatch(r"(\d+)(\w+)", freq).groups()  # pyright: ignore
    return f"{count * int(number)}{unit}"
