"""Log-likelihoods equal sums over single rows, however the rows are batched."""

import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.glam.scoring import bits_per_byte, encode_pair, log_likelihoods, windows
from chapbook.glam.tokenizer import ByteTokenizer

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Rome"),
    ("The capital of France is", " x"),
    ("Two and two make ", "four"),
    ("", "Once"),
    ("", "O"),
    ("q:", "a"),
    ("q:", "b"),
    ("one two three four five six seven eight nine ten", " eleven"),
    ("one two three four five six seven eight nine ten", " 11"),
    ("alone and long, one two three four five six seven eight", " nine ten"),
]


class Words(ByteTokenizer):
    """Whole words are tokens, spaces at their front, and unknown ones are letters."""

    words = ("the", "there", "fore", " cat")

    def encode(self, text):
        ids = []
        while text:
            fits = [w for w in self.words if text.startswith(w)]
            word = max(fits, key=len) if fits else text[0]
            ids.append(self.words.index(word) if fits else 100 + ord(word) % 100)
            text = text[len(word) :]
        return np.array(ids, np.int32)


def alone(tokenizer, next_logs, context, continuation, longest=48):
    """Scores one pair by its definition."""
    text = context.rstrip()
    before = [tokenizer.end, *tokenizer.encode(text)]
    after = list(tokenizer.encode(context[len(text) :] + continuation))
    row = (before + after)[-longest - 1 :]
    logs = next_logs(row[:-1])[-len(after) :]
    total = sum(log[token] for log, token in zip(logs, after, strict=True))
    greedy = all(log.argmax() == token for log, token in zip(logs, after, strict=True))
    return total, len(after), greedy, max(0, len(before) + len(after) - longest - 2)


def check(found, pairs, tokenizer, next_logs):
    for each, pair in zip(found, pairs, strict=True):
        total, tokens, greedy, truncated = alone(tokenizer, next_logs, *pair)
        assert each.total == pytest.approx(total, rel=1e-5, abs=1e-4)
        assert (each.tokens, each.greedy, each.truncated) == (tokens, greedy, truncated)


def test_scores_are_those_of_each_pair_alone(model, tokenizer, next_logs):
    check(log_likelihoods(model, tokenizer, PAIRS), PAIRS, tokenizer, next_logs)


def test_options_of_a_question_may_fall_into_several_batches(model, tokenizer, next_logs):
    pairs = [(context, f" {n}" * 3) for context in ("Is it one", "or two of") for n in range(5)]
    # 12 tokens for the context and 6 for an option: three options share a batch.
    found = log_likelihoods(model, tokenizer, pairs, batch_tokens=54)
    check(found, pairs, tokenizer, next_logs)


def test_a_context_that_does_not_fit_loses_its_first_tokens_and_tells_how_many(model, tokenizer):
    found = log_likelihoods(model, tokenizer, PAIRS[-3:])
    assert [each.truncated for each in found] == [6, 2, 15]


def test_the_most_likely_continuation_is_greedy(model, tokenizer, next_logs):
    row = [256, *b"ab"]
    likely = [int(next_logs(row)[-1].argmax())]
    likely.append(int(next_logs(row + likely)[-1].argmax()))

    class Fixed(type(tokenizer)):
        def encode(self, text):
            return np.array([*row[1:], *likely][: len(text)], np.int32)

    pairs = [("ab", "cd"), ("ab", "c")]
    assert [each.greedy for each in log_likelihoods(model, Fixed(), pairs)] == [True, True]


@pytest.mark.parametrize(
    ("context", "continuation", "before", "after"),
    [
        ("the", " cat", [256, 0], [3]),
        ("the ", "cat", [256, 0], [3]),  # the space moves
        ("", "the", [256], [0]),
        ("the", "re", [256, 0], [114, 101]),  # joined, it is one token: encoded by itself
        ("the", "refore", [256, 0], [114, 101, 2]),
    ],
)
def test_both_are_tokenized_together(context, continuation, before, after):
    assert encode_pair(Words(), context, continuation) == (before, after)


def test_what_cannot_be_scored_is_told(model, tokenizer):
    with pytest.raises(Error, match="continuation 1 is empty"):
        log_likelihoods(model, tokenizer, [("a", "b"), ("a ", "")])
    with pytest.raises(Error, match="has 49 tokens, the model looks at 48"):
        log_likelihoods(model, tokenizer, [("a", "b" * 49)])
    other = type(tokenizer)()
    other.vocab_size = 300
    with pytest.raises(Error, match="the tokenizer has 300 tokens, the model 257"):
        log_likelihoods(model, other, [("a", "b")])
    assert log_likelihoods(model, tokenizer, []) == []


@pytest.mark.parametrize(("tokens", "context", "stride"), [(1, 8, 4), (9, 8, 4), (40, 9, 4)])
def test_windows_count_each_token_once_with_half_the_context_before_it(tokens, context, stride):
    found = list(windows(tokens, context, stride))
    counted = [token for _, first, last in found for token in range(first, last)]
    assert counted == list(range(1, tokens))
    assert all(last - begin <= context + 1 for begin, _, last in found)
    assert all(first - begin >= context / 2 for begin, first, _ in found[1:])


def test_bits_per_byte_are_those_of_the_windows_alone(model, tokenizer, next_logs):
    texts = ["", "naïve", "one two three four five six seven eight nine ten eleven twelve " * 2]
    table = bits_per_byte(model, tokenizer, texts, batch_tokens=200)
    assert table["bytes"].to_list() == [0, 6, 126]
    assert table["tokens"].to_list() == [0, 6, 126]
    assert table["bits_per_byte"][0] is None
    for text, (nats, bits) in zip(texts[1:], table[1:, 2:].rows(), strict=True):
        row, total = [tokenizer.end, *text.encode()], 0.0
        for place in range(1, len(row)):
            # By hand: the first 48 tokens see all, later ones come in steps of 24.
            end = 49 if place < 49 else 49 + 24 * ((place - 49) // 24 + 1)
            begin = max(0, min(end, len(row)) - 49)
            total += next_logs(row[begin:place])[-1][row[place]]
        assert nats == pytest.approx(total, rel=1e-5)
        assert bits == pytest.approx(-total / np.log(2) / len(text.encode()), rel=1e-5)


def test_a_stride_beyond_the_context_is_an_error(model, tokenizer):
    with pytest.raises(Error, match="stride=49 is not within the model's context of 48"):
        bits_per_byte(model, tokenizer, ["a"], stride=49)
