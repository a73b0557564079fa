"""Columns of texts come in, and lists of tokens go out, through Arrow's C interface.

The other side of the interface is written here in plain ctypes. Every buffer it gives away ends
where its memory ends, and cannot be read any more once it is released.
"""

import ctypes
import errno
import gc
import itertools
import mmap
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chapbook.fast_wordpiece import _core
from chapbook.fast_wordpiece.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(os.name == "nt", reason="guards memory with mprotect")

WORDS = ["hello", "world", "##s", "tokeniz", "##ation", "café", "日", "本", "🙂", "a", "##a", "!"]
TEXTS = [
    "hello worlds",
    None,
    "",
    "twelve bytes",
    "thirteenbytes",
    "日本 hello 🙂🙂 café!",
    None,
    "tokenization " * 40,
    "a" * 64,
    "x",
    "hello [MASK] world",
]
FORMATS = ["u", "U", "z", "Z", "vu", "vz"]


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return Tokenizer.from_vocab(special + WORDS, lowercase=False)


# ------------------------------------------------------------------ the other side, in ctypes


class Schema(ctypes.Structure):
    pass


class Array(ctypes.Structure):
    pass


class Stream(ctypes.Structure):
    pass


RELEASE_SCHEMA = ctypes.CFUNCTYPE(None, POINTER(Schema))
RELEASE_ARRAY = ctypes.CFUNCTYPE(None, POINTER(Array))
RELEASE_STREAM = ctypes.CFUNCTYPE(None, POINTER(Stream))
GET_SCHEMA = ctypes.CFUNCTYPE(c_int, POINTER(Stream), POINTER(Schema))
GET_NEXT = ctypes.CFUNCTYPE(c_int, POINTER(Stream), POINTER(Array))
LAST_ERROR = ctypes.CFUNCTYPE(c_void_p, POINTER(Stream))

Schema._fields_ = [
    ("format", c_char_p),
    ("name", c_char_p),
    ("metadata", c_char_p),
    ("flags", c_int64),
    ("n_children", c_int64),
    ("children", POINTER(POINTER(Schema))),
    ("dictionary", POINTER(Schema)),
    ("release", RELEASE_SCHEMA),
    ("private_data", c_void_p),
]
Array._fields_ = [
    ("length", c_int64),
    ("null_count", c_int64),
    ("offset", c_int64),
    ("n_buffers", c_int64),
    ("n_children", c_int64),
    ("buffers", POINTER(c_void_p)),
    ("children", POINTER(POINTER(Array))),
    ("dictionary", POINTER(Array)),
    ("release", RELEASE_ARRAY),
    ("private_data", c_void_p),
]
Stream._fields_ = [
    ("get_schema", GET_SCHEMA),
    ("get_next", GET_NEXT),
    ("get_last_error", LAST_ERROR),
    ("release", RELEASE_STREAM),
    ("private_data", c_void_p),
]

new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [c_void_p, c_char_p, c_void_p]
pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype = c_void_p
pointer_of.argtypes = [ctypes.py_object, c_char_p]


class Guarded:
    """A copy of bytes whose last one is the last of its page; the next page cannot be read."""

    def __init__(self, data: bytes):
        pages = -(-max(len(data), 1) // mmap.PAGESIZE)
        self.size = pages * mmap.PAGESIZE
        self.memory = mmap.mmap(-1, self.size + mmap.PAGESIZE)
        self.memory[self.size - len(data) : self.size] = data
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.address = self.base + self.size - len(data)
        self.protect(self.base + self.size, mmap.PAGESIZE)

    def close(self) -> None:
        self.protect(self.base, self.size)

    def protect(self, address: int, size: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(c_void_p(address), ctypes.c_size_t(size), 0) == 0


class Chunk:
    """One array: its buffers, and how it says that they are to be read."""

    def __init__(
        self,
        buffers: Sequence[bytes | None],
        length: int,
        offset: int = 0,
        null_count: int = -1,
    ):
        self.buffers = [None if data is None else Guarded(data) for data in buffers]
        self.length, self.offset, self.null_count = length, offset, null_count
        self.released = 0

    def export(self, to: Array) -> None:
        addresses = [None if buffer is None else buffer.address for buffer in self.buffers]
        self.pointers = (c_void_p * max(len(addresses), 1))(*addresses)
        self.callback = RELEASE_ARRAY(self.release)
        to.length, to.offset, to.null_count = self.length, self.offset, self.null_count
        to.n_buffers, to.buffers = len(addresses), self.pointers
        to.release = self.callback

    def release(self, array: Any) -> None:
        self.released += 1
        for buffer in self.buffers:
            if buffer is not None:
                buffer.close()
        array.contents.release = RELEASE_ARRAY()


class Source:
    """A column in chunks, offered as a stream."""

    def __init__(
        self, form: str, chunks: Sequence[Chunk], *, encoded: bool = False, fails: int = 0
    ):
        self.form, self.chunks = form.encode(), list(chunks)
        self.fails = fails
        self.released = {"schema": 0, "stream": 0}
        self.given = 0
        self.alive: list[Any] = []
        self.dictionary = Schema() if encoded else None
        self.reason = ctypes.create_string_buffer(b"the disk is on fire")

    def export_schema(self, to: Schema) -> None:
        def release(schema: Any) -> None:
            self.released["schema"] += 1
            schema.contents.release = RELEASE_SCHEMA()

        to.format, to.name = self.form, b"texts"
        if self.dictionary is not None:
            to.dictionary = ctypes.pointer(self.dictionary)
        to.release = self.keep(RELEASE_SCHEMA(release))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        def get_schema(_: Any, out: Any) -> int:
            self.export_schema(out.contents)
            return 0

        def get_next(_: Any, out: Any) -> int:
            if self.given == len(self.chunks):
                if self.fails:
                    return self.fails
                out.contents.release = RELEASE_ARRAY()
                return 0
            self.chunks[self.given].export(out.contents)
            self.given += 1
            return 0

        def release(stream: Any) -> None:
            self.released["stream"] += 1
            stream.contents.release = RELEASE_STREAM()

        stream = self.keep(Stream())
        stream.get_schema = self.keep(GET_SCHEMA(get_schema))
        stream.get_next = self.keep(GET_NEXT(get_next))
        reason = ctypes.addressof(self.reason)
        stream.get_last_error = self.keep(LAST_ERROR(lambda _: reason))
        stream.release = self.keep(RELEASE_STREAM(release))
        return new_capsule(ctypes.addressof(stream), b"arrow_array_stream", None)

    def keep(self, thing: Any) -> Any:
        self.alive.append(thing)
        return thing


class ArraySource(Source):
    """One chunk, offered as an array."""

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        schema, array = self.keep(Schema()), self.keep(Array())
        self.export_schema(schema)
        self.chunks[0].export(array)
        return (
            new_capsule(ctypes.addressof(schema), b"arrow_schema", None),
            new_capsule(ctypes.addressof(array), b"arrow_array", None),
        )


def bitmap(texts: Sequence[Any]) -> bytes:
    valid = np.array([text is not None for text in texts], bool)
    return np.packbits(valid, bitorder="little").tobytes()


def chunk(form: str, texts: Sequence[str | bytes | None], skip: int = 0) -> Chunk:
    """Lays texts out; the first `skip` of them are before the chunk's offset."""
    raw = [text.encode() if isinstance(text, str) else text or b"" for text in texts]
    length = len(texts) - skip
    if form in ("vu", "vz"):
        # Two buffers of data, and rubbish where a text is null.
        data = [b"", b""]
        views = b""
        for number, (text, bytes_) in enumerate(zip(texts, raw, strict=True)):
            if text is None:
                views += b"\xff" * 16
            elif len(bytes_) <= 12:
                views += len(bytes_).to_bytes(4, "little") + bytes_.ljust(12, b"\0")
            else:
                place = np.array([number % 2, len(data[number % 2])], np.int32).tobytes()
                views += len(bytes_).to_bytes(4, "little") + bytes_[:4] + place
                data[number % 2] += bytes_
        sizes = np.array([len(part) for part in data], np.int64).tobytes()
        return Chunk([bitmap(texts), views, *data, sizes], length, skip)
    ends = np.cumsum([0, *map(len, raw)]).astype(np.int32 if form in "uz" else np.int64)
    return Chunk([bitmap(texts), ends.tobytes(), b"".join(raw)], length, skip)


def encode(tok: Tokenizer, source: object, **options: Any) -> tuple[Any, ...]:
    """Calls the core: (ids, bounds, offsets, ..., validity)."""
    chosen = {
        "special": True,
        "offsets": False,
        "words": False,
        "bytes": False,
        "overflow": False,
        "threads": 1,
        **options,
    }
    return _core.encode_arrow(tok._own, source, *chosen.values())


def rows(values: np.ndarray, bounds: np.ndarray, valid: np.ndarray | None) -> list[Any]:
    lists = [values[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    if valid is None:
        return lists
    return [row if ok else None for row, ok in zip(lists, valid.tolist(), strict=True)]


def expected(tok: Tokenizer, texts: Sequence[str | None]) -> list[Any]:
    batch = tok.encode_batch([text or "" for text in texts])
    ids = rows(batch.ids, batch.row_offsets, None)
    return [row if text is not None else None for row, text in zip(ids, texts, strict=True)]


# ---------------------------------------------------------------------------------- texts in


@pytest.mark.parametrize("form", FORMATS)
def test_every_layout_gives_the_ids_of_python_strings(tok: Tokenizer, form: str) -> None:
    got = encode(tok, Source(form, [chunk(form, TEXTS)]))
    assert rows(got[0], got[1], got[-1]) == expected(tok, TEXTS)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", [Source, ArraySource])
def test_a_slice_begins_at_its_offset(tok: Tokenizer, form: str, kind: type[Source]) -> None:
    for skip in range(1, len(TEXTS)):
        got = encode(tok, kind(form, [chunk(form, TEXTS, skip)]))
        assert rows(got[0], got[1], got[-1]) == expected(tok, TEXTS[skip:])


@pytest.mark.parametrize("form", FORMATS)
def test_chunks_follow_one_another(tok: Tokenizer, form: str) -> None:
    parts = [TEXTS[:3], [], TEXTS[3:4], TEXTS[4:]]
    got = encode(tok, Source(form, [chunk(form, part) for part in parts]))
    assert rows(got[0], got[1], got[-1]) == expected(tok, TEXTS)


def test_bits_of_more_than_one_byte_of_the_validity_are_read(tok: Tokenizer) -> None:
    texts = [None if n % 3 == 0 else "hello" * (n % 5) for n in range(70)]
    for skip in (0, 1, 7, 8, 9, 63, 64):
        got = encode(tok, Source("U", [chunk("U", texts, skip)]))
        assert rows(got[0], got[1], got[-1]) == expected(tok, texts[skip:])


def test_texts_without_nulls_have_no_validity(tok: Tokenizer) -> None:
    assert encode(tok, Source("u", [chunk("u", ["a", ""])]))[-1] is None


def test_empty_texts_without_any_data_are_not_null(tok: Tokenizer) -> None:
    bounds = np.zeros(3, np.int32).tobytes()
    got = encode(tok, Source("u", [Chunk([None, bounds, None], 2, null_count=0)]))
    assert rows(got[0], got[1], got[-1]) == [[2, 3], [2, 3]]


def test_a_chunk_without_nulls_need_not_have_a_true_bitmap(tok: Tokenizer) -> None:
    one = chunk("u", ["a", "hello"])
    one.buffers[0], one.null_count = Guarded(b"\x00"), 0
    got = encode(tok, Source("u", [one]))
    assert rows(got[0], got[1], got[-1]) == expected(tok, ["a", "hello"])


def test_an_empty_chunk_may_lack_its_buffers(tok: Tokenizer) -> None:
    got = encode(tok, Source("vu", [Chunk([None, None, None], 0)]))
    assert len(got[0]) == 0
    assert got[1].tolist() == [0]
    assert encode(tok, Source("U", []))[1].tolist() == [0]


def test_a_column_of_nothing_is_all_null(tok: Tokenizer) -> None:
    got = encode(tok, Source("n", [Chunk([], 3)]))
    assert rows(got[0], got[1], got[-1]) == [None, None, None]


def test_unaligned_buffers_are_read(tok: Tokenizer) -> None:
    texts = ["hello", "worlds", "tokenization!"]
    for form in ("u", "U", "vu"):
        one = chunk(form, texts)
        ends = one.buffers[1]
        assert ends is not None
        data = ends.memory[ends.size - (ends.base + ends.size - ends.address) : ends.size]
        one.buffers[1] = shifted = Guarded(data + b"\0")
        assert shifted.address % 4 == 3
        got = encode(tok, Source(form, [one]))
        assert rows(got[0], got[1], got[-1]) == expected(tok, texts)


@pytest.mark.parametrize("unit", ["char", "byte"])
def test_offsets_and_words_are_those_of_python_strings(tok: Tokenizer, unit: Any) -> None:
    texts = [text for text in TEXTS if text is not None]
    wanted = tok.encode_batch(texts, offsets=True, offset_unit=unit)
    source = Source("vu", [chunk("vu", texts)])
    _, _, offsets, words, *_ = encode(tok, source, offsets=True, words=True, bytes=unit == "byte")
    assert offsets.tolist() == wanted.offsets.tolist()
    assert words.tolist() == wanted.word_ids.tolist()


def test_any_number_of_threads_gives_the_same(tok: Tokenizer) -> None:
    texts = TEXTS * 500
    one = encode(tok, Source("U", [chunk("U", texts)]), offsets=True, threads=1)
    for threads in (2, 7):
        more = encode(tok, Source("U", [chunk("U", texts)]), offsets=True, threads=threads)
        for a, b in zip(one, more, strict=True):
            np.testing.assert_array_equal(a, b)


def test_many_python_threads_share_a_tokenizer(tok: Tokenizer) -> None:
    wanted = expected(tok, TEXTS)
    got: list[Any] = []

    def work() -> None:
        for _ in range(20):
            result = encode(tok, Source("vu", [chunk("vu", TEXTS)]), threads=2)
            got.append(rows(result[0], result[1], result[-1]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 160
    assert all(each == wanted for each in got)


def test_tokens_are_counted_without_strings(tok: Tokenizer) -> None:
    wanted = [0 if row is None else len(row) for row in expected(tok, TEXTS)]
    counts = tok.count_batch(Source("vu", [chunk("vu", TEXTS)]))
    assert counts.dtype == np.int64
    assert counts.tolist() == wanted


# --------------------------------------------------------------------------- texts that are not


def test_categories_are_refused(tok: Tokenizer) -> None:
    with pytest.raises(TypeError, match=r"dictionary-encoded .* cast it to strings"):
        encode(tok, Source("i", [], encoded=True))


@pytest.mark.parametrize("form", ["i", "+s", "+l", "w:4", "tdD"])
def test_columns_of_other_types_are_refused(tok: Tokenizer, form: str) -> None:
    with pytest.raises(TypeError, match=f'format "{form}"'.replace("+", r"\+")):
        encode(tok, Source(form, []))


def test_what_is_not_arrow_is_refused(tok: Tokenizer) -> None:
    with pytest.raises(TypeError, match=r"Arrow array or stream, such as .*, not list"):
        encode(tok, ["hello"])


@pytest.mark.parametrize("form", ["z", "Z", "vz"])
def test_bytes_that_are_not_utf8_are_named_by_row_and_byte(tok: Tokenizer, form: str) -> None:
    good = chunk(form, [b"hello", None])
    for bad, byte in [(b"abc\xff", 3), (b"a longer text \xed\xa0\x80", 14), (b"\xe6\x97", 0)]:
        source = Source(form, [good, chunk(form, [b"", bad])])
        with pytest.raises(
            ValueError, match=f"^row 3 of the Arrow data is not UTF-8 at byte {byte}$"
        ):
            encode(tok, source)
        good = chunk(form, [b"hello", None])


def view(length: int, buffer: int, at: int) -> bytes:
    return np.array([length, 0, buffer, at], np.int32).tobytes()


@pytest.mark.parametrize(
    ("form", "buffers", "reason"),
    [
        ("u", [None, np.array([0, 3, 1], np.int32).tobytes(), b"abc"], "row 1 .* run backwards"),
        ("U", [None, np.array([-1, 0, 0], np.int64).tobytes(), b"abc"], "row 0 .* run backwards"),
        ("u", [None, np.array([0, 0, 1], np.int32).tobytes(), None], "row 1 .* has no data"),
        ("u", [None, np.array([0, 0, 1], np.int32).tobytes()], "malformed"),
        ("vu", [None, view(0, 0, 0) + view(-1, 0, 0), b""], "row 1 .* negative length"),
        ("vu", [None, view(13, 0, 0) * 2, b""], "row 0 .* outside of its buffer"),
        ("vu", [None, view(13, 1, 0) * 2, b"x" * 13, b"\x0d" + b"\0" * 7], "outside of its buffer"),
        ("vu", [None, view(13, 0, 1) * 2, b"x" * 13, b"\x0d" + b"\0" * 7], "outside of its buffer"),
        ("vu", [None, view(13, 0, -1) * 2, b"x" * 13, b"\x0d" + b"\0" * 7], "outside of its"),
        ("vu", [None, view(13, -1, 0) * 2, b"x" * 13, b"\x0d" + b"\0" * 7], "outside of its"),
    ],
)
def test_chunks_that_contradict_themselves_are_refused(
    tok: Tokenizer, form: str, buffers: list[bytes | None], reason: str
) -> None:
    one = Chunk(buffers, 2)
    with pytest.raises(ValueError, match=reason):
        encode(tok, Source(form, [one]))
    assert one.released == 1


@pytest.mark.parametrize(("length", "offset"), [(-1, 0), (1, -1)])
def test_negative_lengths_are_refused(tok: Tokenizer, length: int, offset: int) -> None:
    one = chunk("u", ["a"])
    one.length, one.offset = length, offset
    with pytest.raises(ValueError, match="malformed"):
        encode(tok, Source("u", [one]))


def test_broken_views_and_strings_do_no_harm(tok: Tokenizer) -> None:
    """Arrow's strings are UTF-8 by contract and are not checked; nothing outside is read."""
    draw = np.random.default_rng(3)
    data = [bytes(draw.choice([32, 65, 97, 0xCC, 0xE6, 0xF0, 0x9F, 0xBF], n)) for n in (200, 70)]
    sizes = np.array([200, 70], np.int64).tobytes()
    refused = 0
    for _ in range(400):
        fields = [draw.integers(0, 90, 6), *draw.integers(0, 2**31, (3, 6))]
        views = np.stack(fields, 1).astype(np.int32)
        views[:, 2] = draw.integers(0, 2, 6)
        views[:, 3] = draw.integers(0, 160, 6) * (views[:, 2] == 0)
        one = Chunk([None, views.tobytes(), *data, sizes], 6)
        try:
            got = encode(tok, Source("vu", [one]), offsets=True, words=True, bytes=True)
        except ValueError:
            refused += 1
        else:
            assert len(got[1]) == 7
            assert int(got[2].max(initial=0)) <= 90
        assert one.released == 1
    assert 50 < refused < 350


# ---------------------------------------------------------------------------- who lets go of what


@pytest.mark.parametrize("kind", [Source, ArraySource])
def test_everything_taken_is_released_once(tok: Tokenizer, kind: type[Source]) -> None:
    chunks = [chunk("vu", TEXTS) for _ in range(1 if kind is ArraySource else 3)]
    source = kind("vu", chunks)
    encode(tok, source)
    assert [each.released for each in chunks] == [1] * len(chunks)
    assert source.released == {"schema": 1, "stream": int(kind is Source)}


def test_everything_taken_is_released_once_after_an_error(tok: Tokenizer) -> None:
    chunks = [chunk("z", [b"fine"]), chunk("z", [b"\xff"]), chunk("z", [b"never read"])]
    source = Source("z", chunks)
    with pytest.raises(ValueError, match="UTF-8"):
        encode(tok, source)
    assert [each.released for each in chunks] == [1, 1, 1]
    assert source.released == {"schema": 1, "stream": 1}


def test_a_stream_that_fails_says_why_and_is_released(tok: Tokenizer) -> None:
    one = chunk("u", ["a"])
    source = Source("u", [one], fails=errno.EIO)
    with pytest.raises(RuntimeError, match="the Arrow stream failed: the disk is on fire"):
        encode(tok, source)
    assert one.released == 1
    assert source.released == {"schema": 1, "stream": 1}


def test_what_was_consumed_before_is_refused(tok: Tokenizer) -> None:
    class Twice:
        def __init__(self) -> None:
            self.source = Source("u", [chunk("u", ["a"])])
            self.capsule = self.source.__arrow_c_stream__()

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return self.capsule

    twice = Twice()
    encode(tok, twice)
    with pytest.raises(ValueError, match="consumed already"):
        encode(tok, twice)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_calls_leave_no_memory_behind(tok: Tokenizer) -> None:
    import polars as pl

    column = pl.Series(TEXTS * 10)

    def calls(count: int) -> None:
        for _ in range(count):
            *result, valid = encode(tok, column, offsets=True)
            made = _core.ArrowList(result[0], result[1], valid)
            pl.Series(made)
            made.__arrow_c_stream__()
            pl.Series(_core.ArrowList(result[2], result[1], valid))

    calls(100)
    gc.collect()
    bytes_before, blocks_before = resident(), sys.getallocatedblocks()
    calls(1000)
    gc.collect()
    # One call's ids and offsets alone are 20 kB: 20 MB, if they were kept.
    assert resident() - bytes_before < 4e6
    assert sys.getallocatedblocks() - blocks_before < 500


# ---------------------------------------------------------------------------------- lists out


@pytest.fixture
def ids() -> np.ndarray:
    return np.arange(7, dtype=np.int32)


BOUNDS = np.array([0, 2, 2, 2, 7])
VALID = np.array([True, False, True, True])


def export(made: object) -> tuple[Any, Any, list[Any]]:
    """Returns the schema and the array of an object, and the capsules to keep meanwhile."""
    capsules = list(getattr(made, "__arrow_c_array__")())  # noqa: B009 - a name with underscores
    schema = Schema.from_address(pointer_of(capsules[0], b"arrow_schema"))
    return schema, Array.from_address(pointer_of(capsules[1], b"arrow_array")), capsules


def formats(schema: Any) -> Iterator[tuple[str, str]]:
    yield schema.name.decode(), schema.format.decode()
    for n in range(schema.n_children):
        yield from formats(schema.children[n].contents)


def numbers(array: Any, buffer: int, kind: Any, count: int) -> list[int]:
    return list((kind * count).from_address(array.buffers[buffer]))


def test_ids_are_given_as_a_large_list_without_a_copy(ids: np.ndarray) -> None:
    bounds = BOUNDS.copy()
    schema, array, _keep = export(_core.ArrowList(ids, bounds, VALID))
    assert list(formats(schema)) == [("", "+L"), ("item", "i")]
    assert (array.length, array.null_count, array.offset) == (4, 1, 0)
    assert (array.n_buffers, array.n_children) == (2, 1)
    assert numbers(array, 0, ctypes.c_uint8, 1) == [0b1101]
    assert array.buffers[1] == bounds.ctypes.data
    items = array.children[0].contents
    assert (items.length, items.null_count, items.n_buffers) == (7, 0, 2)
    assert items.buffers[0] is None
    assert items.buffers[1] == ids.ctypes.data


def test_offsets_are_given_as_structs_of_start_and_end() -> None:
    offsets = np.arange(14, dtype=np.uint32).reshape(7, 2)
    schema, array, _keep = export(_core.ArrowList(offsets, BOUNDS))
    assert list(formats(schema)) == [("", "+L"), ("item", "+s"), ("start", "I"), ("end", "I")]
    assert array.buffers[0] is None
    structs = array.children[0].contents
    assert (structs.length, structs.n_buffers, structs.n_children) == (7, 1, 2)
    starts, ends = structs.children[0].contents, structs.children[1].contents
    assert numbers(starts, 1, ctypes.c_uint32, 7) == offsets[:, 0].tolist()
    assert numbers(ends, 1, ctypes.c_uint32, 7) == offsets[:, 1].tolist()


def test_the_arrays_live_as_long_as_what_was_made_of_them(ids: np.ndarray) -> None:
    counts = sys.getrefcount(ids)
    made = _core.ArrowList(ids, BOUNDS, VALID)
    _, array, capsules = export(made)
    assert sys.getrefcount(ids) == counts + 1
    del made
    assert sys.getrefcount(ids) == counts + 1
    # ctypes lets go of the GIL for the call, as consumers in other languages do.
    array.release(ctypes.byref(array))
    assert not array.release
    assert sys.getrefcount(ids) == counts
    capsules.clear()
    assert sys.getrefcount(ids) == counts


def test_capsules_that_nobody_reads_let_go(ids: np.ndarray) -> None:
    counts = sys.getrefcount(ids)
    made = _core.ArrowList(ids, BOUNDS, VALID)
    for name in ("__arrow_c_schema__", "__arrow_c_array__", "__arrow_c_stream__"):
        getattr(made, name)()
    del made
    assert sys.getrefcount(ids) == counts


def test_a_child_that_is_moved_out_outlives_its_parent(ids: np.ndarray) -> None:
    counts = sys.getrefcount(ids)
    _, array, capsules = export(_core.ArrowList(ids, BOUNDS, VALID))
    child = array.children[0].contents
    moved = Array()
    ctypes.memmove(ctypes.byref(moved), ctypes.byref(child), ctypes.sizeof(Array))
    child.release = RELEASE_ARRAY()
    array.release(ctypes.byref(array))
    capsules.clear()
    assert numbers(moved, 1, ctypes.c_int32, 7) == list(range(7))
    moved.release(ctypes.byref(moved))
    assert sys.getrefcount(ids) == counts


def test_a_release_on_another_thread_is_safe() -> None:
    def work() -> None:
        for _ in range(200):
            values = np.arange(7, dtype=np.int32)
            _, array, _keep = export(_core.ArrowList(values, BOUNDS, VALID))
            del values
            queue.append((array, _keep))

    queue: list[tuple[Any, Any]] = []
    maker = threading.Thread(target=work)
    maker.start()
    released = 0
    while maker.is_alive() or queue:
        if queue:
            array, _keep = queue.pop()
            array.release(ctypes.byref(array))
            released += 1
    assert released == 200


def test_a_stream_is_one_chunk_and_its_end(ids: np.ndarray) -> None:
    counts = sys.getrefcount(ids)
    capsule = _core.ArrowList(ids, BOUNDS, VALID).__arrow_c_stream__()
    stream = Stream.from_address(pointer_of(capsule, b"arrow_array_stream"))
    schema, array, end = Schema(), Array(), Array()
    for _ in range(2):  # A schema can be asked for more than once.
        assert stream.get_schema(ctypes.byref(stream), ctypes.byref(schema)) == 0
        assert schema.format == b"+L"
        schema.release(ctypes.byref(schema))
    assert stream.get_next(ctypes.byref(stream), ctypes.byref(array)) == 0
    assert stream.get_next(ctypes.byref(stream), ctypes.byref(end)) == 0
    assert not end.release
    assert stream.get_last_error(ctypes.byref(stream)) is None
    del capsule  # The chunk outlives the stream.
    assert numbers(array, 1, c_int64, 5) == BOUNDS.tolist()
    array.release(ctypes.byref(array))
    assert sys.getrefcount(ids) == counts


def test_a_type_that_is_asked_for_is_no_error(ids: np.ndarray) -> None:
    made = _core.ArrowList(ids, BOUNDS)
    wish = made.__arrow_c_schema__()
    assert len(made.__arrow_c_array__(requested_schema=wish)) == 2
    assert made.__arrow_c_stream__(requested_schema=wish) is not None


def test_a_list_knows_its_length(ids: np.ndarray) -> None:
    assert len(_core.ArrowList(ids, BOUNDS)) == 4
    assert len(_core.ArrowList(ids, np.zeros(1, np.int64))) == 0


@pytest.mark.parametrize("bounds", [[0, 8], [-1, 7], [0, 5, 4, 7], [0, 9, 7]])
def test_bounds_that_do_not_fit_are_refused(ids: np.ndarray, bounds: list[int]) -> None:
    with pytest.raises(ValueError, match="bounds must rise from 0 to at most"):
        _core.ArrowList(ids, np.array(bounds))


def test_arrays_of_another_kind_are_refused(ids: np.ndarray) -> None:
    with pytest.raises(ValueError, match="one more number than there are rows"):
        _core.ArrowList(ids, np.array([], np.int64))
    with pytest.raises(ValueError, match="one value for each row"):
        _core.ArrowList(ids, BOUNDS, VALID[:2])
    with pytest.raises(ValueError, match="two columns"):
        _core.ArrowList(np.zeros((3, 3), np.uint32), np.array([0, 3]))
    with pytest.raises(TypeError, match="Cannot cast"):
        _core.ArrowList(ids.astype(float), BOUNDS)
    with pytest.raises(TypeError, match="NumPy array"):
        _core.ArrowList([1, 2], np.array([0, 2]))


def test_polars_takes_lists_and_nulls(ids: np.ndarray) -> None:
    import polars as pl

    series = pl.Series("ids", _core.ArrowList(ids, BOUNDS, VALID))
    assert series.dtype == pl.List(pl.Int32)
    assert series.to_list() == [[0, 1], None, [], [2, 3, 4, 5, 6]]
    offsets = np.arange(14, dtype=np.uint32).reshape(7, 2)
    spans = pl.Series(_core.ArrowList(offsets, BOUNDS, VALID))
    assert spans.dtype == pl.List(pl.Struct({"start": pl.UInt32, "end": pl.UInt32}))
    assert spans[0].to_list() == [{"start": 0, "end": 1}, {"start": 2, "end": 3}]


def test_pyarrow_gives_and_takes(tok: Tokenizer) -> None:
    pa = pytest.importorskip("pyarrow")
    wanted = expected(tok, TEXTS)
    types = [pa.utf8(), pa.large_utf8(), pa.binary(), pa.large_binary(), pa.string_view()]
    for kind in types:
        array = pa.array(TEXTS, kind)
        for column, want in [
            (array, wanted),
            (array[3:8], wanted[3:8]),
            (pa.chunked_array([array[5:], array[:0], array[:5]]), wanted[5:] + wanted[:5]),
        ]:
            made = pa.array(tok.encode_arrow(column))
            made.validate(full=True)
            assert made.type == pa.large_list(pa.int32())
            assert made.to_pylist() == want
    chunked = pa.chunked_array(tok.encode_arrow(pa.array(TEXTS)))
    chunked.validate(full=True)
    assert chunked.to_pylist() == wanted
