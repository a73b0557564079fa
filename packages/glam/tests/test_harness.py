"""The harness's requests get what its own models would answer."""

import sys
import types
from dataclasses import dataclass

import pytest

from chapbook.core.errors import Error, MissingExtra
from chapbook.glam import harness
from chapbook.glam.generating import generate
from chapbook.glam.harness import Requests


@dataclass
class Instance:
    args: tuple


@pytest.fixture(scope="module")
def requests(model, tokenizer):
    return Requests(model, tokenizer, max_gen_toks=12, batch_size=2)


def test_a_continuation_gets_its_log_likelihood_and_whether_it_is_greedy(requests, next_logs):
    likely = int(next_logs([256, *b"q"])[-1].argmax())
    found = requests.loglikelihood([Instance(("q", " a")), Instance(("q", " b"))])
    for (total, greedy), letter in zip(found, b"ab", strict=True):
        logs = next_logs([256, *b"q "])[1:]
        assert total == pytest.approx(logs[0][32] + logs[1][letter], rel=1e-5)
        assert greedy == (likely == 32 and logs[1].argmax() == letter)


def rolling_windows(tokens, prefix, longest):
    """Inputs and targets as the harness cuts them with a context of one token."""
    done = min(longest, len(tokens))
    yield [prefix, *tokens[: done - 1]], tokens[:done]
    while done < len(tokens):
        count = min(len(tokens) - done, longest)
        end = done + count
        yield tokens[end - longest - 1 : end - 1], tokens[end - count : end]
        done = end


def test_a_document_is_read_in_windows_that_do_not_overlap(requests, next_logs):
    texts = ["short", "one two three four five six seven eight nine ten " * 3]
    found = requests.loglikelihood_rolling([Instance((text,)) for text in texts])
    for total, text in zip(found, texts, strict=True):
        expected = 0.0
        for given, targets in rolling_windows(list(text.encode()), 256, 48):
            logs = next_logs(given)[-len(targets) :]
            expected += sum(log[token] for log, token in zip(logs, targets, strict=True))
        assert total == pytest.approx(expected, rel=1e-5)


def test_texts_are_generated_up_to_where_each_request_says(requests, model, tokenizer):
    plain = {"until": ["\n\n"], "do_sample": False, "temperature": 0.7}
    vowels = {"until": [*"aeiou"]}
    asked = [("q", plain), ("r", vowels), ("s", plain), ("t", vowels)]
    found = requests.generate_until([Instance(each) for each in asked])
    for told, prompts in ((plain, "qs"), (vowels, "rt")):
        options = {"max_new_tokens": 12, "stop": told["until"], "batch_size": 2}
        wanted = generate(model, tokenizer, list(prompts), **options)
        assert [found["qrst".index(prompt)] for prompt in prompts] == wanted


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"until": []}, (12, 1, 0.0, None, ())),
        ({"do_sample": True, "top_k": 3}, (12, 1, 1.0, 3, ())),
        ({"temperature": 0.5, "max_tokens": 7, "until": "."}, (7, 1, 0.5, None, (".",))),
        ({"num_beams": 4, "temperature": 0.0, "top_k": 3}, (12, 4, 0.0, None, ())),
    ],
)
def test_arguments_of_generation_mean_what_they_do_in_the_harness(requests, told, expected):
    how = requests._how(told)
    assert (how.max_new_tokens, how.beam, how.temperature, how.top_k, how.stop) == expected


def test_an_argument_that_would_be_ignored_is_an_error(requests):
    with pytest.raises(Error, match="generation knows no repetition_penalty; it knows do_sample"):
        requests.generate_until([Instance(("q", {"repetition_penalty": 2.0}))])


def test_the_adapter_is_a_model_of_the_harness(monkeypatch, model, tokenizer):
    class LM:
        def __init__(self):
            self.rank = 0

    module = types.ModuleType("lm_eval.api.model")
    module.__dict__["LM"] = LM
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", module)
    harness._adapter.cache_clear()
    made = harness.GLaMLM(model, tokenizer)
    harness._adapter.cache_clear()
    assert isinstance(made, LM)
    assert isinstance(made, Requests)
    assert made.rank == 0


def test_without_the_harness_the_adapter_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    harness._adapter.cache_clear()
    with pytest.raises(MissingExtra, match="needs lm-evaluation-harness") as caught:
        harness.GLaMLM  # noqa: B018
    assert caught.value.hint == "pip install 'chapbook-glam[harness]'"
