"""Texts for the benchmarks: small ones out of the packages of `data.py`, large ones of Debian's.

Large texts are not made by repeating small ones, which caches would know by heart. They are the
texts of Debian packages, of whatever version the machine's release has; `apt-get` fetches them.
"""

import gzip
import inspect
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from chapbook.core import datasets
from chapbook.fast_wordpiece import data

ENGLISH = ("perl-doc", "manpages", "manpages-dev", "dict-gcide")
MULTILINGUAL = tuple(f"manpages-{code}" for code in ("de", "es", "fr", "ja", "pl", "ru", "zh"))
UNSPACED = ("zh", "yue", "ja", "th", "lo", "km", "my")
PLACES = ("usr/share/man/", "usr/share/perl/", "usr/share/dictd/")


def small() -> dict[str, list[str]]:
    """Returns lists of paragraphs or of lines, by name; each is 0.1 to 1 MB."""
    paragraphs = data.udhr_paragraphs()
    modules = ("argparse", "datetime", "inspect", "logging", "subprocess", "tarfile", "typing")
    code = [inspect.getsource(__import__(name)) for name in modules]
    return {
        "English": data.english_prose(),
        "91 languages": data.wikipedia_languages_sample(1000),
        "Chinese, Japanese, Thai, Khmer, Lao, Burmese": [
            text for language, text in paragraphs if language in UNSPACED
        ],
        "Python code": [line for source in code for line in source.splitlines() if line.strip()],
    }


def large(*packages: str) -> str:
    """Returns the text files of Debian packages as one; nothing where they cannot be fetched.

    Args:
        *packages: Their names, such as those of `ENGLISH` and `MULTILINGUAL`.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        print("no apt-get here: the large texts are left out", file=sys.stderr)
        return ""
    return "\n".join(text for package in packages for text in _texts(_fetch(package)))


def cut(text: str) -> list[str]:
    """Returns the text in pieces of 1,000 characters."""
    return [text[at : at + 1000] for at in range(0, len(text), 1000)]


def megabytes(texts: list[str]) -> float:
    """Returns the size in UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def _fetch(package: str) -> Path:
    """Returns the package's file, from the cache if it is there."""
    folder = datasets.folder() / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob(f"{package}_*.deb")):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            command = ["apt-get", "download", "--quiet", package]
            subprocess.run(command, cwd=work, check=True, capture_output=True)
            (file,) = Path(work).iterdir()
            file.rename(folder / file.name)
    return next(folder.glob(f"{package}_*.deb"))


def _texts(package: Path) -> list[str]:
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True)
    found = []
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        for held in archive:
            name = held.name.removeprefix("./")
            if not held.isfile() or not name.startswith(PLACES) or name.endswith(".index"):
                continue
            file = archive.extractfile(held)
            content = file.read() if file else b""
            if name.endswith((".gz", ".dz")):
                content = gzip.decompress(content)
            found.append(content.decode(errors="replace"))
    return found
