"""Claim: options are scored 1.5x as fast as by lm-evaluation-harness on transformers.

Questions with four options after a context of docstrings of Python's own library: log-likelihoods
of all pairs by `glam.log_likelihoods`, and by the harness's `HFLM` with a Qwen3-MoE of the same
sizes, tokenized by the same file, in batches of the best size tried. Weights are drawn at random.
Medians of interleaved repeats.

Both sides use all processors that the process may. Needs the packages in `requirements.txt`.
"""

import argparse
import ast
import os
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import polars as pl
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedTokenizerFast

from chapbook.glam import GLaM, GLaMConfig, cost, log_likelihoods, train_tokenizer

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from benchmark import interleaved, medians, report, seconds
from decoding_is_faster_than_transformers_generate import peer_of

CLAIM = "options are scored 1.5x as fast as by lm-evaluation-harness on transformers"
WANTED = 1.5
WORDS, OPTION, OPTIONS, VOCABULARY = 100, 8, 4, 2048


def texts() -> list[str]:
    """Returns the docstrings of Python's library that are long enough for a question."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                words = (ast.get_docstring(node) or "").split()
                if len(words) >= WORDS + OPTION:
                    found.append(" ".join(words[: WORDS + OPTION]))
    return found


def main() -> None:
    """Prints the speeds, and writes them beside this file."""
    parser = argparse.ArgumentParser(description=CLAIM)
    parser.add_argument("--config", default="desk/8E,width=256,hidden=768,context=512")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="of the peer")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    words = train_tokenizer([pl.DataFrame({"text": texts()})], VOCABULARY)
    config = GLaMConfig.from_string(given.config, vocab_size=VOCABULARY)
    model = eqx.filter_jit(partial(GLaM, config))(key=jax.random.key(0))
    peer = peer_of(config)
    with tempfile.TemporaryDirectory() as folder:
        same = PreTrainedTokenizerFast(tokenizer_file=str(words.save(folder)))
    same.eos_token = same.pad_token = same.convert_ids_to_tokens(words.end)
    parts = [text.rsplit(" ", OPTION) for text in texts()[: given.questions]]
    ends = [" " + " ".join(part[1:]) for part in parts]
    pairs = [
        (part[0], ends[(place + other) % len(ends)])
        for place, part in enumerate(parts)
        for other in range(OPTIONS)
    ]
    asked = [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)]

    def theirs(size: int) -> float:
        harness = HFLM(
            pretrained=peer, tokenizer=same, batch_size=size, max_length=config.context,
            device="cpu", add_bos_token=False,
        )  # fmt: skip
        return seconds(lambda: harness.loglikelihood(asked, disable_tqdm=True))

    sides = {"chapbook": lambda: seconds(log_likelihoods, model, words, pairs)}
    sides |= {f"lm_eval, batches of {size}": partial(theirs, size) for size in given.batches}
    taken = interleaved(sides, given.repeats, warm=1)
    each = medians(taken)
    best = min(found for name, found in each.items() if name != "chapbook")
    rows = [
        {
            "side": name,
            "parameters": cost(config).parameters
            if name == "chapbook"
            else sum(part.numel() for part in peer.parameters()),
            "options_per_s": len(pairs) / found,
            "times_as_fast_as_the_best_peer": best / found,
            "wanted": WANTED if name == "chapbook" else None,
            "repeats_s": taken[name],
        }
        for name, found in each.items()
    ]
    report(
        __file__, CLAIM, rows, ("chapbook-glam", "jax", "torch", "transformers", "lm-eval"),
        options=vars(given), threads=threads,
    )  # fmt: skip


if __name__ == "__main__":
    main()
