"""The command, on files as a user has them."""

import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from chapbook.core.errors import Error
from chapbook.kip_distill import data
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
