"""Collects run folders of `reproduce` into one self-contained `OUT/index.html`.

Each RUN is the folder that a package's `reproduce` wrote and bears the package's name: claims.csv,
results.json, config.json, and pictures anywhere below it. Pictures are embedded, nothing is
fetched. A run without claims is shown as unfinished, and the tool exits 1.
"""

import argparse
import base64
import csv
import json
import sys
from html import escape
from pathlib import Path
from typing import Any

from workspace import fail, packages, write

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --paper: #faf9f6;
  --card: #ffffff; --line: #e4e2dc; --yes: #17724a; --no: #b3361e; --tint: #f3f1ea; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e6e1; --soft: #9aa0ac; --paper: #16181d;
  --card: #1e2127; --line: #31353e; --yes: #5cc596; --no: #f08a72; --tint: #262a32; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 3rem 1.25rem 5rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font: 600 2.4rem/1.15 Georgia, "Times New Roman", serif; margin: 0; }
h2 { font: 600 1.5rem/1.2 Georgia, "Times New Roman", serif; margin: 0 0 .25rem; }
.lead { color: var(--soft); margin: .5rem 0 2rem; }
nav { display: flex; flex-wrap: wrap; gap: .5rem; margin-bottom: 2rem; }
nav a { text-decoration: none; color: inherit; border: 1px solid var(--line);
  border-radius: 99px; padding: .2rem .9rem; background: var(--card); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 1.5rem; margin-bottom: 1.5rem; }
.what { color: var(--soft); margin: 0 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: .85rem; }
th, td { padding: .5rem .75rem .5rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; }
.held { color: var(--yes); font-weight: 600; white-space: nowrap; }
.shown { color: var(--soft); white-space: nowrap; }
.lost { color: var(--no); font-weight: 600; white-space: nowrap; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr));
  gap: 1rem; margin-top: 1.25rem; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: .5rem; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: #667085; font-size: .85rem; padding-top: .35rem; }
details { margin-top: 1rem; color: var(--soft); }
pre { background: var(--tint); color: var(--ink); padding: .75rem; border-radius: 8px;
  overflow-x: auto; font-size: .8rem; }
"""
# By the `held` of claims.csv, which is empty for a figure that is shown and not judged.
VERDICTS = {"True": ("held", "held"), "False": ("lost", "not held"), "": ("shown", "not judged")}


def claims(run: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's claims.csv; none if the run did not get so far."""
    path = run / "claims.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    needed = ("claim", "paper", "ours", "unit", "low", "high", "held")
    if rows and (missing := [name for name in needed if name not in rows[0]]):
        fail(f"{path}: no column {', '.join(missing)}")
    return rows


def number(text: str, unit: str = "") -> str:
    """Returns a figure with four significant digits and its unit; other text as it is."""
    try:
        text = f"{float(text):.4g}"
    except ValueError:
        text = text.strip() or "—"
    return escape(f"{text} {unit}".strip() if text != "—" else text)


def claims_table(rows: list[dict[str, str]]) -> str:
    """Returns the table: claim, paper, ours, the band in which it holds, and whether it does."""
    body = []
    for row in rows:
        low, high = number(row["low"]), number(row["high"])
        band = {
            (True, True): "—",
            (False, True): f"at least {low}",
            (True, False): f"at most {high}",
            (False, False): f"{low} to {high}",
        }[low == "—", high == "—"]
        mark = VERDICTS[row["held"]]
        body.append(
            f"<tr><td>{escape(row['claim'])}</td>"
            f"<td class=number>{number(row['paper'], row['unit'])}</td>"
            f"<td class=number>{number(row['ours'], row['unit'])}</td>"
            f"<td class=number>{band}</td><td class={mark[0]}>{mark[1]}</td></tr>"
        )
    return (
        "<div class=scroll><table><thead><tr><th>claim</th><th class=number>paper</th>"
        "<th class=number>ours</th><th class=number>holds if</th><th>result</th></tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def pictures(run: Path) -> str:
    """Returns the run's plots, embedded."""
    figures = []
    for path in sorted(run.rglob("*.png")):
        title = escape(path.stem.replace("_", " ").replace("-", " "))
        data = base64.b64encode(path.read_bytes()).decode()
        figures.append(
            f'<figure><img alt="{title}" src="data:image/png;base64,{data}">'
            f"<figcaption>{title}</figcaption></figure>"
        )
    return f"<div class=plots>{''.join(figures)}</div>" if figures else ""


def details(run: Path, file: str, title: str) -> str:
    """Returns a JSON file of the run, folded."""
    path = run / file
    if not path.exists():
        return ""
    try:
        content: Any = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        fail(f"{path}:{error.lineno}: {error.msg}")
    text = escape(json.dumps(content, indent=2, ensure_ascii=False))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"


def section(run: Path, summary: str) -> str:
    """Returns the section of one package."""
    rows = claims(run)
    body = claims_table(rows) if rows else "<p class=lost>The run did not finish.</p>"
    name = escape(run.name)
    return (
        f"<section id={name}><h2>{name}</h2><p class=what>{escape(summary)}</p>{body}"
        f"{pictures(run)}{details(run, 'results.json', 'All results')}"
        f"{details(run, 'config.json', 'Configuration and versions')}</section>"
    )


def report(runs: list[Path]) -> str:
    """Returns the whole page."""
    known = packages()
    summaries = {name: content["project"]["description"] for name, content in known.items()}
    rows = [row for run in runs for row in claims(run)]
    verdicts = [row["held"] for row in rows if row["held"]]
    lead = (
        f"{verdicts.count('True')} of {len(verdicts)} claims held, in {len(runs)} "
        f"package{'s' if len(runs) != 1 else ''}, at desk scale on real data."
    )
    links = "".join(f"<a href=#{escape(run.name)}>{escape(run.name)}</a>" for run in runs)
    body = "".join(section(run, summaries.get(run.name, "")) for run in runs)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>chapbook: what the papers claim, measured</title><style>{STYLE}</style></head>"
        f"<body><h1>What the papers claim, measured</h1><p class=lead>{lead}</p>"
        f"<nav>{links}</nav>{body}</body></html>\n"
    )


def main() -> None:
    """Writes the page; exits 1 if a run did not finish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for index.html")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    options = parser.parse_args()
    runs = [run.resolve() for run in options.runs]
    if missing := [run for run in runs if not run.is_dir()]:
        fail(f"no run folder {missing[0]}")
    write(options.out / "index.html", report(runs))
    print(options.out / "index.html")
    if unfinished := [run.name for run in runs if not claims(run)]:
        print(f"error: {', '.join(unfinished)} did not finish", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
