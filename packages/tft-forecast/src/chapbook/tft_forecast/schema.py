"""The roles of a table's columns, as data: checked, proposed, and kept in a YAML file."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import yaml
from jaxtyping import Float

from chapbook.core.errors import Error
from chapbook.core.io import write_atomic
from chapbook.tft_forecast.frames import read_frame
from chapbook.tft_forecast.grid import FREQ, infer_freq, parse_times
from chapbook.tft_forecast.inputs import Group, Layout

if TYPE_CHECKING:
    from chapbook.tft_forecast.categories import Categories

TRANSFORMS = ("none", "log1p", "logit")
FORECAST = re.compile(r"origin|step|y|q\d.*")  # columns of forecasts and backtests
_ONE = ("time", "freq", "weight", "target_transform")  # the others may name several columns
_USUAL = {
    "time": ("ds", "date", "time", "timestamp", "datetime", "time_hour"),
    "target": ("y", "target", "value", "sales", "demand", "births"),
    "id": ("unique_id", "id", "item_id", "series", "series_id", "entity"),
}


@dataclasses.dataclass(frozen=True, init=False)
class Schema:
    """Which column of a long table means what; columns that have no role are ignored.

    Args:
        id: The columns that tell the series apart. They may be static inputs too.
        time: The column of time: dates, dates with times, or integers.
        target: What is forecast.
        freq: The step of time: a number and a unit, which is s, m, h, d, w, mo, q or y as in
            Polars, bd for the days from Monday to Friday, or i for a time in integers.
        static: Inputs that do not change in time.
        known: Inputs that are known ahead, such as the calendar.
        observed: Inputs that are seen up to the origin of a forecast.
        categorical: Inputs that are categories though they are numbers. Text, true or false,
            Polars' categories, and ids are categories anyway.
        weight: A column of weights in the loss.
        target_transform: What the targets go through before all else: `none`, `log1p` or `logit`.

    Raises:
        Error: A column has two roles, or a value is none that is known.
    """

    id: tuple[str, ...]
    time: str
    target: tuple[str, ...]
    freq: str
    static: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    weight: str | None = None
    target_transform: str = "none"

    KEYS: ClassVar[tuple[str, ...]] = (
        "id", "time", "target", "freq", "static", "known", "observed", "categorical", "weight",
        "target_transform",
    )  # fmt: skip

    def __init__(
        self,
        id: str | Sequence[str],  # noqa: A002 (the word that users know)
        time: str,
        target: str | Sequence[str],
        freq: str,
        static: str | Sequence[str] = (),
        known: str | Sequence[str] = (),
        observed: str | Sequence[str] = (),
        categorical: str | Sequence[str] = (),
        weight: str | None = None,
        target_transform: str = "none",
    ):
        values = {
            "id": id, "time": time, "target": target, "freq": freq, "static": static,
            "known": known, "observed": observed, "categorical": categorical, "weight": weight,
            "target_transform": target_transform,
        }  # fmt: skip
        for key, value in values.items():
            object.__setattr__(self, key, value if key in _ONE else _names(key, value))
        self._check()

    def _check(self) -> None:
        for key in ("id", "target"):
            if not getattr(self, key):
                fix = "; a single series needs a column of one value" if key == "id" else ""
                raise Error(f"the schema names no {key} column{fix}")
        for key in ("time", "freq", "target_transform"):
            if not isinstance(getattr(self, key), str):
                raise Error(f"{key}: {getattr(self, key)!r} is no text")
        if not FREQ.fullmatch(self.freq) or self.freq.startswith("0"):
            raise Error(f'freq "{self.freq}" is no step such as 30m, 1h, 1d, 1bd, 1w, 1mo or 1i')
        if self.target_transform not in TRANSFORMS:
            known = ", ".join(TRANSFORMS)
            raise Error(f'target_transform "{self.target_transform}" is none of {known}')
        roles = {"time": (self.time,), "weight": (self.weight,) if self.weight else ()}
        roles |= {k: getattr(self, k) for k in ("id", "target", "static", "known", "observed")}
        seen: dict[str, str] = {}
        for role, names in roles.items():
            for name in names:
                if name in seen and (seen[name], role) != ("id", "static"):
                    both = f"{seen[name]} and {role}" if seen[name] != role else f"{role} twice"
                    raise Error(f'column "{name}" is {both}; it can have one role')
                seen[name] = role
        for name in (*self.id, self.time):
            if FORECAST.fullmatch(name) or (name == "target" and len(self.target) > 1):
                raise Error(
                    f'column "{name}" is {seen[name]}, and forecasts have a column of that name',
                    "rename it",
                )
        for name in self.categorical:
            if name not in self.inputs:
                known = ", ".join(self.inputs) or "none"
                raise Error(
                    f'categorical column "{name}" is neither static, known nor observed;'
                    f" these are {known}"
                )

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that are inputs beside the targets."""
        return self.static + self.known + self.observed

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that have a role, each once."""
        weight = (self.weight,) if self.weight else ()
        return tuple(dict.fromkeys((*self.id, self.time, *self.target, *self.inputs, *weight)))

    @classmethod
    def nixtla(
        cls,
        freq: str,
        static: str | Sequence[str] = (),
        known: str | Sequence[str] = (),
        observed: str | Sequence[str] = (),
        categorical: str | Sequence[str] = (),
    ) -> "Schema":
        """Returns the schema of a table whose columns are `unique_id`, `ds` and `y`."""
        return cls("unique_id", "ds", "y", freq, static, known, observed, categorical)

    @classmethod
    def infer(
        cls,
        frame: Any,
        *,
        id: str | Sequence[str] | None = None,  # noqa: A002
        time: str | None = None,
        target: str | Sequence[str] | None = None,
        freq: str | None = None,
    ) -> "Schema":
        """Proposes a schema, to be read and mended before it is used.

        What is one value for each id is static; what is there after the last target is known
        ahead; all else is observed. Rows after the last target are what tells known from
        observed: a table without them has no known columns in its proposal.

        Args:
            frame: A path, or any frame that `read_frame` takes.
            id: The columns that tell the series apart; guessed if not given.
            time: The column of time; guessed if not given.
            target: What is forecast; guessed if not given.
            freq: The step of time; the commonest one if not given.

        Raises:
            Error: A column is not there, or what was not given cannot be guessed.
        """
        table, where = read_frame(frame)
        time = time or _guess_time(table, where)
        ids = _names("id", id) if id else _guess_id(table, time, where)
        targets = _names("target", target) if target else _guess_target(table, ids, time, where)
        for name in (*ids, time, *targets):
            require(table, name, where)
        table = table.with_columns(parse_times(table[time], where))
        freq = freq or infer_freq(table.select(*ids, time))
        last = table.filter(pl.any_horizontal(pl.col(targets).is_not_null()))[time].max()
        ahead = table.filter(pl.col(time) > last) if last is not None else table.clear()
        others = [name for name in table.columns if name not in (*ids, time, *targets)]
        spread = table.group_by(ids).agg(pl.col(others).drop_nulls().n_unique())
        roles: dict[str, list[str]] = {"static": [], "known": [], "observed": []}
        for name in others:
            constant = (spread[name] <= 1).all() and table[name].null_count() < table.height
            fixed = constant and (spread.height > 1 or not table[name].dtype.is_numeric())
            seen = ahead.height > 0 and ahead[name].null_count() < ahead.height
            roles["static" if fixed else "known" if seen else "observed"].append(name)
        categories = [n for n in others if is_category(table.schema[n])]
        static, known, observed = (roles[role] for role in ("static", "known", "observed"))
        return cls(ids, time, targets, freq, static, known, observed, categories)

    @classmethod
    def load(cls, path: str | Path) -> "Schema":
        """Reads a schema from a YAML file.

        Raises:
            Error: The file is no YAML, or holds a key that is unknown or lacks one; the message
                lists the valid ones.
            OSError: The file cannot be read.
        """
        try:
            values = yaml.safe_load(Path(path).read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as problem:
            mark = getattr(problem, "problem_mark", None)
            line = f":{mark.line + 1}" if mark else ""
            raise Error(f"{path}{line}: not YAML: {getattr(problem, 'problem', problem)}") from None
        if not isinstance(values, Mapping):
            raise Error(f"{path} holds no keys; valid ones are {', '.join(cls.KEYS)}")
        for key in values:
            if key not in cls.KEYS:
                near = difflib.get_close_matches(str(key), cls.KEYS, 1)
                fix = f" Did you mean {near[0]}?" if near else ""
                raise Error(f'{path}: unknown key "{key}"; valid are {", ".join(cls.KEYS)}.{fix}')
        for key in ("id", "time", "target", "freq"):
            if values.get(key) is None:
                raise Error(f"{path}: there is no {key}; it is needed")
        try:
            return cls(**{key: value for key, value in values.items() if value is not None})
        except Error as problem:
            raise Error(f"{path}: {problem.message}", problem.hint) from None

    def yaml(self) -> str:
        """Returns the schema as the text of a YAML file; what is empty is left out."""
        values: dict[str, Any] = {}
        for key in self.KEYS:
            value = getattr(self, key)
            if value and not (key == "target_transform" and value == "none"):
                several = isinstance(value, tuple)
                single = several and key in ("id", "target") and len(value) == 1
                values[key] = value[0] if single else list(value) if several else value
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)

    def save(self, path: str | Path) -> None:
        """Writes the schema to a YAML file, whole or not at all."""
        write_atomic(path, self.yaml().encode())

    def read(self, frame: Any) -> pl.DataFrame:
        """Returns a table that has the schema's columns, and whose times are times.

        Args:
            frame: A path, or any frame that `read_frame` takes.

        Raises:
            Error: A column is not there.
            TableError: A time cannot be read.
        """
        table, where = read_frame(frame)
        for name in self.columns:
            require(table, name, where)
        return table.with_columns(parse_times(table[self.time], where))

    def layout(self, categories: "Categories", *, add_scale_inputs: bool = False) -> Layout:
        """Returns how the variables of a network are laid out.

        Args:
            categories: Which columns are categorical, and how many values each has.
            add_scale_inputs: Whether the level and the scale of each target are static inputs.

        Returns:
            The layout. Its known group is `relative_step` where the schema has no known column.
        """

        def group(names: tuple[str, ...], first: tuple[str, ...] = ()) -> Group:
            reals = tuple(name for name in names if name not in categories.sizes)
            texts = tuple(name for name in names if name in categories.sizes)
            return Group(first + reals, texts, tuple(categories.sizes[name] for name in texts))

        scales = [f"{name}_{part}" for name in self.target for part in ("level", "scale")]
        static = group(self.static)
        if add_scale_inputs:
            static = dataclasses.replace(static, real=static.real + tuple(scales))
        known = group(self.known) if self.known else Group(("relative_step",))
        return Layout(static, group(self.observed, self.target), known, len(self.target))

    def transformed(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Returns targets after `target_transform`: log(1 + y), log(y / (1 - y)), or y itself."""
        if self.target_transform == "log1p":
            return np.log1p(values)
        return np.log(values / (1 - values)) if self.target_transform == "logit" else values

    def restored(self, values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Returns targets before `target_transform`; the transforms rise, so quantiles stay so."""
        if self.target_transform == "log1p":
            return np.expm1(values)
        return 1 / (1 + np.exp(-values)) if self.target_transform == "logit" else values


def is_category(dtype: Any) -> bool:
    """Whether values of a Polars type are categories by default."""
    return dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)


def require(table: pl.DataFrame, name: str, where: str = "") -> None:
    """Raises a one-line error with the closest names, if a table lacks a column."""
    if name in table.columns:
        return
    near = difflib.get_close_matches(name, table.columns, 3, 0.5)
    fix = f" Did you mean {' or '.join(near)}?" if near else ""
    held = ", ".join(table.columns[:20]) + (" ..." if table.width > 20 else "")
    raise Error(f'{where}no column "{name}"; there are {held}.{fix}')


def _names(key: str, value: Any) -> tuple[str, ...]:
    names: tuple[Any, ...]
    names = tuple(value) if isinstance(value, list | tuple) else (value,)
    for name in names:
        if not isinstance(name, str):
            raise Error(f"{key}: {str(name).lower()} is no column name; put it into quotes")
    return names


def _guess_time(table: pl.DataFrame, where: str) -> str:
    temporal = [name for name, kind in table.schema.items() if kind.is_temporal()]
    texts = [
        n for n, kind in table.schema.items() if kind == pl.String and _reads_as_time(table[n])
    ]
    usual = [n for n in table.columns if n.lower() in _USUAL["time"] and n in (*temporal, *texts)]
    if found := usual or temporal or texts:
        return found[0]
    raise Error(f"{where}no column of dates or times was found; name it as time")


def _reads_as_time(column: pl.Series) -> bool:
    first = column.drop_nulls()[:1]
    return len(first) == 1 and bool(re.match(r"\d{4}-\d\d(-\d\d)?([ T]|$)", first[0]))


def _guess_id(table: pl.DataFrame, time: str, where: str) -> tuple[str, ...]:
    usual = [name for name in table.columns if name.lower() in _USUAL["id"]]
    texts = [n for n, kind in table.schema.items() if is_category(kind) and n != time]
    wholes = [n for n, kind in table.schema.items() if kind.is_integer() and n != time]
    for names in ([[n] for n in (*usual, *texts)], [texts[:k] for k in range(2, 5)],
                  [[n] for n in wholes]):  # fmt: skip
        for each in names:
            if each and not table.select(*each, time).is_duplicated().any():
                return tuple(each)
    raise Error(
        f"{where}no columns were found that, with {time}, are different in every row;"
        " name them as id, or merge the rows that repeat"
    )


def _guess_target(
    table: pl.DataFrame, ids: tuple[str, ...], time: str, where: str
) -> tuple[str, ...]:
    numbers = [n for n, k in table.schema.items() if k.is_numeric() and n not in (*ids, time)]
    usual = [name for name in numbers if name.lower() in _USUAL["target"]]
    if usual or len(numbers) == 1:
        return ((usual or numbers)[0],)
    raise Error(
        f"{where}which of {', '.join(numbers) or 'no numbers'} is forecast? name the target"
    )
