"""Tokenizers in files: `vocab.txt`, `tokenizer.json` and folders that hold either."""

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.fast_wordpiece.settings import (
    AddedToken,
    Normalizer,
    Padding,
    Piece,
    Settings,
    SettingsError,
    Template,
    Truncation,
)

# Unicode's White_Space, which Rust trims; `str.rstrip` would trim U+001C to U+001F too.
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_MOST_LINES_NAMED = 5
_LARGEST_ID = 2**31 - 1
_STRATEGIES = {
    "LongestFirst": "longest_first",
    "OnlyFirst": "only_first",
    "OnlySecond": "only_second",
}
_SIDES = {"Right": "right", "Left": "left"}
_NAMED_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
# The tokenizers of transformers that are BERT's under another name. Others with a vocab.txt are
# not: BertJapanese cuts words with a dictionary, Funnel and MPNet have other templates.
_BERT_CLASSES = re.compile(
    "(Bert|ConvBert|DistilBert|Electra|LayoutLM|Lxmert|MobileBert|RetriBert|SqueezeBert)"
    "Tokenizer(Fast)?"
)


class UnsupportedTokenizerError(Error):
    """A tokenizer that would give other ids here than in Hugging Face's library."""


# ------------------------------------------------------------------------------------------ read


def read(
    path: str | Path, *, lowercase: bool | None = None, ignore_limits: bool = False
) -> Settings:
    """Reads a tokenizer from a file or folder.

    Args:
        path: A `tokenizer.json`, a `vocab.txt` (any text file with one piece a line), or a folder
            that holds `tokenizer.json`, or else `vocab.txt` with an optional
            `tokenizer_config.json`.
        lowercase: Whether to lower the case and strip accents. Only `vocab.txt` leaves this open;
            None means what `tokenizer_config.json` says, else True, as in BERT.
        ignore_limits: Whether to leave out the truncation and padding that a file asks for.

    Returns:
        The tokenizer's settings.

    Raises:
        UnsupportedTokenizerError: A component of the file is not supported.
        Error: The file is broken; the message names the place.
        OSError: The file cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        content = path.read_bytes()
        if path.suffix == ".json" or re.match(rb'\s*\{\s*"', content):
            return _read_json(_text(content, path), str(path), lowercase, ignore_limits)
        return _read_vocabulary(_text(content, path), path, {}, lowercase)
    if (file := path / "tokenizer.json").exists():
        text = _text(file.read_bytes(), file)
        return _read_json(text, str(file), lowercase, ignore_limits)
    if (file := path / "vocab.txt").exists():
        beside = path / "tokenizer_config.json"
        config = {}
        if beside.exists():
            config = _parse(_text(beside.read_bytes(), beside), str(beside))
        return _read_vocabulary(_text(file.read_bytes(), file), file, config, lowercase)
    raise Error(f"{path} holds neither tokenizer.json nor vocab.txt")


def from_hf(tokenizer: Any, *, ignore_limits: bool = False) -> Settings:
    """Takes over the settings of a tokenizer of another library.

    Args:
        tokenizer: A `tokenizers.Tokenizer` or a fast tokenizer of `transformers`. The latter sets
            truncation and padding anew for each call, so that they are not taken over.
        ignore_limits: Whether to leave out truncation and padding.

    Returns:
        The tokenizer's settings.

    Raises:
        UnsupportedTokenizerError: A component of the tokenizer is not supported.
        Error: The object is no such tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not callable(getattr(backend, "to_str", None)):
        kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
        raise Error(
            f"a {kind} is no tokenizer that can be taken over",
            hint="pass a tokenizers.Tokenizer or a fast tokenizer of transformers",
        )
    settings = _read_json(
        backend.to_str(), "the tokenizer", None, ignore_limits or backend is not tokenizer
    )
    literal = getattr(backend, "encode_special_tokens", False)
    return replace(settings, encode_special_tokens=True) if literal else settings


# ------------------------------------------------------------------------------------- vocab.txt


def _read_vocabulary(
    text: str, path: Path, config: dict[str, Any], lowercase: bool | None
) -> Settings:
    told: list[str] = []
    if text.startswith("\ufeff"):
        text = text[1:]
        told.append("the byte order mark on line 1 was removed")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    pieces = lines
    # Few vocabularies hold any white space but line feeds: then no line needs to be looked at.
    if any(space in text for space in _WHITE_SPACE if space != "\n"):
        pieces = [line.rstrip(_WHITE_SPACE) for line in lines]
        ended = [line.removesuffix("\r") for line in lines]
        told += _named("end in CR LF", (a != b for a, b in zip(ended, lines, strict=True)))
        told += _named(
            "end in white space, which was removed",
            (a != b for a, b in zip(pieces, ended, strict=True)),
        )
    vocab = dict(zip(pieces, range(len(pieces)), strict=True))
    if "" in vocab:
        told += _named("are blank", (piece == "" for piece in pieces))
    if len(vocab) < len(pieces):
        told += _named(
            "are repeated later, and the later line gives the id",
            (vocab[piece] != number for number, piece in enumerate(pieces)),
        )
    if told:
        warnings.warn(f"{path}: {'; '.join(told)}", stacklevel=3)
    if not vocab:
        raise Error(f"{path} holds no pieces", hint="a vocabulary has one piece a line")
    place = _Place(config, str(path.with_name("tokenizer_config.json")))
    _check_config(place)
    if lowercase is None:
        lowercase = bool(place.field("do_lower_case", bool, default=True).value)
    return Settings.bert(
        vocab,
        lowercase=lowercase,
        strip_accents=place.field("strip_accents", bool, None, default=None).value,
        handle_chinese_chars=place.field("tokenize_chinese_chars", bool, default=True).value,
    )


def _check_config(place: "_Place") -> None:
    kind = place.field("tokenizer_class", str, None, default=None)
    if kind.value is not None and not _BERT_CLASSES.fullmatch(kind.value):
        raise UnsupportedTokenizerError(
            f"{kind.told()}, and a vocab.txt is only read for BERT's tokenizer",
            hint="save the tokenizer as tokenizer.json with transformers",
        )
    for name, expected in _NAMED_TOKENS.items():
        token = place.field(name, str, dict, None, default=None)
        content = token.field("content", str) if isinstance(token.value, dict) else token
        if content.value not in (None, expected):
            raise UnsupportedTokenizerError(
                f"{content.told()}, and beside a vocab.txt only {expected!r} is supported",
                hint="save the tokenizer as tokenizer.json with transformers",
            )


def _named(what: str, faulty: Iterable[bool]) -> list[str]:
    numbers = [number for number, fault in enumerate(faulty, 1) if fault]
    if not numbers:
        return []
    named = ", ".join(map(str, numbers[:_MOST_LINES_NAMED]))
    rest = len(numbers) - _MOST_LINES_NAMED
    return [f"lines {named}{f' and {rest} more' if rest > 0 else ''} {what}"]


# -------------------------------------------------------------------------------- tokenizer.json


@dataclass(frozen=True)
class _Place:
    """A value in a JSON document that knows where it stands."""

    value: Any
    file: str
    path: str = ""

    def field(self, name: str, *kinds: type | None, **default: Any) -> "_Place":
        """Returns a field of this object, checked to be of one of the kinds, unless it is absent.

        Args:
            name: Of the field.
            kinds: Types; None stands for null. Nothing stands for any.
            default: `default=value`, where the field may be absent.
        """
        path = f"{self.path}.{name}" if self.path else name
        if name not in self.value:
            if "default" in default:
                return _Place(default["default"], self.file, path)
            raise Error(f"{self.file}: {path} is missing")
        place = _Place(self.value[name], self.file, path)
        return place.of(*kinds) if kinds else place

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Says in an error of the settings where in the file they stand."""
        try:
            yield
        except SettingsError as fault:
            place = f"{self.file}: {self.path}" if self.path else self.file
            raise Error(f"{place}: {fault.message}", fault.hint) from None

    def items(self) -> "list[_Place]":
        return [
            _Place(value, self.file, f"{self.path}[{number}]")
            for number, value in enumerate(self.value)
        ]

    def of(self, *kinds: type | None) -> "_Place":
        types = tuple(type(None) if kind is None else kind for kind in kinds)
        # By `type`, because True is an instance of int.
        if type(self.value) in types:
            if type(self.value) is int and not 0 <= self.value <= _LARGEST_ID:
                raise Error(f"{self.told()}, which is not from 0 to {_LARGEST_ID}")
            return self
        names = {dict: "an object", list: "a list", str: "a string", int: "a whole number"}
        names |= {bool: "true or false", type(None): "null"}
        raise Error(f"{self.told()}, which is not {' or '.join(names[kind] for kind in types)}")

    def kind(self, *supported: str) -> str:
        """Returns the type of this component, which must be one of those supported."""
        found = self.value.get("type", "no type") if isinstance(self.value, dict) else self.value
        if found not in supported:
            found = json.dumps(found, ensure_ascii=False)
            raise UnsupportedTokenizerError(
                f"{self.file}: {self.path} is {found[:80]}, and only {' or '.join(supported)} is"
                " supported"
            )
        return found

    def told(self) -> str:
        value = json.dumps(self.value, ensure_ascii=False)
        return (
            f"{self.file}: {self.path or 'the document'} is {value[:40]}{'…' * (len(value) > 40)}"
        )


def _read_json(text: str, file: str, lowercase: bool | None, ignore_limits: bool) -> Settings:
    root = _Place(_parse(text, file), file)
    known = ["version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"]
    known += ["post_processor", "decoder", "model"]
    for name in root.value:
        if name not in known:
            raise UnsupportedTokenizerError(f"{file}: {name} is no part of a tokenizer.json")
    if (version := root.field("version", default="1.0")).value != "1.0":
        raise UnsupportedTokenizerError(f"{version.told()}, and only version 1.0 is supported")

    model = root.field("model", dict)
    # Old files leave the model's type out.
    if "type" in model.value or "continuing_subword_prefix" not in model.value:
        model.kind("WordPiece")
    mark = model.field("continuing_subword_prefix", str).value
    vocab = _vocab(model.field("vocab", dict))
    normalizer = _normalizer(root.field("normalizer", default=None))
    if lowercase is not None and lowercase != normalizer.lowercase:
        raise Error(
            f"{file} says lowercase={normalizer.lowercase}, not {lowercase}",
            hint="leave lowercase out: only vocab.txt needs it",
        )
    root.field("pre_tokenizer", default=None).kind("BertPreTokenizer")
    decoder = root.field("decoder", default=None)
    decoder.kind("WordPiece")
    if (prefix := decoder.field("prefix", str)).value != mark:
        raise UnsupportedTokenizerError(
            f"{prefix.told()}, and only the model's {mark!r} is supported"
        )
    added = _added_tokens(root.field("added_tokens", list, default=[]), vocab)
    template = _template(root.field("post_processor", dict, None, default=None), vocab, added)
    truncation = _truncation(root.field("truncation", dict, None, default=None))
    padding = _padding(root.field("padding", dict, None, default=None))
    with root.blamed():
        return Settings(
            vocab=vocab,
            unk_token=model.field("unk_token", str).value,
            mark=mark,
            max_input_chars_per_word=model.field("max_input_chars_per_word", int).value,
            normalizer=normalizer,
            added_tokens=added,
            template=template,
            truncation=None if ignore_limits else truncation,
            padding=None if ignore_limits else padding,
            cleanup=decoder.field("cleanup", bool).value,
        )


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as fault:
        line = content.count(b"\n", 0, fault.start) + 1
        raise Error(
            f"{path}: line {line}, byte {fault.start} of the file: this is not UTF-8",
            hint="save the file as UTF-8",
        ) from None


def _parse(text: str, file: str) -> dict[str, Any]:
    try:
        document = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as fault:
        raise Error(f"{file}: line {fault.lineno}, column {fault.colno}: {fault.msg}") from None
    except RecursionError:
        raise Error(f"{file}: the JSON is nested too deeply") from None
    return _Place(document, file).of(dict).value


def _vocab(place: _Place) -> dict[str, int]:
    vocab: dict[str, int] = place.value
    # One look at the whole; only a faulty vocabulary is gone through piece by piece.
    fine = set(map(type, vocab.values())) <= {int}
    if not fine or (vocab and not 0 <= min(vocab.values()) <= max(vocab.values()) <= _LARGEST_ID):
        for piece in vocab:
            place.field(piece, int)
    try:
        "".join(vocab).encode()
    except UnicodeEncodeError:
        raise Error(
            f"{place.file}: {place.path} holds a piece with half a surrogate pair, which no text"
            " can hold"
        ) from None
    if len(set(vocab.values())) < len(vocab):
        first: dict[int, str] = {}
        for piece, number in vocab.items():
            if (other := first.setdefault(number, piece)) is not piece:
                raise Error(
                    f"{place.file}: {place.path} gives {other!r} and {piece!r} the id {number}"
                )
    return vocab


def _normalizer(place: _Place) -> Normalizer:
    if place.value is None:
        return Normalizer(
            clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False
        )
    place.kind("BertNormalizer")
    return Normalizer(
        clean_text=place.field("clean_text", bool).value,
        handle_chinese_chars=place.field("handle_chinese_chars", bool).value,
        strip_accents=place.field("strip_accents", bool, None, default=None).value,
        lowercase=place.field("lowercase", bool).value,
    )


def _added_tokens(place: _Place, vocab: dict[str, int]) -> tuple[AddedToken, ...]:
    tokens: dict[str, AddedToken] = {}
    told = []
    next_id = len(vocab) - 1
    for entry in place.items():
        content = entry.of(dict).field("content", str).value
        if not content:
            continue
        # Hugging Face gives ids anew and does not look at those in the file.
        if content not in vocab and content not in tokens:
            next_id += 1
        number = tokens[content].id if content in tokens else vocab.get(content, next_id)
        if entry.field("id", int).value != number:
            told.append(f"{content!r} has the id {number} instead of {entry.value['id']}")
        flags = ("special", "normalized", "single_word", "lstrip", "rstrip")
        tokens[content] = AddedToken(
            content, number, **{flag: entry.field(flag, bool).value for flag in flags}
        )
    added = {token.id: token.content for token in tokens.values() if token.content not in vocab}
    if added and not added.keys().isdisjoint(vocab.values()):
        hidden = [(piece, number) for piece, number in vocab.items() if number in added]
        told += [
            f"{added[number]!r} has the id {number} of the piece {piece!r}"
            for piece, number in hidden
        ]
    if told:
        named = "; ".join(told[:_MOST_LINES_NAMED])
        rest = len(told) - _MOST_LINES_NAMED
        warnings.warn(
            f"{place.file}: added tokens get the ids that Hugging Face gives them: {named}"
            f"{f' and {rest} more' if rest > 0 else ''}",
            stacklevel=4,
        )
    return _by_id(tokens.values())


def _by_id(tokens: Iterable[AddedToken]) -> tuple[AddedToken, ...]:
    return tuple(sorted(tokens, key=lambda token: (token.id, token.content)))


def _template(
    place: _Place, vocab: dict[str, int], added: tuple[AddedToken, ...]
) -> Template | None:
    if place.value is None:
        return None
    known = {**vocab, **{token.content: token.id for token in added}}
    kind = place.kind("TemplateProcessing", "BertProcessing", "RobertaProcessing")
    if kind == "TemplateProcessing":
        table = place.field("special_tokens", dict)
        specials = {name: _special_ids(table.field(name, dict), known) for name in table.value}
        with place.blamed():
            return Template(
                single=_pieces(place.field("single", list), specials),
                pair=_pieces(place.field("pair", list), specials),
            )
    (cls, cls_ids), (sep, sep_ids) = (
        _token_and_id(place.field(name, list), known) for name in ("cls", "sep")
    )
    single: tuple[Piece, ...] = ((cls, cls_ids, 0), ("A", 0), (sep, sep_ids, 0))
    if kind == "BertProcessing":
        return Template(single, (*single, ("B", 1), (sep, sep_ids, 1)))
    trim = place.field("trim_offsets", bool).value
    if trim:
        _check_trimming(place, known, added)
    return Template(
        single,
        (*single, (sep, sep_ids, 0), ("B", 0), (sep, sep_ids, 0)),
        roberta=True,
        trim_offsets=trim,
        add_prefix_space=place.field("add_prefix_space", bool).value,
    )


def _special_ids(place: _Place, known: Mapping[str, int]) -> tuple[int, ...]:
    """Reads `{"id": "[CLS]", "ids": [101], "tokens": ["[CLS]"]}`."""
    ids, tokens = place.field("ids", list), place.field("tokens", list)
    if len(ids.value) != len(tokens.value):
        raise Error(f"{tokens.told()}, which is not as long as the ids beside it")
    for number, token in zip(ids.items(), tokens.items(), strict=True):
        _check_token(token.of(str), number.of(int), known)
    return tuple(ids.value)


def _token_and_id(place: _Place, known: Mapping[str, int]) -> tuple[str, tuple[int, ...]]:
    """Reads `["[CLS]", 101]`."""
    if len(place.value) != 2:
        raise Error(f"{place.told()}, which is not a token and its id")
    token, number = place.items()
    _check_token(token.of(str), number.of(int), known)
    return token.value, (number.value,)


def _check_token(token: _Place, number: _Place, known: Mapping[str, int]) -> None:
    if known.get(token.value, number.value) != number.value:
        raise Error(
            f"{number.told()}, and {token.value!r} has id {known[token.value]} in the vocabulary"
        )


def _pieces(place: _Place, specials: dict[str, tuple[int, ...]]) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    for entry in place.items():
        kind = next(iter(entry.of(dict).value), None)
        if kind not in ("SpecialToken", "Sequence") or len(entry.value) != 1:
            raise UnsupportedTokenizerError(
                f"{entry.told()}, and only a SpecialToken or a Sequence is supported"
            )
        body = entry.field(kind, dict)
        name, type_id = body.field("id", str), body.field("type_id", int).value
        if kind == "Sequence":
            pieces.append((_choice(name, {"A": "A", "B": "B"}), type_id))
        elif name.value not in specials:
            raise Error(f"{name.told()}, which special_tokens beside it does not define")
        elif specials[name.value]:
            pieces.append((name.value, specials[name.value], type_id))
    return tuple(pieces)


def _check_trimming(place: _Place, known: Mapping[str, int], added: tuple[AddedToken, ...]) -> None:
    # Hugging Face trims pieces that end in U+0120 too, which is a space in byte-level
    # vocabularies and a letter here.
    odd = [piece for piece in known if piece.startswith("\u0120") or piece.endswith("\u0120")]
    # It trims after truncation, so that which token is the first depends on the window.
    prefix = place.field("add_prefix_space", bool).value
    for token in added:
        spaced = token.lstrip or token.rstrip or token.content != token.content.strip()
        if spaced and (token.normalized or prefix):
            odd.append(token.content)
    if odd:
        raise UnsupportedTokenizerError(
            f"{place.file}: {place.path}.trim_offsets is true, which is not supported beside the"
            f" token {odd[0]!r}"
        )


def _truncation(place: _Place) -> Truncation | None:
    if place.value is None:
        return None
    with place.blamed():
        return Truncation(
            max_length=place.field("max_length", int).value,
            stride=place.field("stride", int).value,
            strategy=_choice(place.field("strategy", str), _STRATEGIES),
            direction=_choice(place.field("direction", str, default="Right"), _SIDES),
        )


def _padding(place: _Place) -> Padding | None:
    if place.value is None:
        return None
    strategy = place.field("strategy", str, dict)
    fixed = isinstance(strategy.value, dict)
    if not fixed:
        _choice(strategy, {"BatchLongest": None})
    return Padding(
        length=strategy.field("Fixed", int).value if fixed else None,
        multiple_of=place.field("pad_to_multiple_of", int, None, default=None).value or None,
        side=_choice(place.field("direction", str), _SIDES),
        id=place.field("pad_id", int).value,
        type_id=place.field("pad_type_id", int).value,
        token=place.field("pad_token", str).value,
    )


def _choice(place: _Place, choices: Mapping[str, Any]) -> Any:
    if place.value not in choices:
        raise Error(f"{place.told()}, which is not {' or '.join(choices)}")
    return choices[place.value]


# ----------------------------------------------------------------------------------------- write


def write(settings: Settings, path: str | Path) -> None:
    """Writes a tokenizer, whole or not at all.

    Args:
        settings: The tokenizer.
        path: Ends in `.json` for a `tokenizer.json`, which Hugging Face's library reads too and
            follows in the same way; ends in `.txt` for a `vocab.txt`, which holds the pieces of a
            BERT tokenizer and nothing else.

    Raises:
        Error: The format cannot hold the tokenizer.
        OSError: The file cannot be written.
    """
    suffix = Path(path).suffix
    if suffix == ".json":
        write_atomic(path, _tokenizer_json(settings, path))
    elif suffix == ".txt":
        write_atomic(path, _vocabulary_text(settings, path))
    else:
        raise Error(f"{path} ends in neither .json nor .txt")


def canonical(settings: Settings) -> bytes:
    """Returns the one JSON text of everything that decides what a tokenizer gives."""
    everything = _everything(settings)
    return json.dumps(
        everything, ensure_ascii=False, sort_keys=True, separators=(",", ":")
    ).encode()


def fingerprint(settings: Settings) -> str:
    """Returns the SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(settings)).hexdigest()


def _tokenizer_json(settings: Settings, path: str | Path) -> bytes:
    if settings.normalizer.compat != "hf":
        raise Error(
            f"{path}: a tokenizer.json cannot say compat={settings.normalizer.compat!r}",
            hint="Hugging Face's library would cut 256 ideographs otherwise",
        )
    if settings.encode_special_tokens:
        raise Error(
            f"{path}: a tokenizer.json cannot say encode_special_tokens=True",
            hint="save the tokenizer without it, and set it again after reading",
        )
    order = sorted(settings.vocab.items(), key=lambda item: item[1])
    document = _document(replace(settings, vocab=dict(order)))
    text = json.dumps(document, ensure_ascii=False, indent=2)
    with warnings.catch_warnings(action="ignore"):
        again = _read_json(text, str(path), None, False)
    _check_kept(settings, again, f"{path}: a tokenizer.json")
    return text.encode()


def _vocabulary_text(settings: Settings, path: str | Path) -> bytes:
    order = sorted(settings.vocab.items(), key=lambda item: item[1])
    for expected, (piece, number) in enumerate(order):
        if number != expected:
            raise Error(
                f"{path}: a vocab.txt has a piece on every line, and there is none with id"
                f" {expected} before {piece!r} with id {number}",
                hint="write a tokenizer.json",
            )
        if "\n" in piece or piece != piece.rstrip(_WHITE_SPACE) or piece[:1] == "\ufeff":
            raise Error(
                f"{path}: a vocab.txt cannot hold the piece {piece!r}",
                hint="write a tokenizer.json",
            )
    again = Settings.bert(settings.vocab, lowercase=settings.normalizer.lowercase)
    _check_kept(settings, again, f"{path}: a vocab.txt")
    return "".join(f"{piece}\n" for piece, _ in order).encode()


def _check_kept(settings: Settings, again: Settings, what: str) -> None:
    before, after = _everything(settings), _everything(again)
    lost = [name for name in before if before[name] != after[name]]
    if lost:
        raise Error(f"{what} cannot hold the {' and '.join(lost)} of this tokenizer")


def _everything(settings: Settings) -> dict[str, Any]:
    """Returns all that decides what a tokenizer gives, in one spelling."""
    return {
        **_document(settings),
        # A file spells one template in several ways.
        "post_processor": settings.template and asdict(settings.template),
        "compat": settings.normalizer.compat,
        "encode_special_tokens": settings.encode_special_tokens,
    }


def _document(settings: Settings) -> dict[str, Any]:
    """Returns a `tokenizer.json` as Hugging Face's library writes it."""
    normalizer, truncation, padding = settings.normalizer, settings.truncation, settings.padding
    strategies = {ours: theirs for theirs, ours in _STRATEGIES.items()}
    sides = {ours: theirs for theirs, ours in _SIDES.items()}
    return {
        "version": "1.0",
        "truncation": truncation
        and {
            "direction": sides[truncation.direction],
            "max_length": truncation.max_length,
            "strategy": strategies[truncation.strategy],
            "stride": truncation.stride,
        },
        "padding": padding
        and {
            "strategy": "BatchLongest" if padding.length is None else {"Fixed": padding.length},
            "direction": sides[padding.side],
            "pad_to_multiple_of": padding.multiple_of,
            "pad_id": padding.id,
            "pad_type_id": padding.type_id,
            "pad_token": padding.token,
        },
        "added_tokens": [
            {
                "id": token.id,
                "content": token.content,
                "single_word": token.single_word,
                "lstrip": token.lstrip,
                "rstrip": token.rstrip,
                "normalized": token.normalized,
                "special": token.special,
            }
            for token in _by_id(settings.added_tokens)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": normalizer.clean_text,
            "handle_chinese_chars": normalizer.handle_chinese_chars,
            "strip_accents": normalizer.strip_accents,
            "lowercase": normalizer.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": settings.template and _post_processor(settings, settings.template),
        "decoder": {"type": "WordPiece", "prefix": settings.mark, "cleanup": settings.cleanup},
        "model": {
            "type": "WordPiece",
            "unk_token": settings.unk_token,
            "continuing_subword_prefix": settings.mark,
            "max_input_chars_per_word": settings.max_input_chars_per_word,
            "vocab": dict(settings.vocab),
        },
    }


def _post_processor(settings: Settings, template: Template) -> dict[str, Any]:
    specials = [piece for piece in (*template.single, *template.pair) if len(piece) == 3]
    if template.roberta:
        (cls, cls_ids, _), (sep, sep_ids, _) = specials[0], specials[-1]
        return {
            "type": "RobertaProcessing",
            "sep": [sep, *sep_ids],
            "cls": [cls, *cls_ids],
            "trim_offsets": template.trim_offsets,
            "add_prefix_space": template.add_prefix_space,
        }
    pieces = {number: piece for piece, number in settings.vocab.items()}
    pieces |= {token.id: token.content for token in settings.added_tokens}
    return {
        "type": "TemplateProcessing",
        "single": [_piece(piece) for piece in template.single],
        "pair": [_piece(piece) for piece in template.pair],
        "special_tokens": {
            name: {
                "id": name,
                "ids": list(ids),
                "tokens": [pieces.get(number, name) for number in ids],
            }
            for name, ids, _ in specials
        },
    }


def _piece(piece: Piece) -> dict[str, Any]:
    kind = "Sequence" if len(piece) == 2 else "SpecialToken"
    return {kind: {"id": piece[0], "type_id": piece[-1]}}
