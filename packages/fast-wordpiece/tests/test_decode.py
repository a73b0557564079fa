"""Decoding gives Hugging Face's texts, whatever the pieces and the ids."""

import random

import numpy as np
import pytest

from chapbook.fast_wordpiece.decode import (
    decode,
    decode_batch,
    detokenize_words,
    spellings,
    split_rows,
)
from chapbook.fast_wordpiece.settings import AddedToken, Settings

PIECES = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "do", "not", "##n", "##'", "'", "t", "##t", "s", "##s"),
    *("##.", ".", "?", "!", ",", "##,", "m", "ve", "re", "##", "#", "##é", "中", "a##b", " x", "n"),
    *("'s", "##n't", "n't", "'m", "do not", "##do not", "'ve", "##'re", "'re", " ' ", "##' ", " ."),
]
VOCAB = {piece: number for number, piece in enumerate(PIECES)}


def settings(mark="##", cleanup=True):
    added = (AddedToken("[CLS]", 2, special=True), AddedToken("<x>", 90), AddedToken(" n't", 91))
    return Settings(VOCAB, mark=mark, cleanup=cleanup, added_tokens=added)


def hf(mark="##", cleanup=True):
    tokenizers = pytest.importorskip("tokenizers")
    decoder = tokenizers.decoders.WordPiece(prefix=mark, cleanup=cleanup)
    pieces = {**dict(enumerate(PIECES)), 90: "<x>", 91: " n't"}

    def texts(rows, skip):
        special = {2} if skip else set()
        return [
            decoder.decode([pieces[i] for i in row if i in pieces and i not in special])
            for row in rows
        ]

    return texts


def random_rows(seed, count=3_000):
    rng = random.Random(seed)
    choices = [*range(len(PIECES)), 90, 91, 500]
    return [rng.choices(choices, k=rng.randint(0, 12)) for _ in range(count)]


@pytest.mark.parametrize("mark", ["##", "#", "", "a#"])
@pytest.mark.parametrize("cleanup", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_random_ids_decode_as_in_hugging_face(mark, cleanup, skip):
    rows = random_rows(f"{mark}{cleanup}{skip}")
    spelled = spellings(settings(mark, cleanup))
    assert decode_batch(spelled, rows, skip_special_tokens=skip) == hf(mark, cleanup)(rows, skip)


def test_a_whole_tokenizer_of_hugging_face_decodes_the_same():
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordPiece(VOCAB, unk_token="[UNK]")
    whole = tokenizers.Tokenizer(model)
    whole.decoder = tokenizers.decoders.WordPiece()
    whole.add_special_tokens(["[CLS]", "[SEP]"])
    added = tuple(AddedToken(token, VOCAB[token], special=True) for token in ("[CLS]", "[SEP]"))
    spelled = spellings(Settings(VOCAB, added_tokens=added))
    for row in random_rows("whole", 500):
        for skip in (True, False):
            theirs = whole.decode(row, skip_special_tokens=skip)
            assert decode(spelled, row, skip_special_tokens=skip) == theirs


def test_the_first_piece_keeps_its_mark_and_gets_no_space():
    spelled = spellings(settings())
    assert decode(spelled, [VOCAB["##s"], VOCAB["##t"], VOCAB["do"]]) == "##st do"


def test_contractions_and_punctuation_join_what_comes_before():
    spelled = spellings(settings())
    ids = [VOCAB[piece] for piece in ("do not", "n't", ",", "t", "'s", ".")]
    assert decode(spelled, ids) == "do notn't, t's."
    assert decode(spellings(settings(cleanup=False)), ids) == "do not n't , t 's ."


def test_rows_may_be_lists_arrays_or_flat_ids_with_offsets():
    spelled = spellings(settings())
    rows = [[4, 5, 6], [], [7, 8]]
    texts = [decode(spelled, row) for row in rows]
    assert texts == ["do notn", "", "##' '"]
    assert decode_batch(spelled, [np.array(row, np.int32) for row in rows]) == texts
    flat, offsets = np.array([4, 5, 6, 7, 8], np.int32), np.array([0, 3, 3, 5])
    assert decode_batch(spelled, split_rows(flat, offsets)) == texts
    assert decode_batch(spelled, split_rows(flat.tolist(), offsets.tolist())) == texts
    assert decode_batch(spelled, np.array([[4, 5], [5, 4]])) == ["do not", "not do"]


def test_offsets_that_do_not_fit_are_refused():
    for offsets in ([], [0, 3], [0, 2, 1], [-1, 2]):
        with pytest.raises(ValueError, match="row_offsets must rise from 0 to at most 2"):
            split_rows([4, 5], offsets)


def test_labels_are_not_taken_for_ids():
    with pytest.raises(ValueError, match="ids hold -100"):
        decode(spellings(settings()), [4, -100])


def test_words_of_tf_text_join_continuations():
    spelled = spellings(settings())
    row = [VOCAB[piece] for piece in ("do", "##n", "##'", "##t", "not", ".", "##s")]
    assert detokenize_words(spelled, row) == ["don't", "not", ".s"]
    assert detokenize_words(spelled, np.array(row)) == ["don't", "not", ".s"]


def test_a_leading_continuation_keeps_its_mark_in_words():
    spelled = spellings(settings())
    assert detokenize_words(spelled, [VOCAB["##n"], VOCAB["##t"], VOCAB["do"]]) == ["##nt", "do"]
