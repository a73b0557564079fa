"""Runs every Python and shell block of the READMEs and the documentation pages.

Each page runs in a temporary folder of its own, blocks in order; the Python blocks of one page
share one interpreter session, shell blocks run under `bash -euo pipefail`. A comment immediately
before a block changes what happens to it:

    <!-- check: skip REASON -->   the block is not run; the reason is printed
    <!-- check: file NAME -->     the block is written to a file instead
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workspace import ROOT, fail, packages

PYTHON = {"python", "py"}
SHELL = {"bash", "sh", "shell"}
REFUSED = {"console", "pycon"}  # transcripts cannot be run as they stand
COMMENT = re.compile(r"<!--\s*check:\s*(\w+)\s*(.*?)\s*-->")
LIMIT = 600


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the line of its first code line, its code, its directive."""

    language: str
    line: int
    code: str
    order: str
    argument: str


def blocks(text: str, where: str) -> Iterator[Block]:
    """Yields the fenced blocks of a Markdown page; an unknown directive is an error."""
    lines = text.splitlines()
    order = argument = ""
    i = 0
    while i < len(lines):
        fence = re.match(r"^(\s*)(`{3,}|~{3,})\s*([\w+-]*)", lines[i])
        if fence is None:
            if comment := COMMENT.fullmatch(lines[i].strip()):
                order, argument = comment.groups()
                if order not in ("skip", "file") or not argument:
                    fail(f"{where}:{i + 1}: write 'check: skip REASON' or 'check: file NAME'")
            elif lines[i].strip():
                order = argument = ""
            i += 1
            continue
        indent, marks, language = fence.groups()
        first = i + 1
        i = first
        while i < len(lines) and not re.match(rf"^\s*{re.escape(marks)}\s*$", lines[i]):
            i += 1
        code = "\n".join(line.removeprefix(indent) for line in lines[first:i]) + "\n"
        yield Block(language.lower(), first + 1, code, order, argument)
        order = argument = ""
        i += 1


def run_page(page: Path) -> int:
    """Runs the blocks of one page in the current folder; returns how many ran."""
    where = page.relative_to(ROOT).as_posix()
    session: dict[str, Any] = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page.read_text(), where):
        place = f"{where}:{block.line}"
        if block.order == "skip":
            print(f"{place}: skipped, {block.argument}")
        elif block.order == "file":
            target = Path(block.argument)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code)
        elif block.language in REFUSED:
            fail(f"{place}: a {block.language} block cannot be run; write it as bash or python")
        elif block.language in PYTHON:
            _run_python(block, page, place, session)
            ran += 1
        elif block.language in SHELL:
            _run_shell(block, place)
            ran += 1
    return ran


def _run_python(block: Block, page: Path, place: str, session: dict[str, Any]) -> None:
    # Blank lines in front make tracebacks name the line of the page.
    code = "\n" * (block.line - 1) + block.code
    output = io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):
            exec(compile(code, str(page), "exec"), session)
    except BaseException as error:
        trace = traceback.extract_tb(error.__traceback__)
        line = next((f.lineno for f in reversed(trace) if f.filename == str(page)), block.line)
        if isinstance(error, SyntaxError) and error.filename == str(page):
            line = error.lineno
        print(output.getvalue(), end="", file=sys.stderr)
        traceback.print_exc()
        fail(f"{place.rsplit(':', 1)[0]}:{line}: {type(error).__name__}: {error}")


def _run_shell(block: Block, place: str) -> None:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        print(done.stdout, end="", file=sys.stderr)
        fail(f"{place}: the shell block ended with {done.returncode}")


def pages(names: list[str]) -> list[Path]:
    """Returns the pages to check: of the packages named, `root`, `docs`; without names, all."""
    known = packages()
    if unknown := [name for name in names if name not in {*known, "root", "docs"}]:
        fail(f"no package {unknown[0]!r}; there are {', '.join(known)}, root, docs")
    chosen = names or ["root", *known, "docs"]
    found = [ROOT / "packages" / name / "README.md" for name in known if name in chosen]
    if "root" in chosen:
        found.insert(0, ROOT / "README.md")
    if "docs" in chosen:
        found.extend(
            page
            for page in sorted((ROOT / "docs" / "pages").rglob("*.md"))
            if next(blocks(page.read_text(), str(page.relative_to(ROOT))), None)
        )
    if missing := [page for page in found if not page.exists()]:
        fail(f"{missing[0].relative_to(ROOT)} does not exist")
    return found


def check(page: Path) -> tuple[bool, str]:
    """Runs one page in a child process and a folder of its own; whether it passed, what it said."""
    where = page.relative_to(ROOT).as_posix()
    command = [sys.executable, str(Path(__file__).resolve()), "--page", str(page)]
    # The commands of the packages lie beside the interpreter that runs this.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                command, cwd=folder, env={**os.environ, "PATH": path}, timeout=LIMIT,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            said = (late.stdout or b"").decode(errors="replace")
            return False, f"{said}error: {where}: still running after {LIMIT} s"
    took = f" in {time.monotonic() - start:.1f} s" if done.returncode == 0 else ""
    return done.returncode == 0, done.stdout + took


def main() -> None:
    """Checks all pages, so that one run shows every failure; exits 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="packages, root, docs; or all")
    parser.add_argument("--page", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.page:
        print(f"{options.page.relative_to(ROOT)}: {run_page(options.page)} blocks ran", end="")
        return
    failed = False
    # One page for each core: none of them keeps several cores busy.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for passed, said in pool.map(check, pages(options.names)):
            print(said.rstrip("\n"), file=sys.stdout if passed else sys.stderr, flush=True)
            failed = failed or not passed
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
