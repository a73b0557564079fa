"""The frame of every command line: standard options, one-line errors, exit codes.

Exit codes: 0 done, 1 a bug, 2 something the user can mend, 3 a claim not held, 130 Ctrl-C,
141 a reader that went away, 143 SIGTERM. Results go to stdout, all else to stderr. Neither JAX
nor Polars is imported here, so `--help` stays fast; commands import what they need inside.
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
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from typer import Argument, Option

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic

if TYPE_CHECKING:
    import polars as pl

    from chapbook.core.run import Run

Item = TypeVar("Item")


def _precision(text: str) -> str:
    if text not in ("float32", "bfloat16"):
        raise Error(f"--precision {text} is unknown; it is float32 or bfloat16")
    return text


_FILES = "A csv, tsv, parquet, ipc, jsonl, json or xlsx file; - is stdin."
_TYPE = "Type of the computation, float32 or bfloat16; parameters stay float32."
TableIn = Annotated[Path, Argument(metavar="TABLE", help=_FILES)]
TableOut = Annotated[Path, Option("--output", metavar="TABLE", help="File to write; - is stdout.")]
RunDir = Annotated[Path, Option("--run", metavar="FOLDER", help="Of the run, new or continued.")]
MeshText = Annotated[str, Option("--mesh", metavar="AXES", help="Devices: data=4,model=2 or auto.")]
Devices = Annotated[int | None, Option("--devices", min=1, help="Simulate so many CPU devices.")]
Seed = Annotated[int, Option("--seed", min=0, help="The same seed gives the same result.")]
Precision = Annotated[str, Option("--precision", parser=_precision, metavar="TYPE", help=_TYPE)]
Fresh = Annotated[bool, Option("--fresh", help="Empty the run's folder first.")]
Quiet = Annotated[bool, Option("--quiet", help="Show no progress.")]
Json = Annotated[bool, Option("--json", help="Print the result as one JSON object.")]


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

    shown = Option("--version", callback=show_version, is_eager=True, help="Show the versions.")
    debug = Option("--debug", help="Show the traceback of an error.")

    @made.callback()
    def options(version: Annotated[bool, shown] = False, debug: Annotated[bool, debug] = False):
        pass

    return made


def claims(
    rows: Iterable[tuple[str, Any, float, str, float | None, float | None]], run: "Run"
) -> None:
    """Prints which claims of a paper hold here, and writes `results.json` and `claims.csv`.

    Args:
        rows: For each claim: its text, the paper's figure, ours, the unit, and the lowest and
            highest figure under which the claim holds (None: no bound). Without either bound the
            figure is shown and not judged.
        run: The run that the figures come from.

    Raises:
        typer.Exit: With code 3, when a claim is not held. A figure that is NaN holds no claim;
            what is not finite is null in `results.json`, since JSON has no word for it.
    """
    import polars as pl
    from rich.console import Console
    from rich.table import Table

    from chapbook.core.tables import write_table

    found: list[dict[str, Any]] = []
    shown = Table("claim", "paper", "ours", "unit", "needed", "")
    for claim, paper, ours, unit, low, high in rows:
        held = (-math.inf if low is None else low) <= ours <= (math.inf if high is None else high)
        judged = not held or low is not None or high is not None
        row = {"claim": claim, "paper": paper, "ours": ours, "unit": unit, "low": low, "high": high}
        found.append(row | {"held": held if judged else None})
        needed = f"{_figure(low)} to {_figure(high)}" if judged else ""
        verdict = ("held" if held else "NOT HELD") if judged else "not judged"
        shown.add_row(claim, _figure(paper), _figure(ours), unit, needed, verdict)
    finite = [row if math.isfinite(row["ours"]) else row | {"ours": None} for row in found]
    run.results({"claims": finite})
    texts = [{n: "" if v is None else str(v) for n, v in row.items()} for row in found]
    write_table(pl.DataFrame(texts), run.path / "claims.csv")
    Console().print(shown)
    if any(row["held"] is False for row in found):
        raise typer.Exit(3)


def _figure(value: Any) -> str:
    return "…" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def plot(path: str | Path, draw: Callable[[Any], Any], numbers: "pl.DataFrame") -> None:
    """Writes a figure, and beside it the numbers that it shows as csv.

    Args:
        path: The picture; its suffix names the format.
        draw: Draws on the matplotlib `Axes` that it is given.
        numbers: What is drawn.
    """
    from matplotlib.figure import Figure

    from chapbook.core.tables import write_table

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
    match problem:
        case SystemExit(code=int(code)) | typer.Exit(exit_code=code):
            return code
        case KeyboardInterrupt() | typer.Abort():
            return 130
        case BrokenPipeError():
            # Python flushes stdout once more at exit, which must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
    if debug:
        traceback.print_exception(problem)
    known = _known(problem)
    for word, line in zip(("error", "hint"), known or _bug(problem), strict=True):
        if line:
            typer.echo(f"{word}: {' '.join(line.split())}", err=True)
    return 2 if known else 1


def _known(problem: BaseException) -> tuple[str, str | None] | None:
    """Returns the message and hint of an error that the user can mend, else None."""
    from polars.exceptions import ComputeError

    text = str(problem)
    match problem:
        case Error():
            return problem.message, problem.hint
        case OSError(strerror=str(reason)) if problem.filename:
            return f"{problem.filename}: {reason}", None
        # Polars' own: a lazy table whose values do not fit, a disk that is full.
        case OSError() | ComputeError():
            return text.partition("\n")[0] or type(problem).__name__, None
        case ModuleNotFoundError(name=None):  # Polars says itself what to install
            return text, None
        case ModuleNotFoundError(name=str(name)) if not name.startswith("chapbook"):
            return f"this needs {name}, which is not installed", f"pip install {name}"
    if hasattr(problem, "format_message"):  # a usage error, of click or of typer's own copy of it
        return problem.format_message(), "see --help"  # pyright: ignore
    if isinstance(problem, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory: {text or 'host'}", "use a smaller batch, or more devices"
    return None


def _bug(problem: BaseException) -> tuple[str, None]:
    """Saves the traceback, and returns the line that says where."""
    path = Path(f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt")
    lines = "".join(traceback.format_exception(problem))
    try:
        path.write_text(lines)
    except OSError:
        path = tempfile.gettempdir() / path
        path.write_text(lines)
    return f"{type(problem).__name__}: {problem}; this is a bug, its traceback is in {path}", None
