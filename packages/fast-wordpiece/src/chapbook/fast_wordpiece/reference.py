"""The tokenizer in plain Python: slow, short, and what the compiled core is tested against.

It gives what HuggingFace `tokenizers` gives, and every function follows the definition instead of
being quick. Text is a list of characters that each know which span of the original they came from.
Nothing outside the tests uses it: where the compiled core is missing, the package does not import.

Where HuggingFace panics, or silently does not truncate, this raises `SettingsError`.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

from chapbook.fast_wordpiece import _unicode
from chapbook.fast_wordpiece.settings import (
    AddedToken,
    Normalizer,
    Padding,
    Settings,
    SettingsError,
    Side,
    Template,
    Truncation,
)


class Char(NamedTuple):
    """A character and the span of the original text that it came from."""

    char: str
    start: int
    end: int


@dataclass
class Encoding:
    """A row: one list entry per token.

    Attributes:
        ids: Token ids.
        tokens: Tokens as HuggingFace spells them; an added token is the text that it took.
        offsets: Spans of the original text, in characters.
        word_ids: Which word of its sequence a token belongs to; added tokens count as words.
        type_ids: The template's types.
        special_tokens_mask: 1 for the template's tokens and padding.
        attention_mask: 0 for padding.
        ranges: The tokens of each sequence, as (start, end).
        overflowing: The windows that truncation cut off, which may have windows of their own.
    """

    ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    word_ids: list[int | None] = field(default_factory=list)
    type_ids: list[int] = field(default_factory=list)
    special_tokens_mask: list[int] = field(default_factory=list)
    attention_mask: list[int] = field(default_factory=list)
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)
    overflowing: "list[Encoding]" = field(default_factory=list)

    @property
    def sequence_ids(self) -> list[int | None]:
        """Which sequence each token belongs to.

        HuggingFace counts the ranges instead of reading their keys: a row that only knows the
        range of the second sequence calls all of it the first.
        """
        out: list[int | None] = [None] * len(self.ids)
        for number in range(len(self.ranges) or 1):
            start, end = self.ranges.get(number, (0, len(self.ids)))
            out[start:end] = [number] * (end - start)
        return out

    def window(self, start: int, end: int) -> "Encoding":
        """The tokens from start to end, without ranges and overflow."""
        return Encoding(
            self.ids[start:end],
            self.tokens[start:end],
            self.offsets[start:end],
            self.word_ids[start:end],
            self.type_ids[start:end],
            self.special_tokens_mask[start:end],
            self.attention_mask[start:end],
        )


def encode(
    settings: Settings,
    text: str | Sequence[str],
    pair: str | Sequence[str] | None = None,
    add_special_tokens: bool = True,
    is_pretokenized: bool = False,
) -> Encoding:
    """Encode one text or a pair.

    Args:
        settings: The tokenizer.
        text: The text, or its words if it is pre-tokenised.
        pair: The second text, or its words.
        add_special_tokens: Whether the template's special tokens are added.
        is_pretokenized: Whether words come in; each is then encoded like a text of its own.

    Returns:
        The row, truncated and padded as the settings say.

    Raises:
        SettingsError: If a word needs an unknown token that the vocabulary lacks, if the template
            needs such a special token, or if the truncation cannot be done.
    """
    sequences = [
        encode_sequence(settings, sequence, type_id, is_pretokenized)
        for type_id, sequence in enumerate((text, pair))
        if sequence is not None
    ]
    template = settings.template
    if settings.truncation is not None:
        added = template.added(len(sequences) == 2) if template and add_special_tokens else 0
        sequences = truncated(sequences, settings.truncation, added)
    row = assembled(sequences, template, add_special_tokens)
    return padded([row], settings.padding)[0]


def encode_batch(
    settings: Settings,
    rows: Iterable[tuple[str | Sequence[str], str | Sequence[str] | None]],
    add_special_tokens: bool = True,
    is_pretokenized: bool = False,
) -> list[Encoding]:
    """Encode texts and pairs, padded to one length if the settings say so.

    Args:
        settings: The tokenizer.
        rows: Texts and their pairs or None.
        add_special_tokens: Whether the template's special tokens are added.
        is_pretokenized: Whether words come in.

    Returns:
        One encoding per row.
    """
    encodings = [encode(settings, *row, add_special_tokens, is_pretokenized) for row in rows]
    return padded(encodings, settings.padding)


def encode_sequence(
    settings: Settings, text: str | Sequence[str], type_id: int, is_pretokenized: bool
) -> Encoding:
    """Encode one text, or one list of words, without template, truncation and padding."""
    texts = text if is_pretokenized else [text]
    out = Encoding()
    for index, part in enumerate(texts):
        if not isinstance(part, str):
            raise TypeError(f"text {index} is {type(part).__name__}, not str")
        for number, (chars, token) in enumerate(words(settings, part)):
            text_of = "".join(char.char for char in chars)
            pieces = [(text_of, token.id, len(chars))] if token else tokenized(settings, text_of)
            at = 0
            for piece, id_, length in pieces:
                out.ids.append(id_)
                out.tokens.append(piece)
                out.offsets.append((chars[at].start, chars[at + length - 1].end))
                out.word_ids.append(index if is_pretokenized else number)
                out.type_ids.append(type_id)
                out.special_tokens_mask.append(0)
                out.attention_mask.append(1)
                at += length
    return out


# ---------------------------------------------------------------------- normalisation and words


COMBINING_CLASS = {
    chr(point): number for first, last, number in _unicode.CCC for point in range(first, last + 1)
}


def is_in(table: tuple[tuple[int, int], ...], char: str) -> bool:
    """Whether a character is in one of the closed ranges of a table of `_unicode`."""
    index = bisect_right(table, (ord(char), 0x110000)) - 1
    return index >= 0 and ord(char) <= table[index][1]


def decomposition(char: str) -> str:
    """The full canonical decomposition of a character."""
    syllable = ord(char) - 0xAC00
    if not 0 <= syllable < 11172:
        return _unicode.DECOMPOSE.get(ord(char), char)
    tail = chr(0x11A7 + syllable % 28) if syllable % 28 else ""
    return chr(0x1100 + syllable // 588) + chr(0x1161 + syllable % 588 // 28) + tail


def decomposed(chars: Sequence[Char]) -> list[Char]:
    """Canonical decomposition with canonical ordering.

    Spans do not move with the characters that are reordered: the first characters of all
    decompositions, in their new order, take the spans of the source characters in their old order,
    and each of the others takes the span of the first character before it.
    """
    ordered: list[tuple[str, bool]] = []
    marks: list[tuple[int, str, bool]] = []
    for source in chars:
        for index, char in enumerate(decomposition(source.char)):
            number = COMBINING_CLASS.get(char, 0)
            if number == 0:
                ordered.extend(mark[1:] for mark in sorted(marks, key=lambda mark: mark[0]))
                marks = []
                ordered.append((char, index == 0))
            else:
                marks.append((number, char, index == 0))
    ordered.extend(mark[1:] for mark in sorted(marks, key=lambda mark: mark[0]))

    out: list[Char] = []
    taken = 0
    for char, is_first in ordered:
        taken += is_first
        source = chars[taken - 1]
        out.append(Char(char, source.start, source.end))
    return out


def normalized(chars: Sequence[Char], normalizer: Normalizer) -> list[Char]:
    """BERT's normaliser: clean, isolate ideographs, strip accents, lower-case."""
    out = list(chars)
    if normalizer.clean_text:
        out = [
            char._replace(char=" ") if is_in(_unicode.SPACE_CLEAN, char.char) else char
            for char in out
            if not is_in(_unicode.CONTROL, char.char)
        ]
    if normalizer.handle_chinese_chars:
        table = _unicode.CJK_HF if normalizer.compat == "hf" else _unicode.CJK_TF_TEXT
        out = [
            char._replace(char=text)
            for char in out
            for text in ((" ", char.char, " ") if is_in(table, char.char) else (char.char,))
        ]
    if normalizer.strips_accents:
        out = [char for char in decomposed(out) if not is_in(_unicode.MARK, char.char)]
    if normalizer.lowercase:
        out = [
            char._replace(char=text)
            for char in out
            for text in _unicode.LOWER.get(ord(char.char), char.char)
        ]
    return out


def words(settings: Settings, text: str) -> list[tuple[list[Char], AddedToken | None]]:
    """The words of a text in their order, and the added tokens among them."""
    # HuggingFace keeps special tokens first; it matters if two have the same normal form.
    added = sorted(settings.added_tokens, key=lambda token: not token.special)
    raw = {token.content: token for token in reversed(added) if not token.normalized}
    normal: dict[str, AddedToken] = {}
    for token in reversed(added):
        if token.normalized:
            source = [Char(char, 0, 0) for char in token.content]
            form = "".join(char.char for char in normalized(source, settings.normalizer))
            if not form:
                raise SettingsError(
                    f"nothing is left of the added token {token.content!r} once it is normalised"
                )
            normal[form] = token

    out: list[tuple[list[Char], AddedToken | None]] = []
    source = [Char(char, index, index + 1) for index, char in enumerate(text)]
    for part, token in split(source, raw, settings.encode_special_tokens):
        if token:
            out.append((part, token))
            continue
        segment = normalized(part, settings.normalizer)
        for inner, inner_token in split(segment, normal, settings.encode_special_tokens):
            if inner_token:
                out.append((inner, inner_token))
            else:
                out.extend((word, None) for word in pre_tokenized(inner))
    return out


def split(
    chars: list[Char], tokens: Mapping[str, AddedToken], encode_special_tokens: bool
) -> list[tuple[list[Char], AddedToken | None]]:
    """Cut added tokens out of a text: at the leftmost place the longest, without overlaps.

    A match that is then discarded still uses up its text, and the search goes on behind the bare
    match, not behind the white space that `rstrip` took: a token that begins with white space may
    match there, and then both have it.
    """
    text = "".join(char.char for char in chars)
    out: list[tuple[list[Char], AddedToken | None]] = []
    done = at = 0
    while at < len(text):
        found = max((form for form in tokens if text.startswith(form, at)), key=len, default="")
        if not found:
            at += 1
            continue
        token, start, end = tokens[found], at, at + len(found)
        at = end
        if token.special and encode_special_tokens:
            continue
        if token.single_word and (
            (start > 0 and is_in(_unicode.WORD, text[start - 1]))
            or (end < len(text) and is_in(_unicode.WORD, text[end]))
        ):
            continue
        if token.lstrip:
            while start > 0 and is_in(_unicode.WHITE_SPACE, text[start - 1]):
                start -= 1
            start = max(start, done)
        if token.rstrip:
            while end < len(text) and is_in(_unicode.WHITE_SPACE, text[end]):
                end += 1
        if start > end:
            continue
        if done < start:
            out.append((chars[done:start], None))
        if start < end:
            out.append((chars[start:end], token))
        done = end
    if done < len(chars):
        out.append((chars[done:], None))
    return out


def pre_tokenized(chars: Iterable[Char]) -> list[list[Char]]:
    """Words between white space, with each punctuation character a word of its own."""
    out: list[list[Char]] = []
    is_open = False
    for char in chars:
        if is_in(_unicode.WHITE_SPACE, char.char):
            is_open = False
        elif is_in(_unicode.PUNCTUATION, char.char):
            out.append([char])
            is_open = False
        elif is_open:
            out[-1].append(char)
        else:
            out.append([char])
            is_open = True
    return out


# ------------------------------------------------------------------------------------ WordPiece


def longest_matches(word: str, vocab: Mapping[str, int], mark: str) -> list[str] | None:
    """The pieces of a word, each the longest that fits, or None if at some place none does."""
    pieces: list[str] = []
    start = 0
    while start < len(word):
        prefix = mark if start else ""
        for end in range(len(word), start, -1):
            if prefix + word[start:end] in vocab:
                pieces.append(prefix + word[start:end])
                start = end
                break
        else:
            return None
    return pieces


def max_match(
    word: str, vocab: Mapping[str, int], mark: str = "##", unk: str = "[UNK]"
) -> list[str]:
    """MaxMatch, the quadratic way: the pieces of a word, or the unknown token.

    Args:
        word: One word.
        vocab: The pieces.
        mark: What continuation pieces begin with.
        unk: The unknown token.

    Returns:
        The pieces, or the unknown token alone if the word cannot be cut.

    Reference:
        Song et al., Fast WordPiece Tokenization (EMNLP 2021), section 3.1.
    """
    pieces = longest_matches(word, vocab, mark)
    return [unk] if pieces is None else pieces


def tokenized(settings: Settings, word: str) -> list[tuple[str, int, int]]:
    """The pieces of a word with their ids and lengths in characters."""
    pieces = None
    if len(word) <= settings.max_input_chars_per_word:
        pieces = longest_matches(word, settings.vocab, settings.mark)
    if pieces is None:
        unknown = settings.unk_token
        if unknown is None or unknown not in settings.vocab:
            raise SettingsError(
                f"the vocabulary lacks the unknown token {unknown or ''}".rstrip()
                + f", which the word {word!r} needs"
            )
        return [(unknown, settings.vocab[unknown], len(word))]
    return [
        (piece, settings.vocab[piece], len(piece) - (len(settings.mark) if index else 0))
        for index, piece in enumerate(pieces)
    ]


# --------------------------------------------------------------- truncation, template, padding


def truncated(sequences: Sequence[Encoding], truncation: Truncation, added: int) -> list[Encoding]:
    """Shorten one sequence or a pair so that they fit with the template's tokens.

    Args:
        sequences: One sequence or two.
        truncation: How.
        added: How many tokens the template adds.

    Returns:
        The sequences, each with its windows of overflow.
    """
    room = truncation.max_length - added
    if room < 0:
        raise SettingsError(
            f"max_length {truncation.max_length} is less than the {added} tokens of the template"
        )
    lengths = [len(sequence.ids) for sequence in sequences]
    excess = sum(lengths) - room
    if excess <= 0:
        return list(sequences)
    if room == 0:
        lengths = [0 for _ in lengths]
    elif truncation.strategy == "longest_first":
        lengths = [room] if len(lengths) == 1 else longest_first(*lengths, room)
    else:
        target = 0 if truncation.strategy == "only_first" else 1
        if target == len(lengths):
            raise SettingsError("truncation is only_second and there is no second sequence")
        if lengths[target] <= excess:
            raise SettingsError(
                f"{truncation.strategy} truncation cannot take {excess} tokens"
                f" from a sequence of {lengths[target]}"
            )
        lengths[target] -= excess
    return [
        windows(sequence, length, truncation.stride, truncation.direction)
        for sequence, length in zip(sequences, lengths, strict=True)
    ]


def longest_first(first: int, second: int, room: int) -> list[int]:
    """The lengths of a pair that is too long together, as HuggingFace shares them out."""
    shorter, longer = sorted((first, second))
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room // 2 + room % 2
    return [longer, shorter] if first > second else [shorter, longer]


def windows(row: Encoding, length: int, stride: int, direction: Side) -> Encoding:
    """Cut a row into windows that overlap by the stride: the first, with the others as overflow."""
    size = len(row.ids)
    if length >= size:
        return row
    if stride and stride >= length:
        raise SettingsError(f"stride {stride} must be less than the {length} tokens of a window")
    if length == 0:
        return Encoding(overflowing=[row])
    step = length - stride
    spans: list[tuple[int, int]] = []
    if direction == "right":
        while not spans or spans[-1][1] < size:
            start = len(spans) * step
            spans.append((start, min(start + length, size)))
    else:
        while not spans or spans[-1][0] > 0:
            end = size - len(spans) * step
            spans.append((max(end - length, 0), end))
    out = row.window(*spans[0])
    out.overflowing = [row.window(*span) for span in spans[1:]]
    return out


def joined(first: Encoding, second: Encoding) -> Encoding:
    """Two rows as one; their windows of overflow are combined in every way."""
    overflowing: list[Encoding] = []
    for window in first.overflowing:
        overflowing.append(joined(window, second))
        overflowing.extend(joined(window, other) for other in second.overflowing)
    overflowing.extend(joined(first, other) for other in second.overflowing)
    at = len(first.ids)
    shifted = {number: (at + a, at + b) for number, (a, b) in second.ranges.items()}
    return Encoding(
        first.ids + second.ids,
        first.tokens + second.tokens,
        first.offsets + second.offsets,
        first.word_ids + second.word_ids,
        first.type_ids + second.type_ids,
        first.special_tokens_mask + second.special_tokens_mask,
        first.attention_mask + second.attention_mask,
        first.ranges | shifted,
        overflowing,
    )


def assembled(
    sequences: Sequence[Encoding], template: Template | None, add_special_tokens: bool
) -> Encoding:
    """One row from one sequence or two, with the template's special tokens."""
    if template is None:
        if len(sequences) == 1:
            return sequences[0]
        for number, sequence in enumerate(sequences):
            sequence.ranges[number] = (0, len(sequence.ids))
        return joined(joined(Encoding(), sequences[0]), sequences[1])

    is_pair = len(sequences) == 2
    if add_special_tokens:
        template.added(is_pair)
    for number, sequence in enumerate(sequences):
        for row in (sequence, *sequence.overflowing):
            row.ranges[number] = (0, len(row.ids))
            if template.trim_offsets:
                trim(row, template.add_prefix_space)
    parts: list[Encoding] = []
    for piece in template.pair if is_pair else template.single:
        if len(piece) == 2:
            sequence = sequences["AB".index(piece[0])]
            sequence.type_ids = [piece[1]] * len(sequence.ids)
            if template.roberta and add_special_tokens:
                for row in sequence.overflowing:
                    row.type_ids = [piece[1]] * len(row.ids)
            parts.append(sequence)
        elif add_special_tokens:
            content, ids, type_id = piece
            count = len(ids)
            parts.append(
                Encoding(
                    list(ids),
                    [content] * count,
                    [(0, 0)] * count,
                    [None] * count,
                    [type_id] * count,
                    [1] * count,
                    [1] * count,
                )
            )
    return reduce(joined, parts, Encoding())


def trim(row: Encoding, add_prefix_space: bool) -> None:
    """Take white space at the ends of tokens out of their offsets, as RobertaProcessing does."""

    def is_space(char: str) -> bool:
        return char == "Ġ" or is_in(_unicode.WHITE_SPACE, char)

    for index, (token, (start, end)) in enumerate(zip(row.tokens, row.offsets, strict=True)):
        leading = next((i for i, char in enumerate(token) if not is_space(char)), len(token))
        trailing = next(
            (i for i, char in enumerate(reversed(token)) if not is_space(char)), len(token)
        )
        if leading == 1 and add_prefix_space and (index == 0 or start == 0):
            leading = 0
        start = min(start + leading, end)
        if end >= trailing:
            end = max(end - trailing, start)
        row.offsets[index] = (start, end)


def padded(rows: list[Encoding], padding: Padding | None) -> list[Encoding]:
    """Fill up the rows of a batch, and their windows of overflow, to one length."""
    if padding is None or not rows:
        return rows
    width = padding.width(max(len(row.ids) for row in rows))
    return [filled(row, width, padding) for row in rows]


def filled(row: Encoding, width: int, padding: Padding) -> Encoding:
    """One row, and its windows of overflow, filled up to a width."""
    missing = max(width - len(row.ids), 0)
    filling = Encoding(
        [padding.id] * missing,
        [padding.token] * missing,
        [(0, 0)] * missing,
        [None] * missing,
        [padding.type_id] * missing,
        [1] * missing,
        [0] * missing,
    )
    bare = Encoding(**{**vars(row), "overflowing": []})
    out = joined(filling, bare) if padding.side == "left" else joined(bare, filling)
    out.overflowing = [filled(window, width, padding) for window in row.overflowing]
    return out


# ------------------------------------------------------------------------------------- decoding

CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def decode(settings: Settings, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
    """The text of ids: a space before every token that does not carry the mark, but the first.

    Args:
        settings: The tokenizer.
        ids: Token ids; those that belong to no token are left out.
        skip_special_tokens: Whether special added tokens are left out.

    Returns:
        The text, cleaned up token by token if the settings say so.
    """
    token_of = {id_: piece for piece, id_ in settings.vocab.items()}
    token_of |= {token.id: token.content for token in settings.added_tokens}
    special = {token.content for token in settings.added_tokens if token.special}
    tokens = [token_of[id_] for id_ in ids if id_ in token_of]
    if skip_special_tokens:
        tokens = [token for token in tokens if token not in special]
    out = []
    for index, token in enumerate(tokens):
        text = token
        if index:
            is_continuation = token.startswith(settings.mark)
            text = token[len(settings.mark) :] if is_continuation else f" {token}"
        if settings.cleanup:
            for old, new in CLEANUP:
                text = text.replace(old, new)
        out.append(text)
    return "".join(out)
