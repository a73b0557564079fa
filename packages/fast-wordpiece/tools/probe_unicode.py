"""Ask HuggingFace `tokenizers` what it does with every character, and write its answers as tables.

    python tools/probe_unicode.py

BERT's normaliser and pre-tokeniser follow no one version of Unicode: their classes of characters
come from several tables of several years. So nothing here is taken from ICU or `unicodedata`:
each step is run alone on each of the 1,112,064 scalar values. The same data goes to
`src/core/unicode_tables.hpp` and `src/chapbook/fast_wordpiece/_unicode.py`; then the plain-Python
reference, which reads the latter, has to give the normaliser's answer for every scalar value in
five configurations.
"""

import importlib.metadata
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import NFD, BertNormalizer, Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer

PACKAGE = Path(__file__).resolve().parent.parent
OFF = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False}
# clean_text, handle_chinese_chars, strip_accents, lowercase
CONFIGURATIONS = (
    (True, True, None, True),
    (True, True, None, False),
    (True, True, False, True),
    (True, True, True, False),
    (False, False, True, True),
)
# BERT as Google wrote it, and TensorFlow Text, isolate these ideographs; HuggingFace does not.
TF_TEXT_ONLY = range(0x2B820, 0x2B920)

Ranges = list[tuple[int, int]]


def scalar_values() -> Iterator[int]:
    """Every code point but the surrogates."""
    yield from range(0xD800)
    yield from range(0xE000, 0x110000)


def ranges(points: Iterable[int]) -> Ranges:
    """Ascending code points as closed ranges."""
    out: Ranges = []
    for point in points:
        if out and out[-1][1] == point - 1:
            out[-1] = (out[-1][0], point)
        else:
            out.append((point, point))
    return out


def is_hangul_syllable(point: int) -> bool:
    """Whether a code point decomposes by arithmetic instead of by table."""
    return 0xAC00 <= point <= 0xD7A3


def cleaned() -> tuple[Ranges, Ranges]:
    """The characters that `clean_text` deletes, and those that it turns into a plain space."""
    normalize = BertNormalizer(**OFF | {"clean_text": True}, lowercase=False).normalize_str
    deleted, spaces = [], []
    for point in scalar_values():
        match normalize(chr(point)):
            case "":
                deleted.append(point)
            case " ":
                spaces.append(point)
            case same if same != chr(point):
                raise AssertionError(f"clean_text turns U+{point:04X} into {same!r}")
    return ranges(deleted), ranges(spaces)


def ideographs() -> Ranges:
    """The characters that `handle_chinese_chars` puts between two spaces."""
    normalize = BertNormalizer(
        **OFF | {"handle_chinese_chars": True}, lowercase=False
    ).normalize_str
    return ranges(point for point in scalar_values() if normalize(chr(point)) == f" {chr(point)} ")


def split() -> tuple[Ranges, Ranges]:
    """The characters that the pre-tokeniser drops between words, and those that it isolates."""
    pre_tokenize = BertPreTokenizer().pre_tokenize_str
    spaces, punctuation = [], []
    for point in scalar_values():
        match len(pre_tokenize(f"a{chr(point)}b")):
            case 2:
                spaces.append(point)
            case 3:
                punctuation.append(point)
    return ranges(spaces), ranges(punctuation)


def around_added_tokens() -> tuple[Ranges, Ranges]:
    """The characters that keep a `single_word` token from matching, and those that `lstrip` eats.

    They are the "word" and "space" classes of the regular expressions inside `tokenizers`.
    """
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.add_tokens(
        [
            AddedToken("<w>", normalized=False, single_word=True),
            AddedToken("<s>", normalized=False, lstrip=True),
        ]
    )
    words, spaces = [], []
    for point in scalar_values():
        char = chr(point)
        tokens = tokenizer.encode(f"{char}<w>\0{char}<s>").tokens
        if "<w>" not in tokens:
            words.append(point)
        if f"{char}<s>" in tokens:
            spaces.append(point)
    return ranges(words), ranges(spaces)


def mapping(normalize: Callable[[str], str]) -> dict[int, str]:
    """What becomes of every character that a normaliser changes."""
    after = ((point, normalize(chr(point))) for point in scalar_values())
    return {point: text for point, text in after if text != chr(point)}


def decompositions() -> dict[int, str]:
    """Full canonical decompositions but those of the Hangul syllables, which are checked here."""
    table = mapping(NFD().normalize_str)
    for point in range(0xAC00, 0xD7A4):
        lead, rest = divmod(point - 0xAC00, 588)
        vowel, tail = divmod(rest, 28)
        jamo = chr(0x1100 + lead) + chr(0x1161 + vowel) + (chr(0x11A7 + tail) if tail else "")
        if table.pop(point) != jamo:
            raise AssertionError(f"U+{point:04X} does not decompose by arithmetic")
    return table


def marks(decompose: dict[int, str]) -> Ranges:
    """The characters that `strip_accents` deletes after it has decomposed the text."""
    normalize = BertNormalizer(**OFF | {"strip_accents": True}, lowercase=False).normalize_str
    stable = (p for p in scalar_values() if p not in decompose and not is_hangul_syllable(p))
    return ranges(point for point in stable if normalize(chr(point)) == "")


def combining_classes(decompose: dict[int, str]) -> dict[int, int]:
    """The classes of the characters that canonical reordering moves, found by watching it move.

    A character goes behind another one if its class is higher. Python's table only lends the
    numbers: one representative of each class, and two representatives that do not move past each
    other as their numbers say are an error.
    """
    nfd = NFD().normalize_str
    lowest, highest = "\u0334", "\u0345"
    moved = [
        point
        for point in scalar_values()
        if point not in decompose
        and not is_hangul_syllable(point)
        and (
            nfd(chr(point) + lowest) != chr(point) + lowest
            or nfd(highest + chr(point)) != highest + chr(point)
        )
    ]
    representative: dict[int, str] = {}
    for point in moved:
        representative.setdefault(unicodedata.combining(chr(point)), chr(point))
    for low, first in representative.items():
        for high, second in representative.items():
            if low != high and (nfd(second + first) == first + second) != (low < high):
                raise AssertionError(f"classes {low} and {high} are not in order")

    classes: dict[int, int] = {}
    for point in moved:
        char = chr(point)
        equal = [
            number
            for number, other in representative.items()
            if nfd(char + other) == char + other and nfd(other + char) == other + char
        ]
        if len(equal) != 1 or equal[0] == 0:
            raise AssertionError(f"U+{point:04X} has the class of {equal}")
        classes[point] = equal[0]
    return classes


def class_ranges(classes: dict[int, int]) -> list[tuple[int, int, int]]:
    """Combining classes as closed ranges of one class each."""
    out: list[tuple[int, int, int]] = []
    for point, number in sorted(classes.items()):
        if out and out[-1][1:] == (point - 1, number):
            out[-1] = (out[-1][0], point, number)
        else:
            out.append((point, point, number))
    return out


def wrapped(items: Iterable[str], indent: str, width: int = 100) -> str:
    """Items, each followed by a comma, as many to the line as fit."""
    lines, line = [], indent
    for item in items:
        if len(line) + len(item) + 2 > width:
            lines.append(line.rstrip())
            line = indent
        line += f"{item}, "
    return "\n".join([*lines, line.rstrip()]) + "\n"


def cpp_array(kind: str, name: str, entries: Iterable[str], comment: str) -> str:
    """One constexpr array with its comment."""
    return f"// {comment}\ninline constexpr {kind} {name}[] = {{\n{wrapped(entries, '    ')}}};\n\n"


def cpp_ranges(name: str, table: Ranges, comment: str) -> str:
    """One array of ranges."""
    return cpp_array("Range", name, (f"{{0x{a:X}, 0x{b:X}}}" for a, b in table), comment)


def cpp_mapping(name: str, table: dict[int, str], comment: str) -> str:
    """An array of mappings and the pool that they point into."""
    entries, pool = [], []
    for point, text in sorted(table.items()):
        entries.append(f"{{0x{point:X}, {len(pool)}, {len(text)}}}")
        pool.extend(f"0x{ord(char):X}" for char in text)
    if len(pool) > 0xFFFF:
        raise AssertionError(f"{name}Pool has {len(pool)} entries: 16-bit offsets are too short")
    return cpp_array("Mapping", name, entries, comment) + cpp_array(
        "std::uint32_t", f"{name}Pool", pool, f"The characters that {name} points to."
    )


def python_table(name: str, opening: str, entries: Iterable[str], closing: str) -> str:
    """One table of the Python module."""
    return f"{name} = {opening}\n{wrapped(entries, '    ')}{closing}\n\n"


def python_text(text: str) -> str:
    """A string literal in ASCII."""
    return '"' + ascii(text)[1:-1].replace('"', '\\"').replace("\\'", "'") + '"'


def main() -> None:
    """Probe, write both files, check."""
    version = importlib.metadata.version("tokenizers")
    control, space = cleaned()
    white_space, punctuation = split()
    word, stripped = around_added_tokens()
    if stripped != white_space:
        raise AssertionError("lstrip and rstrip eat something else than white space")
    cjk_hf = ideographs()
    in_cjk = {p for first, last in cjk_hf for p in range(first, last + 1)}
    cjk_tf_text = ranges(sorted(in_cjk | set(TF_TEXT_ONLY)))
    decompose = decompositions()
    mark = marks(decompose)
    ccc = class_ranges(combining_classes(decompose))
    lower = mapping(Lowercase().normalize_str)

    tables = [
        ("Control", control, "Deleted by clean_text, with U+0000 and U+FFFD."),
        ("SpaceClean", space, "Turned into a plain space by clean_text."),
        (
            "WhiteSpace",
            white_space,
            "Dropped between words by the pre-tokeniser; eaten by lstrip and rstrip.",
        ),
        ("Punctuation", punctuation, "A word of its own to the pre-tokeniser."),
        ("Word", word, "Next to these no single_word token matches."),
        ("Mark", mark, "Deleted by strip_accents after decomposition."),
        ("CjkHf", cjk_hf, "Between two spaces after handle_chinese_chars."),
        ("CjkTfText", cjk_tf_text, "The same in TensorFlow Text and in Google's BERT."),
    ]
    origin = f"probed from tokenizers {version} by tools/probe_unicode.py; do not edit"

    header = (
        f"// Character classes and mappings of BERT's normaliser and pre-tokeniser,\n// {origin}.\n"
        "// Every array is sorted by code point; ranges are closed.\n"
        "#pragma once\n\n#include <cstdint>\n\nnamespace chapbook::unicode {\n\n"
        "struct Range {\n    std::uint32_t first, last;\n};\n\n"
        "struct Ccc {\n    std::uint32_t first, last;\n    std::uint8_t ccc;\n};\n\n"
        "struct Mapping {\n    std::uint32_t cp;\n    std::uint16_t offset;\n"
        "    std::uint8_t length;\n};\n\n"
    )
    header += "".join(cpp_ranges(f"k{name}", table, why) for name, table, why in tables)
    header += cpp_array(
        "Ccc",
        "kCcc",
        (f"{{0x{a:X}, 0x{b:X}, {number}}}" for a, b, number in ccc),
        "Canonical combining classes other than 0.",
    )
    header += cpp_mapping(
        "kDecompose", decompose, "Full canonical decompositions but those of Hangul syllables."
    )
    header += cpp_mapping("kLower", lower, "The characters that lower-casing changes.")
    header += "}  // namespace chapbook::unicode\n"
    (PACKAGE / "src/core/unicode_tables.hpp").write_text(header, encoding="utf-8")

    module = (
        '"""Character classes and mappings of BERT\'s normaliser and pre-tokeniser.\n\n'
        f'{origin[0].upper()}{origin[1:]}. Ranges are closed.\n"""\n\n# fmt: off\n'
        f'TOKENIZERS_VERSION = "{version}"\n\n'
    )
    for name, table, why in tables:
        snake = "".join(f"_{c}" if c.isupper() else c.upper() for c in name).strip("_")
        entries = (f"(0x{a:X}, 0x{b:X})" for a, b in table)
        module += f"# {why}\n" + python_table(snake, "(", entries, ")")
    entries = (f"(0x{a:X}, 0x{b:X}, {number})" for a, b, number in ccc)
    module += "# First, last, canonical combining class.\n" + python_table("CCC", "(", entries, ")")
    for name, table in (("DECOMPOSE", decompose), ("LOWER", lower)):
        entries = (f"0x{p:X}: {python_text(text)}" for p, text in sorted(table.items()))
        module += python_table(name, "{", entries, "}")
    path = PACKAGE / "src/chapbook/fast_wordpiece/_unicode.py"
    path.write_text(module.rstrip("\n") + "\n", encoding="utf-8")

    check()
    for name, table, _ in tables:
        count = sum(last - first + 1 for first, last in table)
        sys.stdout.write(f"{name:12} {count:8,} characters\n")
    count = sum(last - first + 1 for first, last, _ in ccc)
    sys.stdout.write(f"{'Ccc':12} {count:8,} characters\n")
    sys.stdout.write(f"{'Decompose':12} {len(decompose):8,} characters\n")
    sys.stdout.write(f"{'Lower':12} {len(lower):8,} characters\n")


def check() -> None:
    """Hold the reference, which reads the new tables, against the normaliser itself."""
    # Imported here, because the tables have to be written first.
    from chapbook.fast_wordpiece.reference import Char, normalized
    from chapbook.fast_wordpiece.settings import Normalizer

    for configuration in CONFIGURATIONS:
        theirs = BertNormalizer(*configuration).normalize_str
        ours = Normalizer(*configuration)
        for point in scalar_values():
            text = "".join(char.char for char in normalized([Char(chr(point), 0, 1)], ours))
            if text != theirs(chr(point)):
                raise AssertionError(f"U+{point:04X} becomes {text!r} under {configuration}")


if __name__ == "__main__":
    main()
