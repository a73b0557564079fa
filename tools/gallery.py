"""Writes the README's package table and the documentation's results page from committed results.

Read are `packages/*/results/headline.json` (one claim of the paper, or a list of them) and
`packages/*/benchmarks/results/*.json` (one measured comparison each). What was not measured is not
shown.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workspace import ROOT, fail, packages, write

README = ROOT / "README.md"
PAGE = ROOT / "docs" / "pages" / "gallery.md"
BEGIN, END = "<!-- gallery:begin -->", "<!-- gallery:end -->"
HEADLINE = (
    "package", "paper", "claim", "paper_value", "ours", "unit", "held", "machine", "command",
)  # fmt: skip
NONE = "—"


def load(path: Path) -> Any:
    """Reads a committed JSON file."""
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        fail(f"{path.relative_to(ROOT)}:{error.lineno}: {error.msg}")


def headlines(name: str) -> list[dict[str, Any]]:
    """Returns the measured headline claims of a package."""
    path = ROOT / "packages" / name / "results" / "headline.json"
    if not path.exists():
        return []
    content = load(path)
    rows = content if isinstance(content, list) else [content]
    for row in rows:
        if missing := [key for key in HEADLINE if key not in row]:
            fail(f"{path.relative_to(ROOT)}: no {', '.join(missing)}")
        if row["package"] != name:
            fail(f"{path.relative_to(ROOT)}: package is {row['package']!r}, expected {name!r}")
    return rows


def benchmarks(name: str) -> list[dict[str, Any]]:
    """Returns the benchmark results of a package, in the order of their file names."""
    found = []
    for path in sorted((ROOT / "packages" / name / "benchmarks" / "results").glob("*.json")):
        content = load(path)
        if missing := [key for key in ("claim", "machine", "rows") if key not in content]:
            fail(f"{path.relative_to(ROOT)}: no {', '.join(missing)}")
        found.append(content | {"script": f"packages/{name}/benchmarks/{path.stem}.py"})
    return found


def cell(value: Any, unit: str = "") -> str:
    """Returns a value as it stands in a table: four significant digits, on one line."""
    if value is None or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        value = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    elif isinstance(value, int):
        value = f"{value:,}"
    elif isinstance(value, Mapping):
        value = ", ".join(f"{key} {cell(item)}" for key, item in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = ", ".join(cell(item) for item in value)
    text = f"{value} {unit}".strip()
    return " ".join(text.split()).replace("|", "\\|")


def grid(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the head and the lines of a table of all rows, as text."""
    # The single repeats stay in the file; the tables show what was made of them.
    items = (item for row in rows for item in row.items())
    head = list(dict.fromkeys(key for key, value in items if not isinstance(value, list)))
    return [
        [key.replace("_", " ") for key in head],
        *([cell(r.get(k)) for k in head] for r in rows),
    ]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def readme_table() -> str:
    """Returns the package table: one row for each headline claim, or one for the package."""
    rows = []
    for name, pyproject in packages().items():
        link = f"[{name}](packages/{name}/README.md)"
        summary = cell(pyproject["project"]["description"])
        claims = headlines(name)
        if not claims:
            rows.append([link, summary, NONE, NONE, NONE, NONE])
        for i, claim in enumerate(claims):
            first = [link, summary] if i == 0 else ["", ""]
            rows.append([*first, *_claim_cells(claim)])
    head = ("package", "what it does", "headline claim", "paper", "ours", "held")
    return table(head, rows)


def _claim_cells(claim: Mapping[str, Any]) -> list[str]:
    unit = claim["unit"] or ""
    values = [cell(claim["paper_value"], unit), cell(claim["ours"], unit)]
    return [cell(claim["claim"]), *values, cell(claim["held"])]


def page() -> str:
    """Returns the results page of the documentation."""
    parts = [
        "# Results gallery",
        "Every figure here was measured by the command beside it, on the machine beside it, and is "
        "written by `tools/gallery.py` from the results that are committed with each package. "
        "Unfavourable figures stay.",
    ]
    for name in packages():
        section = _claims_section(name) + _benchmarks_section(name)
        if section:
            parts += [f"## {name}", *section]
    if len(parts) == 2:
        parts.append("No results are committed yet.")
    return "\n\n".join(parts) + "\n"


def _claims_section(name: str) -> list[str]:
    parts = []
    for claim in headlines(name):
        head = ("claim", "paper", "ours", "held")
        parts += [
            f"{cell(claim['paper'])}",
            table(head, [_claim_cells(claim)]),
            f"Measured by `{claim['command']}` on {cell(claim['machine'])}.",
        ]
    return parts


def _benchmarks_section(name: str) -> list[str]:
    parts = []
    for result in benchmarks(name):
        head, *rows = grid(result["rows"])
        parts += [
            f"### {cell(result['claim'])}",
            table(head, rows),
            f"Measured by `python {result['script']}` on {cell(result['machine'])}.",
        ]
    return parts


def readme() -> str:
    """Returns the README with its table renewed between the markers."""
    text = README.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        fail(f"README.md needs one line {BEGIN} and one line {END} below it")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{readme_table()}\n{END}{rest.split(END)[1]}"


def drift(path: Path, wanted: str) -> str:
    """Returns what differs from the wanted text in one line, or an empty string."""
    have = path.read_text() if path.exists() else ""
    lines = list(difflib.unified_diff(have.splitlines(), wanted.splitlines(), lineterm="", n=0))
    added = sum(line.startswith("+") and not line.startswith("+++") for line in lines)
    removed = sum(line.startswith("-") and not line.startswith("---") for line in lines)
    if not lines:
        return ""
    first = next(line for line in lines[2:] if line[0] in "+-")
    return (
        f"{path.relative_to(ROOT)}: {added} lines to add, {removed} to remove, first {first[:60]}"
    )


def main() -> None:
    """Writes both files, or with --check says what would change and exits 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on drift")
    options = parser.parse_args()
    wanted = {README: readme(), PAGE: page()}
    changes = [line for path, text in wanted.items() if (line := drift(path, text))]
    if options.check:
        if changes:
            print("; ".join(changes) + "; run tools/gallery.py", file=sys.stderr)
            raise SystemExit(1)
        return
    for path, text in wanted.items():
        write(path, text)
    print("\n".join(changes) or "nothing to change")


if __name__ == "__main__":
    main()
