"""What is read out of published packages; only the slow tests fetch them."""

import gettext
import io
import struct
import tarfile
import zipfile

import pytest

from chapbook.core import datasets
from chapbook.fast_wordpiece import data

HEADER = "Content-Type: text/plain; charset=UTF-8\n"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Puts bytes in the place of the file that would be fetched."""

    def put(content: bytes) -> None:
        path = tmp_path / "file"
        path.write_bytes(content)
        monkeypatch.setattr(datasets, "member", lambda *_, **__: path)

    return put


def udhr(pages: dict[str, tuple[str, str]]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, (language, body) in pages.items():
            page = f'<html data-code="x" lang="{language}"><body>{body}</body></html>'.encode()
            info = tarfile.TarInfo(f"package/declaration/{name}.html")
            info.size = len(page)
            archive.addfile(info, io.BytesIO(page))
    return packed.getvalue()


def catalogue(messages: dict[str, str]) -> bytes:
    texts = [text.encode() for text in (*messages, *messages.values())]
    tables, place = [], 28 + 8 * len(texts)
    for text in texts:
        tables.append(struct.pack("<2I", len(text), place))
        place += len(text) + 1
    count = len(messages)
    header = struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 28)
    return header + b"".join(tables) + b"".join(text + b"\0" for text in texts)


def test_a_piece_without_a_space_goes_on_with_a_word(published):
    pieces = [" [PAD]", " the", "ing", " 中", "ß"]
    encoded = [piece.encode() for piece in pieces]
    ends = [sum(map(len, encoded[:i])) for i in range(len(encoded) + 1)]
    numbers = struct.pack(f"<{len(ends) + 1}i", len(encoded), *ends)
    published(bytes(96) + numbers + b"".join(encoded) + b"\0\0\0")
    assert data.multilingual_vocabulary() == {"[PAD]": 0, "the": 1, "##ing": 2, "中": 3, "##ß": 4}


def test_paragraphs_and_items_are_read_in_the_order_of_the_files(published):
    body = (
        "<h1>A heading that is long enough to count</h1>"
        "<p>First paragraph,\n  on <b>two</b> lines.</p><ol><li>An item without an end tag"
        "<li>Another &amp; last item of it.</li></ol><p>short</p>" + f"<p>{'x' * 601}</p>"
    )
    published(udhr({"b": ("fr", "<p>Un paragraphe en français.</p>"), "a": ("en", body)}))
    assert data.udhr_paragraphs() == [
        ("en", "First paragraph, on two lines."),
        ("en", "An item without an end tag"),
        ("en", "Another & last item of it."),
        ("fr", "Un paragraphe en français."),
    ]


def test_the_sample_takes_the_languages_in_turn(published):
    def page(language: str, count: int) -> tuple[str, str]:
        return language, "".join(
            f"<p>Paragraph {i} in {language} is this.</p>" for i in range(count)
        )

    published(udhr({"a": page("zu", 3), "b": page("fr", 1), "c": page("en", 3)}))
    texts = [f"Paragraph {i} in {x} is this." for i, x in ((0, "en"), (0, "fr"), (1, "en"))]
    assert data.wikipedia_languages_sample(3) == texts
    assert len(data.wikipedia_languages_sample()) == 4, "Zulu is none of the languages"


def test_every_plural_form_of_an_interface_is_a_text_and_none_comes_twice(published):
    first = catalogue({"": HEADER, "a": "größer", "day\0days": "Tag\0Tage", "e": ""})
    assert gettext.GNUTranslations(io.BytesIO(first)).gettext("a") == "größer"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("django/conf/locale/de/LC_MESSAGES/django.mo", first)
        second = catalogue({"": HEADER, "a": "jour", "b": "Tag"})
        wheel.writestr("django/contrib/admin/locale/fr/LC_MESSAGES/django.mo", second)
        wheel.writestr("django/conf/locale/de/LC_MESSAGES/django.po", b"no catalogue")
    published(packed.getvalue())
    assert data.django_sentences() == ["größer", "Tag", "Tage", "jour"]


def test_english_prose_is_the_reference_of_the_running_python():
    prose = data.english_prose()
    assert sum(map(len, prose)) > 300_000
    assert all(text == " ".join(text.split()) and text for text in prose)


@pytest.mark.slow
def test_the_published_vocabularies_and_texts_are_what_is_said_of_them():
    english, multilingual = data.english_vocabulary(), data.multilingual_vocabulary()
    assert len(english) == 30_522
    assert [english[piece] for piece in ("[PAD]", "[UNK]", "[CLS]", "the", "##s")] == [
        0, 100, 101, 1996, 2015,
    ]  # fmt: skip
    assert list(multilingual.values()) == list(range(119_547)), "no piece is there twice"
    assert sum(piece.startswith("##") for piece in multilingual) == 43_606
    assert [multilingual[piece] for piece in ("[UNK]", "[MASK]", "Hello", "world")] == [
        100, 103, 31178, 11356,
    ]  # fmt: skip
    paragraphs = data.udhr_paragraphs()
    assert len(paragraphs) == 29_915
    assert len({paragraph.language for paragraph in paragraphs}) == 478
    assert len(data.wikipedia_languages_sample()) == 1000
    assert {p.language for p in paragraphs} >= set(data.WIKIPEDIA_LANGUAGES.split())
    assert len(data.django_sentences()) == 54_720
