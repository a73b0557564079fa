"""Makes packages/NAME with every room furnished, and enters it in the workspace.

What it holds at first is a complete little library, the mean and variance of a stream, that
passes every check; its concepts are replaced by the paper's room by room. Run `poetry lock`
afterwards.
"""

import argparse
import keyword
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from workspace import ROOT, fail, packages, write

TEMPLATE = ROOT / "tools" / "template"
LONGEST = 28
RESERVED = {"root", "docs", "tools"}  # words that the other tools give a meaning of their own
SUMMARY = "The mean and variance of a stream, in one pass."


def check_name(name: str) -> None:
    """Fails unless the name can be a folder, a command and, with underscores, a module."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        fail(f"{name!r} is no package name", "use lower-case letters, digits and single hyphens")
    if len(name) > LONGEST:
        fail(f"{name!r} has {len(name)} letters, {LONGEST} are allowed")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or name in RESERVED:
        fail(f"{name!r} is a word with a meaning of its own")
    modules = {other.replace("-", "_"): other for other in packages()}
    if name.replace("-", "_") in modules or (ROOT / "packages" / name).exists():
        fail(f"packages/{name} exists already")


def check_summary(summary: str) -> None:
    """Fails unless the summary is one plain sentence."""
    if not summary.strip() or not summary.isprintable() or '"' in summary or "\\" in summary:
        fail("--summary is one line of text without double quotes and backslashes")
    if not summary.endswith("."):
        fail("--summary ends with a full stop")
    if len(summary) > 90:
        fail(f"--summary has {len(summary)} characters, 90 are allowed")


def core_range() -> str:
    """Returns the range of core versions that a package made today asks for."""
    major, minor = packages()["core"]["project"]["version"].split(".")[:2]
    return f"{major}.{minor},<{major}.{int(minor) + 1}" if major == "0" else f"{major}.{minor}"


def in_order(imports: re.Match[str]) -> str:
    """Returns import lines sorted by module."""
    lines = imports[0].splitlines(keepends=True)
    return "".join(sorted(lines, key=lambda line: line.split()[1]))


def rendered(words: dict[str, str]) -> dict[Path, str]:
    """Returns the new files by their path from the root."""

    def fill(text: str) -> str:
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        # Where the new module stands among the imports depends on its name.
        return re.sub(r"(?:^from chapbook\..+\n)+", in_order, text, flags=re.M)

    rooms = TEMPLATE / "package"
    home = Path("packages") / words["name"]
    files = {
        home / fill(path.relative_to(rooms).as_posix()).removesuffix(".in"): fill(path.read_text())
        for path in sorted(rooms.rglob("*"))
        if path.is_file()
    }
    files[home / "LICENSE"] = (ROOT / "LICENSE").read_text()
    page = Path("docs/pages/packages") / f"{words['name']}.md"
    files[page] = fill((TEMPLATE / "docs.md.in").read_text())
    return files


def after_last(text: str, pattern: str, line: str, where: str) -> str:
    """Returns the text with a line added below the last one that matches."""
    found = list(re.finditer(rf"^{pattern}.*\n", text, re.MULTILINE))
    if not found:
        fail(f"{where}: no line like {pattern!r} to add {line.strip()!r} below")
    end = found[-1].end()
    return f"{text[:end]}{line}\n{text[end:]}"


def edited(words: dict[str, str]) -> dict[Path, str]:
    """Returns the workspace's files that name every package, with the new one entered."""
    name, module = words["name"], words["module"]
    project, nav, index = (
        Path("pyproject.toml"),
        Path("docs/mkdocs.yml"),
        Path("docs/pages/packages/index.md"),
    )
    texts = {path: (ROOT / path).read_text() for path in (project, nav, index)}
    dependency = f'chapbook-{name} = {{ path = "packages/{name}", develop = true }}'
    texts[project] = after_last(
        texts[project], r"chapbook-[a-z0-9-]+ = \{ path = ", dependency, str(project)
    )
    texts[project], count = re.subn(
        r'^(    "[a-z0-9_ |]+)(",  # papers)', rf"\1 | {module}\2", texts[project], flags=re.M
    )
    if count != 1:
        fail("pyproject.toml: the layers of import-linter have no line marked '# papers'")
    texts[nav] = after_last(
        texts[nav],
        r"      - [a-z0-9-]+: packages/",
        f"      - {name}: packages/{name}.md",
        str(nav),
    )
    texts[index] = after_last(
        texts[index], r"- \[", f"- [{name}]({name}.md): {words['summary']}", str(index)
    )
    tomllib.loads(texts[project])
    return texts


def build(name: str, new: dict[Path, str], changed: dict[Path, str]) -> None:
    """Writes everything; if anything fails on the way, the workspace is as it was."""
    tables = (Path("README.md"), Path("docs/pages/gallery.md"))
    before = {path: (ROOT / path).read_text() for path in (*changed, *tables)}
    try:
        for path, text in (new | changed).items():
            write(ROOT / path, text)
        gallery = [sys.executable, str(ROOT / "tools" / "gallery.py")]
        done = subprocess.run(gallery, capture_output=True, text=True)
        if done.returncode:
            fail(done.stderr.strip().removeprefix("error: "))
    except BaseException:
        for path, text in before.items():
            write(ROOT / path, text)
        for path in new:
            (ROOT / path).unlink(missing_ok=True)
        shutil.rmtree(ROOT / "packages" / name, ignore_errors=True)
        raise


def main() -> None:
    """Checks the name, works everything out, and only then writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="short name: lower-case letters, digits, hyphens")
    parser.add_argument("--summary", default=SUMMARY, help="what it does, in one sentence")
    options = parser.parse_args()
    check_name(options.name)
    check_summary(options.summary)
    words = {
        "name": options.name,
        "module": options.name.replace("-", "_"),
        "summary": options.summary,
        "core_range": core_range(),
    }
    build(options.name, rendered(words), edited(words))
    print(f"made packages/{options.name}; now run: poetry lock")


if __name__ == "__main__":
    main()
