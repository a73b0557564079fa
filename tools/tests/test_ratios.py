import json

import pytest


@pytest.fixture
def measured(workspace, git):
    """Writes a benchmark's result; the one that is committed says 10, 20 and, of another, 9."""
    path = workspace / "packages/vmoe/benchmarks/results/speed.json"

    def write(*ratios):
        rows = [
            {"text": text, "megabytes": 1, "system": system, "ours_over_this": ratio}
            for text, system, ratio in ratios
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rows": rows}))

    write(("a", "Peer fast", 10.0), ("b", "Peer fast", 20.0), ("a", "other", 9.0))
    git("add", "--all")
    git("commit", "--quiet", "-m", "measured")
    return write


def test_ratios_may_waver_but_not_fall(measured, tool):
    measured(("a", "Peer fast", 8.0), ("b", "Peer fast", 22.0), ("a", "other", 1.0))
    done = tool("ratios", "vmoe", "speed", "Peer")
    assert done.returncode == 0, done.stderr
    assert "is 0.938 times what it was, over 2 rows" in done.stdout
    measured(("a", "Peer fast", 7.0), ("b", "Peer fast", 20.0))
    assert tool("ratios", "vmoe", "speed", "Peer").returncode == 1
    assert tool("ratios", "vmoe", "speed", "Peer", "--fall", "0.2").returncode == 0


def test_nothing_to_compare_is_an_error(measured, tool):
    done = tool("ratios", "vmoe", "slow", "Peer")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1] == "hint: nox -s bench -- vmoe slow"
    measured(("c", "Peer fast", 7.0))
    done = tool("ratios", "vmoe", "speed", "Peer")
    assert done.returncode == 2
    assert "no row of Peer is in the committed result" in done.stderr
