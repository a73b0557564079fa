import subprocess
import tomllib

import pytest


def version(workspace, name):
    text = (workspace / "packages" / name / "pyproject.toml").read_text()
    return tomllib.loads(text)["project"]["version"]


@pytest.mark.parametrize(
    ("part", "expected"), [("patch", "0.1.1"), ("minor", "0.2.0"), ("major", "1.0.0")]
)
def test_a_release_bumps_dates_commits_and_tags(workspace, git, tool, part, expected):
    done = tool("release", "vmoe", part)
    assert done.returncode == 0, done.stderr
    assert version(workspace, "vmoe") == expected
    assert git("tag").split() == [f"vmoe-v{expected}"]
    assert git("status", "--porcelain") == ""
    assert git("log", "-1", "--format=%s").strip() == f"Release vmoe {expected}"
    assert git("rev-list", "-1", f"vmoe-v{expected}") == git("rev-parse", "HEAD")


def test_a_release_changes_its_own_version_and_no_other(workspace, git, tool):
    assert tool("release", "vmoe", "minor").returncode == 0
    changed = git("show", "--format=", "--name-only").split()
    assert sorted(changed) == [
        "packages/vmoe/CHANGELOG.md",
        "packages/vmoe/pyproject.toml",
        "poetry.lock",
    ]
    content = tomllib.loads((workspace / "packages/vmoe/pyproject.toml").read_text())
    assert content["tool"]["other"]["version"] == "0.1.0"
    lock = tomllib.loads((workspace / "poetry.lock").read_text())
    versions = {entry["name"]: entry["version"] for entry in lock["package"]}
    assert versions["chapbook-vmoe"] == "0.2.0"
    assert set(versions.values()) == {"0.1.0", "0.2.0"}
    assert list(versions.values()).count("0.2.0") == 1


def test_unreleased_moves_to_a_dated_section(workspace, tool):
    assert tool("release", "vmoe", "patch").returncode == 0
    lines = (workspace / "packages/vmoe/CHANGELOG.md").read_text().splitlines()
    assert lines[2] == "## [Unreleased]"
    assert lines[4].startswith("## [0.1.1] - 20")
    assert lines[6:9] == ["### Added", "", "- A thing."]
    assert lines[10] == "## [0.0.1] - 2026-01-01"


def test_a_dry_run_says_and_changes_nothing(workspace, git, tool):
    done = tool("release", "vmoe", "minor", "--dry-run")
    assert done.stdout == "would release vmoe 0.1.0 -> 0.2.0 and tag vmoe-v0.2.0\n"
    assert git("status", "--porcelain") == git("tag") == ""


def test_dependents_that_admit_the_version_are_named(tool):
    done = tool("release", "core", "patch", "--dry-run")
    assert done.stdout.splitlines()[:2] == [
        "label-dp asks for chapbook-core[jax]>=0.1,<0.2: admits 0.1.1",
        "vmoe asks for chapbook_core >= 0.1: admits 0.1.1",
    ]


def test_a_dependent_that_forbids_the_version_stops_the_release(workspace, git, tool):
    done = tool("release", "core", "minor")
    assert done.returncode == 2
    assert "label-dp asks for chapbook-core[jax]>=0.1,<0.2, which does not admit 0.2.0" in (
        done.stderr
    )
    assert version(workspace, "core") == "0.1.0"
    assert git("status", "--porcelain") == git("tag") == ""


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("echo x > new.txt", "the tree is not clean"),
        ("git checkout --quiet -b other", "releases are made on main, this is other"),
        ("git tag vmoe-v0.1.1", "tag vmoe-v0.1.1 exists already"),
    ],
)
def test_the_repository_must_be_ready(workspace, tool, prepare, message):
    subprocess.run(prepare, shell=True, cwd=workspace, check=True)
    done = tool("release", "vmoe", "patch")
    assert done.returncode == 2
    assert message in done.stderr
    assert version(workspace, "vmoe") == "0.1.0"


def test_an_empty_changelog_stops_the_release(workspace, git, tool):
    assert tool("release", "vmoe", "patch").returncode == 0
    done = tool("release", "vmoe", "patch")
    assert done.returncode == 2
    assert "says nothing under Unreleased" in done.stderr


def test_an_unknown_package_is_one_line(tool):
    done = tool("release", "glam", "patch")
    assert done.returncode == 2
    assert done.stderr == "error: no package 'glam'; there are alone, core, label-dp, vmoe\n"


def test_a_refused_commit_leaves_every_file_as_it_was(workspace, git, tool):
    hook = workspace / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho no >&2\nexit 1\n")
    hook.chmod(0o755)
    done = tool("release", "vmoe", "patch")
    assert done.returncode == 2
    assert done.stderr == "error: git commit: no\n"
    assert git("status", "--porcelain") == git("tag") == ""
