"""What a tokenizer is: the one description that files, the compiled core and the reference share.

Every class is a frozen dataclass of plain values. A description that cannot work is refused where
it is made; a special token that the vocabulary lacks is refused where it is first needed, because
a vocabulary without `[CLS]` serves those who add no special tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from chapbook.core.errors import Error

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Side = Literal["left", "right"]


class SettingsError(Error, ValueError):
    """A description of a tokenizer, or a call, that cannot work."""


@dataclass(frozen=True)
class AddedToken:
    """A string that is cut out of the text before anything else looks at it.

    Args:
        content: The string.
        id: Its id: that of the vocabulary if it holds the string.
        special: Whether decoding may leave it out, and `encode_special_tokens` treats it as text.
        normalized: Whether it is looked for in the normalised text, in its own normalised form,
            instead of in the raw text.
        single_word: Whether a letter, digit, mark or underscore next to it forbids the match.
        lstrip: Whether it takes the white space on its left.
        rstrip: Whether it takes the white space on its right.
    """

    content: str
    id: int
    special: bool = False
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False

    def __post_init__(self):
        if not self.content:
            raise SettingsError(f"the added token with id {self.id} is empty")
        check_id(self.id, f"the added token {self.content!r}")


@dataclass(frozen=True)
class Normalizer:
    """BERT's normaliser; its four steps run in the order of the arguments.

    Args:
        clean_text: Whether to delete control characters and to make every white space a space.
        handle_chinese_chars: Whether to put spaces around ideographs.
        strip_accents: Whether to decompose canonically and delete nonspacing marks; None means
            what `lowercase` says.
        lowercase: Whether to lower-case.
        compat: Whose ideographs: those of HuggingFace, which leaves out U+2B820 to U+2B91F, or
            those of TensorFlow Text and of Google's BERT.
    """

    clean_text: bool = True
    handle_chinese_chars: bool = True
    strip_accents: bool | None = None
    lowercase: bool = True
    compat: Literal["hf", "tf-text"] = "hf"

    def __post_init__(self):
        check_choice("compat", self.compat, ("hf", "tf-text"))

    @property
    def strips_accents(self) -> bool:
        """Whether accents are stripped, once None is resolved."""
        return self.lowercase if self.strip_accents is None else self.strip_accents


# A sequence and its type id; or a special token, the ids that it stands for (none if the vocabulary
# lacks it) and their type id.
Piece = tuple[Literal["A", "B"], int] | tuple[str, tuple[int, ...], int]


@dataclass(frozen=True)
class Template:
    """The special tokens around one text and around a pair.

    Args:
        single: The pieces for one text: `("A", type_id)` once and special tokens
            `(content, ids, type_id)`, whose `ids` are empty if the vocabulary lacks the token.
        pair: The pieces for a pair: the same with `("B", type_id)` once.
        roberta: Whether windows of overflow get the template's type ids, as HuggingFace's
            RobertaProcessing does it; its TemplateProcessing and BertProcessing leave 0 for the
            text and 1 for the pair there.
        trim_offsets: Whether white space that an added token took is left out of its offsets.
        add_prefix_space: Whether trimming leaves one leading space to the first token.
    """

    single: tuple[Piece, ...]
    pair: tuple[Piece, ...]
    roberta: bool = False
    trim_offsets: bool = False
    add_prefix_space: bool = False

    def __post_init__(self):
        for name, pieces, needed in (
            ("single", self.single, ["A"]),
            ("pair", self.pair, ["A", "B"]),
        ):
            sequences = sorted(piece[0] for piece in pieces if len(piece) == 2)
            if sequences != needed:
                raise SettingsError(
                    f"the template for {name} must hold {' and '.join(needed)} once each"
                    f" and holds {' and '.join(sequences) or 'neither'}"
                )
            for piece in pieces:
                for number in (piece[1],) if len(piece) == 2 else (*piece[1], piece[2]):
                    check_id(number, f"{piece[0]} in the template for {name}")

    def added(self, is_pair: bool) -> int:
        """How many special tokens the template adds.

        Args:
            is_pair: Whether it is the template for a pair that is asked about.

        Returns:
            The number of ids of its special tokens.

        Raises:
            SettingsError: If the vocabulary lacks one of them.
        """
        tokens = [piece for piece in (self.pair if is_pair else self.single) if len(piece) == 3]
        missing = dict.fromkeys(content for content, ids, _ in tokens if not ids)
        if missing:
            raise SettingsError(
                f"the vocabulary lacks {' and '.join(missing)}, which the template adds",
                hint="Add to the vocabulary what is missing, or encode without special tokens.",
            )
        return sum(len(ids) for _, ids, _ in tokens)


@dataclass(frozen=True)
class Truncation:
    """How sequences that are too long are shortened.

    Args:
        max_length: The most tokens of a row, special tokens included.
        stride: How many tokens two neighbouring windows of overflow share.
        strategy: Which sequence of a pair gives way.
        direction: The side where tokens are lost.
    """

    max_length: int
    stride: int = 0
    strategy: Literal["longest_first", "only_first", "only_second"] = "longest_first"
    direction: Side = "right"

    def __post_init__(self):
        check_choice("strategy", self.strategy, ("longest_first", "only_first", "only_second"))
        check_choice("direction", self.direction, ("left", "right"))
        if self.max_length < 0 or self.stride < 0:
            raise SettingsError(
                f"max_length {self.max_length} and stride {self.stride} must not be negative"
            )
        if self.stride and self.stride >= self.max_length:
            raise SettingsError(
                f"stride {self.stride} must be less than max_length {self.max_length}"
            )


@dataclass(frozen=True)
class Padding:
    """How short rows are filled up.

    Args:
        length: The length to fill up to; None means that of the longest row of the batch.
        multiple_of: A number that the length is rounded up to a multiple of.
        side: Where the padding goes.
        id: The id of the padding token.
        type_id: Its type id.
        token: The padding token.
    """

    length: int | None = None
    multiple_of: int | None = None
    side: Side = "right"
    id: int = 0
    type_id: int = 0
    token: str = "[PAD]"

    def __post_init__(self):
        check_choice("side", self.side, ("left", "right"))
        check_id(self.id, f"the padding token {self.token}")
        check_id(self.type_id, "the type of the padding token")
        if (self.length or 0) < 0 or (self.multiple_of or 0) < 0:
            raise SettingsError(
                f"padding to {self.length} and to a multiple of {self.multiple_of}:"
                " neither may be negative"
            )

    def width(self, longest: int) -> int:
        """The length of the rows of a batch that are not longer already.

        Args:
            longest: The length of its longest row.
        """
        width = longest if self.length is None else self.length
        return -(-width // self.multiple_of) * self.multiple_of if self.multiple_of else width


@dataclass(frozen=True)
class Settings:
    """A WordPiece tokenizer.

    Args:
        vocab: The id of every piece; continuation pieces carry the mark.
        unk_token: The piece that stands for a word that cannot be cut into pieces.
        mark: What continuation pieces begin with.
        max_input_chars_per_word: The characters of the longest normalised word that is cut.
        normalizer: What is done to the text first.
        added_tokens: The strings that are cut out of the text before that; if two match at the
            same place, the longer one wins.
        template: The special tokens around the sequences, if any.
        truncation: How rows are shortened, if they are.
        padding: How rows are filled up, if they are.
        cleanup: Whether decoding takes back the spaces before punctuation and short forms.
        encode_special_tokens: Whether special added tokens are ordinary text to the encoder.
    """

    vocab: Mapping[str, int]
    unk_token: str | None = "[UNK]"
    mark: str = "##"
    max_input_chars_per_word: int = 100
    normalizer: Normalizer = field(default_factory=Normalizer)
    added_tokens: tuple[AddedToken, ...] = ()
    template: Template | None = None
    truncation: Truncation | None = None
    padding: Padding | None = None
    cleanup: bool = True
    encode_special_tokens: bool = False

    def __post_init__(self):
        if self.max_input_chars_per_word < 0:
            raise SettingsError(
                f"max_input_chars_per_word is {self.max_input_chars_per_word}"
                " and must not be negative"
            )
        if self.vocab:
            for number in (min(self.vocab.values()), max(self.vocab.values())):
                check_id(number, "a piece of the vocabulary")
        ids: dict[int, str] = {}
        contents: set[str] = set()
        for token in self.added_tokens:
            if token.content in contents or token.id in ids:
                raise SettingsError(
                    f"the added token {token.content!r} with id {token.id} is there twice,"
                    f" or shares its id with {ids.get(token.id, token.content)!r}"
                )
            if self.vocab.get(token.content, token.id) != token.id:
                raise SettingsError(
                    f"the added token {token.content!r} has id {token.id}"
                    f" and in the vocabulary {self.vocab[token.content]}"
                )
            ids[token.id] = token.content
            contents.add(token.content)

    @classmethod
    def bert(
        cls,
        vocab: Mapping[str, int],
        lowercase: bool = True,
        strip_accents: bool | None = None,
        *,
        handle_chinese_chars: bool = True,
        truncation: Truncation | None = None,
        padding: Padding | None = None,
    ) -> "Settings":
        """The tokenizer that goes with BERT: `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`.

        Args:
            vocab: The id of every piece.
            lowercase: Whether to lower-case.
            strip_accents: Whether to strip accents; None means what `lowercase` says.
            handle_chinese_chars: Whether every ideograph is a word of its own.
            truncation: How rows are shortened, if they are.
            padding: How rows are filled up, if they are.

        Returns:
            The settings, with those of BERT's five special tokens that the vocabulary holds.
        """

        def special(name: str, type_id: int = 0) -> Piece:
            return name, (vocab[name],) if name in vocab else (), type_id

        single: tuple[Piece, ...] = (special("[CLS]"), ("A", 0), special("[SEP]"))
        return cls(
            vocab,
            normalizer=Normalizer(
                lowercase=lowercase,
                strip_accents=strip_accents,
                handle_chinese_chars=handle_chinese_chars,
            ),
            added_tokens=tuple(
                AddedToken(name, vocab[name], special=True)
                for name in SPECIAL_TOKENS
                if name in vocab
            ),
            template=Template(single, (*single, ("B", 1), special("[SEP]", 1))),
            truncation=truncation,
            padding=padding,
        )


def check_id(number: int, what: str) -> None:
    """Refuse a number that does not fit into the 32-bit ids."""
    if not isinstance(number, int) or not 0 <= number < 2**31:
        raise SettingsError(f"{what} has the id {number!r}, which is not from 0 to {2**31 - 1}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise SettingsError(f"{name} is {value!r} and must be {' or '.join(map(repr, choices))}")
