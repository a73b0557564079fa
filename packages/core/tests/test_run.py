import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.core.run import Run, lock


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_keeps_its_config_metrics_events_and_results():
    with Run("run", {"rate": 0.1, "path": Path("x")}) as run:
        assert not run.resumed
        run.describe(device="cpu")
        run.log({"step": 1, "loss": 2})
        run.log({"step": 2, "valid/loss": 0.5})
        run.event("skip", step=2)
        run.results({"best": 1})
    config = json.loads(Path("run/config.json").read_text())
    assert config["options"] == {"rate": 0.1, "path": "x"}
    assert config["device"] == "cpu"
    assert {"versions", "python", "git", "command", "started"} <= set(config)
    table = pl.read_parquet("run/metrics.parquet")
    assert table.rows() == [(1, 2, None), (2, None, 0.5)]
    assert json.loads(Path("run/events.jsonl").read_text())["kind"] == "skip"
    assert json.loads(Path("run/results.json").read_text()) == {"best": 1}
    assert not Path("run/lock").exists()


def test_a_run_goes_on_and_can_be_cut_back():
    with Run("run", {"rate": 0.1, "steps": 2}) as run:
        for step in (1, 2, 3):
            run.log({"step": step})
            run.event("tick", step=step)
        run.event("start")
    with Path("run/metrics.jsonl").open("a") as file:
        file.write('{"step": 4')
    with Run("run", {"rate": 0.1, "steps": 9}, may_change=("steps",)) as run:
        assert run.resumed
        assert [row["step"] for row in run.rows()] == [1, 2, 3]
        run.cut(1)
        assert run.rows() == [{"step": 1}]
    assert len(Path("run/events.jsonl").read_text().splitlines()) == 2
    assert pl.read_parquet("run/metrics.parquet")["step"].to_list() == [1]
    assert json.loads(Path("run/config.json").read_text())["options"]["steps"] == 9


def test_another_config_is_refused_and_fresh_starts_over():
    with Run("run", {"learning_rate": 0.001}) as run:
        run.log({"step": 1})
    expected = (
        "run folder holds a run with learning_rate=0.001, you gave 0.01; "
        "use --fresh or another --run"
    )
    with pytest.raises(Error) as raised, Run("run", {"learning_rate": 0.01}):
        pass
    assert raised.value.message == expected
    with Run("run", {"learning_rate": 0.01}, fresh=True) as run:
        assert (run.resumed, run.rows()) == (False, [])


@pytest.mark.parametrize("fresh", [True, False])
def test_a_folder_that_is_no_run_is_left_alone(fresh):
    Path("run").mkdir()
    Path("run/thesis.txt").write_text("years of work")
    run = Run("run", {}, fresh=fresh)
    with pytest.raises(Error, match="run is not empty and holds no run"), run:
        pass
    assert [path.name for path in Path("run").iterdir()] == ["thesis.txt"]


def test_one_process_at_a_time_has_a_run():
    expected = f"run is in use by pid {os.getpid()} since"
    with Run("run", {}), pytest.raises(Error, match=expected), Run("run", {}):
        pass
    with Run("run", {}):
        reader = Run("run", {}, writer=False)
        with reader as run:
            assert run.resumed
            run.log({"step": 1})
    assert not Path("run/metrics.jsonl").exists()


def test_the_lock_of_a_killed_process_is_taken_over_by_one_of_many():
    killed = subprocess.Popen(["sleep", "100"])
    killed.kill()
    killed.wait()
    held = {"pid": killed.pid, "host": os.uname().nodename, "born": "1", "since": "12:03"}
    Path("lock").write_text(json.dumps(held))
    code = """
        import time
        from pathlib import Path
        from chapbook.core.errors import Error
        from chapbook.core.run import lock
        try:
            with lock(Path("lock"), "run"):
                print("mine")
                while not Path("end").exists():
                    time.sleep(0.01)
        except Error:
            print("theirs")
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    while all(one.poll() is None for one in pair):
        time.sleep(0.02)
    Path("end").touch()
    assert sorted(one.communicate()[0] for one in pair) == [b"mine\n", b"theirs\n"]
    assert not Path("lock").exists()


def test_a_pid_that_was_given_to_a_new_process_holds_no_lock():
    held = {"pid": os.getpid(), "host": os.uname().nodename, "born": "1", "since": "12:03"}
    Path("lock").write_text(json.dumps(held))
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    with lock(Path("lock"), "run"):
        assert json.loads(Path("lock").read_text())["born"] != "1"


def test_a_lock_from_another_machine_is_respected():
    Path("lock").write_text(
        json.dumps({"pid": 1, "host": "elsewhere", "born": "1", "since": "12:03"})
    )
    with pytest.raises(Error) as raised, lock(Path("lock"), "run"):
        pass
    assert raised.value.message == "run is in use by pid 1 since 12:03"
    assert raised.value.hint == "if that process is gone from elsewhere, delete lock"
