"""The frame of every command line: standard options, one-line errors, exit codes.

Exit codes: 0 done, 1 a bug, 2 something the user can mend, 3 a claim not held, 130 Ctrl-C,
141 a reader that went away, 143 SIGTERM. Results go to stdout, all else to stderr. JAX is never
imported here, so `--help` stays fast; commands import what they need inside.
"""

import contextlib
import importlib.util
import math
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import polars as pl
import typer

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.core.run import Run
from chapbook.core.tables import write_table

Item = TypeVar("Item")


def _precision(text: str) -> str:
    if text not in ("float32", "bfloat16"):
        raise Error(f"--precision {text} is unknown; it is float32 or bfloat16")
    return text


TableIn = Annotated[
    Path,
    typer.Argument(
        metavar="TABLE", help="A csv, tsv, parquet, ipc, jsonl, json or xlsx file; - is stdin."
    ),
]
TableOut = Annotated[
    Path, typer.Option("--output", metavar="TABLE", help="The file to write; - is stdout.")
]
RunDir = Annotated[
    Path, typer.Option("--run", metavar="FOLDER", help="The run's folder; made or continued.")
]
MeshText = Annotated[
    str, typer.Option("--mesh", metavar="AXES", help="Devices by axis, such as data=4,model=2.")
]
Devices = Annotated[
    int | None, typer.Option("--devices", min=1, help="Simulate this many devices on the CPU.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same result.")]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        parser=_precision,
        metavar="float32|bfloat16",
        help="The type of the computation; parameters stay float32.",
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Empty the run's folder first.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def app(name: str, help: str, version: str) -> typer.Typer:  # noqa: A002
    """Makes the app of a package, with `--version` and `--debug`.

    Args:
        name: The command's name.
        help: One sentence, and examples if need be.
        version: The package's version.
    """
    made = typer.Typer(name=name, help=help, add_completion=False, pretty_exceptions_enable=False)

    def show_version(wanted: bool) -> None:
        if wanted:
            parts = [f"chapbook-core {metadata.version('chapbook-core')}"]
            if importlib.util.find_spec("jax"):
                parts.append(f"jax {metadata.version('jax')}")
            typer.echo(f"{name} {version} ({', '.join(parts)})")
            raise typer.Exit

    @made.callback()
    def options(
        version: Annotated[
            bool,
            typer.Option(
                "--version", callback=show_version, is_eager=True, help="Show the versions."
            ),
        ] = False,
        debug: Annotated[
            bool, typer.Option("--debug", help="Show the traceback of an error.")
        ] = False,
    ) -> None:
        pass

    return made


def claims(
    rows: Iterable[tuple[str, Any, float, str, float | None, float | None]], run: Run
) -> None:
    """Prints which claims of a paper hold here, and writes `results.json` and `claims.csv`.

    Args:
        rows: For each claim: its text, the paper's figure, ours, the unit, and the lowest and
            highest figure under which the claim holds (None: no bound).
        run: The run that the figures come from.

    Raises:
        typer.Exit: With code 3, when a claim is not held. A figure that is NaN holds no claim.
    """
    names = ("claim", "paper", "ours", "unit", "low", "high", "held")
    found = []
    for claim, paper, ours, unit, low, high in rows:
        held = (-math.inf if low is None else low) <= ours <= (math.inf if high is None else high)
        found.append(dict(zip(names, (claim, paper, ours, unit, low, high, held), strict=True)))
    run.results({"claims": found})
    texts = [{n: "" if v is None else str(v) for n, v in row.items()} for row in found]
    write_table(pl.DataFrame(texts), run.path / "claims.csv")
    from rich.console import Console
    from rich.table import Table

    table = Table("claim", "paper", "ours", "unit", "needed", "")
    for row in found:
        shown = [_figure(row["paper"]), _figure(row["ours"]), row["unit"]]
        needed = f"{_figure(row['low'])} to {_figure(row['high'])}"
        table.add_row(row["claim"], *shown, needed, "held" if row["held"] else "NOT HELD")
    Console().print(table)
    if not all(row["held"] for row in found):
        raise typer.Exit(3)


def _figure(value: Any) -> str:
    return "…" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def plot(path: str | Path, draw: Callable[[Any], Any], numbers: pl.DataFrame) -> None:
    """Writes a figure, and beside it the numbers that it shows as csv.

    Args:
        path: The picture; its suffix names the format.
        draw: Draws on the matplotlib `Axes` that it is given.
        numbers: What is drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    draw(figure.subplots())
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda part: figure.savefig(part, dpi=150))
    write_table(numbers, Path(path).with_suffix(".csv"))


def progress(
    items: Iterable[Item], label: str, *, total: int | None = None, quiet: bool = False
) -> Iterable[Item]:
    """Yields the items, with a bar on stderr unless it is no terminal or `quiet` is set."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        return items
    return track(items, label, total=total, console=console, transient=True)


def main(made: typer.Typer) -> Callable[..., NoReturn]:
    """Returns the console entry point of an app: it runs the command line and exits."""

    def entry(arguments: Sequence[str] | None = None) -> NoReturn:
        given = list(sys.argv[1:] if arguments is None else arguments)
        words = [word for word in given if word != "--debug"] or ["--help"]
        with contextlib.suppress(ValueError):  # signals belong to the main thread
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            command = typer.main.get_command(made)
            with command.make_context(made.info.name, words) as context:
                command.invoke(context)
            sys.stdout.flush()
            code = 0
        except BaseException as problem:
            code = _report(problem, debug="--debug" in given)
        sys.exit(code)

    return entry


def _report(problem: BaseException, debug: bool) -> int:
    """Prints what the user needs to know of an exception, and returns the exit code."""
    if isinstance(problem, SystemExit):
        return problem.code if isinstance(problem.code, int) else 1
    if isinstance(problem, typer.Exit):
        return problem.exit_code
    if isinstance(problem, KeyboardInterrupt | typer.Abort):
        return 130
    if isinstance(problem, BrokenPipeError):
        # Python flushes stdout once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if debug:
        traceback.print_exception(problem)
    known = _known(problem)
    if known is None:
        return _bug(problem)
    message, hint = known
    _say("error: " + message)
    if hint:
        _say("hint: " + hint)
    return 2


def _known(problem: BaseException) -> tuple[str, str | None] | None:
    """Returns the message and hint of an error that the user can mend, else None."""
    text = str(problem)
    if isinstance(problem, Error):
        return problem.message, problem.hint
    if hasattr(problem, "format_message"):  # a usage error, of click or of typer's own copy of it
        return problem.format_message(), "see --help"  # pyright: ignore
    if isinstance(problem, OSError):
        if problem.filename and problem.strerror:
            return f"{problem.filename}: {problem.strerror}", None
        return text or type(problem).__name__, None
    if isinstance(problem, pl.exceptions.ComputeError):  # a lazy table whose values do not fit
        return text.partition("\n")[0], None
    if isinstance(problem, ModuleNotFoundError) and not (problem.name or "").startswith("chapbook"):
        return f"this needs {problem.name}, which is not installed", f"pip install {problem.name}"
    if isinstance(problem, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory: {text or 'host'}", "use a smaller batch, or more devices"
    return None


def _bug(problem: BaseException) -> int:
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    lines = "".join(traceback.format_exception(problem))
    path = Path(name)
    try:
        path.write_text(lines)
    except OSError:
        path = Path(tempfile.gettempdir(), name)
        path.write_text(lines)
    _say(f"error: {type(problem).__name__}: {problem}; this is a bug, its traceback is in {path}")
    return 1


def _say(line: str) -> None:
    typer.echo(" ".join(line.split()), err=True)
