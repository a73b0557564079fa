import datetime
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest

from chapbook.core import cli
from chapbook.core.errors import Error
from chapbook.tft_forecast import plots
from chapbook.tft_forecast.inputs import Group, Interpretation, Layout
from chapbook.tft_forecast.interpretation import Explanation
from chapbook.tft_forecast.metrics import score
from chapbook.tft_forecast.schema import Schema

SCHEMA = Schema("state", "date", "births", "1d")
FIRST = datetime.date(2020, 1, 1)


@pytest.fixture(scope="module")
def forecasts():
    rng = np.random.default_rng(0)
    rows = [
        {"state": state, "origin": FIRST + datetime.timedelta(7 * i),
         "date": FIRST + datetime.timedelta(7 * i + step), "step": step}
        for state in "ABCDEFGH" for i in range(3) for step in range(1, 8)
    ]  # fmt: skip
    center = rng.gamma(5, 10, len(rows))
    bounds = {"q0.1": center - 9, "q0.5": center, "q0.9": center + 9}
    return pl.DataFrame(rows).with_columns(**bounds, y=center + rng.normal(0, 7, len(rows)))


@pytest.fixture(scope="module")
def told():
    rng = np.random.default_rng(0)
    static, past, future = (
        jnp.asarray(rng.dirichlet(np.ones(n), size))
        for n, size in ((2, 24), (3, (24, 28)), (2, (24, 3)))
    )
    position, step = np.arange(-27, 4), np.arange(1, 4)[:, None]
    logit = 2.0 * ((step - position) % 7 == 0) + rng.normal(0, 0.2, (24, 3, 31))
    raised = np.where(position <= step, np.exp(logit), 0)
    made = Interpretation(
        static, past, future, jnp.asarray(raised / raised.sum(-1, keepdims=True)), {}
    )
    layout = Layout(Group((), ("state", "region"), (9, 4)), Group(("births",)), Group(("a", "b")))
    windows = pl.DataFrame(
        {
            "state": list("AB") * 12,
            "origin": [FIRST + datetime.timedelta(i // 2) for i in range(24)],
        }
    )
    return Explanation(made, layout, windows, "1d")


def is_picture(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000


def test_an_explanation_is_drawn_with_its_numbers_beside(told, tmp_path):
    target = pl.DataFrame({"origin": told.windows["origin"], "births": np.arange(24.0)})
    paths = told.plot(tmp_path / "plots", quantile=0.8, target=target, unit="per day")
    assert [path.name for path in paths] == ["importance.png", "attention.png", "events.png"]
    assert all(is_picture(path) for path in paths)
    numbers = [pl.read_csv(path.with_suffix(".csv"), try_parse_dates=True) for path in paths]
    assert numbers[0]["p90"].to_list() == pytest.approx(told.importance()["p90"].to_list())
    curve = numbers[1].filter(pl.col("step").is_null())
    assert curve["mean"].to_list() == pytest.approx(told.summary()["attention"].to_list())
    assert numbers[2].height == 12
    assert numbers[2]["births"].to_list() == [2 * i + 0.5 for i in range(12)]


def test_fans_show_the_entities_that_are_asked_for(forecasts, tmp_path):
    plots.fans(tmp_path / "fans.png", forecasts, SCHEMA, ids=["H", "B"], unit="per day")
    assert is_picture(tmp_path / "fans.png")
    numbers = pl.read_csv(tmp_path / "fans.csv")
    assert numbers["state"].unique().sort().to_list() == ["B", "H"]
    assert numbers["origin"].n_unique() == 3
    plots.fans(tmp_path / "fans.png", forecasts, SCHEMA, ids=["H"], last=1)
    assert pl.read_csv(tmp_path / "fans.csv").height == 7
    plots.fans(tmp_path / "six.png", forecasts.drop("y"), SCHEMA)
    assert pl.read_csv(tmp_path / "six.csv")["state"].n_unique() == 6
    with pytest.raises(Error, match="not all of A, Z are in the forecasts"):
        plots.fans(tmp_path / "no.png", forecasts, SCHEMA, ids=["A", "Z"])


def test_reliability_shows_the_share_below_each_quantile(forecasts, tmp_path):
    plots.reliability(tmp_path / "reliability.png", ours=forecasts, same=forecasts)
    assert is_picture(tmp_path / "reliability.png")
    numbers = pl.read_csv(tmp_path / "reliability.csv").filter(forecasts="ours")
    expected = score(forecasts, metrics=["below"])["value"]
    assert numbers["observed"].to_list() == pytest.approx(expected.to_list())


def test_the_axes_say_what_they_show_in_which_unit(told, forecasts, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    seen = []
    monkeypatch.setattr(cli, "plot", lambda path, draw, numbers: seen.append(draw))
    plots.fans("", forecasts, SCHEMA, ids=["A"], unit="per day")
    told.plot("")
    plots.reliability("", ours=forecasts)
    for draw in seen:
        figure = Figure()
        draw(figure.subplots())
        axes = [each for each in figure.axes if each.axison]
        assert any(each.get_xlabel() for each in axes)
        assert any("(" in each.get_ylabel() + each.get_xlabel() for each in axes)
        assert all(each.get_title() or each.get_ylabel() for each in axes)
    figure = Figure()
    seen[2](figure.subplots())
    assert figure.axes[0].get_title() == "Attention on the past: period 7 steps (7d)"


def test_importing_the_plots_does_not_import_matplotlib():
    code = "import sys, chapbook.tft_forecast.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
