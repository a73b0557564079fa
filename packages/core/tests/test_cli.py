import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated

import polars as pl
import pytest
import typer

from chapbook.core import cli
from chapbook.core.errors import Error, MissingExtra, TableError
from chapbook.core.run import Run
from chapbook.core.tables import read_table, scan_table, write_table

app = cli.app("toy", "A toy.", version="1.2")
SEEN = {}


@app.command()
def train(
    data: cli.TableIn,
    output: cli.TableOut,
    run: cli.RunDir = Path("run"),
    mesh: cli.MeshText = "auto",
    devices: cli.Devices = None,
    seed: cli.Seed = 0,
    precision: cli.Precision = "float32",
    fresh: cli.Fresh = False,
    quiet: cli.Quiet = False,
    as_json: cli.Json = False,
) -> None:
    """Trains on a table.

    Example: toy train a.csv --output b.csv
    """
    SEEN.update(locals())


@app.command()
def fail() -> None:
    raise SEEN["problem"]


@app.command()
def read(data: cli.TableIn) -> None:
    typer.echo(read_table(data, {"label": pl.Int64}).height)


@app.command()
def copy(
    data: cli.TableIn, output: cli.TableOut, form: Annotated[str, typer.Option("--format")]
) -> None:
    write_table(scan_table(data), output, format=form)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def exits(*words: str) -> int:
    with pytest.raises(SystemExit) as raised:
        cli.main(app)(words)
    assert isinstance(raised.value.code, int)
    return raised.value.code


def ends(problem: BaseException, *words: str) -> int:
    SEEN["problem"] = problem
    return exits(*words, "fail")


def test_the_standard_options_give_their_types():
    words = "train a.csv --output b.csv --run r --mesh data=2 --devices 8 --seed 3"
    assert exits(*words.split(), "--precision", "bfloat16", "--fresh", "--quiet", "--json") == 0
    assert SEEN["data"] == Path("a.csv")
    assert SEEN["output"] == Path("b.csv")
    assert SEEN["run"] == Path("r")
    assert (SEEN["mesh"], SEEN["devices"], SEEN["seed"]) == ("data=2", 8, 3)
    assert SEEN["precision"] == "bfloat16"
    assert SEEN["fresh"] is SEEN["quiet"] is SEEN["as_json"] is True
    assert exits("train", "-", "--output", "-") == 0
    assert (SEEN["data"], SEEN["devices"], SEEN["fresh"]) == (Path("-"), None, False)


def test_help_and_version(capsys):
    assert exits("--version") == 0
    assert capsys.readouterr().out.startswith("toy 1.2 (chapbook-core ")
    assert exits() == exits("--help") == exits("train", "--help") == 0
    out = capsys.readouterr().out
    assert "A toy." in out
    assert "Example: toy train a.csv" in out
    assert "\x1b[" not in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "a", "--output", "b", "--sed", "3"], "No such option"),
        (["train", "a"], "Missing option '--output'"),
        (["train"], "Missing argument"),
        (["train", "a", "--output", "b", "--seed", "-1"], "Invalid value for '--seed'"),
        (["train", "a", "--output", "b", "--seed", "x"], "Invalid value for '--seed'"),
        (["train", "a", "--output", "b", "--precision", "f"], "--precision f is unknown; it is"),
    ],
)
def test_a_usage_error_is_one_line_and_exits_2(words, part, capsys):
    assert exits(*words) == 2
    error, *hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert part in error
    assert hint in ([], ["hint: see --help"])


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (Error("a\nb"), "error: a b\n"),
        (Error("a", "do b"), "error: a\nhint: do b\n"),
        (TableError("t.csv:3: x", path="t.csv", row=3), "error: t.csv:3: x\n"),
        (MissingExtra("x needs JAX"), "error: x needs JAX\n"),
        (FileNotFoundError(2, "No such file or directory", "a"), "error: a: No such file"),
        (PermissionError(13, "Permission denied", "/etc/x"), "error: /etc/x: Permission denied\n"),
        (OSError(28, "No space left on device", "run/m"), "error: run/m: No space left on device"),
        (OSError(30, "Read-only file system", "/usr/x"), "error: /usr/x: Read-only file system\n"),
        (OSError("odd"), "error: odd\n"),
        (
            ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib"),
            "error: this needs matplotlib, which is not installed\nhint: pip install matplotlib\n",
        ),
        (MemoryError(), "error: out of memory"),
        (pl.exceptions.ComputeError("bad value\n\nYou might"), "error: bad value\n"),
        (
            pl.exceptions.ComputeError("underlying IO error: No space left (os error 28)\n\nThis"),
            "error: underlying IO error: No space left (os error 28)\n",
        ),
        (ModuleNotFoundError("'fastexcel' not found.\npip"), "error: 'fastexcel' not found. pip\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: 9 GB"),
            "error: out of memory: RESOURCE_EXHAUSTED: 9 GB",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exits_2(problem, said, capsys):
    assert ends(problem) == 2
    assert capsys.readouterr().err.startswith(said)
    assert not list(Path().glob("crash-*"))


def test_a_bad_table_is_one_line_that_names_the_line(capsys):
    Path("t.csv").write_text("label\n1\nposi\n")
    assert exits("read", "t.csv") == 2
    assert capsys.readouterr() == ("", 'error: t.csv:3: label "posi" is not an integer\n')
    assert exits("read", "no.csv") == 2
    assert capsys.readouterr().err == "error: no.csv: No such file or directory\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("form", ["csv", "parquet", "ipc"])
def test_a_full_disk_is_one_line_that_names_the_path(form, capsys):
    Path("t.csv").write_text("label\n1\n")
    assert exits("copy", "t.csv", "--output", "/dev/full", "--format", form) == 2
    assert capsys.readouterr().err == "error: /dev/full: No space left on device\n"
    assert not list(Path().glob("crash-*"))


def test_a_bug_is_one_line_and_its_traceback_a_file(capsys):
    assert ends(ZeroDivisionError("division by zero")) == 1
    (crash,) = Path().glob("crash-*.txt")
    expected = (
        f"error: ZeroDivisionError: division by zero; this is a bug, its traceback is in {crash}"
    )
    assert capsys.readouterr().err == expected + "\n"
    assert "raise SEEN" in crash.read_text()


def test_a_missing_module_of_our_own_is_a_bug():
    assert ends(ModuleNotFoundError("No module named 'chapbook.x'", name="chapbook.x")) == 1


@pytest.mark.parametrize(("problem", "code"), [(ZeroDivisionError(), 1), (Error("a"), 2)])
def test_debug_shows_the_traceback(problem, code, capsys):
    assert ends(problem, "--debug") == code
    assert "Traceback" in capsys.readouterr().err


def test_exit_codes_of_commands_pass_through(capsys):
    assert ends(typer.Exit(3)) == 3
    assert ends(KeyboardInterrupt()) == 130
    assert ends(typer.Abort()) == 130
    assert ends(SystemExit(143)) == 143
    assert capsys.readouterr().err == ""


@app.command()
def kill(name: str) -> None:
    try:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(10)
    finally:
        typer.echo("cleaned", err=True)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_clean_up_and_have_their_exit_codes(name, code, capsys):
    assert exits("kill", name) == code
    assert capsys.readouterr() == ("", "cleaned\n")


def test_a_reader_that_goes_away_is_no_error():
    code = """
        from chapbook.core import cli
        app = cli.app("toy", "A toy.", version="1")
        @app.command()
        def pour():
            while True:
                print("x" * 1000)
        cli.main(app)(["pour"])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        assert one.stdout and one.stderr
        one.stdout.readline()
        one.stdout.close()
        assert one.stderr.read() == b""
    assert one.returncode == 141


def test_claims_are_shown_kept_and_decide_the_exit_code(capsys):
    rows = [("RR beats chance", "0.6", 0.61, "accuracy", 0.55, None)]
    with Run("good", {}) as run:
        cli.claims(rows, run)
    assert "held" in capsys.readouterr().out
    rows += [("loss", 1.0, 2.0, "nats", None, 1.5), ("nan", 1, float("nan"), "", None, None)]
    rows += [("seconds", None, 7.0, "s", None, None)]
    with Run("bad", {}) as run, pytest.raises(typer.Exit) as raised:
        cli.claims(rows, run)
    assert raised.value.exit_code == 3
    out = capsys.readouterr().out
    assert (out.count("NOT HELD"), out.count("not judged")) == (2, 1)
    kept = json.loads(Path("bad/results.json").read_text())["claims"]
    assert [row["held"] for row in kept] == [True, False, False, None]
    assert [row["ours"] for row in kept] == [0.61, 2.0, None, 7.0]
    table = read_table("bad/claims.csv", {"claim": pl.String, "held?": pl.Boolean})
    assert table["held"].to_list() == [True, False, False, None]
    assert not os.path.lexists("bad/lock")


def test_a_plot_has_its_numbers_beside_it():
    pytest.importorskip("matplotlib")
    numbers = pl.DataFrame({"epsilon": [1, 2], "accuracy": [0.5, 0.9]})
    draw = lambda axes: axes.plot(numbers["epsilon"], numbers["accuracy"])  # noqa: E731
    for suffix, magic in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        cli.plot(f"plots/a.{suffix}", draw, numbers)
        assert Path(f"plots/a.{suffix}").read_bytes().startswith(magic)
    assert read_table("plots/a.csv").equals(numbers)


def test_progress_is_silent_where_nobody_looks(capsys):
    assert list(cli.progress([1, 2], "counting")) == [1, 2]
    assert list(cli.progress(iter("ab"), "counting", total=2, quiet=True)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")
