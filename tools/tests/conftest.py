import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]

PROJECT = """\
[project]
name = "chapbook-{name}"
version = "0.1.0"
description = "What {name} does."
dependencies = [{dependencies}]

[project.optional-dependencies]
extra = [{extras}]

[tool.other]
version = "0.1.0"
"""
CHANGELOG = """\
# Changelog

## [Unreleased]

### Added

- A thing.

## [0.0.1] - 2026-01-01

- First.
"""


def shell(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    identity = {"NAME": "A", "EMAIL": "a@example.org"}
    git = {f"GIT_{who}_{key}": v for who in ("AUTHOR", "COMMITTER") for key, v in identity.items()}
    env = {**os.environ, **git, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture(scope="session")
def first_workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first") / "workspace"
    shutil.copytree(TOOLS, root / "tools", ignore=shutil.ignore_patterns("tests", "__pycache__"))
    packages = {
        "core": ("", ""),
        "label-dp": ('"chapbook-core[jax]>=0.1,<0.2"', ""),
        "vmoe": ('"numpy"', '"chapbook_core >= 0.1"'),
        "alone": ('"numpy>=1.26"', ""),
    }
    for name, (dependencies, extras) in packages.items():
        folder = root / "packages" / name
        (folder / "src").mkdir(parents=True)
        text = PROJECT.format(name=name, dependencies=dependencies, extras=extras)
        (folder / "pyproject.toml").write_text(text)
        (folder / "CHANGELOG.md").write_text(CHANGELOG)
        (folder / "README.md").write_text(f"# {name}\n")
        (folder / "src" / "code.py").write_text("x = 1\n")
    (root / "docs" / "pages").mkdir(parents=True)
    (root / "docs" / "pages" / "index.md").write_text("# home\n")
    (root / "pyproject.toml").write_text("[tool.x]\n")
    (root / "README.md").write_text("# x\n\n<!-- gallery:begin -->\n<!-- gallery:end -->\n\nend\n")
    locked = "\n".join(
        f'[[package]]\nname = "chapbook-{name}"\nversion = "0.1.0"\n' for name in packages
    )
    (root / "poetry.lock").write_text(locked)
    (root / ".gitignore").write_text("__pycache__/\n")
    for command in ("init --quiet -b main", "add --all", "commit --quiet -m first"):
        done = shell(root, "git", *command.split())
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def workspace(first_workspace: Path, tmp_path: Path) -> Path:
    """A small workspace under git: core, two papers on it, and one package that stands alone."""
    return shutil.copytree(first_workspace, tmp_path / "workspace")


@pytest.fixture
def git(workspace: Path) -> Callable[..., str]:
    """Runs git in the workspace and returns what it prints."""

    def run(*arguments: str) -> str:
        done = shell(workspace, "git", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def tool(workspace: Path) -> Run:
    """Runs a tool of the workspace."""

    def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, f"tools/{name}.py", *map(str, arguments)]
        return shell(workspace, *words)

    return run
