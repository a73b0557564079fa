import json
import signal
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from PIL import Image

from chapbook.core import train as core_train
from chapbook.vmoe.cli import main

LINE = "Ti/4,depth=2,width=16,mlp=32,heads=2,E=4,K=2,every=2"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code if isinstance(end.value.code, int) else 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of light and of dark pictures, of several sizes."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, base in (("dark", 20), ("light", 160)):
        (folder / name).mkdir()
        for number in range(24):
            size = (int(generator.integers(9, 14)), int(generator.integers(9, 14)), 3)
            pixels = base + generator.integers(0, 60, size)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "run"
    code = run(
        "train", "--data", photos, "--config", LINE, "--image-size", 8, "--steps", 12, "--batch",
        16, "--lr", 0.01, "--validation", 0.25, "--out", out, "--set", "classifier=gap", "--quiet",
        "--json",
    )  # fmt: skip
    assert code == 0
    return out


def last_json(capsys):
    return json.loads(capsys.readouterr().out)


def test_training_leaves_a_model_its_metrics_and_its_classes(trained):
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["names"] == ["dark", "light"]
    assert config["vmoe"]["classifier"] == "gap"
    assert config["line"] == LINE
    metrics = pl.read_parquet(trained / "metrics.parquet")
    assert metrics["valid/accuracy"].drop_nulls()[-1] == 1.0


def test_a_finished_training_is_not_done_again_and_another_one_is_refused(photos, trained, capsys):
    same = (
        "train", "--data", photos, "--config", LINE, "--image-size", 8, "--steps", 12, "--batch",
        16, "--validation", 0.25, "--out", trained, "--set", "classifier=gap", "--quiet", "--json",
    )  # fmt: skip
    assert run(*same, "--lr", 0.01) == 0
    assert last_json(capsys)["steps"] == 12
    assert run(*same, "--lr", 0.02) == 2
    assert "learning_rate" in capsys.readouterr().err


def test_a_terminated_training_ends_with_the_bits_of_an_unbroken_one(
    photos, trained, tmp_path, monkeypatch
):
    same = (
        "train", "--data", photos, "--config", LINE, "--image-size", 8, "--steps", 12, "--batch",
        16, "--lr", 0.01, "--validation", 0.25, "--out", tmp_path / "run", "--set",
        "classifier=gap", "--quiet",
    )  # fmt: skip
    add = core_train.Log.add

    def terminated(self, step, *told):
        add(self, step, *told)
        if step == 7:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(core_train.Log, "add", terminated)
        assert run(*same) == 128 + signal.SIGTERM
    assert not (tmp_path / "run" / "model").exists()
    assert run(*same) == 0
    weights = [(each / "model" / "weights.safetensors") for each in (trained, tmp_path / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_an_interrupted_training_is_no_row_of_a_claim(tmp_path, monkeypatch):
    add = core_train.Log.add

    def terminated(self, step, *told):
        add(self, step, *told)
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(core_train.Log, "add", terminated)
    given = ("--claim", "adaptive-k", "--epochs", 1, "--run", tmp_path / "run", "--quiet")
    assert run("reproduce", *given) == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "training" / "digits-K2-0" / "checkpoints").exists()
    assert not (tmp_path / "run" / "models" / "digits-K2-0").exists()
    assert not (tmp_path / "run" / "tables").exists()


def test_evaluate_prints_a_row_for_each_setting(photos, trained, tmp_path, capsys):
    table = tmp_path / "sweep.parquet"
    assert run(
        "evaluate", trained, "--data", photos, "--capacity", "0.25,1", "--bpr", "both", "--exact",
        "--output", table, "--plot", tmp_path / "curve.png", "--json",
    ) == 0  # fmt: skip
    rows = last_json(capsys)
    assert [(row["capacity_factor"], row["batch_priority"]) for row in rows] == [
        (0.25, False), (0.25, True), (1.0, False), (1.0, True),
    ]  # fmt: skip
    assert rows[-1]["accuracy"] > 0.9
    assert pl.read_parquet(table).height == 4
    assert (tmp_path / "curve.png").exists()


def test_predict_writes_the_most_likely_classes(photos, trained, tmp_path):
    out = tmp_path / "predictions.csv"
    files = [photos / "dark" / "0.png", photos / "light" / "3.png"]
    assert run("predict", trained, *files, "--top", 1, "--out", out) == 0
    assert pl.read_csv(out)["class"].to_list() == ["dark", "light"]


def test_fewshot_finds_what_the_features_know(photos, trained, capsys):
    assert run(
        "fewshot", trained, "--support", photos, "--query", photos, "--shots", "1,5", "--json"
    ) == 0  # fmt: skip
    rows = last_json(capsys)
    assert [row["shots"] for row in rows] == [1, 5]
    assert rows[1]["accuracy"] > 0.9


def test_routes_writes_a_table_and_pictures(photos, trained, tmp_path, capsys):
    out = tmp_path / "routes.parquet"
    assert run(
        "routes", trained, "--data", photos, "--out", out, "--plots", tmp_path / "plots",
        "--images", 20, "--capacity", "1,0.25", "--json",
    ) == 0  # fmt: skip
    assert [row["layer"] for row in last_json(capsys)] == [1]
    assert pl.read_parquet(out).height == 20 * 4 * 2
    drawn = {path.name for path in (tmp_path / "plots").glob("*.png")}
    assert drawn == {"heat_map_1.png", "loads.png", "experts.png", "kept_patches_1.png"}


def test_finetune_takes_other_classes_and_another_size(photos, trained, tmp_path, capsys):
    assert run(
        "finetune", trained, "--data", photos, "--image-size", 12, "--steps", 2, "--batch", 8,
        "--out", tmp_path / "tuned", "--quiet", "--json",
    ) == 0  # fmt: skip
    assert last_json(capsys)["steps"] == 2


def test_inspect_lists_a_models_parameters(trained, capsys):
    assert run("inspect", trained, "--json") == 0
    rows = last_json(capsys)
    assert any(row["expert"] for row in rows)


def test_flops_prints_what_a_line_costs(capsys):
    assert run("flops", "B/16,E=8,K=2,every=2", "--json") == 0
    found = last_json(capsys)
    # ViT-B/16 is known to have 86.6 million parameters and to take 35.1 GFLOPs, two an operation.
    assert run("flops", "B/16", "--json") == 0
    dense = last_json(capsys)
    assert dense["parameters"] == pytest.approx(86.6e6, rel=0.001)
    assert dense["gflops_per_image"] == pytest.approx(35.1, rel=0.01)
    assert found["parameters"] > 3 * dense["parameters"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "--data", "nowhere", "--config", LINE, "--out", "x"], "nowhere: no such file"),
        (["flops", "S/32,E=2,K=3,last=1"], "K=3 is more than the E=2"),
        (["flops", "S/32", "--image-size", "50"], "take 32 or 64"),
        (["flops", "S/32", "--set", "capacity_factor=-1"], "capacity_factor=-1.0 must be above 0"),
        (["evaluate", "nowhere", "--data", "mnist5k"], "nowhere is no folder of a model"),
        (["inspect", "nowhere"], "nowhere"),
        (["reproduce", "--claim", "speed"], "there is no claim speed"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert told in errors
    assert "Traceback" not in errors


def test_more_images_than_a_batch_are_needed(photos, tmp_path, capsys):
    assert run("train", "--data", photos, "--config", LINE, "--image-size", 8, "--batch", 99,
               "--out", tmp_path / "run") == 2  # fmt: skip
    assert "take a smaller --batch" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_help_starts_without_jax():
    code = (
        "import sys\n"
        "from chapbook.vmoe.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "reproduce" in done.stdout
