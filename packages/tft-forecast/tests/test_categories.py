import datetime as dt

import polars as pl
import pytest

from chapbook.core.errors import Error
from chapbook.tft_forecast.categories import Categories
from chapbook.tft_forecast.schema import Schema

DAYS = [dt.date(2024, 1, d) for d in range(1, 6)]
TABLE = pl.DataFrame(
    {
        "id": [7, 7, 7, 8, 8],
        "t": DAYS,
        "y": [1.0] * 5,
        "color": ["red", None, "blue", "red", "green"],
        "flag": [True, False, True, None, True],
        "code": [10, 9, 9, None, 10],
        "price": [1.0, 2, 3, 4, 5],
    }
)
SCHEMA = Schema(
    "id", "t", "y", "1d", static="id", known=("color", "flag", "price"), observed="code",
    categorical="code",
)  # fmt: skip


def test_text_truth_values_ids_and_what_is_listed_are_categories():
    fitted = Categories.fit(TABLE, SCHEMA)
    assert fitted.sizes == {"id": 3, "color": 4, "flag": 3, "code": 3}
    assert fitted.fitted_until == DAYS[-1]


def test_values_are_indexed_in_their_order_after_unknown_and_missing():
    fitted = Categories.fit(TABLE, SCHEMA)
    codes = fitted.encode("color", pl.Series(["green", "blue", None, "pink", "red"]))
    assert codes.tolist() == [2, 1, -1, 0, 3]
    assert fitted.encode("code", pl.Series([9, 10, 11, None])).tolist() == [1, 2, 0, -1]
    assert fitted.encode("flag", pl.Series([True, False, None])).tolist() == [2, 1, -1]
    assert fitted.decode("color", codes).to_list() == ["green", "blue", None, None, "red"]


def test_whole_numbers_are_the_same_category_in_every_type():
    fitted = Categories.fit(TABLE, SCHEMA)
    for column in ([9, 10], [9.0, 10.0], ["9", "10"]):
        assert fitted.encode("code", pl.Series(column)).tolist() == [1, 2]
    assert fitted.encode("code", pl.Series([9.0, float("nan"), None])).tolist() == [1, -1, -1]
    assert fitted.encode("code", pl.Series([9.0, 9.5])).tolist() == [1, 0]


def test_polars_categories_are_read_as_their_text():
    fitted = Categories.fit(TABLE.with_columns(pl.col("color").cast(pl.Categorical)), SCHEMA)
    enum = pl.Series(["red", None, "blue"], dtype=pl.Enum(["red", "blue"]))
    assert fitted.encode("color", enum).tolist() == [3, -1, 1]


@pytest.mark.parametrize("until", [DAYS[3], None])
def test_rows_after_training_change_nothing(until):
    fitted = Categories.fit(TABLE, SCHEMA, until=DAYS[3])
    changed = TABLE.with_columns(
        pl.when(pl.col("t") < DAYS[3]).then("color").otherwise(pl.lit("new")).alias("color"),
    )
    other = changed if until else changed.filter(pl.col("t") < DAYS[3])
    assert Categories.fit(other, SCHEMA, until=until).frame.equals(fitted.frame)
    assert fitted.fitted_until == DAYS[2]
    assert fitted.encode("color", pl.Series(["green"])).tolist() == [0]


def test_a_file_keeps_the_categories(tmp_path):
    fitted = Categories.fit(TABLE, SCHEMA)
    fitted.save(tmp_path / "categories.parquet")
    loaded = Categories.load(tmp_path / "categories.parquet")
    assert loaded.frame.equals(fitted.frame)
    assert loaded.sizes == fitted.sizes
    assert loaded.fitted_until == fitted.fitted_until


def test_a_column_that_training_never_had_keeps_only_unknown(tmp_path):
    fitted = Categories.fit(TABLE.with_columns(pl.lit(None, pl.String).alias("color")), SCHEMA)
    fitted.save(tmp_path / "categories.parquet")
    assert Categories.load(tmp_path / "categories.parquet").sizes["color"] == 1


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "categories.parquet"
    TABLE.write_parquet(path)
    with pytest.raises(Error, match="has columns id, t, y, color, flag, code, price, not variable"):
        Categories.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(Error, match=r"categories\.parquet is no whole parquet file"):
        Categories.load(path)


def test_a_missing_column_is_named():
    with pytest.raises(Error, match=r'^no column "color"; there are id, t, y, flag, code, price\.'):
        Categories.fit(TABLE.drop("color"), SCHEMA)
