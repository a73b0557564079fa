import json
import subprocess
import sys

import pytest

from chapbook.glam.cli import main


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code if isinstance(end.value.code, int) else 1


def test_summarize_prints_one_json_object(tmp_path, capsys):
    table = tmp_path / "people.csv"
    table.write_text("name,height\na,160\nb,170\nc,180\n")
    assert run("summarize", table, "--column", "height", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"count": 3, "mean": 170.0, "variance": 100.0}


def test_a_missing_column_is_one_line_and_exit_2(tmp_path, capsys):
    table = tmp_path / "people.csv"
    table.write_text("name,height\na,160\n")
    assert run("summarize", table, "--column", "weight") == 2
    errors = capsys.readouterr().err
    assert "weight" in errors
    assert "Traceback" not in errors


def test_reproduce_holds_and_writes_its_claims(tmp_path):
    assert run("reproduce", "--run", tmp_path / "run") == 0
    assert (tmp_path / "run" / "claims.csv").exists()
    assert (tmp_path / "run" / "results.json").exists()


def test_help_starts_without_jax():
    code = (
        "import sys\n"
        "from chapbook.glam.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "summarize" in done.stdout
