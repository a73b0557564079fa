"""Real text for the reproduction: manuals, books and quotations that Debian packages hold.

And its opposite, what stands beside them on the same disks: change logs, copyright files and pages
of markup, as a crawler of the web would meet them.
"""

import fnmatch
import functools
import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import polars as pl

from chapbook.core.datasets import member
from chapbook.core.errors import Error
from chapbook.glam.overlap import EvaluationOverlap, near_duplicates

# Texts shorter than this many characters say little, and documents end somewhere.
SHORTEST, LONGEST = 400, 40_000
HELD_OUT = 0.05


class Package(NamedTuple):
    """A Debian package of fixed contents.

    Attributes:
        name: With its version.
        file: Of the archive.
        sha256: Of the archive.
        licence: Of its texts.
        good: Patterns of files that people wrote for people.
        bad: Patterns of files that are logs, forms or markup.
    """

    name: str
    file: str
    sha256: str
    licence: str
    good: tuple[str, ...]
    bad: tuple[str, ...] = ("*/changelog*.gz", "*/copyright")


PACKAGES = (
    Package(
        "manpages=6.03-2", "manpages_6.03-2_all.deb",
        "efa1ba4cd19ad7baeae959c9209a7eb74be2ebb858bcabb412597bfc9f588c91",
        "Linux man-pages: GPL, BSD, MIT and verbatim licences",
        ("*/man/man*/*.gz",),
    ),
    Package(
        "manpages-dev=6.03-2", "manpages-dev_6.03-2_all.deb",
        "96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838",
        "Linux man-pages: GPL, BSD, MIT and verbatim licences",
        ("*/man/man*/*.gz",),
    ),
    Package(
        "cmake-doc=3.25.1-1", "cmake-doc_3.25.1-1_all.deb",
        "6e805a758ffed87cc7ea234cf0a7a1bb8ae78b93d8b5783e7fb989a6320f8133",
        "CMake's manual: BSD 3-clause",
        ("*.rst.txt",), ("*/html/[a-m]*/*.html",),
    ),
    Package(
        "debian-policy=4.6.2.0", "debian-policy_4.6.2.0_all.deb",
        "ef9d01b625c3b87c3a845c2cd1b66f1a16e9240b2b9e5bee53472a00e8457a39",
        "Debian Policy Manual: GPL 2 or later",
        ("*.rst.txt", "*/copyright-format-1.0.txt.gz"),
        ("*/changelog*.gz", "*/copyright", "*.html"),
    ),
    Package(
        "developers-reference=12.18", "developers-reference_12.18_all.deb",
        "0dba82f6fa16e373f2a84ad07e7971aa9264ad2e7d2ae46b37edbc9c5fd57e2e",
        "Debian Developer's Reference: GPL 2 or later",
        ("*.rst.txt",),
    ),
    Package(
        "debian-reference-en=2.100", "debian-reference-en_2.100_all.deb",
        "9f31d3a17df505de09689ca255512ea58c1fc47c59bb1b0c7bf1c23362e9743f",
        "Debian Reference: GPL 2 or later",
        ("*/debian-reference.en.txt.gz",),
    ),
    Package(
        "fortunes=1:1.99.1-7.3", "fortunes_1%3a1.99.1-7.3_all.deb",
        "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5",
        "fortune-mod's quotations: BSD, and their authors'",
        tuple(f"*/fortunes/{name}" for name in (
            "art", "computers", "definitions", "education", "food", "humorists", "law", "linux",
            "people", "perl", "platitudes", "science", "tao", "wisdom", "work",
        )),
    ),
    Package(
        "jargon-text=4.4.7-4.1", "jargon-text_4.4.7-4.1_all.deb",
        "17d05997e30eb3d5d6713929b8e2f81b63a5f50073858ad2a06701c71f54dcdb",
        "The Jargon File: public domain",
        ("*/jargon.txt.gz",),
    ),
)  # fmt: skip

# What questions are made of is none of the text for training.
UNREAD = next(each for each in PACKAGES if each.name.startswith("fortunes="))._replace(
    good=("*/fortunes/kids", "*/fortunes/love", "*/fortunes/men-women", "*/fortunes/politics"),
    bad=(),
)
TERRITORIES = Package(
    "iso-codes=4.15.0-1", "iso-codes_4.15.0-1_all.deb",
    "b1beb869303229c38288d4ddacfd582c91f594759b5767c9cecebd87f16ff70e",
    "ISO 3166 as Debian packs it: LGPL 2.1 or later",
    ("*/json/iso_3166-[12].json",), (),
)  # fmt: skip


def documents() -> pl.DataFrame:
    """Returns all documents: `id`, `source`, `kind` (`good` or `bad`), `held` and `text`.

    A twentieth is `held` out, by a hash of the name that a file has without its suffixes, so that a
    page and its marked-up form are on the same side. Long texts are cut at empty lines
    into documents of 40,000 characters at most, all of which are held out or none is. Of documents
    with nearly the same text the first one stays, and those that are not held out lose all
    paragraphs which share a run of 13 words with a good one that is; what shares one still, across
    paragraphs, is left out.

    Raises:
        Error: A package cannot be fetched; the message names the place for it.
    """
    rows = [
        (f"{package.name.partition('=')[0]}/{path}#{place}", package.name.partition("=")[0], kind,
         _share(path) < HELD_OUT, text)
        for package in PACKAGES
        for kind, path, whole in _files(package)
        for place, text in enumerate(_cut(whole))
    ]  # fmt: skip
    table = pl.DataFrame(rows, schema=["id", "source", "kind", "held", "text"], orient="row")
    return _apart(table.filter(pl.Series(~near_duplicates(table["text"]))))


def quotations() -> list[str]:
    """Returns quotations of files that are none of `documents`, with who said it at their end.

    Raises:
        Error: The package cannot be fetched.
    """
    return [each for _, _, text in _files(UNREAD) for each in text.split("\n\n")]


def territories() -> list[tuple[str, str]]:
    """Returns the provinces, states and so on of ISO 3166-2, each with its country.

    Raises:
        Error: The package cannot be fetched.
    """
    tables = {path.rpartition("/")[2]: json.loads(text) for _, path, text in _files(TERRITORIES)}
    countries = {
        each["alpha_2"]: each.get("common_name", each["name"])
        for each in tables["iso_3166-1.json"]["3166-1"]
    }
    return [
        (each["name"], countries[each["code"].partition("-")[0]])
        for each in tables["iso_3166-2.json"]["3166-2"]
        if "parent" not in each
    ]


def _apart(table: pl.DataFrame) -> pl.DataFrame:
    """Returns documents without the paragraphs that repeat some of what is held out.

    Half of all manual pages share a phrase with another one, so that whole documents would be too
    much to lose.
    """
    evaluated = table.filter(pl.col("held") & (pl.col("kind") == "good"))
    overlap = EvaluationOverlap(evaluated["text"], n=13)
    parts = table.with_columns(pl.col("text").str.split("\n\n")).explode("text")
    repeats = pl.Series(overlap.count(parts["text"]) > 0)
    table = (
        parts.filter(pl.col("held") | ~repeats)
        .group_by("id", "source", "kind", "held", maintain_order=True)
        .agg(pl.col("text").str.join("\n\n"))
        .filter(pl.col("text").str.len_chars() >= SHORTEST)
    )
    return table.filter(pl.col("held") | pl.Series(overlap.count(table["text"]) == 0))


def _files(package: Package) -> Iterator[tuple[str, str, str]]:
    """Yields kind, path and text of each file of a package that is wanted."""
    place = member(
        f"deb:{package.name}", package.file, sha256=package.sha256, licence=package.licence
    )
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", place], capture_output=True)
    if done.returncode:
        raise Error(f"{place} cannot be unpacked: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for held in archive:
            kinds = [
                kind
                for kind, patterns in (("good", package.good), ("bad", package.bad))
                if any(fnmatch.fnmatchcase(held.name, each) for each in patterns)
            ]
            taken = archive.extractfile(held) if kinds and held.isfile() else None
            if taken is None:
                continue
            content = taken.read()
            if held.name.endswith(".gz"):
                content = gzip.decompress(content)
            text = content.decode("utf-8", errors="replace")
            if "/man/" in held.name:
                text = plain(text)
            elif "/fortunes/" in held.name:
                text = text.replace("\n%\n", "\n\n")
            yield kinds[0], held.name.removeprefix("./usr/share/"), text


def _cut(text: str) -> Iterator[str]:
    part: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", text):
        if size + len(paragraph) > LONGEST and size >= SHORTEST:
            yield "\n\n".join(part)
            part, size = [], 0
        part.append(paragraph[:LONGEST])
        size += len(paragraph) + 2
    if size >= SHORTEST:
        yield "\n\n".join(part)


def _share(path: str) -> float:
    """Returns a number from 0 to 1 that the files of a name always have."""
    stem = path.rpartition("/")[2].partition(".")[0]
    return int.from_bytes(hashlib.blake2b(stem.encode(), digest_size=8).digest()) / 2**64


def plain(page: str) -> str:
    """Returns a manual page without its markup: headings, paragraphs, and what was in fonts.

    Args:
        page: In the macros of `man(7)`.
    """
    lines: list[str] = []
    skipping = False
    for line in page.splitlines():
        if line.startswith((".ig", ".TS", ".de")):
            skipping = True
        if skipping:
            skipping = not line.startswith(("..", ".TE"))
            continue
        macro = re.match(r"[.']\s*([A-Za-z]*)\s*(.*)", line)
        if macro is None:
            lines.append(_unescaped(line))
            continue
        name, rest = macro[1], macro[2]
        words = [a if a else b for a, b in re.findall(r'"([^"]*)"|(\S+)', rest)]
        if name in ("SH", "SS"):
            lines += ["", _unescaped(" ".join(words))]
        elif name in ("PP", "P", "LP", "IP", "TP", "TQ"):
            lines.append("")
            if name == "IP" and words:
                lines.append(_unescaped(words[0]))
        elif name in ("B", "I", "SM", "SB"):
            lines.append(_unescaped(" ".join(words)))
        elif name in ("BR", "BI", "IR", "RB", "RI", "IB"):
            lines.append(_unescaped("".join(words)))
    text = "\n".join(lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


@functools.cache
def _escapes() -> tuple[tuple[re.Pattern[str], str], ...]:
    return (
        (re.compile(r'\\".*'), ""), (re.compile(r"\\f(\[[^]]*\]|\(..|.)"), ""),
        (re.compile(r"\\s[-+]?\d"), ""), (re.compile(r"\\\((aq|cq|oq)"), "'"),
        (re.compile(r"\\\((dq|lq|rq)"), '"'), (re.compile(r"\\\(em|\\\[em\]"), "--"),
        (re.compile(r"\\\(en"), "-"), (re.compile(r"\\\(bu"), "*"), (re.compile(r"\\\(ti"), "~"),
        (re.compile(r"\\\(ha"), "^"), (re.compile(r"\\\*\(..|\\\(..|\\\[[^]]*\]"), ""),
        (re.compile(r"\\[&/,|^%:c]"), ""), (re.compile(r"\\[ ~0]"), " "),
        (re.compile(r"\\e"), "\\\\"), (re.compile(r"\\(.)"), r"\1"),
    )  # fmt: skip


def _unescaped(line: str) -> str:
    for pattern, text in _escapes():
        line = pattern.sub(text, line)
    return line
