"""The command line of the privatiser: results, exit codes, and one line for every fault."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from chapbook.label_dp.certificate import Certificate
from chapbook.label_dp.cli import main

SECRET = "zebra"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Every test runs in a folder with one table of 40 records."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    prior = random.dirichlet(np.ones(3), 40)
    frame = pl.DataFrame(
        {
            "id": np.arange(40),
            "user": np.arange(40) // 2,
            "x": random.normal(size=40),
            "y": random.choice(["a", "b", "c"], 40),
            "income": random.uniform(0, 100, 40),
            **{f"p{i}": prior[:, i] for i in range(3)},
        }
    )
    frame.write_csv("d.csv")
    frame.select("p0", "p1", "p2").write_parquet("prior.parquet")
    return tmp_path


@pytest.fixture
def run(capfd):
    """Runs a command line in this process; returns exit code, stdout and stderr."""

    def call(line: str, *more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([*line.split(), *more])
        code = left.value.code
        assert isinstance(code, int)
        out, err = capfd.readouterr()
        return code, out, err

    return call


BASE = "privatize --input d.csv --label y --epsilon 1 --classes a,b,c --output out.parquet"


def edit(row: int, column: str, value: object) -> None:
    frame = pl.read_csv("d.csv", infer_schema=False)
    cells = frame[column].to_list()
    cells[row] = None if value is None else str(value)
    frame.with_columns(pl.Series(column, cells, pl.String)).write_csv("d.csv")


def test_privatize_writes_a_table_a_certificate_and_a_ledger(run):
    more = "--prior-columns p0..p2 --certificate cert.json --ledger ledger.json --id-column id"
    code, out, err = run(f"{BASE} {more}")
    assert (code, err) == (0, "")
    assert "pure 1-LabelDP" in out
    private = pl.read_parquet("out.parquet")
    assert "y" not in private.columns
    assert {"y_private", "y_k", "y_keep"} <= set(private.columns)
    assert private["id"].to_list() == list(range(40))
    assert Certificate.load("cert.json") == Certificate.load("out.parquet")
    assert json.loads(Path("ledger.json").read_text())["epsilon"] == 1.0
    code, _, err = run(BASE.replace("out.", "again.") + " --ledger ledger.json --id-column id")
    assert code == 2
    assert "40 of 40 records were randomised before and have spent up to epsilon 1" in err
    assert "hint: pass --compose" in err
    more = "--ledger ledger.json --id-column id --compose --json"
    code, out, _ = run(BASE.replace("out.", "again."), *more.split())
    assert code == 0
    assert json.loads(Path("ledger.json").read_text())["epsilon"] == 2.0


def test_json_is_one_object_that_is_the_certificate(run):
    code, out, err = run(f"{BASE} --json --seed 3")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert content == Certificate.load("out.parquet").to_dict()
    assert content["guarantee"] == "seeded: not private"


def test_clusters_spend_their_part(run):
    more = "--cluster-features x,income --clusters 3 --prior-epsilon 0.25"
    code, out, err = run(f"{BASE} {more}")
    assert code == 0
    assert "epsilon 0.25: histogram prior" in out
    assert "epsilon 0.75: rr-with-prior" in out
    assert "warning: 3 of 3 clusters hold fewer than" in err


def test_a_group_budget_is_divided_and_says_so(run):
    code, out, _ = run(f"{BASE} --group-column user")
    assert code == 0
    assert "pure 1-LabelDP (all labels of one user replaced)" in out
    assert "epsilon 0.5: randomized-response" in out
    assert "at most 2" in out


def test_classes_come_from_a_public_file_or_with_a_warning_from_the_labels(run):
    Path("classes.txt").write_text("a\nb\nc\n")
    line = BASE.replace(" --classes a,b,c", "")
    code, _, err = run(line)
    assert code == 2
    assert "the classes are not declared" in err
    assert run(f"{line} --classes-from-public classes.txt")[0] == 0
    code, _, err = run(line.replace("out.", "leak.") + " --accept-class-leak")
    assert code == 0
    assert "warning: the classes were taken from the private labels" in err
    assert Certificate.load("leak.parquet").num_classes == 3


def test_missing_labels_follow_the_option(run):
    edit(5, "y", None)
    code, _, err = run(BASE)
    assert code == 2
    assert "d.csv:7: column y: the label is missing" in err
    assert run(f"{BASE} --missing drop")[0] == 0
    assert pl.read_parquet("out.parquet").height == 39
    assert run(BASE.replace("out.", "class.") + " --missing class")[0] == 0
    assert Certificate.load("class.parquet").num_classes == 4


def test_numbers_are_privatized(run):
    line = "regress-privatize --input d.csv --label income --range 0,100 --epsilon 2"
    code, out, _ = run(f"{line} --prior-epsilon 0.5 --output out.csv")
    assert code == 0
    assert "epsilon 0.5: histogram prior" in out
    assert "epsilon 1.5: rr-on-bins" in out
    private = pl.read_csv("out.csv")
    assert "income" not in private.columns
    assert private["income_private"].is_between(0, 100).all()
    pl.DataFrame({"value": [10.0, 90.0], "probability": [0.5, 0.5]}).write_csv("public.csv")
    code, out, _ = run(f"{line} --prior public.csv --loss absolute --output two.csv --json")
    assert code == 0
    assert set(pl.read_csv("two.csv")["income_private"]) <= {10.0, 90.0}


def test_a_plan_spends_nothing_and_finds_an_epsilon(run):
    line = "plan --prior prior.parquet --epsilon 0.1,0.5,1,2 --target-accuracy 0.9"
    code, out, _ = run(f"{line} --json")
    assert code == 0
    found = json.loads(out)
    accuracies = [row["expected_accuracy"] for row in found["plan"]]
    assert accuracies == sorted(accuracies)
    assert all(row["gain"] >= 0 for row in found["plan"])
    reached = run(f"plan --prior prior.parquet --epsilon {found['epsilon for target']} --json")[1]
    assert json.loads(reached)["plan"][0]["expected_accuracy"] == pytest.approx(0.9, abs=1e-4)
    assert "expected accuracy" in run(line)[1]


def test_verify_checks_certificates_and_mechanisms(run):
    run(f"{BASE} --certificate cert.json")
    assert run("verify --certificate cert.json")[0] == 0
    text = Path("cert.json").read_text()
    Path("cert.json").write_text(text.replace('"epsilon": 1.0', '"epsilon": 0.5'))
    code, out, err = run("verify --certificate cert.json")
    assert (code, out) == (2, "")
    assert "error: cert.json: the certificate was edited" in err
    for mechanism in ("rr-with-prior", "rr-top-k", "randomized-response", "rr-on-bins"):
        line = f"verify --mechanism {mechanism} --classes 8 --epsilon 1 --trials 20 --json"
        code, out, _ = run(line)
        found = json.loads(out)
        assert code == 0
        assert (found["held"], found["holds"]) == (20, True)
        assert found["largest_ratio"] <= np.e * (1 + 1e-15)


def test_an_audit_finds_most_of_the_epsilon_and_no_more(run):
    code, out, _ = run("audit --classes 2 --epsilon 1 --trials 40000 --json")
    found = json.loads(out)
    assert code == 0
    assert 0.9 < found["epsilon_lower_bound"] <= 1
    code, out, _ = run("audit --classes 4 --epsilon 1 --trials 4000 --prior 0.4,0.3,0.2,0.1")
    assert (code, "not refuted" in out) == (0, True)


# -------------------------------------------------------------------------------- faults


def other_label_column() -> None:
    pl.read_csv("d.csv").rename({"y": "yy"}).write_csv("d.csv")


def empty_file() -> None:
    Path("d.csv").write_text("")


def header_only() -> None:
    Path("d.csv").write_text(Path("d.csv").read_text().splitlines()[0] + "\n")


def prior_row_off() -> None:
    edit(3, "p0", 1.5)


def repeated_id() -> None:
    edit(3, "id", 2)


def short_prior() -> None:
    pl.read_parquet("prior.parquet")[:30].write_parquet("prior.parquet")


def narrow_prior() -> None:
    pl.read_parquet("prior.parquet").drop("p2").write_parquet("prior.parquet")


def taken_output() -> None:
    Path("out.parquet").write_text("mine")


def taken_certificate() -> None:
    Path("cert.json").write_text("mine")


def secret_label() -> None:
    edit(7, "y", SECRET)


def secret_income() -> None:
    edit(7, "income", SECRET)


def missing_feature() -> None:
    edit(4, "x", None)


def nothing() -> None:
    pass


def bad_ledger() -> None:
    Path("ledger.json").write_text("{}")


CLUSTERS = "--clusters 2 --prior-epsilon 0.1"
INCOME = "regress-privatize --input d.csv --label income --epsilon 1 --output out.parquet"
FAULTS = [
    (nothing, BASE.replace("d.csv", "no.csv"), "no.csv: No such file"),
    (empty_file, BASE, "d.csv is empty"),
    (header_only, BASE, "d.csv: no rows"),
    (other_label_column, BASE, "d.csv: no column y; it has id, user, x, yy"),
    (secret_label, BASE, "d.csv:9: column y: the label is none of the 3 declared classes"),
    (secret_label, f"{BASE} --id-column id", "d.csv:9: column y: the label is none of"),
    (secret_income, f"{INCOME} --range 0,100", "d.csv:9: column income: the label is no number"),
    (nothing, f"{INCOME} --range 0,50", "column income: the label is no number from 0 to 50"),
    (nothing, f"{INCOME} --range 50,0", "must be finite and ascending"),
    (nothing, f"{INCOME} --range 5", "--range 5 must be LOW,HIGH"),
    (nothing, f"{INCOME} --range 0,100 --loss cubic", "--loss cubic is unknown"),
    (nothing, BASE.replace("--epsilon 1", "--epsilon -1"), "epsilon is -1.0; it must be 0 or more"),
    (nothing, BASE.replace("--epsilon 1", "--epsilon nan"), "epsilon is nan"),
    (nothing, BASE.replace("--epsilon 1 ", ""), "give either an epsilon or a column"),
    (nothing, BASE.replace("a,b,c", "a"), "1 class declared; there must be two or more"),
    (nothing, BASE.replace("a,b,c", "a,b,a"), "class a is declared twice"),
    (nothing, f"{BASE} --prior-columns p0,y,p2", "column y is the label itself"),
    (nothing, f"{BASE} --cluster-features x,y {CLUSTERS}", "column y is the label itself"),
    (nothing, f"{BASE} --group-column y", "column y is the label itself"),
    (nothing, f"{BASE} --prior-columns p0,p9,p2", "no column p9; it has id"),
    (nothing, f"{BASE} --prior-columns p0,p1", "the prior has 2 columns, but there are 3 classes"),
    (narrow_prior, f"{BASE} --prior prior.parquet", "the prior has 2 columns"),
    (short_prior, f"{BASE} --prior prior.parquet", "prior.parquet: the prior has 30 rows"),
    (prior_row_off, f"{BASE} --prior-columns p0..p2", "prior row 3 sums to"),
    (nothing, f"{BASE} --prior-columns x,p1,p2", "prior row 0 "),
    (missing_feature, f"{BASE} --cluster-features x {CLUSTERS}", "row 4, column x: the feature"),
    (secret_label, f"{BASE} --cluster-features x {CLUSTERS}", "d.csv:9: column y: the label is"),
    (nothing, f"{BASE} --cluster-features x --clusters 99 --prior-epsilon 0.1", "clusters is 99"),
    (nothing, f"{BASE} --cluster-features x --clusters 2 --prior-epsilon 2", "spends 2 of epsilon"),
    (nothing, f"{BASE} --cluster-features x --clusters 2", "clusters need --prior-epsilon"),
    (
        repeated_id,
        f"{BASE} --id-column id",
        "d.csv:5: column id: this row is the same record",
    ),
    (taken_output, BASE, "out.parquet exists; name another file"),
    (taken_certificate, f"{BASE} --certificate cert.json", "cert.json exists"),
    (nothing, BASE.replace("out.parquet", "out.pdf"), "out.pdf: cannot write .pdf"),
    (nothing, BASE.replace("out.parquet", "no/out.parquet"), "no: no such folder"),
    (bad_ledger, f"{BASE} --ledger ledger.json", "ledger.json: not a label-dp ledger"),
    (nothing, f"{BASE} --compose", "--compose adds up in a ledger"),
    (nothing, BASE.replace("d.csv", "-"), "stdin cannot be read twice"),
    (nothing, f"{BASE} --missing ignore", "--missing ignore is unknown"),
    (nothing, f"{BASE} --epsilon-column x", "give either an epsilon or a column"),
    (nothing, BASE.replace("--epsilon 1", "--epsilon-column y"), "column y is the label itself"),
    (nothing, BASE.replace("--epsilon 1", "--epsilon-column x"), "column x: epsilon must be 0"),
]


@pytest.mark.parametrize(("prepare", "line", "message"), FAULTS, ids=[m[2] for m in FAULTS])
def test_a_fault_is_one_line_and_leaves_nothing(run, folder, prepare, line, message):
    prepare()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    labels = set(pl.read_csv("d.csv")["income"].cast(pl.String)) if "income" in line else set()
    code, out, err = run(line)
    assert (code, out) == (2, "")
    first, *rest = err.strip().splitlines()
    assert first.startswith("error: ")
    assert message in first
    assert not rest or (len(rest) == 1 and rest[0].startswith("hint: "))
    assert SECRET not in err
    assert not any(value in err for value in labels)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_clustering_text_names_the_column(run):
    pl.read_csv("d.csv").with_columns(name=pl.lit("n")).write_csv("d.csv")
    code, _, err = run(f"{BASE} --cluster-features name {CLUSTERS}")
    assert code == 2
    assert "column name is String; clustering needs numbers" in err


def test_a_folder_that_cannot_be_written_is_one_line(run, folder):
    closed = folder / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):  # root may write anywhere but where there is no folder to be
        closed.rmdir()
        closed.write_text("a file")
    code, _, err = run(BASE.replace("out.parquet", "closed/out.parquet"))
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("error: ")


def test_help_and_privatize_never_import_jax():
    script = (
        "import sys\n"
        "from chapbook.label_dp.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    try:\n"
        "        main(line.split())\n"
        "    except SystemExit as left:\n"
        "        assert left.code == 0, line\n"
        "    heavy = {'jax', 'equinox', 'orbax', 'sklearn', 'scipy'} & set(sys.modules)\n"
        "    assert not heavy, (line, heavy)\n"
    )
    lines = ["--help", "privatize --help", f"{BASE} --prior-columns p0..p2 --ledger l.json --quiet"]
    done = subprocess.run([sys.executable, "-c", script, *lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
