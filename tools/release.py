"""Releases one package: bumps its version, dates its changelog, commits and tags `NAME-vX.Y.Z`.

Nothing is pushed; the line to push is printed. Pushing the tag makes the release workflow build
and publish that package alone.
"""

import argparse
import datetime
import re
from pathlib import Path

from workspace import ROOT, dependents, distribution, fail, git, packages, requirements, write

BRANCH = "main"
Version = tuple[int, int, int]


def parse(version: str) -> Version:
    """Returns the three numbers of `X.Y.Z`; shorter versions are filled with zeros."""
    if not re.fullmatch(r"\d+(\.\d+){0,2}", version):
        fail(f"version {version!r} is not of the form X.Y.Z")
    major, minor, patch = [*map(int, version.split(".")), 0, 0][:3]
    return major, minor, patch


def bump(version: Version, part: str) -> Version:
    """Returns the next version: the part goes up by one, those right of it go to zero."""
    major, minor, patch = version
    if part == "major":
        return major + 1, 0, 0
    return (major, minor + 1, 0) if part == "minor" else (major, minor, patch + 1)


def admits(requirement: str, version: Version) -> bool:
    """Says whether a requirement's range holds a version, as in `chapbook-core[jax]>=0.1,<0.2`."""
    clauses = re.sub(r"^[A-Za-z0-9._-]+\s*(\[[^\]]*\])?", "", requirement.split(";")[0].strip())
    return all(_holds(clause.strip(), version) for clause in clauses.split(",") if clause.strip())


def _holds(clause: str, version: Version) -> bool:
    match = re.fullmatch(r"(>=|<=|==|!=|~=|<|>)\s*([\d.]+)", clause)
    if match is None:
        fail(f"cannot read the version range {clause!r}", "write it with >=, <, ==, != or ~=")
    operator, text = match.groups()
    bound = parse(text)
    if operator == "~=":
        kept = text.count(".")
        return version >= bound and version[:kept] == bound[:kept]
    return {
        ">=": version >= bound,
        "<=": version <= bound,
        "==": version == bound,
        "!=": version != bound,
        "<": version < bound,
        ">": version > bound,
    }[operator]


def check_ranges(name: str, version: Version) -> list[str]:
    """Returns one line for each package that asks for this one; fails if a range forbids it."""
    known = packages()
    ours = distribution(known[name]["project"]["name"])
    lines = []
    for dependent in dependents(name, transitive=False):
        for entry in requirements(known[dependent]):
            if distribution(entry) != ours:
                continue
            if not admits(entry, version):
                fail(
                    f"{dependent} asks for {entry}, which does not admit {text_of(version)}",
                    f"widen the range in packages/{dependent}/pyproject.toml and commit it first",
                )
            lines.append(f"{dependent} asks for {entry}: admits {text_of(version)}")
    return lines


def text_of(version: Version) -> str:
    """Returns `X.Y.Z`."""
    return ".".join(map(str, version))


def dated_changelog(text: str, version: str, day: str, where: str) -> str:
    """Moves what stands under Unreleased to a section of its own, and leaves Unreleased empty."""
    match = re.search(r"^## \[Unreleased\][^\n]*\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    if match is None:
        fail(f"{where} has no section '## [Unreleased]'")
    if not match[1].strip():
        fail(f"{where} says nothing under Unreleased", "write down there what changed")
    section = f"## [Unreleased]\n\n## [{version}] - {day}\n\n{match[1].strip()}\n"
    rest = text[match.end() :]
    return text[: match.start()] + section + (f"\n{rest}" if rest else "")


def bumped_project(text: str, old: str, new: str) -> str:
    """Returns a pyproject with the version of its `[project]` table replaced."""
    return re.sub(
        rf'(?ms)^(\[project\]\n(?:(?!^\[).)*?^version = ")({re.escape(old)})(")',
        rf"\g<1>{new}\g<3>",
        text,
        count=1,
    )


def bumped_lock(text: str, package: str, old: str, new: str) -> str:
    """Returns a lock in which the workspace's own package has its new version."""
    return text.replace(
        f'name = "{package}"\nversion = "{old}"\n', f'name = "{package}"\nversion = "{new}"\n'
    )


def check_repository(tag: str) -> None:
    """Fails unless the tree is clean, the branch is main and the tag is free."""
    if changes := git("status", "--porcelain").splitlines():
        fail(f"the tree is not clean: {changes[0].strip()} (of {len(changes)})", "commit first")
    branch = git("rev-parse", "--abbrev-ref", "HEAD").strip()
    if branch != BRANCH:
        fail(f"releases are made on {BRANCH}, this is {branch}")
    if git("tag", "--list", tag).strip():
        fail(f"tag {tag} exists already")


def commit(files: dict[Path, str], message: str, tag: str) -> None:
    """Writes, commits and tags; if that fails, every file is as it was."""
    before = {path: path.read_text() for path in files}
    head = git("rev-parse", "HEAD").strip()
    try:
        for path, text in files.items():
            write(path, text)
        git("commit", "--quiet", "-m", message, "--", *(str(path) for path in files))
        git("tag", "--annotate", tag, "-m", message)
    except BaseException:
        if git("rev-parse", "HEAD").strip() == head:
            for path, text in before.items():
                write(path, text)
        raise


def main() -> None:
    """Reads the command line, checks everything, and only then writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="the package's folder name")
    parser.add_argument("part", choices=["patch", "minor", "major"])
    parser.add_argument("--dry-run", action="store_true", help="check and say, change nothing")
    options = parser.parse_args()
    known = packages()
    if options.name not in known:
        fail(f"no package {options.name!r}; there are {', '.join(known)}")

    project = known[options.name]["project"]
    old = project["version"]
    version = bump(parse(old), options.part)
    new = text_of(version)
    tag = f"{options.name}-v{new}"
    check_repository(tag)
    ranges = check_ranges(options.name, version)

    folder = ROOT / "packages" / options.name
    lock, changelog, pyproject = (
        ROOT / "poetry.lock",
        folder / "CHANGELOG.md",
        folder / "pyproject.toml",
    )
    if not changelog.exists():
        fail(f"packages/{options.name} has no CHANGELOG.md")
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    files = {
        pyproject: bumped_project(pyproject.read_text(), old, new),
        changelog: dated_changelog(
            changelog.read_text(), new, day, str(changelog.relative_to(ROOT))
        ),
    }
    if lock.exists():
        files[lock] = bumped_lock(lock.read_text(), project["name"], old, new)

    for line in ranges:
        print(line)
    if options.dry_run:
        print(f"would release {options.name} {old} -> {new} and tag {tag}")
        return
    commit(files, f"Release {options.name} {new}", tag)
    print(
        f"released {options.name} {old} -> {new}; publish it with: git push origin {BRANCH} {tag}"
    )


if __name__ == "__main__":
    main()
