import itertools
import json
import threading
import time

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chapbook.core.data import Batches, arrays, frame, place, tokens
from chapbook.core.errors import Error, TableError
from chapbook.core.meshes import mesh

BIG = 1 << 18  # rows whose batches `place` reads ahead

sizes = st.tuples(st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**40))


def rows_of(count):
    return arrays(row=np.arange(count), x=np.arange(count * 3).reshape(count, 3))


@given(sizes, st.sampled_from([1, 2, 4]))
@settings(max_examples=60, deadline=None)
def test_the_shards_of_all_processes_make_the_global_batch(size, processes):
    count, batch, seed = size
    whole = Batches(rows_of(count), batch, seed=seed, epochs=2, drop_last=False)
    parts = np.array_split(np.arange(batch), processes)
    shards = [Batches(rows_of(count), batch, seed=seed, drop_last=False) for _ in parts]
    for expected in whole:
        pieces = [shard.take(part) for shard, part in zip(shards, parts, strict=True)]
        for name, column in expected.items():
            joined = np.concatenate([piece[name] for piece in pieces])
            np.testing.assert_array_equal(joined, column)


@given(sizes, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_a_restored_state_goes_on_identically_from_anywhere(size, taken):
    count, batch, seed = size
    unbroken = Batches(rows_of(count), batch, seed=seed, drop_last=batch <= count)
    for _ in range(taken):
        next(unbroken)
    resumed = Batches(rows_of(count), batch, seed=seed + 1, drop_last=batch <= count)
    resumed.set_state(json.loads(json.dumps(unbroken.get_state())))
    for _ in range(8):
        np.testing.assert_equal(next(resumed), next(unbroken))


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_per_epoch(size):
    count, batch, seed = size
    batches = Batches(rows_of(count), batch, seed=seed, epochs=3, drop_last=False)
    seen = np.concatenate([b["row"][b["mask"]] for b in batches]).reshape(3, count)
    np.testing.assert_array_equal(np.sort(seen), np.tile(np.arange(count), (3, 1)))


def test_rows_keep_their_values():
    for batch in Batches(rows_of(50), 8, epochs=1):
        np.testing.assert_array_equal(batch["x"], batch["row"][:, None] * 3 + np.arange(3))


def test_the_order_never_changes_between_versions():
    batches = Batches(rows_of(10), 10, seed=7)
    assert next(batches)["row"].tolist() == GOLDEN[0]
    assert next(batches)["row"].tolist() == GOLDEN[1]


GOLDEN = [[6, 3, 9, 1, 2, 0, 5, 7, 8, 4], [1, 9, 2, 8, 5, 0, 4, 3, 7, 6]]


def test_epochs_and_seeds_have_orders_of_their_own():
    first, second = itertools.islice(Batches(rows_of(100), 100, seed=0), 2)
    other = next(Batches(rows_of(100), 100, seed=1))
    orders = [b["row"].tolist() for b in (first, second, other)]
    assert len({tuple(order) for order in orders}) == 3


def test_unshuffled_rows_come_in_order_and_the_rest_is_dropped():
    batches = Batches(rows_of(7), 3, shuffle=False, epochs=2)
    assert [b["row"].tolist() for b in batches] == [[0, 1, 2], [3, 4, 5]] * 2


def test_the_last_batch_is_padded_to_the_full_shape_and_masked():
    *_, last = Batches(rows_of(7), 3, shuffle=False, epochs=1, drop_last=False)
    assert last["row"].tolist() == [6, 6, 6]
    assert last["mask"].tolist() == [True, False, False]


def test_a_broken_loop_goes_on_and_a_finished_one_starts_anew():
    batches = Batches(rows_of(6), 2, shuffle=False, epochs=1)
    for batch in batches:
        assert batch["row"].tolist() == [0, 1]
        break
    assert [b["row"].tolist() for b in batches] == [[2, 3], [4, 5]]
    assert [b["row"].tolist() for b in batches] == [[0, 1], [2, 3], [4, 5]]


def test_a_finished_run_that_is_restored_yields_nothing():
    done = Batches(rows_of(6), 2, epochs=1)
    list(done)
    resumed = Batches(rows_of(6), 2, epochs=1)
    resumed.set_state(done.get_state())
    assert list(resumed) == []


def test_a_batch_size_may_change_on_resume_without_losing_rows():
    batches = Batches(rows_of(12), 4, epochs=1)
    seen = [next(batches)["row"]]
    smaller = Batches(rows_of(12), 2, epochs=1)
    smaller.set_state(batches.get_state())
    seen += [b["row"] for b in smaller]
    assert sorted(np.concatenate(seen)) == list(range(12))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (rows_of(9), "10 rows then, 9 now"),
        (
            arrays(row=np.arange(10, dtype=np.int32), x=np.arange(30).reshape(10, 3)),
            "row: int64[], x: int64[3] then, row: int32[], x: int64[3] now",
        ),
        (
            arrays(row=np.arange(10)[::-1], x=np.arange(30).reshape(10, 3)),
            "as many rows as then, but other values",
        ),
    ],
)
def test_changed_data_is_refused_on_resume(changed, told):
    state = Batches(rows_of(10), 2).get_state()
    with pytest.raises(Error) as error:
        Batches(changed, 2).set_state(state)
    assert str(error.value) == (
        f"the data changed since the checkpoint ({told}); pass --fresh or restore the file"
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Batches(rows_of(0), 1), "the data holds no rows"),
        (
            lambda: Batches(rows_of(3), 0),
            "batch=0, seed=0: give a positive batch and no negative seed",
        ),
        (
            lambda: Batches(rows_of(3), 1, seed=-1),
            "batch=1, seed=-1: give a positive batch and no negative seed",
        ),
        (
            lambda: Batches(rows_of(3), 4),
            "batch=4 is larger than the data (3 rows); take a smaller batch or drop_last=False",
        ),
        (arrays, "a source needs at least one column"),
        (lambda: arrays(x=1.0), "column x is a scalar; give one value per row"),
        (
            lambda: arrays(x=np.zeros(2), y=np.zeros(3)),
            "columns differ in length: x: 2, y: 3",
        ),
        (
            lambda: next(Batches(arrays(mask=np.ones(4)), 2, drop_last=False)),
            "column mask is taken by drop_last=False; rename the column",
        ),
    ],
)
def test_what_cannot_be_batched_is_refused(make, told):
    with pytest.raises(Error) as error:
        make()
    assert str(error.value) == told


@pytest.mark.parametrize("library", [pl, pd])
def test_a_frame_that_is_not_all_numbers_names_the_column(library):
    with pytest.raises(TableError, match=r"column city is not numeric \(.*\); encode it") as error:
        frame(library.DataFrame({"age": [1, 2], "city": ["Ulm", "Bonn"]}))
    assert error.value.column == "city"
    missing = library.DataFrame(
        {"age": library.Series([1, None, None], dtype=library.Int64)}
        if library is pl
        else {"age": pd.array([1, None, None], dtype="Int64")}
    )
    with pytest.raises(TableError, match="column age holds 2 missing values"):
        frame(missing)


@pytest.mark.parametrize("library", [pl, pd])
def test_a_frame_becomes_one_array_per_column(library):
    numbers = {"i": [1, 2, 3], "f": [0.5, float("nan"), 1], "b": [True, False, True]}
    batch = frame(library.DataFrame(numbers))[np.array([2, 1])]
    assert [batch[name].dtype.kind for name in "ifb"] == ["i", "f", "b"]
    np.testing.assert_equal(
        batch, {"i": np.array([3, 2]), "f": np.array([1, np.nan]), "b": np.array([True, False])}
    )


def test_extension_types_without_gaps_are_numbers():
    assert frame(pd.DataFrame({"i": pd.array([1, 2], dtype="Int64")}))[np.array([1])]["i"] == 2
    wide = pl.DataFrame({"v": [[1.0, 2.0], [3.0, 4.0]]}, schema={"v": pl.Array(pl.Float32, 2)})
    np.testing.assert_array_equal(frame(wide)[np.array([1])]["v"], [[3, 4]])


@given(
    st.lists(st.integers(0, 4), min_size=8, max_size=60), st.integers(1, 7), st.sampled_from([0, 3])
)
@settings(max_examples=60, deadline=None)
def test_windows_and_segments_match_a_plain_loop(stream, length, end):
    ids = np.array(stream, np.uint16)
    source = tokens(ids, length, end=end)
    assert len(source) == (len(stream) - 1) // length
    batch = source[np.arange(len(source))]
    for i in range(len(source)):
        window = stream[i * length : (i + 1) * length + 1]
        segment, expected = 1, []
        for token in window:
            expected.append(segment)
            segment += token == end
        assert batch["tokens"][i].tolist() == window
        assert batch["segment"][i].tolist() == expected
    assert "segment" not in tokens(ids, length)[np.array([0])]


def test_token_files_are_mapped_not_read(tmp_path):
    ids = np.arange(1000, dtype=np.uint32)
    ids.tofile(tmp_path / "ids.bin")
    np.save(tmp_path / "ids.npy", ids)
    for path in (tmp_path / "ids.bin", tmp_path / "ids.npy"):
        source = tokens(str(path), 10, dtype=np.uint32)
        np.testing.assert_array_equal(source[np.array([3])]["tokens"], [np.arange(30, 41)])
        with path.open("r+b") as file:
            file.seek(-4 * (1000 - 30), 2)
            file.write(np.uint32(77).tobytes())
        assert source[np.array([3])]["tokens"][0, 0] == 77


def test_bad_token_streams_are_refused(tmp_path):
    (tmp_path / "odd.bin").write_bytes(b"123")
    (tmp_path / "empty.bin").touch()
    for stream, told in [
        (tmp_path / "none.bin", "none.bin is no file of uint16 tokens: "),
        (tmp_path / "odd.bin", "odd.bin is no file of uint16 tokens: "),
        (tmp_path / "empty.bin", "empty.bin is no file of uint16 tokens: "),
        (np.arange(10), "the token stream holds 10 tokens, no window of 10"),
        (np.zeros(30), r"the token stream is float64\[30\]; give a flat array of integers"),
        (np.zeros((3, 4), int), r"the token stream is int64\[3, 4\]; give a flat"),
    ]:
        with pytest.raises(Error, match=told):
            tokens(stream, 10)
    with pytest.raises(Error, match="no window of 0"):
        tokens(np.arange(10), 0)


def noisy(example, generator):
    return {**example, "x": example["x"] + generator.normal(size=3), "row": example["row"]}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_augmentation_is_the_same_however_it_is_run(workers):
    def walk(**kwargs):
        return Batches(rows_of(20), 6, seed=3, map=noisy, **kwargs)

    unbroken = list(itertools.islice(walk(), 7))
    first = walk(workers=workers)
    for _ in range(3):
        next(first)
    resumed = walk(workers=workers)
    resumed.set_state(first.get_state())
    for expected in unbroken[3:]:
        np.testing.assert_equal(next(resumed), expected)
    part = np.array([1, 4])
    np.testing.assert_equal(walk().take(part)["x"], unbroken[0]["x"][part])


def test_augmentation_draws_anew_for_each_row_and_epoch():
    batches = Batches(arrays(x=np.zeros((20, 3))), 20, shuffle=False, map=noisy_zero)
    draws = np.concatenate([next(batches)["x"] for _ in range(3)])
    assert len(np.unique(draws)) == draws.size


def noisy_zero(example, generator):
    return {"x": example["x"] + generator.normal(size=3)}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_map_keeps_its_traceback_and_names_the_row(workers):
    def fails(example, generator):
        if example["row"] == 5:
            raise ZeroDivisionError("five")
        return example

    with place(
        Batches(rows_of(8), 4, shuffle=False, map=fails, workers=workers), mesh("")
    ) as placed:
        assert next(placed)["row"].tolist() == [0, 1, 2, 3]
        with pytest.raises(ZeroDivisionError, match="five") as error:
            next(placed)
    assert error.value.__notes__ == ["while mapping row 5 of the data in epoch 0"]
    assert error.traceback[-1].name == "fails"


def test_a_failing_source_names_the_row():
    class Torn:
        def __len__(self):
            return 8

        def __getitem__(self, rows):
            if 6 in rows:
                raise OSError("torn")
            return {"row": rows}

    batches = Batches(Torn(), 4, shuffle=False)
    next(batches)
    with pytest.raises(OSError, match="torn") as error:
        next(batches)
    assert error.value.__notes__ == ["while reading rows [4 5 6 7] of the data"]


class Counting:
    """An iterator of dicts with a state, as grain's are."""

    def __init__(self, end=10**9, rows=8):
        self.taken, self.end, self.rows = 0, end, rows

    def __iter__(self):
        return self

    def __next__(self):
        if self.taken == self.end:
            raise StopIteration
        self.taken += 1
        return {"n": np.full(self.rows, self.taken, np.int32)}

    def get_state(self):
        return {"taken": self.taken}

    def set_state(self, state):
        self.taken = state["taken"]


def test_a_foreign_iterator_is_placed_and_resumed():
    source = Counting()
    with place(source, mesh("")) as placed:
        assert [next(placed)["n"][0].item() for _ in range(3)] == [1, 2, 3]
        assert placed.get_state() == {"taken": 3}
        placed.set_state({"taken": 10})
        assert next(placed)["n"][0] == 11
        assert placed.get_state() == {"taken": 11}
    with place(iter([{"n": np.ones(8)}]), mesh("")) as placed:
        assert [batch["n"].shape for batch in placed] == [(8,)]


@pytest.mark.parametrize(("value", "fits"), [(2**31 - 1, True), (2**31, False), (-(2**40), False)])
def test_integers_that_jax_would_cut_are_refused(value, fits):
    with place(Batches(arrays(id=np.array([value])), 1, epochs=1), mesh("")) as placed:
        if fits:
            assert next(placed)["id"].item() == value
        else:
            with pytest.raises(Error, match="column id holds integers of over 32 bits"):
                next(placed)


def test_the_state_belongs_to_the_batch_consumed_not_to_those_read_ahead():
    batches, alone = (Batches(rows_of(BIG), BIG // 4, seed=5) for _ in range(2))
    with place(batches, mesh(""), depth=3) as placed:
        assert placed.get_state() == alone.get_state()
        for _ in range(12):
            np.testing.assert_array_equal(next(placed)["row"], next(alone)["row"])
            assert placed.get_state() == alone.get_state()


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_no_more_than_depth_batches_are_read_ahead(depth):
    source = Counting(rows=BIG)
    with place(source, mesh(""), depth=depth) as placed:
        next(placed)
        deadline = time.monotonic() + 5
        while source.taken < 1 + depth and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert source.taken == 1 + depth


@pytest.mark.parametrize("rows", [8, BIG])
def test_a_broken_loop_over_placed_batches_goes_on_and_a_finished_one_starts_anew(rows):
    listed = [{"n": np.full(rows, n)} for n in range(4)]
    with place(listed, mesh("")) as placed:
        assert next(placed)["n"][0] == 0
        assert [batch["n"][0].item() for batch in placed] == [1, 2, 3]
        assert [batch["n"][0].item() for batch in placed] == [0, 1, 2, 3]


@pytest.mark.parametrize(("rows", "taken", "kind"), [(8, 1, np.ndarray), (BIG, 3, jax.Array)])
def test_only_large_batches_are_read_ahead_for_one_device(rows, taken, kind):
    source = Counting(rows=rows)
    with place(source, mesh("")) as placed:
        assert isinstance(next(placed)["n"], kind)
        placed.set_state({"taken": 10})  # drops what was read ahead, once it is read
        batch = next(placed)["n"]
        assert batch.shape == (rows,) and batch[0] == 11
        assert placed.get_state() == {"taken": 11}
        deadline = time.monotonic() + 5
        while source.taken < 10 + taken and time.monotonic() < deadline:
            time.sleep(0.005)
    assert source.taken == 10 + taken


def test_a_thread_that_fails_keeps_its_error_for_the_batch_that_it_was_to_read():
    with place(Counting(end=2, rows=BIG), mesh("")) as placed:
        assert [batch["n"][0].item() for batch in placed] == [1, 2]

    class Torn(Counting):
        def __next__(self):
            if self.taken == 1:
                raise OSError("torn")
            return super().__next__()

    with place(Torn(rows=BIG), mesh("")) as placed:
        next(placed)
        with pytest.raises(OSError, match="torn"):
            next(placed)


def test_a_counted_walk_can_be_placed_again_for_the_next_evaluation():
    batches = Batches(rows_of(20), 8, epochs=1, drop_last=False)
    with place(batches, mesh("")) as placed:
        passes = [[b["row"].tolist() for b in placed] for _ in range(2)]
    assert len(passes[0]) == 3
    assert passes[0] == passes[1]


def test_closing_joins_the_thread():
    placed = place(Counting(rows=BIG), mesh(""))
    next(placed)
    assert any("chapbook-data" in thread.name for thread in threading.enumerate())
    placed.close()
    assert not any("chapbook-data" in thread.name for thread in threading.enumerate())
