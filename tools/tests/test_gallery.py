import json

HEADLINE = {
    "package": "vmoe",
    "paper": "Scaling Vision",
    "claim": "half the compute | same accuracy",
    "paper_value": 0.5,
    "ours": 0.61234,
    "unit": "x",
    "held": True,
    "machine": "2 cores",
    "command": "vmoe reproduce",
}


def put(workspace, name, path, content):
    file = workspace / "packages" / name / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def test_the_readme_table_holds_every_package_and_its_claims(workspace, tool):
    put(workspace, "vmoe", "results/headline.json", HEADLINE)
    assert tool("gallery").returncode == 0
    text = (workspace / "README.md").read_text()
    assert text.startswith("# x\n\n<!-- gallery:begin -->\n| package |")
    assert text.endswith("<!-- gallery:end -->\n\nend\n")
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert [row.split("]")[0] for row in rows] == ["| [alone", "| [core", "| [label-dp", "| [vmoe"]
    assert rows[3] == (
        "| [vmoe](packages/vmoe/README.md) | What vmoe does. "
        r"| half the compute \| same accuracy | 0.5 x | 0.6123 x | yes |"
    )


def test_a_package_without_results_shows_no_figure(workspace, tool):
    assert tool("gallery").returncode == 0
    row = next(r for r in (workspace / "README.md").read_text().splitlines() if "[core]" in r)
    assert row.endswith("| What core does. | — | — | — | — |")
    assert "No results are committed yet" in (workspace / "docs/pages/gallery.md").read_text()


def test_the_page_holds_benchmarks_with_machine_and_command(workspace, tool):
    result = {
        "claim": "Fast.",
        "machine": {"cpu": "A", "cores": 2},
        "rows": [
            {"side": "ours", "rows_per_s": 12_345_678.9, "repeats": [1, 2]},
            {"side": "peer", "extra": "slow"},
        ],
    }
    put(workspace, "core", "benchmarks/results/fast.json", result)
    put(workspace, "vmoe", "results/headline.json", [HEADLINE, HEADLINE | {"held": False}])
    assert tool("gallery").returncode == 0
    page = (workspace / "docs/pages/gallery.md").read_text()
    assert "| side | rows per s | extra |" in page
    assert "| ours | 12,345,679 | — |" in page
    assert "| peer | — | slow |" in page
    assert "repeats" not in page
    assert "Measured by `python packages/core/benchmarks/fast.py` on cpu A, cores 2." in page
    assert page.count("Measured by `vmoe reproduce` on 2 cores.") == 2


def test_check_fails_with_one_line_on_drift_and_writes_nothing(workspace, git, tool):
    done = tool("gallery", "--check")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "README.md: 6 lines to add, 0 to remove" in done.stderr
    assert git("status", "--porcelain") == ""
    tool("gallery")
    assert tool("gallery", "--check").returncode == 0
    put(workspace, "vmoe", "results/headline.json", HEADLINE)
    assert tool("gallery", "--check").returncode == 1


def test_an_incomplete_result_is_one_line(workspace, tool):
    put(workspace, "vmoe", "results/headline.json", {"package": "vmoe"})
    done = tool("gallery")
    assert done.returncode == 2
    assert done.stderr.startswith("error: packages/vmoe/results/headline.json: no paper, claim")


def test_a_readme_without_markers_is_one_line(workspace, tool):
    (workspace / "README.md").write_text("# x\n")
    done = tool("gallery")
    assert done.returncode == 2
    assert done.stderr.startswith("error: README.md needs one line <!-- gallery:begin -->")
