"""A model meets a text as it met documents in training."""

import numpy as np
import polars as pl

from chapbook.glam.language_model import opened
from chapbook.glam.packing import PackedDataset, write_shards


def test_a_text_begins_as_documents_do_in_training(tokenizer, tmp_path):
    table = pl.DataFrame({"id": ["a", "b", "c"], "text": ["one", "and two", "three"]})
    write_shards([table], tokenizer, tmp_path / "shards")
    window = PackedDataset(tmp_path / "shards", 16)[np.array([0])]
    second = window["tokens"][window["segment"] == 2]
    assert second.tolist() == opened(tokenizer, "and two")
    assert opened(tokenizer, "") == [tokenizer.end]
