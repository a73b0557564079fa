"""Claim: memory does not grow with the text, not even with text whose every word is new.

A fresh Python encodes gigabytes of letters by chance in batches of 8 MB on one thread, and tells
what it holds resident after each tenth. What the first tenth leaves is what all of it leaves.
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from common.systems import DISTRIBUTIONS

from chapbook.fast_wordpiece import data

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import report

CLAIM = "memory does not grow with the text"
SIDES = {
    "fast-wordpiece": (
        "from chapbook.fast_wordpiece import Tokenizer\nload = Tokenizer.from_file",
        "made.encode_batch(texts, num_threads=1)",
    ),
    "nanotoken": (
        "from nanotoken import Tokenizer as load",
        "made.encode_batch(texts, parallel=False)",
    ),
}
CHILD = """
import json, os, sys
import numpy as np
{imports}
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
random, found = np.random.default_rng(0), []
before = resident()
made = load({path!r})
for tenth in range(10):
    for _ in range({batches}):
        letters = random.integers(97, 123, (8000, 1000), np.uint8)
        letters[random.random(letters.shape, np.float32) < 0.15] = 32
        texts = [row.tobytes().decode() for row in letters]
        result = {encode}
        del result
    found.append(resident() - before)
print(json.dumps(found))
"""


def main() -> None:
    """Prints the MiB of every side after each tenth, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--gigabytes", type=float, default=2, help="of our side")
    parser.add_argument("--peers", type=float, default=1, help="gigabytes of the peers")
    given = parser.parse_args()
    path, rows = str(data.english_tokenizer_json()), []
    for side, (imports, encode) in SIDES.items():
        if side == "nanotoken" and not find_spec("nanotoken"):
            continue
        size = given.gigabytes if side == "fast-wordpiece" else given.peers
        batches = max(1, round(size * 1000 / 8 / 10))
        program = CHILD.format(imports=imports, encode=encode, path=path, batches=batches)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        mebibytes = json.loads(done.stdout)
        rows.append(
            {
                "system": side,
                "gigabytes": batches * 8 * 10 / 1000,
                "mib_after_a_tenth": mebibytes[0],
                "mib_at_the_end": mebibytes[-1],
                "mib_after_each_tenth": mebibytes,
            }
        )
    report(__file__, CLAIM, rows, DISTRIBUTIONS)


if __name__ == "__main__":
    main()
