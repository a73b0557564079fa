from functools import partial

import pytest

from chapbook.fast_wordpiece.settings import (
    AddedToken,
    Normalizer,
    Padding,
    Settings,
    SettingsError,
    Template,
    Truncation,
)

VOCAB = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4}


def test_the_settings_of_bert_hold_the_special_tokens_of_its_vocabulary():
    settings = Settings.bert(VOCAB, lowercase=False)
    assert settings.normalizer == Normalizer(lowercase=False)
    assert [token.content for token in settings.added_tokens] == [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
    ]
    assert all(token.special and not token.normalized for token in settings.added_tokens)
    cls, sep, last = ("[CLS]", (2,), 0), ("[SEP]", (3,), 0), ("[SEP]", (3,), 1)
    template = Template((cls, ("A", 0), sep), (cls, ("A", 0), sep, ("B", 1), last))
    assert settings.template == template
    assert [template.added(is_pair) for is_pair in (False, True)] == [2, 3]


def test_accents_go_with_the_case_unless_told_otherwise():
    strips = {
        (lowercase, strip): Normalizer(lowercase=lowercase, strip_accents=strip).strips_accents
        for lowercase in (True, False)
        for strip in (True, False, None)
    }
    assert [key for key, value in strips.items() if value] == [
        (True, True),
        (True, None),
        (False, True),
    ]


def test_special_tokens_are_missed_only_when_they_are_counted():
    settings = Settings.bert({"[UNK]": 0})
    assert settings.template is not None
    with pytest.raises(SettingsError, match=r"lacks \[CLS\] and \[SEP\]"):
        settings.template.added(is_pair=True)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: AddedToken("", 1), "id 1 is empty"),
        (lambda: AddedToken("x", -1), "'x' has the id -1"),
        (lambda: AddedToken("x", 2**31), "not from 0 to 2147483647"),
        (lambda: Template((("B", 0),), (("A", 0), ("B", 0))), "single must hold A once"),
        (lambda: Template((("A", 0),), (("A", 0),)), "pair must hold A and B once each"),
        (lambda: Template((("A", 0), ("A", 0)), (("A", 0), ("B", 0))), "holds A and A"),
        (lambda: Template((("A", -1),), (("A", 0), ("B", 0))), "A in the template"),
        (lambda: Truncation(-1), "max_length -1"),
        (lambda: Truncation(4, stride=4), "stride 4 must be less than max_length 4"),
        (lambda: Padding(length=-2), "padding to -2"),
        (lambda: Settings({"a": -1}), "id -1"),
        (lambda: Settings({"a": 0}, max_input_chars_per_word=-1), "max_input_chars_per_word"),
        (lambda: Settings({}, added_tokens=(AddedToken("x", 1),) * 2), "'x' with id 1"),
        (
            lambda: Settings({}, added_tokens=(AddedToken("x", 1), AddedToken("y", 1))),
            "shares its id with 'x'",
        ),
        (lambda: Settings({"x": 0}, added_tokens=(AddedToken("x", 1),)), "in the vocabulary 0"),
    ],
)
@pytest.mark.wrong_types
def test_settings_that_cannot_work_are_refused(make, told):
    with pytest.raises(SettingsError, match=told):
        make()
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    ("make", "name", "value", "told"),
    [
        (Normalizer, "compat", "bert", "compat is 'bert' and must be 'hf' or 'tf-text'"),
        (partial(Truncation, 4), "strategy", "longest", "'longest' and must be 'longest_first'"),
        (partial(Truncation, 4), "direction", "up", "'up' and must be 'left' or 'right'"),
        (Padding, "side", "both", "side is 'both'"),
    ],
)
@pytest.mark.wrong_types
def test_a_choice_that_there_is_not_is_refused_with_those_there_are(make, name, value, told):
    with pytest.raises(SettingsError, match=told):
        make(**{name: value})


@pytest.mark.parametrize(
    ("padding", "longest", "width"),
    [
        (Padding(), 7, 7),
        (Padding(multiple_of=4), 7, 8),
        (Padding(multiple_of=4), 8, 8),
        (Padding(multiple_of=0), 7, 7),
        (Padding(length=5), 7, 5),
        (Padding(length=5, multiple_of=8), 0, 8),
        (Padding(multiple_of=8), 0, 0),
    ],
)
def test_padding_is_as_wide_as_it_says(padding, longest, width):
    assert padding.width(longest) == width
