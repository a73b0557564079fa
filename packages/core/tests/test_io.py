import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import polars as pl
import pytest

from chapbook.core.io import append_jsonl, write_atomic
from chapbook.core.tables import write_table


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def put(name: str, content: str) -> str:
    Path(name).write_text(content)
    return name


def test_a_killed_write_leaves_the_old_file():
    put("t.csv", "old")
    code = """
        import os, signal
        from chapbook.core import io
        def content(part):
            part.write_text("new")
            os.kill(os.getpid(), signal.SIGKILL)
        io.write_atomic("t.csv", content)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    assert Path("t.csv").read_text() == "old"


def test_a_failed_write_leaves_nothing_behind():
    put("t.csv", "old")

    def content(part: Path) -> None:
        part.write_text("new")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomic("t.csv", content)
    assert [*map(str, Path().iterdir())] == ["t.csv"]
    assert Path("t.csv").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", ["csv", "parquet", "ipc"])
def test_a_full_disk_is_an_error_that_names_the_path(suffix):
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_atomic("/dev/full", lambda part: write_to(part, suffix))
    assert raised.value.filename == "/dev/full"


def write_to(part: Path, suffix: str) -> None:
    getattr(pl.DataFrame({"a": [1]}), f"write_{suffix}")(part)


def test_a_file_that_grows_too_large_leaves_the_old_one_and_no_part():
    put("t.parquet", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    table = pl.DataFrame({"a": range(10_000)})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OSError, match=r"File too large: 't.parquet'"):
            write_table(table, "t.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [*map(str, Path().iterdir())] == ["t.parquet"]
    assert Path("t.parquet").read_text() == "old"


def test_writing_into_no_folder_names_the_path():
    with pytest.raises(FileNotFoundError) as raised:
        write_atomic("no/t.csv", b"x")
    assert raised.value.filename == "no/t.csv"


def test_what_is_no_file_is_written_to_and_links_are_followed():
    write_atomic("/dev/null", b"x")
    assert not Path("/dev/null").is_file()
    put("real.txt", "old")
    Path("link.txt").symlink_to("real.txt")
    write_atomic("link.txt", b"new")
    assert Path("link.txt").is_symlink()
    assert Path("real.txt").read_text() == "new"


def test_a_torn_last_line_is_removed_before_the_next():
    for torn in ("", '{"a": 1}\n', '{"a": 1}\n{"a": 2', '{"a"'):
        put("m.jsonl", torn)
        append_jsonl("m.jsonl", {"a": 3})
        whole = torn[: torn.rfind("\n") + 1]
        assert Path("m.jsonl").read_text() == whole + '{"a": 3}\n'
