"""Pictures of forecasts and explanations, each beside a table of the numbers that it shows.

Notable choices:

- matplotlib, of the extra `plots`, is imported only when a picture is drawn, and without a display.
- The numbers lie beside each picture as csv, so that it can be drawn anew.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from chapbook.core import cli
from chapbook.core.errors import Error
from chapbook.tft_forecast.metrics import column, levels, pairs, score
from chapbook.tft_forecast.schema import Schema, require

if TYPE_CHECKING:
    from chapbook.tft_forecast.interpretation import Explanation

HIGH = 0.1  # a weight that the paper's tables highlight
COLORS = {"static": "tab:green", "past": "tab:blue", "future": "tab:orange"}
ATTENTION = "attention (share of 1)"


def fans(
    path: str | Path,
    forecasts: pl.DataFrame,
    schema: Schema,
    *,
    ids: Sequence[Any] | None = None,
    last: int = 3,
    unit: str = "",
) -> None:
    """Draws forecast intervals over what came true, for some entities.

    Args:
        path: The picture.
        forecasts: A forecast frame, with `y` where known.
        schema: The roles of its columns.
        ids: Values of the id column, or tuples if there are several; the first six if not given.
        last: How many of the last origins are drawn.
        unit: Of the target, for the axis.
    """
    names, time, target = list(schema.id), schema.time, schema.target[0]
    if "target" in forecasts.columns:
        forecasts = forecasts.filter(target=target)
    held = forecasts.select(names).unique(maintain_order=True)
    if ids is not None:
        wanted = [value if isinstance(value, tuple) else (value,) for value in ids]
        chosen = held.join(pl.DataFrame(wanted, held.schema, orient="row"), on=names, how="semi")
        if chosen.height < len(wanted):
            raise Error(f"not all of {', '.join(map(str, ids))} are in the forecasts")
        held = chosen
    held = held.head(6) if ids is None else held
    origins = forecasts["origin"].unique().sort().tail(last)
    numbers = (
        forecasts.filter(pl.col("origin").is_in(origins.implode()))
        .join(held, on=names, how="semi")
        .sort(*names, "origin", "step")
    )

    def draw(axes: Any) -> None:
        rows = -(-held.height // 2) if held.height > 1 else 1
        panels = _panels(axes, rows, min(held.height, 2))
        for panel, (key, part) in zip(
            panels, numbers.group_by(names, maintain_order=True), strict=False
        ):
            _fan(panel, part, time)
            panel.set(title=", ".join(map(str, key)), ylabel=_labelled(target, unit))
            panel.tick_params("x", labelrotation=30)
        for panel in panels[held.height :]:
            panel.set_axis_off()
        for panel in panels[max(held.height - 2, 0) : held.height]:
            panel.set_xlabel(time)
        panels[0].legend(fontsize="x-small")

    cli.plot(path, draw, numbers)


def importance(path: str | Path, explanation: "Explanation") -> None:
    """Draws each variable's selection weight: a bar to the median, a line from p10 to p90.

    Variables whose p10 is above 0.1 are in full colour, as they are bold in the paper's tables.
    """
    numbers = explanation.importance()
    groups = numbers["group"].unique(maintain_order=True).to_list()
    most = max(numbers.filter(group=group).height for group in groups)

    def draw(axes: Any) -> None:
        panels = _panels(axes, 1, len(groups), height=max(4.0, 0.3 * most + 1.5))
        for panel, group in zip(panels, groups, strict=True):
            part = numbers.filter(group=group).sort("p50")
            place, middle = np.arange(part.height), part["p50"].to_numpy()
            alpha = np.where(part["p10"] > HIGH, 1.0, 0.4)
            colors = [(COLORS[group], a) for a in alpha]
            panel.barh(place, middle, color=colors)
            panel.hlines(place, part["p10"], part["p90"], color="black", lw=1)
            panel.axvline(HIGH, color="grey", ls=":", lw=1)
            panel.set_yticks(place, part["variable"].to_list(), fontsize="small")
            panel.set(title=f"{group} variables", xlabel="selection weight (share of 1)")
        panels[0].set_ylabel("variable")

    cli.plot(path, draw, numbers)


def attention(path: str | Path, explanation: "Explanation") -> None:
    """Draws the mean attention on past positions: of three steps, and averaged over all."""
    patterns, summary = explanation.patterns(), explanation.summary()
    horizon = int(patterns["step"].to_numpy().max())
    shown = sorted({1, -(-horizon // 2), horizon})
    past = patterns.filter((pl.col("position") <= 0) & pl.col("step").is_in(shown))
    mean = summary.select(
        pl.lit(None, pl.Int32).alias("step"), "position", pl.col("attention").alias("mean"), "peak"
    )
    numbers = pl.concat([past, mean], how="diagonal")
    period = explanation.period()

    def draw(axes: Any) -> None:
        for step in shown:
            part = past.filter(step=step)
            axes.plot(part["position"], part["mean"], lw=0.8, label=f"step {step}")
            axes.fill_between(part["position"], part["p10"], part["p90"], alpha=0.15)
        axes.plot(summary["position"], summary["attention"], "k", lw=1.5, label="mean of all steps")
        peaks = summary.filter("peak")
        if peaks.height:
            axes.plot(peaks["position"], peaks["attention"], "kv", ms=4, label="peaks")
        found = "no period" if period is None else f"period {period.steps} steps ({period.time})"
        axes.set(
            xlabel=f"position from the origin (steps of {explanation.freq})", ylabel=ATTENTION,
            title=f"Attention on the past: {found}",
        )  # fmt: skip
        axes.legend(fontsize="small")

    cli.plot(path, draw, numbers)


def events(
    path: str | Path,
    explanation: "Explanation",
    *,
    threshold: float | None = None,
    quantile: float | None = None,
    target: pl.DataFrame | None = None,
    unit: str = "",
) -> None:
    """Draws the mean distance from the usual attention over time, and the target above it.

    Args:
        path: The picture.
        explanation: Of forecasts from many origins.
        threshold: As for `Explanation.events`.
        quantile: As for `Explanation.events`.
        target: A column `origin`, and one of the target's values, averaged by origin.
        unit: Of the target.
    """
    found = explanation.events(threshold, quantile=quantile)
    numbers = found.group_by("origin").agg(
        pl.col("distance").mean(), pl.col("significant").mean().alias("share_significant")
    )
    name = None
    if target is not None:
        require(target, "origin")
        name = next(each for each in target.columns if each != "origin")
        means = target.group_by("origin").agg(pl.col(name).mean())
        numbers = numbers.join(means, on="origin", how="left")
    numbers = numbers.sort("origin")

    def draw(axes: Any) -> None:
        *above, below = _panels(axes, 1 if name is None else 2, 1)
        below.plot(numbers["origin"], numbers["distance"], lw=1, color="tab:blue")
        marked = numbers.filter(pl.col("share_significant") >= 0.5)
        below.plot(marked["origin"], marked["distance"], "o", ms=3, color="tab:red",
                   label="significant")  # fmt: skip
        below.set(xlabel="origin", ylabel="distance from the\nmean pattern (0 to 1)")
        below.tick_params("x", labelrotation=30)
        below.legend(fontsize="small")
        for panel in above:
            panel.plot(numbers["origin"], numbers[str(name)], lw=1, color="black")
            for origin in marked["origin"]:
                panel.axvline(origin, color="tab:red", alpha=0.2, lw=1)
            panel.set(ylabel=_labelled(str(name), unit), title="Significant events")

    cli.plot(path, draw, numbers)


def reliability(path: str | Path, **forecasts: pl.DataFrame) -> None:
    """Draws how much of y lies at or below each quantile, against its level.

    Args:
        path: The picture.
        forecasts: Forecast frames with `y`, by the name for the legend.
    """
    if not forecasts:
        raise Error("there are no forecasts to draw")
    parts = [
        score(frame, metrics=["below"]).select(
            pl.lit(name).alias("forecasts"), pl.exclude("metric")
        )
        for name, frame in forecasts.items()
    ]
    numbers = pl.concat(parts).rename({"value": "observed"})

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="grey", ls=":", label="reliable")
        for (name,), part in numbers.group_by("forecasts", maintain_order=True):
            axes.plot(part["level"], part["observed"], "o-", ms=4, label=str(name))
        axes.set(
            xlabel="level of the quantile (share of 1)", ylabel="y at or below it (share of 1)",
            title="Reliability", xlim=(0, 1), ylim=(0, 1), aspect="equal",
        )  # fmt: skip
        axes.legend(fontsize="small")

    cli.plot(path, draw, numbers)


def explanation(made: "Explanation", folder: str | Path, **options: Any) -> list[Path]:
    """Draws importance, attention and events into a folder.

    Args:
        made: The explanation.
        folder: Where `importance.png`, `attention.png` and `events.png` go.
        options: As for `events`.

    Returns:
        The pictures.
    """
    names = ("importance", "attention", "events")
    paths = [Path(folder) / f"{name}.png" for name in names]
    importance(paths[0], made)
    attention(paths[1], made)
    events(paths[2], made, **options)
    return paths


def _fan(axes: Any, part: pl.DataFrame, time: str) -> None:
    """Draws one entity's forecasts; those of each origin are lines of their own."""
    central = pairs(part.columns)
    for place, (_, rows) in enumerate(part.group_by("origin", maintain_order=True)):
        first = place == 0
        for low, high in reversed(central):
            label = f"{high - low:.0%} interval" if first else None
            lower, upper = rows[column(low)], rows[column(high)]
            axes.fill_between(
                rows[time], lower, upper, color="tab:blue", alpha=0.25, lw=0, label=label
            )
        if 0.5 in levels(part.columns):
            label = "median" if first else None
            axes.plot(rows[time], rows["q0.5"], color="tab:blue", lw=1, label=label)
    if "y" in part.columns:
        actual = part.unique(time, keep="first").sort(time)
        axes.plot(actual[time], actual["y"], color="black", lw=0.7, label="actual")


def _panels(axes: Any, rows: int, columns: int, height: float | None = None) -> list[Any]:
    """Replaces the axes of a figure by several."""
    figure = axes.figure
    axes.remove()
    figure.set_size_inches(max(7, 4 * columns), height or max(4.5, 2.5 * rows))
    return list(figure.subplots(rows, columns, squeeze=False).ravel())


def _labelled(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name
