"""Prints the packages that a change touches, one a line.

A package is touched by a change in its own folder or in a package it depends on; all are touched
by a change of the root's build files. Committed changes since BASE, uncommitted ones and untracked
files count.
"""

import argparse

from workspace import dependents, git, packages

BUILD_FILES = ("pyproject.toml", "poetry.lock", "noxfile.py", "packages/conftest.py", ".ci/")
SECTIONS = {
    "docs": ("docs/", "README.md", "CONTRIBUTING.md"),
    "tools": ("tools/",),
}


def default_base() -> str:
    """Returns where the current branch left main, or HEAD when there is no main to leave."""
    for main in ("origin/main", "main"):
        if git("branch", "--all", "--list", main, f"remotes/{main}").strip():
            return git("merge-base", main, "HEAD").strip()
    return "HEAD"


def changed_files(base: str) -> list[str]:
    """Returns every path that differs from the base, renamed files under both names."""
    tracked = git("diff", "--name-only", "--no-renames", "-z", base)
    untracked = git("ls-files", "--others", "--exclude-standard", "-z")
    return sorted({path for path in (tracked + untracked).split("\0") if path})


def affected(paths: list[str]) -> list[str]:
    """Returns the packages that changes of these paths touch."""
    known = packages()
    if any(path.startswith(BUILD_FILES) for path in paths):
        return sorted(known)
    touched = {parts[1] for path in paths if (parts := path.split("/"))[0] == "packages"}
    touched &= known.keys()
    return sorted(touched.union(*(dependents(name) for name in touched)))


def sections(paths: list[str]) -> list[str]:
    """Returns the parts of the house outside the packages that changes of these paths touch."""
    return [
        name for name, places in SECTIONS.items() if any(path.startswith(places) for path in paths)
    ]


def main() -> None:
    """Reads the command line and prints the names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", metavar="REF", help="compare with REF (default: main)")
    parser.add_argument("--sections", action="store_true", help="also print docs and tools")
    options = parser.parse_args()
    base = options.base or default_base()
    if options.base:
        base = git("merge-base", options.base, "HEAD").strip()
    paths = changed_files(base)
    for name in affected(paths) + (sections(paths) if options.sections else []):
        print(name)


if __name__ == "__main__":
    main()
