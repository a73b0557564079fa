"""The privatiser: what comes out, in bounded memory, and never a label drawn twice."""

import errno
import json
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats

from chapbook.core.errors import Error, TableError
from chapbook.core.tables import read_table
from chapbook.label_dp import release as release_module
from chapbook.label_dp.bins import Loss, RROnBins
from chapbook.label_dp.certificate import Certificate
from chapbook.label_dp.classes import Classes
from chapbook.label_dp.drawn import DrawnLabels
from chapbook.label_dp.labellers import ClassLabeller
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.numbers import NumberLabeller
from chapbook.label_dp.priors import fit_clusters
from chapbook.label_dp.privatize import privatize_frame, privatize_rows, privatize_table
from chapbook.label_dp.randomized_response import RRWithPrior
from chapbook.label_dp.request import Request, share
from chapbook.label_dp.sources import ClusterPrior, ColumnsPrior, FilePrior, MatrixPrior


def table(rows: int = 300, seed: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    prior = random.dirichlet(np.ones(3), rows)
    return pl.DataFrame(
        {
            "id": np.arange(rows) + 1000,
            "user": random.integers(0, rows // 3, rows),
            "x": random.normal(size=rows),
            "label": random.choice(["ham", "spam", "eggs"], rows),
            "p0": prior[:, 0],
            "p1": prior[:, 1],
            "p2": prior[:, 2],
        }
    )


CLASSES = ("ham", "spam", "eggs")
PRIOR = ("p0", "p1", "p2")


def request(**changes) -> Request:
    fields = {"label": "label", "epsilon": 1.0, "prior": ColumnsPrior(PRIOR), "seed": 1} | changes
    classes = fields.pop("classes", None) or Classes(CLASSES)
    return Request(labeller=ClassLabeller(classes, fields["prior"] is not None), **fields)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(release_module, "_BLOCK_ROWS", 64)


# ------------------------------------------------------------------------------- frames


def test_one_call_returns_private_labels_for_a_frame():
    frame = table()
    for given in (frame, pd.DataFrame(frame.to_dict(as_series=False))):
        private = privatize_frame(given, "label", classes=CLASSES, epsilon=1.0, prior=PRIOR, seed=1)
        assert private.frame.drop("label_private", "label_k", "label_keep").equals(
            frame.drop("label")
        )
        assert "label" not in private.frame.columns
        assert set(private.frame["label_private"]) <= set(CLASSES)
        assert private.certificate.epsilon == 1.0
        assert private.certificate.verification["holds"]


def test_the_answers_are_those_of_the_mechanism():
    frame = table()
    private = privatize_frame(frame, "label", classes=CLASSES, epsilon=1.0, prior=PRIOR)
    prior = frame.select(PRIOR).to_numpy()
    mechanism = RRWithPrior(3, 1.0)
    k = mechanism.choose_k(prior)
    np.testing.assert_array_equal(private.frame["label_k"], k)
    keep = 1 / (1 + (k - 1) * np.exp(-1.0))
    np.testing.assert_allclose(private.frame["label_keep"], keep, rtol=1e-12)
    answers = np.array([CLASSES.index(name) for name in private.frame["label_private"]])
    assert mechanism.support(prior)[np.arange(len(answers)), answers].all()


def test_the_answers_follow_the_transition_matrix():
    rows, prior = 30_000, np.array([[0.5, 0.3, 0.15, 0.05]])
    matrix = RRWithPrior(4, 1.0).transition_matrix(prior[0])
    for label in (0, 3):
        frame = pl.DataFrame({"y": np.full(rows, label)})
        private = privatize_frame(frame, "y", classes=range(4), epsilon=1.0, prior=prior, seed=4)
        counts = np.bincount(private.frame["y_private"], minlength=4)
        possible = matrix[label] > 0
        assert counts[~possible].sum() == 0
        expected = rows * matrix[label][possible]
        assert stats.chisquare(counts[possible], expected).pvalue > 1e-3


def test_a_seed_repeats_the_labels_and_no_seed_never_does():
    frame = table()
    seeded = [privatize_rows(frame, request()).frame for _ in range(2)]
    assert seeded[0].equals(seeded[1])
    unseeded = [privatize_rows(frame, request(seed=None, epsilon=0.1)) for _ in range(2)]
    assert not unseeded[0].frame.equals(unseeded[1].frame)
    assert unseeded[0].certificate.private
    assert not privatize_rows(frame, request()).certificate.private


def test_number_classes_come_back_as_numbers_in_any_disguise():
    for labels in (["1", "3", "5"], [1, 3, 5], [1.0, 3.0, 5.0]):
        frame = pl.DataFrame({"x": [0, 0, 0], "y": labels})
        private = privatize_frame(frame, "y", classes=[5, 1, 3], epsilon=np.inf)
        assert private.frame["y_private"].to_list() == [1, 3, 5]
        assert private.frame["y_private"].dtype == pl.Int64


def test_codes_with_leading_zeros_stay_text():
    frame = pl.DataFrame({"y": ["01", "02"]})
    private = privatize_frame(frame, "y", classes=["01", "02"], epsilon=np.inf)
    assert private.frame["y_private"].to_list() == ["01", "02"]


def test_missing_labels_are_refused_dropped_or_a_class():
    frame = pl.DataFrame({"x": [1, 2, 3], "y": ["a", None, ""]})
    with pytest.raises(TableError, match="row 1: column y: the label is missing") as caught:
        privatize_frame(frame, "y", classes="ab", epsilon=1.0)
    assert (caught.value.row, caught.value.column) == (1, "y")
    dropped = privatize_frame(frame, "y", classes="ab", epsilon=1.0, missing="drop")
    assert dropped.frame["x"].to_list() == [1]
    assert "which these were is not protected" in dropped.certificate.warnings[0]
    kept = privatize_frame(frame, "y", classes="ab", epsilon=np.inf, missing="class")
    assert kept.frame["y_private"].to_list() == ["a", None, None]
    assert kept.certificate.num_classes == 3


def test_each_record_may_have_its_own_epsilon():
    frame = table().with_columns(e=pl.Series(np.resize([0.0, 0.5, 2.0], 300)))
    private = privatize_rows(frame, request(epsilon=None, epsilon_column="e", prior=None))
    keep = private.frame["label_keep"].to_numpy()
    np.testing.assert_allclose(keep, 1 / (1 + 2 * np.exp(-frame["e"].to_numpy())))
    assert private.certificate.epsilon == 2.0
    assert private.certificate.epsilon_histogram == {"0": 100, "0.5": 100, "2": 100}
    odd = frame.with_columns(e=pl.Series(np.linspace(0.01, 3, 300)))
    private = privatize_rows(odd, request(epsilon=None, epsilon_column="e", prior=None))
    spent = -np.log((1 / private.frame["label_keep"].to_numpy() - 1) / 2)
    asked = odd["e"].to_numpy()
    assert ((spent <= asked + 1e-12) & (spent >= asked * (1 - 2**-11) - 1e-12)).all()
    with pytest.raises(TableError, match="row 2: column e: epsilon must be 0 or more"):
        bad = frame.with_columns(e=pl.Series(np.resize([0.0, 0.5, np.nan], 300)))
        privatize_rows(bad, request(epsilon=None, epsilon_column="e", prior=None))


def test_a_group_shares_one_budget():
    frame = pl.DataFrame({"user": [1, 1, 1, 2], "y": ["a", "b", "a", "b"]})
    private = privatize_frame(frame, "y", classes="ab", epsilon=1.5, group_column="user")
    np.testing.assert_allclose(private.frame["y_keep"], 1 / (1 + np.exp(-0.5)))
    made = private.certificate
    assert made.group == {"column": "user", "largest": 3, "epsilon per record": 0.5}
    assert (made.epsilon, made.spends[0].epsilon) == (1.5, 0.5)
    assert made.to_dict()["adjacency"] == "all labels of one user replaced"


@pytest.mark.parametrize(
    ("epsilon", "parts", "spent"), [(1.0, 3, 0.0), (1.0, 1, 0.05), (0.1, 7, 0.01)]
)
def test_shares_never_exceed_the_budget(epsilon, parts, spent):
    each = share(epsilon, parts, spent)
    assert parts * (Fraction(each) + Fraction(spent)) <= Fraction(epsilon)
    assert each == pytest.approx(epsilon / parts - spent, rel=1e-15)


def test_the_cluster_prior_takes_its_part_of_the_budget():
    frame = table(2000)
    ledger = PrivacyLedger()
    prior = ClusterPrior(("x",), 4, 0.2)
    private = privatize_rows(frame, request(prior=prior, id_columns=("id",)), ledger=ledger)
    spends = private.certificate.spends
    assert [s.mechanism for s in spends] == ["histogram prior", "rr-with-prior"]
    assert sum(s.epsilon for s in spends) == pytest.approx(1.0, abs=1e-15)
    assert ledger.epsilon == private.certificate.epsilon == 1.0
    with pytest.raises(Error, match=r"the prior alone spends 1\.5 of epsilon 1"):
        privatize_rows(frame, request(prior=ClusterPrior(("x",), 4, 1.5)))


def test_a_good_cluster_prior_keeps_more_labels_than_none():
    random = np.random.default_rng(0)
    x = random.integers(0, 4, 4000)
    frame = pl.DataFrame({"x": x.astype(float), "y": x})
    prior = ClusterPrior(("x",), 4, 0.05)
    right = []
    for given in (prior, None):
        private = privatize_frame(frame, "y", classes=range(4), epsilon=0.5, prior=given, seed=2)
        right.append(np.mean(private.frame["y_private"].to_numpy() == x))
    assert right[0] > 0.95
    assert right[1] < 0.5


def test_small_clusters_are_a_warning_in_the_certificate():
    private = privatize_rows(table(), request(prior=ClusterPrior(("x",), 10, 0.05)))
    assert "10 of 10 clusters hold fewer than 566 records" in private.certificate.warnings[0]


def test_numbers_are_answered_by_the_best_bins():
    random = np.random.default_rng(1)
    frame = pl.DataFrame({"income": random.beta(2, 5, 3000) * 100})
    labeller = NumberLabeller(0, 100, Loss.SQUARED, 32)
    prior = ClusterPrior((), 1, 2.0)
    asked = Request(label="income", labeller=labeller, epsilon=4.0, prior=prior, seed=3)
    private = privatize_rows(frame, asked)
    made = private.certificate
    answers = made.details["answers"]
    assert set(private.frame["income_private"]) <= set(answers)
    assert private.frame.columns == ["income_private"]
    assert [s.epsilon for s in made.spends] == [2.0, 2.0]
    assert made.verification["holds"]
    noise = np.mean((private.frame["income_private"] - frame["income"]).to_numpy() ** 2)
    assert noise == pytest.approx(made.details["expected loss under the prior"], rel=0.2)


def test_public_atoms_give_the_mechanism_of_the_library():
    atoms, weights = np.array([1.0, 2.0, 5.0]), np.array([0.2, 0.5, 0.3])
    labeller = NumberLabeller(0, 5, Loss.ABSOLUTE, 16, atoms, weights)
    frame = pl.DataFrame({"y": [1.0, 5.0, 2.0]})
    private = privatize_rows(frame, Request(label="y", labeller=labeller, epsilon=1.0))
    expected = RROnBins.fit(atoms, weights, 1.0, Loss.ABSOLUTE)
    assert private.certificate.details["answers"] == expected.outputs.tolist()
    with pytest.raises(TableError, match="row 1: column y: the label is no number from 0 to 5"):
        privatize_rows(
            pl.DataFrame({"y": [1.0, 7.5]}), Request(label="y", labeller=labeller, epsilon=1.0)
        )


# ------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_every_format_gives_what_the_frame_gives(tmp_path, small_blocks, suffix):
    frame = table()
    source, output = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    write = {"csv": "write_csv", "parquet": "write_parquet", "jsonl": "write_ndjson"}[suffix]
    getattr(frame, write)(source)
    made = privatize_table(source, output, request(), certificate=tmp_path / "cert.json")
    expected = privatize_rows(frame, request())
    read = read_table(output).cast({"label_k": pl.Int32})
    assert read.equals(expected.frame)
    assert Certificate.load(tmp_path / "cert.json") == made
    assert made.spends == expected.certificate.spends
    if suffix == "parquet":
        assert Certificate.load(output) == made
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(["cert.json", f"in.{suffix}", f"out.{suffix}"])


def test_a_prior_file_is_read_beside_the_table(tmp_path, small_blocks):
    frame = table()
    frame.drop(PRIOR).write_parquet(tmp_path / "in.parquet")
    frame.select(PRIOR).write_csv(tmp_path / "prior.csv")
    asked = request(prior=FilePrior(tmp_path / "prior.csv"))
    privatize_table(tmp_path / "in.parquet", tmp_path / "out.parquet", asked)
    expected = privatize_rows(frame, request()).frame.drop(PRIOR)
    assert pl.read_parquet(tmp_path / "out.parquet").equals(expected)
    one = request(prior=FilePrior(tmp_path / "one.csv"))
    frame.select(PRIOR)[:1].write_csv(tmp_path / "one.csv")
    privatize_table(tmp_path / "in.parquet", tmp_path / "one.parquet", one)
    same = request(prior=MatrixPrior(frame.select(PRIOR)[:1].to_numpy()))
    expected = privatize_rows(frame.drop(PRIOR), same).frame
    assert pl.read_parquet(tmp_path / "one.parquet").equals(expected)


def test_many_files_are_one_table(tmp_path, small_blocks):
    frame = table()
    for number in range(3):
        part = frame[number * 100 : number * 100 + 100]
        part.write_csv(tmp_path / f"part-{number}.v2.csv")
    privatize_table(tmp_path / "part-*.v2.csv", tmp_path / "out.parquet", request())
    expected = privatize_rows(frame, request()).frame
    assert pl.read_parquet(tmp_path / "out.parquet").equals(expected)


@pytest.mark.parametrize("rows", [299, 301, 63, 64, 128])
def test_a_prior_file_of_another_length_is_refused(tmp_path, small_blocks, rows):
    frame = table()
    frame.write_parquet(tmp_path / "in.parquet")
    table(rows).select(PRIOR).write_parquet(tmp_path / "prior.parquet")
    asked = request(prior=FilePrior(tmp_path / "prior.parquet"))
    with pytest.raises(Error, match=r"prior\.parquet: the prior has"):
        privatize_table(tmp_path / "in.parquet", tmp_path / "out.parquet", asked)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.parquet", "prior.parquet"]


def test_a_ledger_refuses_records_that_come_again(tmp_path, small_blocks):
    table().write_parquet(tmp_path / "in.parquet")
    table()[250:].write_parquet(tmp_path / "late.parquet")
    ledger = PrivacyLedger(tmp_path / "ledger.json")
    asked = request(id_columns=("id",))
    privatize_table(tmp_path / "in.parquet", tmp_path / "a.parquet", asked, ledger=ledger)
    with pytest.raises(Error, match=r"50 of 50 records .* spent up to epsilon 1;"):
        privatize_table(tmp_path / "late.parquet", tmp_path / "b.parquet", asked, ledger=ledger)
    assert not (tmp_path / "b.parquet").exists()
    assert not (tmp_path / "b.parquet.drawn").exists()
    assert ledger.epsilon == 1.0
    late = tmp_path / "late.parquet"
    privatize_table(late, tmp_path / "b.parquet", asked, ledger=ledger, compose=True)
    assert ledger.epsilon == 2.0


def test_without_ids_records_are_known_by_their_public_columns(tmp_path):
    frame = table()
    ledger = PrivacyLedger()
    privatize_rows(frame, request(), ledger=ledger)
    # Another label, another prior, another order: the same records.
    again = frame.with_columns(label=pl.lit("ham"), p0=1.0, p1=0.0, p2=0.0)[::-1]
    with pytest.raises(Error, match="300 of 300 records"):
        privatize_rows(again, request(), ledger=ledger)
    privatize_rows(frame.with_columns(x=pl.col("x") + 1), request(), ledger=ledger)


@pytest.mark.parametrize(("label", "says"), [("ham", ""), ("spam", " and different labels")])
def test_a_record_that_stands_twice_is_refused_before_any_draw(small_blocks, label, says):
    frame = table().with_columns(label=pl.lit("ham"))
    twin = frame[3:4].with_columns(label=pl.lit(label))
    expected = f"row 300: column id: this row is the same record as row 3{says};"
    with pytest.raises(Error, match=expected):
        privatize_rows(pl.concat([frame, twin]), request(id_columns=("id",)))


def test_a_table_that_changes_between_the_passes_is_noticed(tmp_path, monkeypatch):
    source = tmp_path / "in.csv"
    table().write_csv(source)

    def fit_and_append(*args, **kwargs):
        with source.open("a") as file:
            file.write(source.read_text().splitlines()[-1] + "\n")
        return fit_clusters(*args, **kwargs)

    monkeypatch.setattr("chapbook.label_dp.release.fit_clusters", fit_and_append)
    with pytest.raises(Error, match="300 rows in the first pass, 301 in the next"):
        asked = request(prior=ClusterPrior(("x",), 1, 0.1))
        privatize_table(source, tmp_path / "out.parquet", asked)
    assert [p.name for p in tmp_path.iterdir()] == ["in.csv"]


def test_a_full_disk_loses_nothing_and_draws_nothing_twice(tmp_path, monkeypatch, small_blocks):
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table().write_parquet(source)
    ledger = PrivacyLedger(tmp_path / "ledger.json")
    asked = request(seed=None, epsilon=0.1)
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(output))
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            privatize_table(source, output, asked, ledger=ledger)
    assert not output.exists()
    drawn = DrawnLabels(tmp_path / "out.parquet.drawn")
    held = blocks_of(drawn)
    assert held
    privatize_table(source, output, asked, ledger=ledger)
    assert_released(pl.read_parquet(output), held)
    assert ledger.epsilon == 0.1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_file_system_without_space_is_one_error(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine mounts no tmpfs")
    try:
        table(6000).write_parquet(tmp_path / "in.parquet")
        with pytest.raises(OSError, match="No space left") as caught:
            privatize_table(tmp_path / "in.parquet", small / "out.parquet", request())
        assert caught.value.errno == errno.ENOSPC
        assert not (small / "out.parquet").exists()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)  # the error may hold a file


def test_a_run_begun_with_other_options_is_refused(tmp_path, small_blocks, monkeypatch):
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table().write_parquet(source)
    with monkeypatch.context() as patch:
        patch.setattr("chapbook.label_dp.privatize.publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            privatize_table(source, output, request())
    with pytest.raises(Error, match=r"drawn for another plan: epsilon='1.0' now '2.0'"):
        privatize_table(source, output, request(epsilon=2.0))
    assert (tmp_path / "out.parquet.drawn").exists()
    privatize_table(source, output, request())
    assert output.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_million_rows_need_less_than_300_megabytes(tmp_path):
    random = np.random.default_rng(0)
    size = 1_000_000
    pl.DataFrame({"id": np.arange(size), "label": random.integers(0, 10, size)}).write_csv(
        tmp_path / "in.csv"
    )
    script = (
        "import sys\n"
        "from chapbook.label_dp.classes import Classes\n"
        "from chapbook.label_dp.labellers import ClassLabeller\n"
        "from chapbook.label_dp.privatize import privatize_table\n"
        "from chapbook.label_dp.request import Request\n"
        "asked = Request(label='label', labeller=ClassLabeller(Classes(range(10)), False),"
        " epsilon=1.0)\n"
        "made = privatize_table(sys.argv[1], sys.argv[2], asked)\n"
        # getrusage would count the memory of the process that started this one.
        "peak = open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]\n"
        "print(made.details['rows'], peak)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "in.csv"), str(tmp_path / "o.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == size
    assert kilobytes < 300_000


# ------------------------------------------------------------------------------- kills

# One process imports everything and then runs each attempt in a fork of itself, which kills itself
# at its n-th durable step, or is killed from outside after some milliseconds.
ATTEMPTS = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path

from chapbook.label_dp import drawn, release
from chapbook.label_dp.certificate import Certificate
from chapbook.label_dp.classes import Classes
from chapbook.label_dp.labellers import ClassLabeller
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.privatize import privatize_table
from chapbook.label_dp.request import Request
from chapbook.label_dp.sources import ClusterPrior

assert "jax" not in sys.modules
release._BLOCK_ROWS = 64
folder = Path(sys.argv[1])
asked = Request(
    label="label",
    labeller=ClassLabeller(Classes(["ham", "spam", "eggs"]), True),
    epsilon=0.1,
    prior=ClusterPrior(("x",), 1, 0.05),
    id_columns=("id",),
)


def attempt(case, step=None, after=None):
    child = os.fork()
    if child == 0:
        if step is not None:
            count = 0
            for name in ("fsync", "link", "unlink", "rename", "replace"):
                real = getattr(os, name)

                def counting(*args, _real=real, **kwargs):
                    nonlocal count
                    count += 1
                    if count == step:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return _real(*args, **kwargs)

                setattr(os, name, counting)
        ledger = PrivacyLedger(case / "ledger.json")
        privatize_table(
            folder / "in.parquet",
            case / "out.parquet",
            asked,
            certificate=case / "cert.json",
            ledger=ledger,
            workers=1,
        )
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def keep_what_is_drawn(case):
    number = len(list(case.glob("seen-*")))
    held = case / "out.parquet.drawn"
    if held.exists():
        shutil.copytree(held, case / f"seen-{number}")
    elif (case / "out.parquet").exists():
        shutil.copy(case / "out.parquet", case / "seen-output")


chance = random.Random(0)
kills = {"step": 0, "time": 0}
started = time.monotonic()
whole = folder / "whole"
whole.mkdir()
assert attempt(whole) == 0
unbroken = time.monotonic() - started

step = 1
while True:
    case = folder / f"step-{step}"
    case.mkdir()
    if attempt(case, step=step) == 0:
        break
    kills["step"] += 1
    keep_what_is_drawn(case)
    if not (case / "cert.json").exists() or (case / "out.parquet.drawn").exists():
        assert attempt(case) == 0
    step += int(sys.argv[2])

tries = 0
while kills["time"] < 20:
    tries += 1
    case = folder / f"time-{tries}"
    case.mkdir()
    while attempt(case, after=chance.uniform(0, unbroken)) != 0:
        kills["time"] += 1
        keep_what_is_drawn(case)
        if (case / "cert.json").exists() and not (case / "out.parquet.drawn").exists():
            break
print(json.dumps(kills))
"""


def blocks_of(drawn: DrawnLabels) -> dict:
    return {part: drawn.get(part) for part in drawn.parts() if part.isdigit()}


def assert_released(frame: pl.DataFrame, held: dict) -> None:
    """Asserts that the labels of a released table are those that were drawn in parts of 64 rows."""
    answers = frame["label_private"].replace_strict(dict(zip(CLASSES, range(3), strict=True)))
    for part, arrays in held.items():
        rows = slice(int(part) * 64, int(part) * 64 + len(arrays["label"]))
        np.testing.assert_array_equal(answers[rows].to_numpy(), arrays["label"])


@pytest.mark.parametrize("stride", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_no_kill_at_any_point_draws_a_label_twice(tmp_path, stride):
    table(192).drop(PRIOR).write_parquet(tmp_path / "in.parquet")
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, str(tmp_path), str(stride)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert kills["time"] >= 20
    assert kills["step"] >= 10
    certificate = Certificate.load(tmp_path / "whole" / "cert.json")
    seen_labels = 0
    for case in [*tmp_path.glob("step-*"), *tmp_path.glob("time-*")]:
        output = pl.read_parquet(case / "out.parquet")
        prior = None
        for seen in case.glob("seen-[0-9]*"):
            drawn = DrawnLabels(seen)
            held = blocks_of(drawn)
            assert_released(output, held)
            seen_labels += sum(len(arrays["label"]) for arrays in held.values())
            counts = (drawn.get("prior") or {}).get("counts")
            if counts is not None:
                assert prior is None or (prior == counts).all()
                prior = counts
        if (case / "seen-output").exists():
            assert output.equals(pl.read_parquet(case / "seen-output"))
        assert PrivacyLedger(case / "ledger.json").epsilon == 0.1
        made = Certificate.load(case / "cert.json")
        assert made.spends == certificate.spends
        assert Certificate.load(case / "out.parquet") == made
        assert not (case / "out.parquet.drawn").exists()
    assert seen_labels > 1000
