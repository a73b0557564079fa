import json
import os
import subprocess
import sys

SCRIPT = """\
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report

calls = []


def side(name, figures):
    return lambda: calls.append(name) or figures.pop(0)


sides = {"ours": side("ours", [9.0, 1.0, 2.0, 6.0]), "peer": side("peer", [9.0, 4.0, 8.0, 12.0])}
figures = interleaved(sides, 3, warm=1)
assert calls == ["ours", "peer"] * 4, calls
middle = medians(figures)
rows = [
    {"side": n, "seconds": m, "ratio": m / middle["ours"], "repeats": figures[n]}
    for n, m in middle.items()
]
report(__file__, "ours is fast", rows, ("pytest", "not-installed"), options={"rows": 10})
"""


def test_a_script_anywhere_prints_both_sides_and_keeps_the_result(workspace, tmp_path):
    folder = workspace / "packages" / "core" / "benchmarks"
    folder.mkdir()
    (folder / "fast.py").write_text(SCRIPT)
    command = [sys.executable, str(folder / "fast.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    claim, head, ours, peer, options = done.stdout.splitlines()
    assert claim == "ours is fast"
    assert head.split() == ["side", "seconds", "ratio"]  # the repeats are in the file alone
    assert ours.split() == ["ours", "2", "1"]
    assert peer.split() == ["peer", "8", "4"]
    assert options == "options rows 10"
    result = json.loads((folder / "results" / "fast.json").read_text())
    assert result["rows"][1] == {
        "side": "peer", "seconds": 8.0, "ratio": 4.0, "repeats": [4.0, 8.0, 12.0]
    }  # fmt: skip
    assert result["options"] == {"rows": 10}
    machine = result["machine"]
    assert machine["cpu"]
    assert machine["cores"] == os.cpu_count()
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["versions"].keys() == {"pytest"}
