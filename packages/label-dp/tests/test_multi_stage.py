"""LP-MST: who sees which label, what a run folder holds, and what a kill can do to it."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from chapbook.core import mesh as mesh_of
from chapbook.core.errors import Error
from chapbook.label_dp import multi_stage
from chapbook.label_dp.certificate import Certificate, Spend
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.ledger import PrivacyLedger
from chapbook.label_dp.models import MLP, Logistic
from chapbook.label_dp.multi_stage import LPMST
from chapbook.label_dp.randomized_response import RandomizedResponse, RRWithPrior
from chapbook.label_dp.trainer import ModelTrainer, Training

KEY = jax.random.key(7)
QUICK = Training(epochs=2, batch_size=32, learning_rate=0.3, save_every=2)


class Centroids:
    """A trainer of a few lines that remembers what it was shown."""

    def __init__(self, classes=3):
        self.classes, self.seen = classes, []

    def fit(self, x, soft_labels, weights=None):
        self.seen.append((np.array(x), np.array(soft_labels)))
        total = soft_labels.sum(axis=0)[:, None] + 1e-9
        self.centres = soft_labels.T @ x / total

    def predict_proba(self, x):
        scores = -((np.asarray(x)[:, None] - self.centres) ** 2).sum(axis=2)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def _blobs(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, rows).astype(np.int32)
    return (rng.normal(size=(rows, 4)) + 2 * np.eye(3, 4)[y]).astype(np.float32), y


def _method(trainer=None, **options):
    return LPMST(lambda key: trainer or Centroids(), **{"num_classes": 3, **options})


def _rows_of(x, shown):
    """Returns which rows of x a trainer was shown, in its order."""
    place = {row.tobytes(): index for index, row in enumerate(x)}
    return np.array([place[row.tobytes()] for row in shown])


def test_the_parts_are_disjoint_exhaustive_and_blind_to_the_labels():
    x, y = _blobs()
    method = _method(stages=(0.5, 0.3, 0.2), validation=0.1)
    one = method.fit(x, y, key=KEY)
    two = method.fit(x, np.zeros_like(y), key=KEY)
    rows = np.concatenate([stage.rows for stage in one.stages])
    assert [len(stage.rows) for stage in one.stages] == [135, 81, 54]
    assert len(np.unique(rows)) == len(rows) == 270
    for a, b in zip(one.stages, two.stages, strict=True):
        np.testing.assert_array_equal(a.rows, b.rows)
    other = method.fit(x, y, key=jax.random.key(8))
    assert not np.array_equal(other.stages[0].rows, one.stages[0].rows)


def test_stage_two_is_answered_among_the_top_classes_of_the_stage_one_model():
    x, y = _blobs()
    trainer = Centroids()
    trained = _method(trainer, temperature=0.5, epsilon=1.5).fit(x, y, key=KEY)
    first, second = trained.stages
    assert (first.private.k == 3).all()
    before = Centroids()
    before.fit(*trainer.seen[0])
    prior = before.predict_proba(x[second.rows]) ** 2  # the temperature is 1/2
    prior /= prior.sum(axis=1, keepdims=True)
    mechanism = RRWithPrior(3, 1.5)
    np.testing.assert_array_equal(second.private.k, mechanism.choose_k(prior))
    np.testing.assert_array_equal(second.support, mechanism.support(prior))
    assert second.support[np.arange(len(second.rows)), second.private.labels].all()
    assert trained.report["mean_k"][1] == pytest.approx(second.private.k.mean())


def test_the_filter_drops_by_the_current_model_and_forgets_what_it_dropped():
    x, y = _blobs(400)
    trainer = Centroids()
    trained = _method(trainer, stages=(0.4, 0.3, 0.3), epsilon=2.0).fit(x, y, key=KEY)
    for index in (1, 2):
        before = Centroids()
        before.fit(*trainer.seen[index - 1])
        stage, expected = trained.stages[index], []
        k = int(stage.private.k.mean())
        for earlier in trained.stages[:index]:
            order = np.argsort(-before.predict_proba(x[earlier.rows]), axis=1)[:, :k]
            kept = (order == earlier.private.labels[:, None]).any(axis=1)
            expected.append(earlier.rows[kept])
        dropped = sum(len(s.rows) for s in trained.stages[:index]) - sum(map(len, expected))
        assert dropped == trained.report["earlier_dropped"][index] > 0
        shown = _rows_of(x, trainer.seen[index][0])
        np.testing.assert_array_equal(shown, np.concatenate([*expected, stage.rows]))


@pytest.mark.parametrize(("reuse", "expected"), [(True, 300), (False, 105)])
def test_without_the_filter_earlier_parts_join_whole_or_not_at_all(reuse, expected):
    x, y = _blobs()
    trainer = Centroids()
    _method(trainer, reuse=reuse, filter=False).fit(x, y, key=KEY)
    assert len(trainer.seen[1][0]) == expected


def test_trainers_are_shown_noisy_labels_and_nothing_else():
    x, y = _blobs()
    trainer = Centroids()
    trained = _method(trainer, filter=False).fit(x, y, key=KEY)
    noisy = np.empty(300, int)
    for stage in trained.stages:
        noisy[stage.rows] = stage.private.labels
    shown = _rows_of(x, trainer.seen[1][0])
    np.testing.assert_array_equal(trainer.seen[1][1], np.eye(3)[noisy[shown]])
    assert 0.5 < (noisy == y).mean() < 0.95  # epsilon 1 keeps 0.58 of three without a prior


def test_later_stages_start_from_weights_and_statistics_with_fresh_training(monkeypatch):
    made = []

    class Recorder(ModelTrainer):
        def fit(self, x, soft_labels, weights=None, *, keep=None, support=None):
            made.append((self.model, self.statistics, self.mixup, self.key))
            self.model, self.statistics = f"model {len(made)}", (jnp.full((), float(len(made))),)
            return self

        def predict_proba(self, x):
            return np.full((len(x), 3), 1 / 3)

    monkeypatch.setattr(multi_stage, "ModelTrainer", Recorder)
    x, y = _blobs()
    LPMST(lambda key: Logistic(4, 3), stages=(0.4, 0.3, 0.3), mixup=(8, 4)).fit(x, y, key=KEY)
    assert isinstance(made[0][0], Logistic)
    assert [m[0] for m in made[1:]] == ["model 1", "model 2"]
    assert [float(m[1][0]) for m in made[1:]] == [1, 2]
    assert [m[2] for m in made] == [8, 4, 4]
    assert len({np.asarray(jax.random.key_data(m[3])).tobytes() for m in made}) == 3


def test_a_domain_prior_serves_part_one_and_is_mixed_into_the_others():
    x, y = _blobs()
    domain = np.tile([0.6, 0.4, 0.0], (300, 1))
    trainer = Centroids()
    method = _method(
        trainer, epsilon=1.0, temperature=1.0, prior_weight=0.25, prior_temperature=2.0
    )
    spends = (Spend("all", "histogram prior", 0.05, 300),)
    trained = method.fit(x, y, key=KEY, prior=domain, prior_spends=spends)
    first, second = trained.stages
    assert set(np.unique(first.private.labels)) <= {0, 1}
    before = Centroids()
    before.fit(*trainer.seen[0])
    flat = np.sqrt(domain[0]) / np.sqrt(domain[0]).sum()
    prior = 0.25 * flat + 0.75 * before.predict_proba(x[second.rows])
    np.testing.assert_array_equal(second.support, RRWithPrior(3, 1.0).support(prior))
    assert trained.certificate.epsilon == pytest.approx(1.05)
    assert [spend.part for spend in trained.certificate.spends] == ["all", "stage-1", "stage-2"]


def test_every_label_is_charged_once_and_a_second_run_is_refused():
    x, y = _blobs()
    ledger, ids = PrivacyLedger(), pl.DataFrame({"id": np.arange(300)})
    method = _method(epsilon=1.5, validation=0.2)
    trained = method.fit(x, y, key=KEY, ledger=ledger, record_ids=ids)
    certificate = trained.certificate
    assert certificate.epsilon == ledger.epsilon == 1.5
    assert {s.part: s.records for s in certificate.spends} == {
        "validation": 60, "stage-1": 156, "stage-2": 84,
    }  # fmt: skip
    assert certificate.private
    assert certificate.verification["holds"]
    assert "debiased_accuracy" in trained.report.columns
    with pytest.raises(Error, match="randomised before"):
        method.fit(x, y, key=jax.random.key(9), ledger=ledger, record_ids=ids)


def _files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _encodings(labels):
    """Yields the ways in which an array of labels could lie in a file, uncompressed."""
    for kind in (np.uint8, np.int16, np.int32, np.int64, np.float32, np.float64):
        yield labels.astype(kind).tobytes()
        yield np.eye(3, dtype=kind)[labels].tobytes()
    numbers = [str(int(label)) for label in labels]
    for join in (",", ", ", "\n", " ", ""):
        yield join.join(numbers).encode()


def test_a_run_folder_holds_no_true_label_and_no_accuracy_on_one(tmp_path):
    x, y = _blobs()
    method = LPMST(lambda key: MLP(4, 3, key, (8,)), mixup=0.0, training=QUICK, validation=0.2)
    trained = method.fit(x, y, key=KEY, run_dir=tmp_path / "run")
    files = _files(tmp_path / "run")
    parts = {name: np.load(tmp_path / f"run/drawn/{name}.npz")["rows"] for name in
             ("validation", "stage-1", "stage-2")}  # fmt: skip
    accuracies = {"all": (trained.predict_proba(x).argmax(axis=1) == y).mean()}
    for name, rows in parts.items():
        found = trained.predict_proba(x[rows]).argmax(axis=1)
        accuracies[name] = (found == y[rows]).mean()
    text = b"".join(files.values())
    for labels in (y, *(y[rows] for rows in parts.values())):
        for needle in _encodings(labels[:40]):
            assert needle not in text
    # The noisy ones are there, so that the search is one that can find.
    noisy = trained.stages[0].private.labels
    assert any(needle in text for needle in _encodings(noisy[:40]))
    numbers = []
    for path in (tmp_path / "run").rglob("*.jsonl"):
        numbers += [v for line in path.read_text().splitlines() for v in json.loads(line).values()]
    results = json.loads((tmp_path / "run/results.json").read_text())
    numbers += [value for row in results["stages"] for value in row.values()]
    for accuracy in accuracies.values():
        assert not any(isinstance(n, float) and abs(n - accuracy) < 1e-9 for n in numbers)
    assert Certificate.load(tmp_path / "run/certificate.json") == trained.certificate


def test_a_failure_in_stage_two_keeps_stage_one_and_draws_nothing_twice(tmp_path, monkeypatch):
    x, y = _blobs()
    method = LPMST(lambda key: Logistic(4, 3), mixup=0.0, training=QUICK)
    whole = method.fit(x, y, key=KEY, run_dir=tmp_path / "whole", entropy=Entropy(5))
    train = ModelTrainer.fit

    def fail(self, *arguments, **options):
        if self.run_dir.name == "stage-2":
            raise Error("the loss was not finite after step 1")
        return train(self, *arguments, **options)

    monkeypatch.setattr(ModelTrainer, "fit", fail)
    run = tmp_path / "broken"
    with pytest.raises(Error, match="not finite"):
        method.fit(x, y, key=KEY, run_dir=run, entropy=Entropy(5))
    drawn = _files(run / "drawn")
    assert {p.name for p in drawn} == {"plan.json", "charge.npz", "stage-1.npz", "stage-2.npz"}
    assert list((run / "stage-1/checkpoints").iterdir())
    monkeypatch.setattr(ModelTrainer, "fit", train)

    def refuse(*_, **__):
        raise AssertionError("a label was drawn a second time")

    monkeypatch.setattr(RandomizedResponse, "privatize", refuse)
    monkeypatch.setattr(RRWithPrior, "privatize", refuse)
    resumed = method.fit(x, y, key=KEY, run_dir=run)
    assert _files(run / "drawn") == drawn
    np.testing.assert_array_equal(resumed.model.weight, whole.model.weight)
    assert resumed.certificate == whole.certificate


KILLED = """
import os, random, signal, sys
import numpy as np
import jax
from chapbook.label_dp.entropy import Entropy
from chapbook.label_dp.models import MLP
from chapbook.label_dp.multi_stage import LPMST
from chapbook.label_dp.trainer import ModelTrainer, Training

class Centroids:
    def fit(self, x, soft, weights):
        self.centres = soft.T @ x / (soft.sum(axis=0)[:, None] + 1e-9)
    def predict_proba(self, x):
        s = -((x[:, None] - self.centres) ** 2).sum(axis=2)
        p = np.exp(s - s.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

kind, folder, kills = sys.argv[1], sys.argv[2], int(sys.argv[3])
rng = np.random.default_rng(0)
y = rng.integers(0, 3, 300).astype(np.int32)
x = (rng.normal(size=(300, 4)) + 2 * np.eye(3, 4)[y]).astype(np.float32)
training = Training(epochs=4, batch_size=32, save_every=2)
made = {"model": lambda key: MLP(4, 3, key, (8,)), "simple": lambda key: Centroids()}[kind]
method = LPMST(made, epsilon=1.0, mixup=0.0, training=training, num_classes=3,
               stages=(0.5, 0.3, 0.2), validation=0.1)

def events_of(run, until):
    # What a kill can fall between: files opened, linked, renamed and removed.
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event in ("open", "os.link", "os.rename", "os.remove", "os.mkdir"):
            if any(str(run) in str(a) for a in arguments):
                count += 1
                if count == until:
                    os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    trained = method.fit(x, y, key=jax.random.key(1), run_dir=run, entropy=Entropy(3))
    np.save(folder + "/" + os.path.basename(run) + ".npy", trained.predict_proba(x))
    return count

def child(run, until):
    pid = os.fork()  # no JAX computation has been made, so the child starts afresh
    if pid == 0:
        try:
            count = events_of(run, until)
            open(folder + "/count", "w").write(str(count))
            os._exit(0)
        except BaseException as problem:
            print(repr(problem), flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def drawn(run):
    found = {}
    for name in os.listdir(run + "/drawn") if os.path.isdir(run + "/drawn") else ():
        if name.endswith(".npz"):
            found[name] = open(run + "/drawn/" + name, "rb").read()
    return found

assert child(folder + "/whole", 0) == 0
total, run = int(open(folder + "/count").read()), folder + "/killed"
points, seen, died = random.Random(4), {}, 0
for _ in range(kills):
    if not os.path.exists(folder + "/killed.npy"):
        code = child(run, points.randint(1, max(2, total // 3)))
        assert code in (0, -signal.SIGKILL), code
        died += code != 0
    else:
        # It came through: begin again, to be killed at other points.
        os.remove(folder + "/killed.npy")
        run = run + "x"
        seen = {}
        code = child(run, points.randint(1, total))
        assert code in (0, -signal.SIGKILL), code
        died += code != 0
    now = drawn(run)
    for name, held in seen.items():
        assert now[name] == held, name + " was drawn again"
    seen = now
assert child(run, 0) == 0
for name, held in seen.items():
    assert drawn(run)[name] == held, name + " was drawn again"
print(died)
print(run)
"""


def _kill_test(kind, folder, kills):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, kind, str(folder), str(kills)],
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    died, run = done.stdout.split()[-2:]
    assert int(died) >= kills // 2
    whole, killed = folder / "whole", Path(run)
    assert (whole / "certificate.json").read_text() == (killed / "certificate.json").read_text()
    name = killed.name + ".npy"
    np.testing.assert_array_equal(np.load(folder / name), np.load(folder / "whole.npy"))
    ledger = json.loads((killed / "ledger.json").read_text())
    assert len(ledger["entries"]) == 1
    return killed


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_points_ends_alike_and_draws_nothing_twice(tmp_path, kills):
    _kill_test("simple", tmp_path, kills)


@pytest.mark.slow
def test_a_training_killed_at_twenty_points_ends_with_the_same_model(tmp_path):
    _kill_test("model", tmp_path, 20)


@pytest.mark.devices(8)
def test_a_run_on_any_mesh_agrees_with_one_device():
    x, y = _blobs()
    training = dataclasses.replace(QUICK, batch_size=32)
    method = LPMST(lambda key: MLP(4, 3, key, (8,)), mixup=(4.0, 2.0), training=training)

    def run(text, devices=None):
        mesh = mesh_of(text, devices=devices)
        return method.fit(x, y, key=KEY, entropy=Entropy(3), mesh=mesh).predict_proba(x)

    alone = run("data=1", jax.devices()[:1])
    for text in ("data=8", "data=2,model=4"):
        np.testing.assert_allclose(run(text), alone, atol=2e-5)


def test_the_width_of_the_output_gives_the_classes():
    x, y = _blobs()
    trained = LPMST(lambda key: Logistic(4, 7), mixup=0.0, training=QUICK, stages=(1.0,)).fit(
        x, y, key=KEY
    )
    assert trained.certificate.num_classes == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -1.0}, "epsilon=-1.0 must be 0 or more"),
        ({"epsilon": float("nan")}, "epsilon=nan must be"),
        ({"stages": (0.5, 0.4)}, r"stages=\(0.5, 0.4\) must be positive and sum to 1"),
        ({"stages": ()}, "stages="),
        ({"mixup": (-1.0, 2.0)}, "mixup="),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"validation": 1.0}, "validation=1.0"),
        ({"training": Training(patience=2)}, "patience needs a validation share"),
        ({"training": Training(loss="backward"), "epsilon": 0.0}, "backward loss"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(Error, match=message):
        _method(**options)


def test_wrong_data_is_named_by_row_and_never_by_label():
    x, y = _blobs(10)
    with pytest.raises(Error, match="10 labels for 9 records"):
        _method().fit(x[:9], y, key=KEY)
    with pytest.raises(Error, match=r"too few: .*stage-3"):
        _method(stages=(0.9, 0.05, 0.05)).fit(x, y, key=KEY)
    y[4] = 77
    with pytest.raises(Error, match="row 4") as caught:
        _method().fit(x, y, key=KEY)
    assert "77" not in str(caught.value)
    with pytest.raises(Error, match="num_classes must be given"):
        LPMST(lambda key: Centroids()).fit(x, y, key=KEY)
    with pytest.raises(Error, match="neither an Equinox module"):
        LPMST(lambda key: object(), num_classes=100).fit(x, y, key=KEY)


def test_a_folder_of_another_run_is_refused(tmp_path):
    x, y = _blobs()
    _method(epsilon=1.0).fit(x, y, key=KEY, run_dir=tmp_path / "run")
    with pytest.raises(Error, match="epsilon"):
        _method(epsilon=2.0).fit(x, y, key=KEY, run_dir=tmp_path / "run")
    with pytest.raises(Error, match="inputs"):
        _method(epsilon=1.0).fit(x + 1, y, key=KEY, run_dir=tmp_path / "run")


def test_an_infinite_epsilon_trains_on_the_labels_and_says_so():
    x, y = _blobs()
    trained = _method(epsilon=float("inf"), stages=(1.0,)).fit(x, y, key=KEY)
    np.testing.assert_array_equal(trained.stages[0].private.labels, y[trained.stages[0].rows])
    assert trained.certificate.epsilon == float("inf")
    assert trained.certificate.verification["holds"] is None
