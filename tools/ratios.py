"""Fails if a package has become slower beside a peer than its committed results say.

A benchmark that was just run has replaced its committed result in the working tree. Rows of both
that agree in all their texts are compared by one column of ratios, in which more is better. One
ratio wavers from run to run and from machine to machine; what must not fall is their geometric
mean:

    nox -s bench -- NAME CLAIM
    python tools/ratios.py NAME CLAIM PEER
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from workspace import ROOT, fail, git

Rows = Sequence[Mapping[str, Any]]


def main() -> None:
    """Prints every ratio before and now, and exits with 1 if they fell too far."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package")
    parser.add_argument("script", help="the benchmark's name")
    parser.add_argument("peer", help="what the name of the compared systems begins with")
    parser.add_argument("--column", default="ours_over_this", help="the ratios; more is better")
    parser.add_argument("--name", default="system", help="the column of names")
    parser.add_argument("--fall", type=float, default=0.15, help="at most, as a share")
    given = parser.parse_args()
    path = f"packages/{given.package}/benchmarks/results/{given.script}.json"
    if not (ROOT / path).exists():
        fail(f"{path} does not exist", f"nox -s bench -- {given.package} {given.script}")
    now = ratios(json.loads((ROOT / path).read_text())["rows"], given)
    before = ratios(json.loads(git("show", f"HEAD:{path}"))["rows"], given)
    both = [key for key in before if key in now]
    if not both:
        fail(f"{path}: no row of {given.peer} is in the committed result too")
    for key in both:
        print(f"{before[key]:10.3g} {now[key]:10.3g}  {', '.join(key)}")
    change = statistics.geometric_mean(now[key] / before[key] for key in both)
    print(f"{given.column} is {change:.3f} times what it was, over {len(both)} rows")
    if change < 1 - given.fall:
        print(f"error: it may fall by {given.fall:.0%} at most")
        raise SystemExit(1)


def ratios(rows: Rows, given: argparse.Namespace) -> dict[tuple[str, ...], float]:
    """Returns the ratios of the peer's rows, by the texts in them."""
    return {
        tuple(value for value in row.values() if isinstance(value, str)): row[given.column]
        for row in rows
        if str(row.get(given.name, "")).startswith(given.peer)
    }


if __name__ == "__main__":
    main()
