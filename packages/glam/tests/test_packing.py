import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from chapbook.core.data import Batches
from chapbook.core.errors import Error
from chapbook.glam import packing
from chapbook.glam.hashing import uniform
from chapbook.glam.packing import PackedDataset, write_shards
from chapbook.glam.tokenizer import ByteTokenizer, train_tokenizer


def corpus(count: int = 200, seed: int = 0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    texts = ["word " * int(draw.integers(0, 20)) + f"number {i}" for i in range(count)]
    texts[7] = ""
    texts[11] = "Füße 😀"
    return pl.DataFrame({"id": [f"doc-{i}" for i in range(count)], "text": texts})


def batches(table: pl.DataFrame, size: int = 23) -> list[pl.DataFrame]:
    return list(table.iter_slices(size))


def stream(folder: Path, part: str = "train") -> list[int]:
    files = sorted((folder / part).glob("tokens-*.npy"))
    return np.concatenate([np.load(file) for file in files]).tolist()


def expected(table: pl.DataFrame) -> list[int]:
    return [b for text in table["text"] if text for b in [*text.encode(), 256]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_shards_hold_every_document_with_an_end_behind_it(tmp_path):
    table = corpus()
    facts = write_shards(batches(table), ByteTokenizer(), tmp_path / "s", shard_tokens=1000)
    assert stream(tmp_path / "s") == expected(table)
    part = facts["parts"]["train"]
    assert (part["documents"], part["empty"]) == (199, 1)
    assert part["bytes"] == sum(len(text.encode()) for text in table["text"])
    assert part["tokens"] == len(expected(table)) == sum(part["shards"])
    assert len(part["shards"]) > 3
    assert all(1000 <= size < 1200 for size in part["shards"][:-1])


def test_the_table_says_where_each_document_lies(tmp_path):
    table = corpus()
    tokenizer = train_tokenizer([table], 300)
    write_shards(batches(table), tokenizer, tmp_path, shard_tokens=500)
    data = PackedDataset(tmp_path, 8)
    index = data.documents().collect()
    assert index["id"].to_list() == table.filter(pl.col("text") != "")["id"].to_list()
    for name, shard, start, count, size in index.iter_rows():
        tokens = np.load(tmp_path / "train" / f"tokens-{shard:06d}.npy")
        text = table.filter(pl.col("id") == name)["text"].item()
        assert tokens.dtype == np.uint16
        assert data.tokenizer.decode(tokens[start : start + count]) == text
        assert tokens[start + count] == tokenizer.end
        assert size == len(text.encode())
    assert data.fingerprint == data.tokenizer.fingerprint == tokenizer.fingerprint


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    class Wide(ByteTokenizer):
        vocab_size = 100_000
        end = 99_999

    write_shards([corpus()], Wide(), tmp_path)
    assert np.load(tmp_path / "train" / "tokens-000000.npy").dtype == np.uint32
    assert PackedDataset(tmp_path, 8)[np.array([0])]["tokens"].max() < 100_000


def test_windows_cover_each_shard_and_number_its_documents(tmp_path):
    table = corpus()
    write_shards(batches(table), ByteTokenizer(), tmp_path, shard_tokens=1000)
    data = PackedDataset(tmp_path, 32)
    found = data[np.arange(len(data))]
    assert found["tokens"].dtype == found["segment"].dtype == np.int32
    row = 0
    for file in sorted((tmp_path / "train").glob("*.npy")):
        tokens = np.load(file)
        for start in range(0, len(tokens) - 32, 32):
            window = tokens[start : start + 33]
            assert found["tokens"][row].tolist() == window.tolist()
            segment = [1 + int((window[: i + 1] == 256).sum()) for i in range(33)]
            assert found["segment"][row].tolist() == segment
            row += 1
    assert row == len(data)
    order = np.random.default_rng(0).permutation(len(data))
    assert np.array_equal(data[order]["tokens"], found["tokens"][order])


def test_batches_stop_and_go_on_anywhere(tmp_path):
    write_shards(batches(corpus()), ByteTokenizer(), tmp_path, shard_tokens=1000)
    whole = Batches(PackedDataset(tmp_path, 32), 8, seed=3)
    taken = [next(whole)["tokens"] for _ in range(40)]
    for stop in (1, 17):
        first = Batches(PackedDataset(tmp_path, 32), 8, seed=3)
        for _ in range(stop):
            next(first)
        again = Batches(PackedDataset(tmp_path, 32), 8)
        again.set_state(json.loads(json.dumps(first.get_state())))
        assert all(np.array_equal(next(again)["tokens"], each) for each in taken[stop:])


def test_documents_are_held_out_by_their_ids_alone(tmp_path):
    table = corpus(3000)
    write_shards(batches(table, 500), ByteTokenizer(), tmp_path / "a", held_out=0.1, seed=5)
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=1)
    write_shards([shuffled], ByteTokenizer(), tmp_path / "b", held_out=0.1, seed=5)
    held = {}
    for name in "ab":
        parts = [PackedDataset(tmp_path / name, 8, part) for part in ("train", "held_out")]
        ids = [set(part.documents().collect()["id"]) for part in parts]
        assert not ids[0] & ids[1]
        assert len(ids[0] | ids[1]) == 2999
        held[name] = ids[1]
    assert held["a"] == held["b"]
    wanted = table["id"].filter(pl.Series(uniform(table["id"], 5, "held-out") < 0.1))
    assert held["a"] == set(wanted) - {"doc-7"}
    assert abs(len(wanted) - 300) < 5 * np.sqrt(270)


@pytest.mark.parametrize("stop", [0, 1, 30, 60, 130])
def test_a_writer_that_was_stopped_goes_on_to_the_same_files(tmp_path, stop):
    table = corpus(600)
    options = {"held_out": 0.3, "shard_tokens": 1000}
    write_shards(batches(table), ByteTokenizer(), tmp_path / "whole", **options)

    class Stopping(ByteTokenizer):
        left = stop

        def encode(self, text):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().encode(text)

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        write_shards(batches(table), Stopping(), folder, **options)
    with pytest.raises(Error, match="is half-written; run the same glam prepare again"):
        PackedDataset(folder, 8)
    (folder / "train" / ".torn.npy").write_bytes(b"half")
    # Other batches: the place of their borders must not matter.
    write_shards(batches(table, 31), ByteTokenizer(), folder, **options)
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_a_killed_writer_goes_on_to_the_same_files(tmp_path):
    code = """
        import os, signal, sys
        import polars as pl
        from chapbook.core import io
        from chapbook.glam import packing
        from chapbook.glam.tokenizer import ByteTokenizer
        calls, replace = 0, io.Path.replace
        def dying(self, target):  # between the writing of a file and its appearance, or after it
            global calls
            calls += 1
            if calls == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)
        io.Path.replace = dying
        table = pl.DataFrame({"id": [str(i) for i in range(100)], "text": ["a" * 50] * 100})
        packing.write_shards([table], ByteTokenizer(), sys.argv[1], shard_tokens=1000)
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))

    def run(folder: str, kill: int) -> int:
        command = [sys.executable, str(script), str(tmp_path / folder), str(kill)]
        return subprocess.run(command, env=dict(os.environ), capture_output=True).returncode

    assert run("whole", 0) == 0
    kills = [1, 5]  # of the settings, and between a shard's tokens and its table
    assert [run("killed", each) for each in kills] == [-9, -9]
    assert run("killed", 0) == 0
    killed = files_of(tmp_path / "killed")
    assert {n: c for n, c in killed.items() if "/." not in n and n[0] != "."} == files_of(
        tmp_path / "whole"
    )


def test_folders_that_hold_something_else_are_refused(tmp_path):
    table = corpus()
    write_shards([table], ByteTokenizer(), tmp_path / "whole")
    with pytest.raises(Error, match="holds whole shards already"):
        write_shards([table], ByteTokenizer(), tmp_path / "whole")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(Error, match="is not empty and holds no shards"):
        write_shards([table], ByteTokenizer(), tmp_path / "other")

    def stopping():
        yield table
        raise ZeroDivisionError

    for name in ("begun", "more"):
        with pytest.raises(ZeroDivisionError):
            write_shards(stopping(), ByteTokenizer(), tmp_path / name, shard_tokens=100)
    with pytest.raises(Error, match=r"was begun with held_out=0.0, you gave 0.5"):
        write_shards([table], ByteTokenizer(), tmp_path / "begun", held_out=0.5, shard_tokens=100)
    with pytest.raises(Error, match="begun with other documents"):
        write_shards([table[5:]], ByteTokenizer(), tmp_path / "begun", shard_tokens=100)
    with pytest.raises(Error, match="begun with other documents"):
        write_shards([table[:5]], ByteTokenizer(), tmp_path / "more", shard_tokens=100)
    with pytest.raises(Error, match="no document to train on holds any text"):
        write_shards([table[7:8]], ByteTokenizer(), tmp_path / "empty")
    with pytest.raises(Error, match=r"held_out=1.0.*: give a share below 1"):
        write_shards([table], ByteTokenizer(), tmp_path / "none", held_out=1.0)


def test_shards_that_are_not_what_the_facts_say_are_not_read(tmp_path):
    write_shards([corpus()], ByteTokenizer(), tmp_path)
    with pytest.raises(Error, match="has no part held_out; it has train"):
        PackedDataset(tmp_path, 8, "held_out")
    with pytest.raises(Error, match=r"no window of 100000 \+ 1 tokens; its longest shard has"):
        PackedDataset(tmp_path, 100_000)
    with pytest.raises(Error, match="nothing holds no shards"):
        PackedDataset(tmp_path / "nothing", 8)
    file = tmp_path / "train" / "tokens-000000.npy"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(Error, match=r"tokens-000000.npy is not the shard of \d+ tokens"):
        PackedDataset(tmp_path, 8)


def test_two_writers_do_not_share_a_folder(tmp_path):
    def documents():
        with pytest.raises(Error, match="is in use by pid"):
            write_shards([corpus()], ByteTokenizer(), tmp_path)
        yield corpus()

    write_shards(documents(), ByteTokenizer(), tmp_path)
    assert packing.PackedDataset(tmp_path, 8)
