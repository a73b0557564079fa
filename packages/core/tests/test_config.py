from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from chapbook.core.config import configure
from chapbook.core.errors import Error


@dataclass(frozen=True)
class Model:
    width: int
    dropout: float = 0.0
    bias: bool = True
    act: Literal["gelu", "relu"] = "gelu"
    heads: int | None = None
    sizes: tuple[int, ...] = (1,)
    folder: Path = Path("x")
    window: tuple[int, float] = (1, 0.5)
    notes: list[str] | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width={self.width} must be at least 1")


def problem(sets=(), file=None, base=None) -> str:
    with pytest.raises(Error) as raised:
        configure(Model, file, sets, base)
    return raised.value.message


def test_texts_win_over_the_file_and_the_file_over_the_base(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("width = 2\ndropout = 0.5\n")
    base = Model(width=1, bias=False, act="relu")
    config = configure(Model, file, ["dropout=1"], base)
    assert config == Model(2, 1.0, False, "relu")
    assert type(config.dropout) is float


def test_texts_are_read_as_the_type_of_their_field():
    sets = ["width=3", "act=relu", "heads=none", "sizes=[1, 2]", "folder=a/b", "bias=false"]
    sets += ["window=[2, 1]", "notes=['1e']"]
    expected = Model(3, 0.0, False, "relu", None, (1, 2), Path("a/b"), (2, 1.0), ["1e"])
    assert configure(Model, sets=sets) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("widht=3", "Did you mean width?"),
        ("width=2.5", "width=2.5 is not int"),
        ("width=true", "width=True is not int"),
        ("width=wide", "width=wide is not int"),
        ("bias=1", "bias=1 is not bool"),
        ("act=tanh", "act=tanh is not Literal['gelu', 'relu']"),
        ("heads=x", "heads=x is not int or NoneType"),
        ("sizes=[1, 'a']", "sizes=a is not int"),
        ("sizes=1", "sizes=1 is not tuple[int, ...]"),
        ("window=[1]", "window=[1] is not tuple[int, float]"),
        ("window=[1, 'a']", "window=a is not float"),
        ("notes=[1]", "notes=1 is not str"),
        ("width=0", "Model: width=0 must be at least 1"),
        ("width", "'width' is not name=value"),
    ],
)
def test_what_is_wrong_is_named(text, expected):
    message = problem([text])
    assert expected in message
    assert "\n" not in message


def test_unknown_names_list_the_known_ones():
    known = "known are width, dropout, bias, act, heads, sizes, folder, window, notes."
    assert problem(["zzz=1"]) == f"unknown name zzz; {known}"


def test_a_value_that_is_needed_is_asked_for():
    assert "missing 1 required positional argument: 'width'" in problem()


def test_a_broken_file_is_named_with_its_line(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("width = 2\ndropout = = 3\n")
    assert problem(file=file).startswith(f"{file}: Invalid value (at line 2")
    with pytest.raises(FileNotFoundError):
        configure(Model, tmp_path / "no.toml")
