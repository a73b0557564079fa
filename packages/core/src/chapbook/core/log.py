"""Metrics of a training loop: fetched late, averaged over windows, written and shown."""

import contextlib
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.text import Text

from chapbook.core.run import Run

# Dense bfloat16 operations a second. Variants of a chip with other clocks (PCIe, NVL) are left out.
PEAK = {
    r"V100-SXM": 125e12,
    r"A100": 312e12,
    r"H100 80GB HBM3$|H200$": 989e12,
    r"B200$": 2250e12,
    r"TPU v4$": 275e12,
    r"TPU v5 ?(lite|e)$": 197e12,
    r"TPU v5p?$": 459e12,
    r"TPU v6 ?(lite|e)$": 918e12,
}

Watch = Callable[[int, dict[str, float], Any], None]


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bfloat16 operations a second of a device, or None if it is not known."""
    return next((peak for kind, peak in PEAK.items() if re.search(kind, device_kind)), None)


class Log:
    """Turns the metrics vector of each step into one row per window of steps.

    Vectors stay on the device until the next window is full, so that the host never waits for the
    step that it has just dispatched. A row holds the means over the window's steps, weighted by
    `weight` where the step reports one, without the steps that are not `ok`; and the last values
    of `skipped` and `learning_rate`. What is not finite becomes None.

    Args:
        names: Of the metrics in a step's vector.
        run: Where rows are written; None keeps them in `rows` alone.
        every: Steps in a window.
        steps: The last step, for the time left.
        counts: What a step works through, such as `{"examples": 256}`; gives rates per second.
        ideal: Seconds that a step would take at the devices' peak, such as `{"mfu": 0.012}`.
        quiet: Whether to show no progress.
        watch: Called as `(step, values, position)` once for every step, in order, when fetched.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        run: Run | None = None,
        every: int = 20,
        steps: int | None = None,
        counts: Mapping[str, int] | None = None,
        ideal: Mapping[str, float] | None = None,
        quiet: bool = False,
        watch: Watch | None = None,
    ):
        self.names, self.run, self.every, self.steps = tuple(names), run, every, steps
        self.counts, self.ideal, self.watch = counts or {}, ideal or {}, watch
        self.rows: list[dict[str, Any]] = []
        self._on_device: deque[tuple[int, jax.Array, Any, int]] = deque()
        self._fetched: list[list[float]] = []
        self._closed: deque[tuple[dict[str, Any], int]] = deque()
        self._count = self._timed = self._pauses = 0
        self._last: tuple[int, Any] = (0, None)
        self._seconds = self._window = 0.0
        self._since = time.perf_counter()
        self._shown = (time.monotonic(), 0)
        self._wall: float | None = None
        writer = run.writer if run else jax.process_index() == 0
        self._console = Console(stderr=True, quiet=quiet or not writer, soft_wrap=True)
        self._live: Live | None = None

    def add(self, step: int, values: jax.Array, position: Any = None, row: int = 0) -> None:
        """Takes one step's metrics; at the end of a window, writes the row of the one before.

        Args:
            step: The step, counted from 1.
            values: Its vector, as a compiled step returns it, or the rows of several steps.
            position: The data's state after its batch.
            row: Which of the rows is the step's.
        """
        self._on_device.append((step, values, position, row))
        self._last = (step, position)
        self._count += 1
        self._timed += not self._pauses
        if step % self.every == 0:
            self.close_window()
            self._write(len(self._closed) - 1)

    def close_window(self) -> None:
        """Ends the window at the last step; what is added later is of the next."""
        if not self._count:
            return
        self._tick()
        step, position = self._last
        row: dict[str, Any] = {"step": step, "seconds": round(self._seconds, 6)}
        if isinstance(position, Mapping) and "epoch" in position:
            row["epoch"] = position["epoch"]
        if "examples" in self.counts:
            row["examples"] = step * self.counts["examples"]
        if self._timed:
            each = self._window / self._timed
            row["step_ms"] = 1e3 * each
            row |= {f"{name}/s": count / each for name, count in self.counts.items()}
            row |= {name: ideal / each for name, ideal in self.ideal.items()}
        if stats := jax.local_devices()[0].memory_stats():
            row["peak_bytes"] = stats["peak_bytes_in_use"]
        self._closed.append((row, self._count))
        self._count, self._timed, self._window = 0, 0, 0.0

    def attach(self, values: Mapping[str, Any]) -> None:
        """Ends the window at the last step and adds values, such as an evaluation's, to its row."""
        self.close_window()
        if not self._closed:
            self._closed.append(({"step": self._last[0]}, 0))
        self._closed[-1][0].update(values)

    def flush(self) -> None:
        """Fetches all that was added, and writes the rows of the windows closed."""
        self._write(len(self._closed))
        self._fetch(len(self._on_device))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Takes the time of a block, and of the steps in it, out of the throughput."""
        self._tick()
        self._pauses += 1
        try:
            yield
        finally:
            self._tick()
            self._pauses -= 1

    def get_state(self) -> dict[str, Any]:
        """Returns what a run must know to write the same rows after it is resumed; flush first."""
        self._tick()
        return {"seconds": self._seconds, "open": [*self._fetched]}

    def set_state(self, state: Mapping[str, Any], step: int) -> None:
        """Goes on from a state that was taken at a step, in a run that was cut back to it."""
        self._seconds, self._last = state["seconds"], (step, None)
        self._fetched = state["open"]
        self._count = len(self._fetched)
        self._shown = (time.monotonic(), step)
        self.rows = [row for row in self.run.rows() if row["step"] <= step] if self.run else []

    def say(self, text: str) -> None:
        """Shows one line on stderr."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Gives the terminal's line back."""
        if self._live:
            self._live.stop()

    def _tick(self) -> None:
        now = time.perf_counter()
        if not self._pauses:
            self._window += now - self._since
            self._seconds += now - self._since
        self._since = now

    def _fetch(self, count: int) -> None:
        for _ in range(count):
            step, vectors, position, row = self._on_device.popleft()
            values = np.asarray(vectors).reshape(-1, len(self.names))[row].tolist()
            self._fetched.append(values)
            if self.watch:
                self.watch(step, dict(zip(self.names, values, strict=True)), position)

    def _write(self, count: int) -> None:
        for _ in range(count):
            row, steps = self._closed.popleft()
            self._fetch(max(steps - len(self._fetched), 0))
            window, self._fetched = self._fetched[:steps], self._fetched[steps:]
            row = {"step": row.pop("step"), **(self._means(window) if steps else {}), **row}
            row = {name: _finite(value) for name, value in row.items()}
            self.rows.append(row)
            if self.run:
                self.run.log(row)
            self._show(row)

    def _means(self, window: list[list[float]]) -> dict[str, Any]:
        values = dict(zip(self.names, np.asarray(window, np.float64).T, strict=True))
        weight = values.pop("weight", np.ones(len(window)))
        kept = (weight > 0) & (values.pop("ok", weight) > 0)
        row: dict[str, Any] = dict.fromkeys(values)
        if kept.any():
            row |= {n: float(np.average(v[kept], weights=weight[kept])) for n, v in values.items()}
        for name, kind in (("skipped", int), ("learning_rate", float)):
            if name in values:
                row[name] = kind(values[name][-1])
        return row

    def _show(self, row: dict[str, Any]) -> None:
        now, (shown, before) = time.monotonic(), self._shown
        terminal = self._console.is_terminal
        if self._console.quiet or now - shown < (0.2 if terminal else 10) or row["step"] == before:
            return
        each = (now - shown) / (row["step"] - before)
        self._wall = each if self._wall is None else 0.7 * self._wall + 0.3 * each
        self._shown = (now, row["step"])
        text = f"step {row['step']}" + (f"/{self.steps}" if self.steps else "")
        rates = [f"{name}/s" for name in self.counts]
        text += "".join(f"  {n} {row[n]:.4g}" for n in ("loss", *rates) if row.get(n) is not None)
        text += "".join(f"  {name} {row[name]:.1%}" for name in self.ideal if name in row)
        if self.steps:
            text += f"  {_clock(self._wall * (self.steps - row['step']))} left"
        if terminal:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.say(text)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
