"""WordPiece tokenization at memory speed, with exactly the ids and offsets of Hugging Face.

Every public name is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chapbook.fast_wordpiece.encoding import Encoding, EncodingBatch
    from chapbook.fast_wordpiece.files import UnsupportedTokenizerError
    from chapbook.fast_wordpiece.settings import (
        AddedToken,
        Normalizer,
        Padding,
        Settings,
        SettingsError,
        Template,
        Truncation,
    )
    from chapbook.fast_wordpiece.tokenizer import Tokenizer
    from chapbook.fast_wordpiece.train import train_vocab

    __version__: str

_HOMES = {
    "encoding": "Encoding EncodingBatch",
    "files": "UnsupportedTokenizerError",
    "settings": "AddedToken Normalizer Padding Settings SettingsError Template Truncation",
    "tokenizer": "Tokenizer",
    "train": "train_vocab",
}
_HOME = {name: home for home, held in _HOMES.items() for name in held.split()}

__all__ = [
    "AddedToken", "Encoding", "EncodingBatch", "Normalizer", "Padding", "Settings",
    "SettingsError", "Template", "Tokenizer", "Truncation", "UnsupportedTokenizerError",
    "train_vocab",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("chapbook-fast-wordpiece")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
