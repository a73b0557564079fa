"""Exact match and token F1 of answers, as SQuAD counts them, and the F1 of classes."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(answer: str) -> str:
    """Returns an answer in lower case, without ASCII punctuation, articles and spare spaces.

    Reference:
        Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (2016),
        section 6.1, and its evaluation script.
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Returns 1 if an answer is one of the references, once normalized, else 0.

    Args:
        answer: Given.
        references: Right answers, at least one.
    """
    return _best(lambda a, b: float(a == b), answer, references)


def f1(answer: str, references: Sequence[str]) -> float:
    """Computes `2 p r / (p + r)` over the words that an answer shares with its best reference.

    The precision p is their share of the answer's words, the recall r that of the reference's.
    Where either has no words, as a question without an answer, the score is that of an exact match.

    Args:
        answer: Given.
        references: Right answers, at least one.

    Reference:
        Rajpurkar et al. (2016), section 6.1; without words: the script of SQuAD 2.0 (2018).
    """
    return _best(_f1, answer, references)


def class_f1(chosen: Int[np.ndarray, " n"], gold: Int[np.ndarray, " n"]) -> float:
    """Computes `mean_c 2 tp_c / (2 tp_c + fp_c + fn_c)` over the classes that occur.

    Args:
        chosen: The class that each question got, from 0.
        gold: The right one.

    Reference:
        Wang et al., "SuperGLUE" (2019), section 3: the measure of CommitmentBank.
    """
    right = np.bincount(gold[chosen == gold], minlength=max(chosen.max(), gold.max()) + 1)
    both = np.bincount(chosen, minlength=len(right)) + np.bincount(gold, minlength=len(right))
    return float(np.mean(2 * right[both > 0] / both[both > 0]))


def _best(score: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    given = normalized(answer)
    return max(score(given, normalized(reference)) for reference in references)


def _f1(answer: str, reference: str) -> float:
    given, right = answer.split(), reference.split()
    if not given or not right:
        return float(given == right)
    shared = sum((Counter(given) & Counter(right)).values())
    return 2 * shared / (len(given) + len(right))
