"""The commands that train, predict and evaluate, on files as users have them."""

import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from chapbook.label_dp.certificate import Certificate
from chapbook.label_dp.cli import main

QUICK = ["--set", "epochs=3", "--set", "hidden=[8]", "--set", "batch_size=32", "--quiet"]


def _run(capsys, *arguments):
    """Runs the command line and returns its exit code and what it printed."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    out = capsys.readouterr()
    return ended.value.code or 0, out.out, out.err


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = rng.normal(size=(300, 3)) + 4 * np.eye(3)[y]
    frame = pl.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "id": np.arange(300)})
    frame = frame.with_columns(kind=pl.Series(np.array(["ash", "oak", "yew"])[y]))
    frame[:250].write_parquet(folder / "train.parquet")
    frame[250:].write_csv(folder / "test.csv")
    return folder


def _train(table, out, *more):
    return [
        "train", "--input", table / "train.parquet", "--label", "kind", "--classes", "ash,oak,yew",
        "--epsilon", "4", "--out", out, "--id-column", "id", "--noise-seed", "1", *QUICK, *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in _train(table, run)])
    assert not ended.value.code
    return run


def test_a_trained_folder_holds_model_certificate_and_ledger(trained):
    certificate = Certificate.load(trained / "certificate.json")
    assert certificate.epsilon == 4
    assert certificate.seeded
    config = json.loads((trained / "model/config.json").read_text())
    assert config["inputs"]["features"] == ["a", "b", "c"]
    assert config["classes"] == ["ash", "oak", "yew"]
    assert (trained / "model/weights.safetensors").exists()
    assert len(json.loads((trained / "ledger.json").read_text())["entries"]) == 1


def test_training_again_goes_on_with_what_is_there(capsys, table, trained):
    weights = (trained / "model/weights.safetensors").read_bytes()
    code, out, _ = _run(capsys, *_train(table, trained, "--json"))
    assert code == 0
    assert json.loads(out)["stages"][1]["stage"] == "stage-2"
    assert (trained / "model/weights.safetensors").read_bytes() == weights
    code, _, err = _run(capsys, *_train(table, trained, "--stages", "0.5,0.5"))
    assert code == 2
    assert "stages" in err


def test_predictions_come_in_order_with_probabilities(capsys, table, trained, tmp_path):
    out = tmp_path / "predictions.parquet"
    test = table / "test.csv"
    code, _, _ = _run(
        capsys, "predict", "--run", trained, "--input", test, "--output", out, "--keep", "id"
    )
    assert code == 0
    found = pl.read_parquet(out)
    truth = pl.read_csv(test)
    assert found["id"].to_list() == truth["id"].to_list()
    right = found["prediction"].to_numpy() == truth["kind"].to_numpy()
    assert right.mean() > 0.8
    names = ["probability_ash", "probability_oak", "probability_yew"]
    np.testing.assert_allclose(found.select(names).sum_horizontal(), 1, atol=1e-5)
    best = np.array(["ash", "oak", "yew"])[found.select(names).to_numpy().argmax(axis=1)]
    assert found["prediction"].to_list() == best.tolist()


def test_evaluation_says_whether_it_is_private(capsys, table, trained):
    test = table / "test.csv"
    given = ["evaluate", "--run", trained, "--input", test, "--json"]
    code, out, _ = _run(capsys, *given, "--clean")
    clean = json.loads(out)
    assert code == 0
    assert clean["private"] is False
    assert clean["accuracy"] > 0.8
    code, out, _ = _run(capsys, *given, "--private-epsilon", "3")
    first = json.loads(out)
    assert code == 0
    assert first["private"] is True
    assert abs(first["accuracy"] - clean["accuracy"]) < 5 * first["standard_error"]
    # The same labels again, not new draws: those would spend the budget again.
    assert json.loads(_run(capsys, *given, "--private-epsilon", "3")[1]) == first
    ledger = json.loads((trained / "ledger.json").read_text())
    assert len(ledger["entries"]) == 2
    assert _run(capsys, *given)[0] == 2
    assert _run(capsys, *given, "--clean", "--private-epsilon", "3")[0] == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--label", "sort"], "no column sort"),
        (["--epsilon", "-1"], "epsilon=-1.0 must be 0 or more"),
        (["--classes", "ash,oak"], "the label is none of the declared classes"),
        (["--model", "tree"], 'model "tree" is none of mlp, convnet, resnet18 and logistic'),
        (["--model", "convnet"], "model convnet is for images"),
        (["--stages", "a,b"], "--stages a,b"),
        (["--stages", "0.5,0.2"], "must be positive and sum to 1"),
        (["--set", "epoch=3"], "Did you mean epochs"),
        (["--set", "epochs=many"], "epochs"),
        (["--features", "a,kind"], "kind is the label and cannot be an input"),
        (["--input", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--mesh", "data=3"], "mesh"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_leaves_no_folder(
    capsys, table, tmp_path, more, message
):
    run = tmp_path / "run"
    code, out, err = _run(capsys, *_train(table, run, *more))
    assert code == 2, err
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in err
    assert not out
    assert not run.exists()


def test_a_folder_that_cannot_be_written_is_named(capsys, table, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = _run(capsys, *_train(table, tmp_path / "file" / "run"))
    assert code == 2
    assert "file" in err
    missing = tmp_path / "nothing"
    code, _, err = _run(
        capsys, "predict", "--run", missing, "--input", table / "test.csv",
        "--output", tmp_path / "p.csv",
    )  # fmt: skip
    assert code == 2
    assert "holds no trained model" in err


def test_a_full_disk_leaves_nothing_half_written(table, trained, tmp_path):
    out = tmp_path / "predictions.csv"
    arguments = [
        "predict", "--run", str(trained), "--input", str(table / "test.csv"), "--output", str(out)
    ]  # fmt: skip
    program = [sys.executable, "-c", "from chapbook.label_dp.cli import main; main()", *arguments]
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh", *program],  # files end after a kilobyte
        capture_output=True,
        text=True,
        # Python 3.11 would leave the compiled files that it cannot write whole cut off.
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert list(tmp_path.iterdir()) == []
