import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from chapbook.core.errors import Error
from chapbook.tft_forecast.frames import like, read_frame

TABLE = pl.DataFrame({"id": ["a", "b"], "x": [1.0, 2.5]})


@pytest.mark.parametrize(
    "frame",
    [TABLE, TABLE.lazy(), TABLE.to_pandas(), TABLE.to_arrow()],
    ids=["polars", "lazy", "pandas", "pyarrow"],
)
def test_every_kind_of_frame_comes_back_as_it_went_in(frame):
    read, where = read_frame(frame)
    assert read.equals(TABLE)
    assert where == ""
    back = like(frame, read)
    assert type(back) is type(frame)
    assert read_frame(back)[0].equals(TABLE)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "arrow"])
def test_a_path_gives_a_polars_frame_and_begins_errors(tmp_path, suffix):
    from chapbook.core.tables import write_table

    path = tmp_path / f"table.{suffix}"
    write_table(TABLE, path)
    read, where = read_frame(path)
    assert read.equals(TABLE)
    assert where == f"{path}: "
    assert like(path, read) is read


def test_what_is_no_table_is_refused():
    with pytest.raises(Error, match=r"^int is no table; pass a path, or a Polars, pandas or"):
        read_frame(3)


def test_frames_without_a_library_name_keep_their_columns():
    assert like(pd.DataFrame({"other": [1]}), TABLE).columns.tolist() == ["id", "x"]
    assert like(pa.table({"other": [1]}), TABLE).column_names == ["id", "x"]
