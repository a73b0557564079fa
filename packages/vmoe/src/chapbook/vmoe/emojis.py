"""The same concepts drawn by several artists: emoji out of openly licensed packages.

Notable choices:

- A concept is a sequence of code points, without the sign that only asks for colour; those with a
  skin tone are left out. Two of the artists' packages have no code points: they are joined by name.
- Concepts are those that all artists with code points drew: four share 1,594.
- Drawings are vectors, so that any size can be had. They are drawn once and kept beside the
  packages.
"""

import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int, UInt8

from chapbook.core import datasets
from chapbook.core.errors import Error, MissingExtra
from chapbook.core.io import write_atomic
from chapbook.vmoe.images import decode

COLOUR = "fe0f"
SKIN_TONES = frozenset(f"1f3f{digit}" for digit in "bcdef")
DRAWING = 1  # counted up when the same package and size give other pixels


@dataclass(frozen=True)
class Artist:
    """Where an artist's drawings come from, and on what terms.

    Attributes:
        version: Of the npm package.
        sha256: Of that package.
        author: Whom to name.
        licence: The terms.
        url: Of the drawings' own project.
        coded: Whether the package tells code points.
    """

    version: str
    sha256: str
    author: str
    licence: str
    url: str
    coded: bool = True


ARTISTS = {
    "noto": Artist(
        "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "Google Inc", "Apache 2.0", "https://github.com/googlefonts/noto-emoji",
    ),
    "twemoji": Artist(
        "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "Twitter", "CC BY 4.0", "https://github.com/jdecked/twemoji",
    ),
    "fluent-emoji-flat": Artist(
        "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "Microsoft Corporation", "MIT", "https://github.com/microsoft/fluentui-emoji",
    ),
    "openmoji": Artist(
        "1.2.29", "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
        "OpenMoji", "CC BY-SA 4.0", "https://github.com/hfg-gmuend/openmoji",
    ),
    "emojione": Artist(
        "1.2.3", "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "Emoji One", "CC BY 4.0", "https://github.com/EmojiTwo/emojitwo", coded=False,
    ),
    "fxemoji": Artist(
        "1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "Mozilla", "Apache 2.0", "https://github.com/mozilla/fxemoji", coded=False,
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Emoji:
    """Drawings, and what they show.

    Attributes:
        pixels: RGB, on white.
        table: A row each: `concept` (code points joined by hyphens), `artist`, `name` (words
            joined by spaces, the same for all artists of a concept) and `category`.
    """

    pixels: UInt8[np.ndarray, "drawings size size 3"]
    table: pl.DataFrame


def draw_emoji(artists: Sequence[str] = tuple(ARTISTS), size: int = 64) -> Emoji:
    """Returns all drawings of the concepts that the artists share, sorted by concept and artist.

    Args:
        artists: Of `ARTISTS`, at least one of which tells code points. The first such names the
            concepts and gives their categories.
        size: Pixels of a side.

    Raises:
        Error: An artist is unknown, none tells code points, or a package cannot be fetched.
        MissingExtra: `resvg-py` is not installed.
    """
    for name in artists:
        if name not in ARTISTS:
            raise Error(f'there is no artist "{name}"; there are {", ".join(ARTISTS)}')
    if not any(ARTISTS[name].coded for name in artists):
        raise Error(f"none of {', '.join(artists)} tells code points; add {next(iter(ARTISTS))}")
    sums = ",".join(ARTISTS[name].sha256 for name in artists)
    digest = hashlib.sha256(f"{sums},{size},{DRAWING}".encode()).hexdigest()
    kept = datasets.folder() / f"emoji-{size}-{digest[:12]}.npz"
    if not kept.exists():
        found = _drawn({name: _package(name) for name in artists}, size)
        columns = {name: found.table[name].to_numpy().astype(str) for name in found.table.columns}
        held = {"pixels": found.pixels, **columns}

        def write(part: Path) -> None:
            with part.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **held)

        write_atomic(kept, write)
        return found
    try:
        with np.load(kept, allow_pickle=False) as held:
            table = {name: held[name] for name in ("concept", "artist", "name", "category")}
            return Emoji(held["pixels"], pl.DataFrame(table))
    except Exception as problem:  # a damaged zip or header raises errors of many kinds
        raise Error(f"{kept} is damaged ({problem})", "delete it to draw it again") from None


def credits(artists: Sequence[str] = tuple(ARTISTS)) -> list[str]:  # noqa: A001
    """Returns a line on each artist that has to stand beside their drawings."""
    told = ((name, ARTISTS[name]) for name in artists)
    return [f"{name}: {each.author}, {each.licence}, {each.url}" for name, each in told]


def word_classes(table: pl.DataFrame, count: int = 100) -> pl.Series:
    """Groups concepts by their category and the first word of their name.

    Groups of many concepts are classes of their own, `Objects: musical`; the rest of each category
    is one more, `Objects: other`.

    Args:
        table: Of `Emoji`.
        count: Of all classes.

    Returns:
        The class of each row.

    Raises:
        Error: There are more categories than classes.
    """
    found = table.select("concept", "category", word=pl.col("name").str.split(" ").list.first())
    categories = found["category"].n_unique()
    if count < categories:
        raise Error(f"{count} classes are fewer than the {categories} categories")
    sizes = found.unique("concept").group_by("category", "word").len()
    sizes = sizes.sort(-pl.col("len").cast(pl.Int64), "category", "word")
    groups = sizes.head(count - categories).select("category", "word", group="word")
    joined = found.join(groups, on=["category", "word"], how="left", maintain_order="left")
    named = pl.format("{}: {}", "category", pl.col("group").fill_null("other"))
    return joined.select(named.alias("class")).to_series()


Parts = tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"], Int[np.ndarray, " c"]]


def split_by_artist(table: pl.DataFrame, *, valid: str, test: str) -> Parts:
    """Returns the rows for training, validation and test; two artists are held out.

    Args:
        table: Of `Emoji`.
        valid: The artist for validation.
        test: The artist for test.

    Raises:
        Error: An artist drew nothing in the table, or there is none left for training.
    """
    artists = table["artist"]
    for name in (valid, test):
        if name not in artists:
            raise Error(f'no drawing is by "{name}"; there are {", ".join(artists.unique())}')
    rest = ~artists.is_in([valid, test])
    if valid == test or not rest.any():
        raise Error("validation and test are by one artist each, and training by another")
    masks = (rest, artists == valid, artists == test)
    train, valid_rows, test_rows = (np.flatnonzero(mask.to_numpy()) for mask in masks)
    return train, valid_rows, test_rows


def split_by_concept(
    table: pl.DataFrame,
    classes: pl.Series,
    *,
    shares: tuple[float, float] = (0.1, 0.2),
    seed: int = 0,
    artist: str | None = None,
) -> Parts:
    """Returns the rows for training, validation and test; all drawings of a concept are in one.

    Args:
        table: Of `Emoji`.
        classes: The class of each row, the same for a concept; each class takes part in validation
            and test by its size, and at least one of its concepts in training.
        shares: Of the concepts that are for validation and for test.
        seed: Which ones.
        artist: Whose drawings alone are for test, and never for training or validation; None holds
            none out.

    Raises:
        Error: The shares leave nothing for training, or the artist drew nothing in the table.
    """
    if min(shares) < 0 or sum(shares) >= 1:
        raise Error(f"shares of {shares} leave nothing for training")
    if artist is not None and artist not in table["artist"]:
        raise Error(f'no drawing is by "{artist}"')
    concepts = table.select("concept", classes.alias("class")).unique("concept").sort("concept")
    generator = np.random.default_rng(seed)
    part: dict[str, int] = {}
    due = np.zeros(2)  # validation's and test's concepts, those of small classes summed up
    for (_,), held in concepts.sort("class", "concept").group_by("class", maintain_order=True):
        mixed = generator.permutation(held["concept"].to_numpy())
        due += np.array(shares) * len(mixed)
        for place, concept in enumerate(mixed):
            owed = int(np.argmax(due))
            part[concept] = owed + 1 if place and due[owed] >= 1 else 0
            if part[concept]:
                due[owed] -= 1
    chosen = table["concept"].replace_strict(part, return_dtype=pl.Int64).to_numpy()
    masks = [chosen == each for each in range(3)]
    if artist is not None:
        theirs = (table["artist"] == artist).to_numpy()
        masks = [masks[0] & ~theirs, masks[1] & ~theirs, masks[2] & theirs]
    train, valid, test = (np.flatnonzero(mask) for mask in masks)
    return train, valid, test


def _package(name: str) -> dict[str, Any]:
    """Returns the drawings, code points and categories of an artist's package."""
    artist = ARTISTS[name]
    archive = datasets.member(
        f"npm:@iconify-json/{name}@{artist.version}",
        f"iconify-json-{name}-{artist.version}.tgz",
        sha256=artist.sha256,
        licence=f"{artist.licence} ({artist.author}, {artist.url})",
    )
    with tarfile.open(archive) as held:

        def content(member: str) -> Any:
            file = held.extractfile(f"package/{member}.json")
            return json.load(file) if file else {}

        return {member: content(member) for member in ("icons", "chars", "metadata")}


def _drawn(packages: dict[str, dict[str, Any]], size: int) -> Emoji:
    try:
        from resvg_py import svg_to_bytes
    except ModuleNotFoundError:
        raise MissingExtra(
            "drawing emoji needs resvg-py; install it with: pip install 'chapbook-vmoe[reproduce]'"
        ) from None
    coded = {name: _by_code(held) for name, held in packages.items() if ARTISTS[name].coded}
    shared = sorted(set.intersection(*(set(each) for each in coded.values())))
    namer = next(iter(coded))
    listed = packages[namer]["metadata"]["categories"]
    categories = {icon: category for category, icons in listed.items() for icon in icons}
    rows, pixels = [], []
    for concept in shared:
        own = coded[namer][concept]
        for artist, package in packages.items():
            icon = coded[artist][concept] if artist in coded else own
            if (svg := _svg(package["icons"], icon, size)) is not None:
                rows.append((concept, artist, own.replace("-", " "), categories[own]))
                image = svg_to_bytes(svg_string=svg, skip_system_fonts=True)
                pixels.append(decode(bytes(image), f"{icon} of {artist}").pixels)
    schema = ["concept", "artist", "name", "category"]
    return Emoji(np.stack(pixels), pl.DataFrame(rows, schema, orient="row"))


def _by_code(package: dict[str, Any]) -> dict[str, str]:
    """Returns the icon of every concept."""
    found = {}
    for code, icon in package["chars"].items():
        points = [point for point in code.split("-") if point != COLOUR]
        if not SKIN_TONES & set(points):
            found["-".join(points)] = icon
    return found


def _svg(package: dict[str, Any], icon: str, size: int) -> str | None:
    """Returns a drawing of a width and height, or None if the package has none of this name."""
    alias = package.get("aliases", {}).get(icon, {})
    held = package["icons"].get(alias["parent"] if set(alias) == {"parent"} else icon)
    if held is None:
        return None
    sides = ("left", "top", "width", "height")
    box = [held.get(side, package.get(side, 0)) for side in sides]
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    shape = f'width="{size}" height="{size}" viewBox="{" ".join(map(str, box))}"'
    return f"<svg {head} {shape}>{held['body']}</svg>"
