"""Installs each built wheel alone in clean environments and uses it as a newcomer would.

    python tools/check_wheels.py [NAME ...]

For every package and for the oldest and the newest supported Python on this machine: the wheel's
metadata names no path, it brings core and no other paper, it imports, and its command shows help
for every verb without loading JAX or another heavy library. The measured costs are printed.
"""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PYTHONS = ("3.11", "3.12", "3.13")
# What neither `--help` nor the import of core's light half may load.
HEAVY = ("jax", "jaxlib", "equinox", "orbax", "tensorstore", "scipy", "sklearn", "matplotlib")

# Both scripts print one line of JSON: the CPU seconds and which heavy modules were loaded.
IMPORT = """
import importlib, json, sys, time
start = time.process_time()
for name in sys.argv[2:]: importlib.import_module(name)
seconds = time.process_time() - start
print(json.dumps([seconds, [m for m in sys.argv[1].split(",") if m in sys.modules]]))
"""
HELP = """
import contextlib, importlib, io, json, sys, time
start = time.process_time()
heavy, entry, sys.argv = sys.argv[1], sys.argv[2], ["command", *sys.argv[3:], "--help"]
module, function = entry.split(":")
with contextlib.redirect_stdout(io.StringIO()) as text:
    try:
        getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        assert end.code in (0, None), end.code
seconds = time.process_time() - start
loaded = [m for m in heavy.split(",") if m in sys.modules]
print(json.dumps([seconds, loaded, text.getvalue()]))
"""


def main() -> None:
    """Checks the wheels of the named packages, or of all."""
    names = sys.argv[1:] or sorted(p.parent.name for p in ROOT.glob("packages/*/pyproject.toml"))
    pythons = present_pythons()
    print(f"{'package':<20} {'python':<8} {'import, CPU s':>14} {'--help, CPU s':>14}")
    for name in names:
        entries = [check_contents(name, wheel) for wheel in wheels_of(name)]
        for python in pythons:
            check_alone(name, entries[0], python)


def present_pythons() -> list[str]:
    """Returns the oldest and the newest supported Python on this machine."""
    found = []
    for version in PYTHONS:
        command = ["uv", "python", "find", "--no-python-downloads", "--no-project", version]
        done = run([sys.executable, "-m", *command], check=False)
        if done.returncode == 0:
            found.append(done.stdout.strip())
    if not found:
        sys.exit(f"error: none of Python {', '.join(PYTHONS)} is on this machine")
    return [found[0], found[-1]] if len(found) > 1 else found


def wheels_of(name: str) -> list[Path]:
    """Returns the wheels of a package in dist/: one, or one per ABI where it is compiled."""
    wheels = sorted(DIST.glob(f"chapbook_{name.replace('-', '_')}-*.whl"))
    if not wheels or len({wheel.name.split("-")[1] for wheel in wheels}) > 1:
        sys.exit(f"error: dist/ holds {len(wheels)} wheels of {name}; run nox -s build")
    return wheels


def wheel_for(name: str, version: tuple[int, int]) -> Path:
    """Returns the wheel of a package that a Python of this version installs."""
    for wheel in wheels_of(name):
        python, abi = wheel.stem.split("-")[2:4]
        minor = int(python.removeprefix("cp3")) if python.startswith("cp3") else 0
        if python == "py3" or minor == version[1] or (abi == "abi3" and minor <= version[1]):
            return wheel
    sys.exit(f"error: dist/ holds no wheel of {name} for Python {version[0]}.{version[1]}")


def check_contents(name: str, wheel: Path) -> str | None:
    """Checks a wheel's files and metadata; returns its console entry, if it has one."""
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        texts = {Path(f).name: archive.read(f).decode() for f in files if ".dist-info/" in f}
    module = name.replace("-", "_")
    for wanted in (f"chapbook/{module}/__init__.py", f"chapbook/{module}/py.typed"):
        if wanted not in files:
            sys.exit(f"error: {wheel.name} lacks {wanted}")
    if strays := [
        f for f in files if not f.startswith(f"chapbook/{module}/") and "-info/" not in f
    ]:
        sys.exit(f"error: {wheel.name} holds files outside its own module: {', '.join(strays)}")
    needs = Parser().parsestr(texts["METADATA"]).get_all("Requires-Dist", [])
    if paths := [need for need in needs if "@" in need or "file:" in need]:
        sys.exit(f"error: {wheel.name} depends on paths: {', '.join(paths)}")
    entry = re.search(rf"^{re.escape(name)}\s*=\s*(\S+)", texts.get("entry_points.txt", ""), re.M)
    if entry is None and name != "core":
        sys.exit(f"error: {wheel.name} has no command {name!r}")
    return entry[1] if entry else None


def check_alone(name: str, entry: str | None, python: str) -> None:
    """Installs one wheel, with core's, into a clean environment and tries it there."""
    with tempfile.TemporaryDirectory() as folder:
        uv = [sys.executable, "-m", "uv"]
        run([*uv, "venv", "--quiet", "--python", python, folder])
        inside = str(Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        major, minor = run(
            [inside, "-c", "import sys; print(*sys.version_info[:2])"]
        ).stdout.split()
        version = (int(major), int(minor))
        # Core's own wheel, not a release of it: this pair is what will be published.
        wheels = {str(wheel_for(each, version)) for each in (name, "core")}
        run([*uv, "pip", "install", "--quiet", "--python", inside, *sorted(wheels)])
        listed = json.loads(run([*uv, "pip", "list", "--format=json", "-p", inside]).stdout)
        houses = {each["name"] for each in listed if each["name"].startswith("chapbook-")}
        if strangers := houses - {"chapbook-core", f"chapbook-{name}"}:
            sys.exit(f"error: {name} brings other papers: {', '.join(sorted(strangers))}")
        module = f"chapbook.{name.replace('-', '_')}"
        light = (".cli", ".run", ".tables") if name == "core" else ()
        modules = [module, *(module + part for part in light)]
        seconds, loaded = asked(inside, IMPORT, *modules)
        if name == "core" and loaded:
            sys.exit(f"error: importing core's light half loads {', '.join(loaded)}")
        # The first import also compiled every file; the second is what a user waits for.
        seconds, _ = asked(inside, IMPORT, *modules)
        cost = check_help(name, inside, entry) if entry else ""
        print(f"{name:<20} {major}.{minor:<6} {seconds:>14.2f} {cost:>14}", flush=True)


def check_help(name: str, python: str, entry: str) -> str:
    """Asks the command and each of its verbs for help; returns the CPU seconds of the first."""
    seconds, loaded, text = asked(python, HELP, entry)
    verbs = re.findall(r"^\W*([a-z][a-z-]+)  ", text.partition("Commands")[2], re.M)
    for verb in verbs:
        _, more, _ = asked(python, HELP, entry, verb)
        loaded = sorted({*loaded, *more})
    if loaded:
        sys.exit(f"error: {name} --help loads {', '.join(loaded)}")
    run([str(Path(python).parent / name), "--version"])
    seconds, _, _ = asked(python, HELP, entry)
    return f"{seconds:.2f}"


def asked(python: str, script: str, *arguments: str) -> Any:
    """Returns what one of the scripts prints."""
    # With -P, no file of the folder that it runs in stands for a module.
    command = [python, "-P", "-c", script, ",".join(HEAVY), *arguments]
    return json.loads(run(command).stdout)


def run(command: list[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs a command outside the repository; its failure ends the check with its output."""
    done = subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    if check and done.returncode:
        shown = " ".join(command).replace("\n", " ")[:160]
        sys.exit(f"error: {shown} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


if __name__ == "__main__":
    main()
