"""The systems that are compared: this package and its peers, with the same tokenizer.

HuggingFace and nanotoken read the `tokenizer.json` that HuggingFace itself wrote, TensorFlow Text
its vocabulary. Each system gets the list of Python strings and gives the result that its users get:
HuggingFace one `Encoding` for each text (whose lists are not made here, which is kind to it),
TensorFlow Text a ragged tensor without [CLS] and [SEP], the others flat arrays.
"""

import importlib
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from chapbook.fast_wordpiece.huggingface import huggingface
from chapbook.fast_wordpiece.settings import Settings, Truncation
from chapbook.fast_wordpiece.tokenizer import Tokenizer

OURS, HF, HF_FAST = "fast-wordpiece", "HuggingFace encode_batch", "HuggingFace encode_batch_fast"
TF_TEXT = "TensorFlow Text"
DISTRIBUTIONS = (
    *("chapbook-fast-wordpiece", "numpy", "tokenizers", "nanotoken", "kitoken"),
    *("tensorflow", "tensorflow-text"),
)
WIDTH = 128

# Makes a tokenizer, which is not timed, and encodes with it, which is.
System = tuple[Callable[[], Any], Callable[[Any, list[str]], Any]]


def systems(settings: Settings, output: str, threads: int) -> dict[str, System]:
    """Returns what each installed system does to give the output.

    Args:
        settings: The tokenizer.
        output: `ids`, `ids and offsets`, or `padded` to 128.
        threads: How many each may use: 1 or all of the machine's. `limit_threads` goes before.
    """
    # Where encode_batch has already started HuggingFace's threads, this still keeps them idle.
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if threads == 1 else "true"
    padded = output == "padded"
    hf = huggingface(settings)
    if padded:
        hf.enable_truncation(WIDTH)
        hf.enable_padding(length=WIDTH)
    truncation = Truncation(WIDTH) if padded else None

    def encode(tokenizer: Tokenizer, texts: list[str]) -> Any:
        batch = tokenizer.encode_batch(
            texts, truncation=truncation, num_threads=threads, offsets=output == "ids and offsets"
        )
        # 64 bits, as nanotoken gives them.
        return batch.padded(length=WIDTH, dtype=np.int64) if padded else batch

    found: dict[str, System] = {
        OURS: (lambda: Tokenizer(settings), encode),
        HF: (lambda: hf, lambda made, texts: made.encode_batch(texts)),
    }
    if output == "ids":
        found[HF_FAST] = (lambda: hf, lambda made, texts: made.encode_batch_fast(texts))
    if output != "ids and offsets":
        found |= _without_offsets(hf.to_str(), padded, threads)
    if output == "ids" and threads == 1 and find_spec("kitoken"):
        from kitoken import Kitoken

        # It has lists to give and nothing else.
        kitoken = Kitoken.from_tokenizers(hf.to_str().encode())
        found["kitoken (lists)"] = (
            lambda: kitoken,
            lambda made, texts: made.encode_all(texts, True),
        )
    if output == "ids" and threads == 1 and find_spec("tensorflow_text"):
        tensorflow = tensorflow_text(settings)
        found[TF_TEXT] = (lambda: tensorflow, lambda made, texts: made.tokenize(texts))
    return found


def tensorflow_text(settings: Settings) -> Any:
    """Returns TensorFlow Text's tokenizer, which has the paper's kernel, to run on one thread.

    Args:
        settings: Either uncased with accents stripped, or cased with accents kept: it has no more.
    """
    # TensorFlow need not be there when types are checked.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tf, tf_text = map(importlib.import_module, ("tensorflow", "tensorflow_text"))
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf_text.FastBertTokenizer(
        sorted(settings.vocab, key=settings.vocab.__getitem__),
        max_bytes_per_word=settings.max_input_chars_per_word,
        token_out_type=tf.int32,
        lower_case_nfd_strip_accents=settings.normalizer.lowercase,
    )


def limit_threads(count: int) -> None:
    """Says how many threads the peers may start; before the first of them is imported."""
    os.environ["RAYON_NUM_THREADS"] = str(count)


def passes(
    system: System, texts: list[str], clock: Callable[[], float] = time.process_time
) -> tuple[float, float]:
    """Returns how long a new tokenizer's first and second pass over the texts take.

    Args:
        system: What makes the tokenizer and encodes.
        texts: What to encode.
        clock: Tells seconds: of processor time for one thread, of the wall for several.
    """
    make, encode = system
    made = make()
    taken = []
    for _ in range(2):
        start = clock()
        result = encode(made, texts)
        taken.append(clock() - start)
        del result
    return taken[0], taken[1]


def _without_offsets(file: str, padded: bool, threads: int) -> dict[str, System]:
    found: dict[str, System] = {}
    if find_spec("nanotoken"):
        from nanotoken import Tokenizer as Nanotoken

        parallel = threads > 1
        if padded:
            options = {"max_length": WIDTH, "padding": "max_length", "parallel": parallel}
            found["nanotoken"] = (
                lambda: Nanotoken.from_json(file),
                lambda made, texts: made.encode_batch_padded(texts, **options),
            )
        else:
            found["nanotoken"] = (
                lambda: Nanotoken.from_json(file),
                lambda made, texts: made.encode_batch(texts, parallel=parallel),
            )
    return found
