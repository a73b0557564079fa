import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TEXT = {".py", ".toml", ".md"}
ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".nox", ".venv", ".*_cache", "__pycache__", "site", "dist", "reports", "results"
)  # fmt: skip


def run(folder: Path, *command: object, **extra: str) -> subprocess.CompletedProcess[str]:
    words = list(map(str, command))
    env = {**os.environ, **extra}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this very workspace."""
    copy = tmp_path_factory.mktemp("original") / "chapbook"
    return shutil.copytree(ROOT, copy, ignore=LEFT_OUT)


@pytest.fixture(scope="module")
def made(original: Path) -> Path:
    """Such a copy with the package `my-paper` made in it, installed as an installer would."""
    root = shutil.copytree(original, original.parent / "made")
    done = run(root, sys.executable, "tools/new_package.py", "my-paper", "--summary", "A summary.")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "made packages/my-paper; now run: poetry lock\n"
    source = root / "packages/my-paper/src"
    info = source / "chapbook_my_paper-0.1.0.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nName: chapbook-my-paper\nVersion: 0.1.0\n"
    )
    command = root / "bin" / "my-paper"
    command.parent.mkdir()
    start = "from chapbook.my_paper.cli import main"
    command.write_text(f"#!{sys.executable}\n{start}\nmain()\n")
    command.chmod(0o755)
    return root


def environment(made: Path) -> dict[str, str]:
    path = f"{made / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {"PYTHONPATH": str(made / "packages/my-paper/src"), "PATH": path}


def test_the_tests_of_a_new_package_pass(made):
    tests = "packages/my-paper/tests"
    done = run(made, sys.executable, "-m", "pytest", "-q", tests, **environment(made))
    assert done.returncode == 0, done.stdout
    assert "13 passed" in done.stdout


def test_the_readme_of_a_new_package_runs(made):
    done = run(made, sys.executable, "tools/check_readmes.py", "my-paper", **environment(made))
    assert done.returncode == 0, done.stderr
    assert "2 blocks ran" in done.stdout


def test_a_new_package_has_every_room(made):
    home = made / "packages/my-paper"
    rooms = [
        "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE",
        "src/chapbook/my_paper/__init__.py", "src/chapbook/my_paper/cli.py",
        "src/chapbook/my_paper/reproduce.py", "src/chapbook/my_paper/py.typed",
    ]  # fmt: skip
    assert [room for room in rooms if not (home / room).is_file()] == []
    assert not (home / "src/chapbook/__init__.py").exists()
    assert list((home / "tests").glob("test_*.py"))
    assert list((home / "benchmarks").glob("*.py"))
    texts = {path: path.read_text() for path in home.rglob("*.*") if path.suffix in TEXT}
    assert [path for path, text in texts.items() if re.search(r"@[a-z_]+@", f"{path}{text}")] == []


def test_the_workspace_knows_a_new_package(made):
    project = tomllib.loads((made / "pyproject.toml").read_text())
    entry = project["tool"]["poetry"]["dependencies"]["chapbook-my-paper"]
    assert entry == {"path": "packages/my-paper", "develop": True}
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert "my_paper" in layers[0].split(" | ")
    assert "- my-paper: packages/my-paper.md" in (made / "docs/mkdocs.yml").read_text()
    assert "(my-paper.md): A summary." in (made / "docs/pages/packages/index.md").read_text()
    assert "[my-paper](packages/my-paper/README.md)" in (made / "README.md").read_text()
    assert run(made, sys.executable, "tools/gallery.py", "--check").returncode == 0


def test_the_metadata_of_a_new_package_are_those_of_label_dp_but_for_its_own(made):
    texts = [made / "packages" / name / "pyproject.toml" for name in ("my-paper", "label-dp")]
    new, model = (tomllib.loads(text.read_text()) for text in texts)
    assert new["project"]["name"] == "chapbook-my-paper"
    assert new["project"]["description"] == "A summary."
    assert new["project"]["scripts"] == {"my-paper": "chapbook.my_paper.cli:main"}
    assert new["project"].keys() <= model["project"].keys()
    for key in ("requires-python", "license", "license-files", "authors"):
        assert new["project"][key] == model["project"][key]
    assert new["build-system"] == model["build-system"]


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
@pytest.mark.parametrize("command", [("check",), ("format", "--check")])
def test_ruff_accepts_a_new_package(made, command):
    done = run(made, sys.executable, "-m", "ruff", *command, "--no-cache", "packages/my-paper")
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("importlinter") is None, reason="import-linter is not installed"
)
def test_import_linter_holds_a_new_package_to_the_layers(made):
    sources = os.pathsep.join(str(path) for path in sorted(made.glob("packages/*/src")))
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    command = (sys.executable, "-c", lint)
    assert run(made, *command, PYTHONPATH=sources).returncode == 0
    module = made / "packages/my-paper/src/chapbook/my_paper/moments.py"
    text = module.read_text()
    module.write_text(f"{text}\nimport chapbook.label_dp\nimport chapbook.my_paper.cli\n")
    done = run(made, *command, PYTHONPATH=sources)
    module.write_text(text)
    assert done.returncode == 1
    assert "no paper imports another BROKEN" in done.stdout
    assert "neither cli nor reproduce BROKEN" in done.stdout


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Paper", "is no package name"),
        ("my_paper", "is no package name"),
        ("my--paper", "is no package name"),
        ("9paper", "is no package name"),
        ("../paper", "is no package name"),
        ("a" * 29, "has 29 letters, 28 are allowed"),
        ("class", "is a word with a meaning of its own"),
        ("match", "is a word with a meaning of its own"),
        ("docs", "is a word with a meaning of its own"),
        ("label-dp", "packages/label-dp exists already"),
        ("core", "packages/core exists already"),
    ],
)
def test_a_bad_name_is_one_line_and_exit_2(original, name, message):
    done = run(original, sys.executable, "tools/new_package.py", name)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[0]
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("summary", ["", "no stop", 'a "quote".', "two\nlines.", "x" * 90 + "."])
def test_a_bad_summary_is_one_line_and_exit_2(original, summary):
    done = run(original, sys.executable, "tools/new_package.py", "new", "--summary", summary)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --summary")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("spoilt", ["pyproject.toml", "docs/mkdocs.yml", "README.md"])
def test_nothing_is_half_written(original, tmp_path, spoilt):
    root = shutil.copytree(original, tmp_path / "spoilt")
    (root / spoilt).write_text("# nothing to add a package to\n")
    before = contents(root)
    done = run(root, sys.executable, "tools/new_package.py", "my-paper")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert contents(root) == before
    assert not (root / "packages/my-paper").exists()
