"""What the benchmark scripts share: interleaved repeats, the machine, the printed and kept results.

A script reaches it by `sys.path.append(str(Path(__file__).parents[3] / "tools"))`, so that plain
`python packages/NAME/benchmarks/CLAIM.py` works from anywhere.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from gallery import cell, grid
from workspace import write

T = TypeVar("T")


def seconds(run: Callable[..., object], *arguments: object) -> float:
    """Returns the wall time of one call."""
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def interleaved(
    sides: Mapping[str, Callable[[], T]], repeats: int, *, warm: int = 0
) -> dict[str, list[T]]:
    """Measures every side in turn, and again, so that a slow minute of the machine meets them all.

    Args:
        sides: What measures one side and returns its figure, such as `lambda: seconds(f, x)`.
        repeats: Figures of each side.
        warm: Rounds before them that are not kept: first calls import, compile and allocate.

    Returns:
        The figures of each side, in the order in which they were taken.
    """
    figures: dict[str, list[T]] = {name: [] for name in sides}
    for repeat in range(-warm, repeats):
        for name, side in sides.items():
            figure = side()
            if repeat >= 0:
                figures[name].append(figure)
    return figures


def medians(figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the median of each side's figures."""
    return {name: statistics.median(each) for name, each in figures.items()}


def machine(*distributions: str) -> dict[str, Any]:
    """Returns the processor, its cores, Python, JAX's device if JAX is at work, and versions.

    Args:
        *distributions: Whose versions to tell; peers that are not installed are left out.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    known = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    if jax := sys.modules.get("jax"):
        found["device"] = jax.devices()[0].device_kind
    versions = {name: importlib.metadata.version(name) for name in distributions if name in known}
    return found | {"versions": versions}


def report(
    script: str | Path,
    claim: str,
    rows: Sequence[Mapping[str, Any]],
    distributions: Sequence[str],
    **more: object,
) -> None:
    """Prints the claim with all rows, and writes `results/SCRIPT.json` beside the script.

    Args:
        script: The script's `__file__`.
        claim: What is measured.
        rows: One for each side or comparison, ratios included. Lists, such as the single repeats,
            are kept in the file and not printed.
        distributions: Whose versions to keep with the machine.
        **more: What else belongs to the result, such as the script's options.
    """
    script = Path(script)
    print(claim)
    lines = grid(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)))
    if more:
        print(", ".join(f"{name.replace('_', ' ')} {cell(value)}" for name, value in more.items()))
    content = {"claim": claim, "machine": machine(*distributions), **more, "rows": rows}
    write(script.parent / "results" / f"{script.stem}.json", json.dumps(content, indent=2) + "\n")
