"""Generated tokens are those of a loop over the whole model, one row at a time."""

import math

import jax
import numpy as np
import pytest

from chapbook.core.errors import Error
from chapbook.glam.generating import Decoding, _Text, choose, complete, generate

PROMPTS = ["A long prompt of words", "q", "", "abc", "And the last one here"]
PLAIN = {"stop": (), "max_new_tokens": 20}


@pytest.fixture(scope="module")
def latin(tokenizer):
    class Latin(type(tokenizer)):
        """Each token is a character, so that none is invalid."""

        def encode(self, text):
            return np.frombuffer(text.encode("latin-1"), np.uint8).astype(np.int32)

        def decode(self, ids):
            return bytes(i for i in ids if i < 256).decode("latin-1")

    return Latin()


def likely(next_logs, tokenizer, prompt, count):
    row = [256, *tokenizer.encode(prompt)]
    for _ in range(count):
        row = [*row, int(next_logs(row)[-1].argmax())]
    return tuple(row[-count:])


@pytest.fixture(scope="module")
def greedy(model, latin):
    return complete(model, latin, PROMPTS, Decoding(**PLAIN), batch_size=2)


def test_greedy_tokens_are_the_most_likely_ones_of_each_row_alone(greedy, latin, next_logs):
    for each, prompt in zip(greedy, PROMPTS, strict=True):
        assert each.tokens == likely(next_logs, latin, prompt, 20)
        assert each.text == latin.decode(each.tokens)
        assert (each.ended, each.truncated) == (256 in each.tokens, 0)


def test_rows_change_over_time(greedy):
    assert len({token for each in greedy for token in each.tokens}) > 5


def test_a_stop_text_may_span_tokens_and_is_left_out(model, latin, greedy):
    whole = greedy[0].text
    stop = next(whole[n : n + 2] for n in range(1, 19) if whole.find(whole[n : n + 2]) == n)
    how = Decoding(stop=(stop, "never met"), max_new_tokens=20)
    found = complete(model, latin, PROMPTS, how, batch_size=2)
    assert found[0].text == whole[: whole.find(stop)]
    assert found[0].ended
    assert latin.decode(found[0].tokens) == found[0].text + stop
    for each, before in zip(found, greedy, strict=True):
        place = before.text.find(stop)
        assert each.text == (before.text if place < 0 else before.text[:place])


def test_the_end_of_the_document_ends_a_row_and_leaves_the_others(model, latin, greedy):
    class Ending(type(latin)):
        end = greedy[1].tokens[3]

    found = complete(model, Ending(), PROMPTS, Decoding(**PLAIN), batch_size=2)
    first = greedy[1].tokens.index(Ending.end)
    assert found[1].tokens == greedy[1].tokens[: first + 1]
    assert found[1].text == greedy[1].text[:first]
    assert found[1].ended


def test_what_is_drawn_does_not_depend_on_who_shares_the_batch(model, latin):
    how = Decoding(temperature=1.0, top_k=50, top_p=0.9, **PLAIN)
    others = [PROMPTS[0], "xyz", "", "abc", "Two other words here"]
    one, other = (complete(model, latin, each, how, batch_size=2) for each in (PROMPTS, others))
    kept = [0, 2, 3]
    assert [one[place] for place in kept] == [other[place] for place in kept]
    again = complete(model, latin, PROMPTS, how, batch_size=2, seed=1)
    assert all(a.tokens != b.tokens for a, b in zip(again, one, strict=True))


@pytest.mark.parametrize(
    ("bounds", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 3}, [0, 2, 4]),
        ({"top_p": 0.6}, [2, 4]),
        ({"top_k": 3, "top_p": 0.95}, [0, 2, 4]),
        ({"top_p": 0.01}, [4]),
    ],
)
def test_tokens_are_drawn_as_often_as_their_bounded_softmax_says(bounds, kept):
    logits = np.log([0.15, 0.05, 0.3, 0.1, 0.4], dtype=np.float32)
    tempered = np.exp(logits / 0.8)
    expected = np.where(np.isin(np.arange(5), kept), tempered, 0)
    expected /= expected.sum()
    keys, how = jax.random.split(jax.random.key(0), 20_000), Decoding(temperature=0.8, **bounds)
    drawn = jax.vmap(lambda key: choose(jax.numpy.asarray(logits), key, how))(keys)
    counts = np.bincount(np.asarray(drawn), minlength=5)
    sigma = np.sqrt(20_000 * expected * (1 - expected))
    assert (abs(counts - 20_000 * expected) <= 4 * sigma).all()


def by_hand(next_logs, row, width, alpha, most, ended):
    """A beam search over whole rows, which goes on to the last token."""
    live, done = [(0.0, [])], []
    for _ in range(most):
        grown = []
        for total, ids in live:
            logs = next_logs([*row, *ids])[-1]
            grown += [(total + log, [*ids, token]) for token, log in enumerate(logs)]
        grown = sorted(grown, reverse=True)[: 2 * width]
        done += [each for each in grown[:width] if ended(each[1])]
        live = [each for each in grown if not ended(each[1])][:width]
    every = [(total / ((5 + len(ids)) / 6) ** alpha, ids) for total, ids in done + live]
    return max(every)[1]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_search_is_that_by_hand(model, latin, next_logs, alpha):
    stops = [chr(token) for token in range(0, 256, 9)]

    def ended(ids):
        return ids[-1] == 256 or chr(ids[-1]) in stops

    how = Decoding(max_new_tokens=5, beam=3, length_penalty=alpha, stop=tuple(stops))
    found = complete(model, latin, PROMPTS[1:3], how, batch_size=2)
    for each, prompt in zip(found, PROMPTS[1:3], strict=True):
        row = [256, *latin.encode(prompt)]
        assert list(each.tokens) == by_hand(next_logs, row, 3, alpha, 5, ended)


def test_a_beam_as_wide_as_the_vocabulary_finds_the_most_likely_pair(model, latin, next_logs):
    how = Decoding(max_new_tokens=2, beam=257, length_penalty=0.0, stop=())
    found = complete(model, latin, ["q"], how)[0]
    first = next_logs([256, 113])[-1]
    totals: dict[tuple[int, ...], float] = {(256,): first[256]}
    for token in range(256):
        second = next_logs([256, 113, token])[-1]
        totals |= {(token, t): first[token] + second[t] for t in range(257)}
    assert found.tokens == max(totals, key=lambda ids: totals[ids])


def test_a_prompt_without_room_loses_its_start_and_it_is_told(model, latin):
    long = ["x" * 30 + "y" * 28, "z" + "w" * 28]
    found = complete(model, latin, long, Decoding(**PLAIN), batch_size=2)
    assert [each.truncated for each in found] == [30, 1]
    cut = [each[-28:] for each in long]
    short = complete(model, latin, cut, Decoding(**PLAIN), batch_size=2)
    assert [each.text for each in found] == [each.text for each in short]
    with pytest.warns(UserWarning, match="2 of 2 prompts were longer than the context"):
        texts = generate(model, latin, long, batch_size=2, **PLAIN)
    assert texts == [each.text for each in found]


def test_a_space_that_a_tokenizer_leaves_out_in_front_is_kept(latin):
    class Stripping(type(latin)):
        def decode(self, ids):
            return super().decode(ids).lstrip()

    text = _Text(Stripping(), [*b"is"], stop=("is.",))
    assert text.of([*b" Paris"]) == " Paris"
    assert text.cut([*b" Paris. No"]) == [*b" Paris."]
    assert text.of([*b" Paris."]) == " Par"
    assert text.of([*b".", 256]) == "."


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_new_tokens": 48}, "max_new_tokens=48 fills the context of 48"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 is out of its range"),
        ({"temperature": -1.0}, "temperature=-1.0 is out of its range"),
        ({"temperature": math.nan}, "temperature=nan is out of its range"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0 is out of its range"),
        ({"temperature": 1.0, "beam": 4}, "a beam search draws nothing"),
        ({"top_k": 4}, "top_k and top_p bound what is drawn"),
        ({"stop": ("",)}, "stop="),
    ],
)
def test_what_cannot_be_generated_is_told(model, latin, options, told):
    with pytest.raises(Error, match=told):
        generate(model, latin, ["a"], **options)


def test_no_prompts_give_no_texts(model, latin):
    assert generate(model, latin, [], max_new_tokens=4) == []
