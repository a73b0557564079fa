"""The command `glam`."""

import json as text
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from chapbook.core import cli
from chapbook.core.tables import read_table
from chapbook.glam.moments import moments

app = cli.app(
    "glam",
    "Sparse language models with a mixture of experts, from raw text to few-shot scores.",
    version=version("chapbook-glam"),
)


@app.command()
def summarize(
    table: cli.TableIn,
    column: Annotated[str, typer.Option(help="The column of numbers.")],
    json: cli.Json = False,
) -> None:
    """Print count, mean and variance of a column."""
    values = read_table(table, schema={column: pl.Float64})[column].to_numpy()
    found = moments(values)
    result = {"count": found.count, "mean": found.mean, "variance": found.variance}
    lines = "\n".join(f"{name} {value:.10g}" for name, value in result.items())
    typer.echo(text.dumps(result) if json else lines)


@app.command()
def reproduce(
    run: cli.RunDir = Path("run"),
    full: Annotated[bool, typer.Option("--full", help="More values.")] = False,
    seed: cli.Seed = 0,
    fresh: cli.Fresh = False,
) -> None:
    """Check the paper's claim: merged moments keep the digits that the textbook loses."""
    from chapbook.glam.reproduce import reproduce as check

    check(run, count=10_000_000 if full else 100_000, seed=seed, fresh=fresh)


main = cli.main(app)
