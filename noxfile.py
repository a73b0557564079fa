# /// script
# requires-python = ">=3.11"
# dependencies = ["nox[uv]>=2026.2", "poetry>=2.1", "poetry-plugin-export>=1.9"]
# ///
"""Every way of building and checking chapbook, one session each.

`pip install nox` is the only prerequisite: nox reads the header above and brings the rest. Each
session takes package names after `--` (all packages where none is named):

    nox -s tests -- label-dp --slow -k kill
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2026.2"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
PYTHONS = ("3.11", "3.12", "3.13")


@nox.session
def tests(session: nox.Session) -> None:
    """Run every package's tests; `-- NAME ... [--slow] [pytest options]`."""
    names, options = arguments(session)
    # The tools' tests lint the packages that they generate.
    install(session, "test", "lint")
    folders = [f"packages/{name}/tests" for name in names] if names else ["packages", "tools"]
    # A file's tests share what they set up, so each file stays with one worker.
    shared = ["--numprocesses=auto", "--dist=loadfile"]
    session.run("pytest", *shared, *folders, *options)


@nox.session
@nox.parametrize("bounds", ["lowest-direct", "highest"])
def light(session: nox.Session, bounds: str) -> None:
    """Run core's light tests without JAX, at the lowest and the newest versions it allows."""
    if session.venv_backend != "uv":
        session.skip("only uv resolves to the lowest bounds")
    session.install("--resolution", bounds, "packages/core")
    session.install("pytest>=9")
    light = [f"packages/core/tests/test_{name}.py" for name in LIGHT_MODULES]
    session.run("pytest", *light, *session.posargs)


LIGHT_MODULES = ("import", "config", "io", "tables", "run", "cli", "datasets")


@nox.session
def reproduce(session: nox.Session) -> None:
    """Run every paper's headline claim, write reports/index.html; `-- NAME ... [--full]`."""
    names, options = arguments(session)
    install(session)
    commands = [name for name in names or PACKAGES if name != "core"]
    # A run that was interrupted goes on in its folder, which holds one profile.
    runs = ROOT / "reports" / ("full" if "--full" in options else "quick")
    broken = []
    for name in commands:
        # 3 says that a claim did not hold: the report shows it, and the session fails at its end.
        codes = [0, 3]
        session.run(name, "reproduce", "--run", str(runs / name), *options, success_codes=codes)
        claims = json.loads((runs / name / "results.json").read_text())["claims"]
        if any(claim["held"] is False for claim in claims):
            broken.append(name)
    session.run("python", "tools/report.py", "reports", *(str(runs / name) for name in commands))
    if broken:
        session.error(f"claims that did not hold: {', '.join(broken)}; see reports/index.html")


@nox.session
def lint(session: nox.Session) -> None:
    """Check format, style, docstrings, the layers, and that the gallery is up to date."""
    names, _ = arguments(session)
    install(session, "lint")
    paths = [f"packages/{name}" for name in names] if names else ["."]
    session.run("ruff", "format", "--check", *paths)
    session.run("ruff", "check", *paths)
    session.run("lint-imports")
    session.run("python", "tools/gallery.py", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of all packages and tools."""
    names, _ = arguments(session)
    install(session, "test", "types")
    session.run("basedpyright", *(f"packages/{name}" for name in names))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the docs strictly and run every block of every README and guide; `-- NAME ...`."""
    names, _ = arguments(session)
    install(session, "docs", "test")
    session.run("mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml")
    session.run("python", "tools/check_readmes.py", *names)


@nox.session(venv_backend="none")
def build(session: nox.Session) -> None:
    """Build each wheel, install it alone on the oldest and newest Python here, run its command."""
    names, _ = arguments(session)
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    # Every wheel needs core's, so core is always built.
    for name in sorted({"core", *(names or PACKAGES)}):
        folder, dist = f"packages/{name}", str(ROOT / "dist")
        if not (ROOT / folder / "CMakeLists.txt").exists():
            session.run(*POETRY, "build", "--output", dist, "-P", folder)
            continue
        # A compiled package: the sdist, and from it a wheel for Python 3.11 and one for the stable
        # ABI of 3.12 and newer, as far as these are here.
        session.run(*UV, "build", "--sdist", "--out-dir", dist, folder)
        (sdist,) = (ROOT / "dist").glob(f"chapbook_{name.replace('-', '_')}-*.tar.gz")
        find = (*UV, "python", "find", "--no-python-downloads", "--no-project")
        here = [
            v for v in PYTHONS if not subprocess.run([*find, v], capture_output=True).returncode
        ]
        # All from 3.12 on would give the same wheel.
        for version in [v for v in here if v == "3.11"] + [v for v in here if v != "3.11"][:1]:
            session.run(*UV, "build", "--wheel", "--python", version, "-o", dist, str(sdist))
    session.run(sys.executable, "tools/check_wheels.py", *(names or PACKAGES))


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks beside their peers; `-- NAME ... [CLAIM ...]`."""
    names = [name for name in session.posargs if name in PACKAGES]
    claims = [claim for claim in session.posargs if claim not in PACKAGES]
    install(session, "test")
    for name in names or PACKAGES:
        folder = ROOT / "packages" / name / "benchmarks"
        peers = folder / "requirements.txt"
        if peers.exists():
            # pip, not uv: it also honours the user's own wheel folders, where a CPU build of
            # torch may lie. The newest torch on the public index brings gigabytes of CUDA.
            session.run("python", "-m", "pip", "install", "-q", "-r", str(peers))
        for script in sorted(folder.glob("*.py")):
            if not claims or script.stem in claims:
                session.run("python", str(script))


@nox.session(venv_backend="none")
def affected(session: nox.Session) -> None:
    """Test, type-check and build only the packages that a change touches; `-- [--base REF]`."""
    command = [sys.executable, "tools/affected.py", *session.posargs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        session.error(done.stderr.strip())
    names = done.stdout.split()
    if not names:
        session.skip("the change touches no package")
    session.notify("lint")
    for name in ("types", "tests", "build"):
        session.notify(name, names)


UV = (sys.executable, "-m", "uv")

# Poetry of the environment that nox made for this file, so that none need be on the PATH.
POETRY = (sys.executable, "-m", "poetry", "--no-interaction")


def install(session: nox.Session, *groups: str) -> None:
    """Installs the workspace, all packages editable, from the lock with these groups."""
    requirements = Path(session.create_tmp()) / "requirements.txt"
    options = [f"--with={group}" for group in groups]
    export = ("export", "--without-hashes", *options, "--output", str(requirements))
    session.run(*POETRY, *export, external=True, silent=True)
    # Dozens of short processes import all of it, some where Python may not write compiled files.
    session.install("-r", str(requirements), env={"UV_COMPILE_BYTECODE": "1"})


def arguments(session: nox.Session) -> tuple[list[str], list[str]]:
    """Splits what follows `--` into package names, which come first, and options."""
    count = 0
    while count < len(session.posargs) and not session.posargs[count].startswith("-"):
        count += 1
    names, options = list(session.posargs[:count]), list(session.posargs[count:])
    for name in names:
        if name not in PACKAGES:
            session.error(f"there is no package {name!r}; there are {', '.join(PACKAGES)}")
    return names, options


os.chdir(ROOT)
