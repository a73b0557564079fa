"""The command, on files as a user has them."""

import dataclasses
import json
import signal

import numpy as np
import polars as pl
import pytest
from PIL import Image

from chapbook.core.errors import Error
from chapbook.kip_distill import DistilledSet, data, scores
from chapbook.kip_distill.cli import main
from chapbook.kip_distill.kernels import FC, ConvNet


def run(*arguments):
    """Returns the exit code."""
    with pytest.raises(SystemExit) as done:
        main([str(each) for each in arguments])
    return done.value.code or 0


@pytest.fixture
def photos(tmp_path):
    """Bright and dark pictures, in a folder for each class."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 180), ("dark", 60)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for each in range(12):
            pixels = (level + 30 * rng.normal(size=(8, 8, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{each}.png")
    return tmp_path / "photos"


@pytest.fixture
def flowers(tmp_path):
    rng = np.random.default_rng(0)
    kind = np.arange(60) % 3
    centre = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])[kind]
    values = centre + 0.2 * rng.normal(size=(60, 3))
    table = pl.DataFrame(values, schema=["a", "b", "c"]).with_columns(
        pl.Series("kind", ["iris", "rose", "lily"])[kind], pl.Series("place", ["x"] * 60)
    )
    table.write_csv(tmp_path / "flowers.csv")
    return tmp_path / "flowers.csv"


def test_a_folder_of_images_becomes_a_set_that_predicts(photos, tmp_path, capsys):
    out = tmp_path / "run"
    given = ("--data", f"folder:{photos}", "--per-class", 1, "--steps", 20, "--out", out, "--quiet")
    assert run("distill", *given, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["accuracy"] == 1
    assert {each.name for each in out.iterdir()} >= {
        "distilled.npz", "images.png", "initial.png", "metrics.parquet", "sets",
    }  # fmt: skip
    held = ("--set", out / "distilled.npz")
    assert run("evaluate", *held, "--data", f"folder:{photos}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["accuracy by class"] == {"bright": 1, "dark": 1}
    classes = tmp_path / "classes.csv"
    assert run("predict", *held, "--input", f"folder:{photos}", "--out", classes) == 0
    found = pl.read_csv(classes)
    assert (found["file"].str.split("/").list.first() == found["predicted"]).all()
    assert run("inspect", out / "distilled.npz", "--sheet", tmp_path / "sheet.png") == 0
    assert "arch FC1" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").exists()


def test_a_finished_run_is_not_made_again_and_other_settings_are_refused(photos, tmp_path, capsys):
    given = ["--data", f"folder:{photos}", "--per-class", 1, "--out", tmp_path / "run", "--quiet"]
    assert run("distill", *given, "--steps", 4) == 0
    first = np.load(tmp_path / "run" / "distilled.npz")["images"]
    assert run("distill", *given, "--steps", 4) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "distilled.npz")["images"], first)
    assert run("distill", *given, "--steps", 8) == 0  # goes on
    assert (np.load(tmp_path / "run" / "distilled.npz")["images"] != first).any()
    capsys.readouterr()
    assert run("distill", *given, "--steps", 8, "--lr", 0.1) == 2
    assert "lr" in capsys.readouterr().err
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photos / "dark" / "more.png")
    assert run("distill", *given, "--steps", 8) == 2
    assert "data" in capsys.readouterr().err


def test_a_table_becomes_a_set_that_predicts(flowers, tmp_path, capsys):
    out = tmp_path / "set.npz"
    given = ("--data", f"table:{flowers}", "--label", "kind", "--arch", "FC1", "--per-class", 2)
    assert run("label-solve", *given, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["rank"] == 6
    again = tmp_path / "again.parquet"
    assert run("predict", "--set", out, "--input", f"table:{flowers}", "--out", again) == 0
    found = pl.read_parquet(again)
    assert (found["predicted"] == found["kind"]).sum() > 54
    assert found.columns[:5] == ["a", "b", "c", "kind", "place"]
    table = tmp_path / "rows.parquet"
    assert run("inspect", out, "--table", table, "--json") == 0
    assert pl.read_parquet(table).height == 6


def test_numbers_are_predicted_in_their_own_units(tmp_path, capsys):
    x = np.random.default_rng(0).normal(size=(200, 3))
    table = pl.DataFrame(x, schema=["a", "b", "c"]).with_columns(
        rent=500 + 100 * pl.col("a") - 50 * pl.col("b"), size=3 + pl.col("c")
    )
    path, out = tmp_path / "flats.csv", tmp_path / "run"
    table.write_csv(path)
    given = ("--data", f"table:{path}", "--target", "rent", "--target", "size")
    more = ("--per-class", 8, "--learn-labels", "--steps", 60, "--quiet", "--json")
    assert run("distill", *given, *more, "--out", out) == 0
    assert "accuracy" not in json.loads(capsys.readouterr().out)
    held = ("--set", out / "distilled.npz")
    assert run("evaluate", *held, "--data", f"table:{path}", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert min(told["r2"].values()) > 0.9
    assert run("predict", *held, "--input", f"table:{path}", "--out", tmp_path / "p.csv") == 0
    found = pl.read_csv(tmp_path / "p.csv")
    errors = (found["predicted_rent"] - found["rent"]) ** 2
    assert errors.mean() == pytest.approx(told["mse"]["rent"], rel=1e-3)
    assert run("inspect", out / "distilled.npz", "--table", tmp_path / "rows.csv.parquet") == 0
    assert pl.read_parquet(tmp_path / "rows.csv.parquet")["rent"].mean() == pytest.approx(500, 0.5)
    capsys.readouterr()
    assert run("distill", *given, "--label", "rent", "--out", tmp_path / "other") == 2
    assert "--label, or those of numbers by --target" in capsys.readouterr().err
    solved = ("label-solve", *given, "--arch", "FC1", "--per-class", 20)
    assert run(*solved, "--out", tmp_path / "solved.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20
    assert run("evaluate", "--set", tmp_path / "solved.npz", "--data", "digits") == 2
    assert "predicts numbers, but the examples have classes" in capsys.readouterr().err


def test_sets_are_named_as_the_released_ones_and_targets_augmented(photos, tmp_path):
    given = ("--data", f"folder:{photos}", "--per-class", 1, "--steps", 2, "--quiet")
    more = ("--augment", 0.5, "--flip", "--precision", "float64", "--zca", 0.1)
    assert run("distill", *given, *more, "--out", tmp_path / "run") == 0
    names = {each.name for each in (tmp_path / "run" / "sets").iterdir()}
    assert names == {f"FC1_ssize2_zca_nol_aug_ckpt{step}.npz" for step in (0, 1, 2)}
    held = DistilledSet.load(tmp_path / "run" / "distilled.npz")
    assert held.images.dtype == np.float64
    assert held.facts["augmentation"]["share"] == 0.5
    found = scores(held, data.read(f"folder:{photos}"))
    narrow = dataclasses.replace(held, images=held.images.astype(np.float32))
    other = scores(narrow, data.read(f"folder:{photos}"))
    assert found["mse"] == pytest.approx(other["mse"], rel=1e-2)
    assert found["mse"] != other["mse"]


def test_an_interrupted_distillation_is_not_taken_for_a_finished_one(
    flowers, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    given = ("distill", "--data", f"table:{flowers}", "--label", "kind", "--per-class", 1,
             "--steps", 12, "--out", out, "--quiet")  # fmt: skip
    original, kept = DistilledSet.save, []

    def save(self, path):
        original(self, path)
        kept.append(path.name)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(DistilledSet, "save", save)
    assert run(*given) == 143
    assert len(kept) == 1 and not (out / "distilled.npz").exists()
    monkeypatch.undo()
    assert run(*given) == 0
    assert DistilledSet.load(out / "distilled.npz").facts["step"] == 12


def test_kernel_matrices_go_on_where_they_stopped(tmp_path, capsys, monkeypatch):
    x = np.random.default_rng(0).normal(size=(7, 6, 6, 1)).astype(np.float32)
    np.savez(tmp_path / "x.npz", images=x)
    out = tmp_path / "K.npz"
    given = ("kernel", "--x", f"npz:{tmp_path / 'x.npz'}", "--arch", "FC2", "--get", "ntk,nngp",
             "--rows", 3, "--out", out, "--quiet")  # fmt: skip
    calls, original = [], type(FC(1)).__call__

    def stop(self, part, *rest, **options):
        calls.append(len(part))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, part, *rest, **options)

    monkeypatch.setattr(type(FC(1)), "__call__", stop)
    assert run(*given) == 130
    assert not out.exists()
    assert run(*given[:-1], "--rows", 2, "--quiet") == 2
    assert "other inputs or settings" in capsys.readouterr().err
    assert run(*given) == 0
    assert calls == [3, 3, 3, 1]  # the first block is not computed again
    monkeypatch.undo()
    ntk, nngp = FC(2)(x, x, get=("ntk", "nngp"))
    found = np.load(out)
    np.testing.assert_allclose(found["ntk"], ntk, rtol=1e-5)
    np.testing.assert_allclose(found["nngp"], nngp, rtol=1e-5)
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "digits", "--flip"), "give their share by --augment"),
        (("--data", "digits", "--precision", "half"), 'precision "half" is neither'),
        (("--data", "fashion-mnist:nowhere"), "nowhere/train-images-idx3-ubyte.gz: no such file"),
        (("--data", "nothing"), 'data "nothing" is none of'),
        (("--data", "npz:missing.npz"), "missing.npz: no such file"),
        (("--data", "digits", "--arch", "resnet"), 'no architecture is called "resnet"'),
        (
            ("--data", "digits", "--arch", "ConvNet", "--zca", "0.1", "--target-batch", "5"),
            "5 targets",
        ),
        (("--data", "digits", "--arch", "Myrtle5", "--per-class", "500"), "class 0 has"),
    ],
)
def test_wrong_arguments_get_one_line(arguments, told, tmp_path, capsys):
    assert run("distill", *arguments, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run" / "distilled.npz").exists()


def test_a_set_of_another_kernel_is_refused(flowers, tmp_path, capsys):
    out = tmp_path / "set.npz"
    given = ("--data", f"table:{flowers}", "--label", "kind")
    assert run("label-solve", *given, "--arch", "FC1", "--per-class", 1, "--out", out) == 0
    assert run("evaluate", "--set", out, *given, "--arch", "FC2") == 2
    assert "made with FC1, not FC2" in capsys.readouterr().err


def test_bad_files_are_told_with_their_place(tmp_path):
    path = tmp_path / "x.npz"

    def refused(told, **arrays):
        np.savez(path, **arrays)
        with pytest.raises(Error, match=told):
            data.read(f"npz:{path}")

    images = np.zeros((4, 6, 6), np.float32)
    refused("no array labels", images=images)
    refused("4 images and labels of shape", images=images, labels=np.zeros(3, int))
    refused("label nan of image 1 is not finite", images=images, labels=np.array([0, np.nan, 0, 0]))
    refused("give one class for each image", images=images, labels=np.zeros((4, 2), int))
    refused("label -1 of image 2", images=images, labels=np.array([0, 1, -1, 0]))
    broken = images.copy()
    broken[1, 2, 3] = np.nan
    refused(
        r"1 pixels are not finite, the first in image 1 at \(2, 3\)",
        images=broken,
        labels=np.zeros(4, int),
    )
    with pytest.raises(Error, match="6x6 -> 3x3 -> 1x1 -> 0x0"):
        ConvNet(3).check((4, 6, 6, 1))


def test_images_of_several_shapes_are_told_by_name(photos):
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(photos / "dark" / "z.png")
    with pytest.raises(Error, match=r"z.png: shape \(9, 8, 3\), but .*0.png has \(8, 8, 3\)"):
        data.read(f"folder:{photos}")


def test_tables_that_lack_something_are_told_with_row_and_column(tmp_path):
    path = tmp_path / "t.csv"

    def refused(told, text, label: str | None = "y"):
        path.write_text(text)
        with pytest.raises(Error, match=told):
            data.read(f"table:{path}", label=label)

    refused("no column y; it has a, b", "a,b\n1,2\n")
    refused("give the column of classes", "a,y\n1,2\n", None)
    refused("row 1, column y: the class is missing", "a,y\n1,u\n2,\n")
    refused("row 1, column a: the value is missing", "a,y\n1,u\n,v\n")
    refused("no numeric column beside y", "a,y\nx,u\n")
    with pytest.raises(Error, match="column y holds no numbers; give classes by --label"):
        data.read(f"table:{path.with_name('t.csv')}", targets=["y"])
