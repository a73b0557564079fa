"""Claim: 30,000 pieces load in 50 ms, 120,000 in 200 ms, and a compiled file in 5 ms.

Each load is one of a fresh Python that has imported the package and nothing else; the file lies in
the page cache, and processor time is told. Memory is what the process holds resident after the load
and 3 MB of text on one thread, over what it held before the load; the target is 44 MiB for 30,000
pieces.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from common.systems import DISTRIBUTIONS

from chapbook.fast_wordpiece import data
from chapbook.fast_wordpiece.huggingface import huggingface
from chapbook.fast_wordpiece.settings import Settings
from chapbook.fast_wordpiece.tokenizer import Tokenizer

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, report

CLAIM = "30,000 pieces load in 50 ms, 120,000 in 200 ms, a compiled file in 5 ms"
OURS = "fast-wordpiece"
LOADS = {
    OURS: (
        "from chapbook.fast_wordpiece import Tokenizer\nload = Tokenizer.from_file",
        "made.encode_batch(texts, num_threads=1)",
    ),
    "HuggingFace": (
        "from tokenizers import Tokenizer\nload = Tokenizer.from_file",
        "made.encode_batch(texts)",
    ),
    "nanotoken": (
        "from nanotoken import Tokenizer as load",
        "made.encode_batch(texts, parallel=False)",
    ),
}
CHILD = """
import json, os, sys, time
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import numpy as np
from pydoc_data.topics import topics
{imports}
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
random = np.random.default_rng(0)
text = " ".join(topics.values())
# Other text in each of 1 MB: the words by chance, and letters by chance for the caches to fill.
def texts_of(size):
    words = np.array(text.split() + random.integers(97, 123, (20_000, 9), np.uint8)
        .view("S9").ravel().astype(str).tolist(), object)
    return [" ".join(line) for line in random.choice(words, (size // 140, 20))]
batches = [texts_of(1_000_000) for _ in range(3)]
before = resident()
start = time.process_time()
made = load({path!r})
seconds = time.process_time() - start
loaded = resident()
for texts in batches:
    result = {encode}
    del result
print(json.dumps([seconds * 1e3, loaded - before, resident() - before]))
"""


def main() -> None:
    """Prints milliseconds and MiB of every side and file, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    kinds = {
        "30,522 pieces": Settings.bert(data.english_vocabulary()),
        "119,547 pieces": Settings.bert(data.multilingual_vocabulary(), lowercase=False),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, settings in kinds.items():
            rows += compare(kind, settings, Path(folder), given.repeats)
    report(__file__, CLAIM, rows, DISTRIBUTIONS, repeats=given.repeats)


def compare(kind: str, settings: Settings, folder: Path, repeats: int) -> list[dict[str, object]]:
    """Measures every side's load of one tokenizer; returns milliseconds and MiB."""
    ours, json_file = Tokenizer(settings), folder / "tokenizer.json"
    ours.save(folder / "vocab.txt")
    ours.save(folder / "model.fwp")
    huggingface(settings).save(str(json_file))
    cases = [(OURS, folder / name) for name in ("vocab.txt", "tokenizer.json", "model.fwp")]
    cases += [(side, json_file) for side in ("HuggingFace", "nanotoken")]
    if not find_spec("nanotoken"):
        cases.pop()
    taken = interleaved({case: partial(child, *case) for case in cases}, repeats, warm=1)
    rows = []
    for (side, path), each in taken.items():
        figures = np.array(each)
        milliseconds, loaded, used = map(float, np.median(figures, axis=0))
        rows.append(
            {
                "tokenizer": kind,
                "file": path.name,
                "system": side,
                "milliseconds": milliseconds,
                "mib_after_load": loaded,
                "mib_after_3_mb": used,
                "spread": [float(figures[:, 0].min()), float(figures[:, 0].max())],
            }
        )
    return rows


def child(side: str, path: Path) -> list[float]:
    """Returns what a fresh Python measures: milliseconds, MiB after the load and after use."""
    imports, encode = LOADS[side]
    program = CHILD.format(imports=imports, encode=encode, path=str(path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
