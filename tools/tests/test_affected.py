import pytest

EVERYTHING = ["alone", "core", "label-dp", "vmoe"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("packages/vmoe/src/code.py", ["vmoe"]),
        ("packages/core/src/code.py", ["core", "label-dp", "vmoe"]),
        ("packages/core/src/new.py", ["core", "label-dp", "vmoe"]),
        ("packages/conftest.py", EVERYTHING),
        ("pyproject.toml", EVERYTHING),
        ("poetry.lock", EVERYTHING),
        ("noxfile.py", EVERYTHING),
        ("docs/pages/index.md", []),
        ("tools/gallery.py", []),
        ("README.md", []),
        ("packages/gone/src/code.py", []),
    ],
)
def test_a_change_touches_what_depends_on_it(workspace, tool, path, expected):
    file = workspace / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# changed\n")
    assert tool("affected").stdout.split() == expected


def test_nothing_is_touched_without_a_change(tool):
    done = tool("affected", "--sections")
    assert (done.returncode, done.stdout) == (0, "")


def test_sections_name_the_parts_outside_the_packages(workspace, tool):
    (workspace / "docs/pages/index.md").write_text("new")
    (workspace / "tools/new.py").write_text("new")
    assert tool("affected", "--sections").stdout.split() == ["docs", "tools"]


def test_ignored_files_do_not_count(workspace, tool):
    cache = workspace / "packages/vmoe/__pycache__/x.pyc"
    cache.parent.mkdir()
    cache.write_text("")
    assert tool("affected").stdout == ""


def test_committed_changes_since_the_base_count(workspace, git, tool):
    git("checkout", "--quiet", "-b", "feature")
    (workspace / "packages/vmoe/src/code.py").write_text("x = 2\n")
    git("commit", "--quiet", "-am", "change")
    assert tool("affected").stdout.split() == ["vmoe"]
    assert tool("affected", "--base", "main").stdout.split() == ["vmoe"]
    assert tool("affected", "--base", "HEAD").stdout.split() == []


def test_what_only_the_base_changed_does_not_count(workspace, git, tool):
    git("checkout", "--quiet", "-b", "feature")
    git("checkout", "--quiet", "main")
    (workspace / "packages/alone/src/code.py").write_text("x = 2\n")
    git("commit", "--quiet", "-am", "elsewhere")
    git("checkout", "--quiet", "feature")
    assert tool("affected", "--base", "main").stdout.split() == []


def test_a_renamed_file_touches_both_places(workspace, git, tool):
    git("mv", "packages/vmoe/src/code.py", "packages/alone/src/other.py")
    assert tool("affected").stdout.split() == ["alone", "vmoe"]


def test_an_unknown_base_is_one_line(tool):
    done = tool("affected", "--base", "nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: git merge-base")
    assert len(done.stderr.splitlines()) == 1
