"""What the house's tools know of the workspace: its packages, their metadata and their edges."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent


def fail(message: str, hint: str | None = None) -> NoReturn:
    """Prints what is wrong in one line, and how to mend it if that is known; exits 2."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    raise SystemExit(2)


def packages() -> dict[str, dict[str, Any]]:
    """Returns the parsed pyproject of every package, by folder name."""
    found = {}
    for path in sorted(ROOT.glob("packages/*/pyproject.toml")):
        try:
            found[path.parent.name] = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            fail(f"{path.relative_to(ROOT)}: {error}")
    return found


def requirements(pyproject: dict[str, Any]) -> list[str]:
    """Returns all requirements of a package, those of its extras included."""
    project = pyproject["project"]
    extras = project.get("optional-dependencies", {}).values()
    return [*project.get("dependencies", []), *(entry for extra in extras for entry in extra)]


def distribution(requirement: str) -> str:
    """Returns the normalised distribution name at the head of a requirement."""
    head = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    if head is None:
        fail(f"not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", head[0]).lower()


def dependents(name: str, *, transitive: bool = True) -> list[str]:
    """Returns the packages whose pyproject asks for this one, directly or through others."""
    everything = packages()
    asks = {
        folder: {distribution(entry) for entry in requirements(pyproject)}
        for folder, pyproject in everything.items()
    }
    found: set[str] = set()
    due = [name]
    while due:
        wanted = distribution(everything[due.pop()]["project"]["name"])
        new = {folder for folder, names in asks.items() if wanted in names} - found - {name}
        found |= new
        if transitive:
            due.extend(new)
    return sorted(found)


def git(*arguments: str) -> str:
    """Returns what git prints; a git error is the tool's error."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}"
        fail(f"git {arguments[0]}: {lines.splitlines()[-1]}")
    return done.stdout


def write(path: Path, text: str) -> None:
    """Replaces a text file whole: a killed write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
