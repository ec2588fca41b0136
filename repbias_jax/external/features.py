"""Reads features of examples from a csv or from Python values, as data only.

A csv has one row for each example and one column for each feature; its first line names the columns. Unless the caller
decides otherwise, the values of a column determine its kind:

  categorical  text, true and false, or whole numbers of at most 20 distinct values; each value is a class
  binary       the same with two classes
  continuous   other numbers

Missing values are refused, since leaving out an example is the caller's decision. Files that are not plain tables are
refused too. Each refusal is a `ConfigError` of one line.

Source: ours.
"""

import csv
import io
import math
import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from repbias_jax.config import ConfigError, safe_name
from repbias_jax.external.arrays import PATH_ERRORS, opened, reading, refusal

MAX_BYTES = 2**26
MAX_COLUMNS = 256
MAX_FEATURES = 32
MAX_COLUMNS_OF_FEATURES = 200  # sum over features of the number of classes minus one
MAX_CLASSES = 50
MAX_WHOLE = 20  # most distinct whole numbers that count as classes
MAX_LEVEL = 64  # characters in the name of a class
# Texts of a missing value, in any case: those of pandas, and ours. Only `None` counts by its case: `none` may be a class.
MISSING = {"", "nan", "-nan", "+nan", "nat", "na", "n/a", "#na", "#n/a", "#n/a n/a", "<na>", "null"}
MISSING |= {f"{sign}1.#{kind}" for sign in ("", "-", "+") for kind in ("ind", "qnan")}
PLAIN = {str, int, float, bool, np.int64, np.float32, np.float64, np.bool_, np.str_}  # kinds that are what they look like
INFINITE = ("inf", "-inf", "+inf", "infinity", "-infinity")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
HINT = "features are a csv: a line of names, then a line an example"


class Feature(NamedTuple):
    """One feature of N examples.

    Attributes:
      name: safe to write into a table and a page.
      kind: how it is measured; a binary feature is a categorical one with two classes.
      values: int32 codes of the classes, or float64 numbers, `[N]`.
      levels: names of the classes, in the order of their codes; empty for a continuous feature.
    """

    name: str
    kind: Literal["binary", "categorical", "continuous"]
    values: np.ndarray
    levels: tuple[str, ...]


def read_columns(path: Path, count: int) -> dict[str, list[str]]:
    """Reads a csv with one row for each of `count` examples.

    Args:
      path: of the file, UTF-8, at most 64 MiB.
      count: number of examples.

    Returns:
      By column, the text of each example, `count` long.

    Raises:
      ConfigError: the file is not a csv, names are unsafe, empty or repeated, values are missing, or the number of rows is
        not `count`.
    """
    with opened(path, known=HINT) as (file, size):
        if size > MAX_BYTES:
            raise refusal(path, f"{size} bytes; expected at most {MAX_BYTES}")
        raw = file.read(size)
    with reading(path, PATH_ERRORS, HINT):
        text = raw.decode("utf-8-sig")
    if (place := text.find("\0")) >= 0:
        raise refusal(path, f"line {text.count(chr(10), 0, place) + 1} holds a zero byte; {HINT}")
    rows = _rows(path, text)
    names = _names(path, next(rows, (0, []))[1])
    columns: list[list[str]] = [[] for _ in names]
    for number, (line, row) in enumerate(rows, start=1):
        if number > count:
            raise refusal(path, f"more than {count} rows; expected one for each of {count} examples")
        if len(row) != len(names):
            raise refusal(path, f"line {line}: {len(row)} values; expected {len(names)}, one for each column")
        for name, column, value in zip(names, columns, row, strict=True):
            value = value.strip()
            if _missing(value):
                raise refusal(path, f"line {line}, column {name}: missing value {value!r}; expected a value in every row")
            column.append(value)
    if len(columns[0]) != count:
        raise refusal(path, f"{len(columns[0])} rows; expected one for each of {count} examples, below a line of names")
    return dict(zip(names, columns, strict=True))


def text_of(features: Mapping[str, Sequence[Any]]) -> dict[str, list[str]]:
    """Returns Python values as the text that a csv would hold, so that the same rule decides the kind of both.

    Args:
      features: by name, one-dimensional values of any kind, `[N]`.

    Raises:
      ConfigError: `features` is no mapping, two names are the same text, or values are missing, masked, complex, not
        finite or not one for each example.
    """
    if not hasattr(features, "items"):  # a data frame has them, too
        raise ConfigError(
            f"features: {type(features).__name__}; expected a mapping of names to values, such as {{'x': values}}"
        )
    text = {}
    for name, values in features.items():
        named = safe_name(str(name), "features")
        if named in text:
            raise ConfigError(f"feature {named}: two features have this name as text; expected every name once")
        shape = _shape(named, values)
        if len(shape) != 1:
            raise ConfigError(f"feature {named}: values of shape {shape}; expected one value for each example, [N]")
        text[named] = [_text(value, named, i) for i, value in enumerate(values)]
    return text


def masked(values: Any) -> bool:
    """Returns whether an array, or any in these lists, has masked cells; numpy drops the mask without a word."""
    if isinstance(values, list | tuple):
        return any(masked(value) for value in values)
    return isinstance(values, np.ma.MaskedArray) and bool(np.ma.getmaskarray(values).any())


def features_of(
    columns: Mapping[str, Sequence[str]], categorical: Collection[str] = (), continuous: Collection[str] = ()
) -> list[Feature]:
    """Returns the features in these columns, and decides the kind of each.

    Args:
      columns: text by name, as `read_columns` returns it.
      categorical: names of columns to treat as classes, whatever their values.
      continuous: names of columns to treat as continuous numbers.

    Raises:
      ConfigError: a name that is not a column or is given both kinds, a column that cannot have the given kind, or too many
        features or classes.
    """
    categorical, continuous = _asked("categorical", categorical), _asked("continuous", continuous)
    for asked in (*categorical, *continuous):
        if asked not in columns or (asked in categorical and asked in continuous):
            raise ConfigError(f"feature {reprlib.repr(asked)}: expected one kind each, of {_few(columns)}")
    if not 1 <= len(columns) <= MAX_FEATURES:
        raise ConfigError(f"{len(columns)} features; expected 1 to {MAX_FEATURES}")
    forced = dict.fromkeys(categorical, "classes") | dict.fromkeys(continuous, "numbers")
    features = [_feature(name, column, forced.get(name, "")) for name, column in columns.items()]
    wide = sum(max(1, len(f.levels) - 1) for f in features)
    if wide > MAX_COLUMNS_OF_FEATURES:
        raise ConfigError(f"features have {wide} free classes together; expected at most {MAX_COLUMNS_OF_FEATURES}")
    return features


def _missing(text: str) -> bool:
    return text.lower() in MISSING or text == "None"


def _shape(name: str, values: Any) -> tuple[int, ...]:
    """Returns the shape of a feature's values. Raises ConfigError if they make no array."""
    try:
        return np.shape(np.asarray(values, dtype=object))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"feature {name}: values that make no array; expected one value for each example, [N]") from error


def _text(value: Any, name: str, example: int) -> str:
    """Returns the text of one value. Raises ConfigError if it is missing, infinite or complex."""
    try:
        text = str(value if type(value) in PLAIN else _plain(value)).strip()
    except (OverflowError, ValueError):  # Python writes no whole number of more than 4,300 digits
        raise ConfigError(f"feature {name}: example {example} is too large a number; expected finite numbers") from None
    except TypeError:
        raise ConfigError(f"feature {name}: example {example} is a complex number; expected real numbers") from None
    if _missing(text):
        raise ConfigError(f"feature {name}: example {example} has no value; expected a value for every example")
    if text.lower() in INFINITE:
        raise ConfigError(f"feature {name}: example {example} is {text}; expected finite numbers")
    return text


def _plain(value: Any) -> Any:
    """Returns a missing value as "", a fraction or decimal as a float, others as they are. Complex ones: TypeError."""
    if isinstance(value, complex) or getattr(getattr(value, "dtype", None), "kind", "") == "c":
        raise TypeError
    if value is None or masked(value) or (isinstance(value, Decimal) and value.is_nan()):
        return ""
    return float(value) if isinstance(value, Decimal | Fraction) else value


def _asked(what: str, names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names that the caller gave a kind. Raises ConfigError unless they are texts, several or none."""
    try:
        found = None if isinstance(names, str | bytes) else tuple(names)
    except TypeError:
        found = None
    if found is None or not all(isinstance(name, str) for name in found):
        raise refusal(what, f"{reprlib.repr(names)}; expected a list of names of features, such as ['x']")
    return found


def _feature(name: str, column: Sequence[str], forced: str) -> Feature:
    safe_name(name, "features")
    distinct = dict.fromkeys(column)
    numbers = {text: float(text) for text in distinct if NUMBER.fullmatch(text)}
    numeric = len(numbers) == len(distinct)
    if bad := [text for text, value in numbers.items() if not math.isfinite(value)]:
        raise ConfigError(f"feature {name}: {bad[0][:64]} is no finite number; expected finite numbers")
    whole = numeric and all(value.is_integer() for value in numbers.values())
    few = whole and len(set(numbers.values())) <= MAX_WHOLE
    if forced == "numbers" and not numeric:
        bad = next(text for text in distinct if text not in numbers)
        raise ConfigError(f"feature {name}: {reprlib.repr(bad)} is no number; expected numbers in a continuous feature")
    if forced == "numbers" or (numeric and not few and not forced):
        return Feature(name, "continuous", np.array([numbers[text] for text in column], np.float64), ())
    return _classes(name, column, numbers if numeric else {text: text for text in distinct})


def _classes(name: str, column: Sequence[str], meaning: Mapping[str, float | str]) -> Feature:
    """Returns a feature of classes. Args: meaning: value of each text in the column, so that 1 and 1.0 are one class."""
    levels = sorted(set(meaning.values()))  # pyright: ignore[reportArgumentType]
    if len(levels) > MAX_CLASSES:
        hint = "leave it out, or say that it is continuous"
        raise ConfigError(f"feature {name}: {len(levels)} classes; expected at most {MAX_CLASSES} ({hint})")
    named = tuple(level if isinstance(level, str) else f"{level:.15g}" for level in levels)
    for level in named:
        if len(level) > MAX_LEVEL or not level.isprintable():
            limits = f"at most {MAX_LEVEL} printable characters"
            raise ConfigError(f"feature {name}: class {reprlib.repr(level)}; expected {limits}")
    codes = {level: code for code, level in enumerate(levels)}
    values = np.array([codes[meaning[text]] for text in column], np.int32)
    return Feature(name, "binary" if len(levels) == 2 else "categorical", values, named)


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields rows, each with the number of the line on which it ends."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    with reading(path, (csv.Error,), HINT):
        for row in reader:
            yield reader.line_num, row


def _names(path: Path, header: Sequence[str]) -> list[str]:
    """Returns the column names. Raises ConfigError unless each is safe and occurs once."""
    if not 1 <= len(header) <= MAX_COLUMNS:
        raise refusal(path, f"{len(header)} columns; expected 1 to {MAX_COLUMNS}; {HINT}")
    names = [safe_name(name.strip(), f"{path}, column {i}") for i, name in enumerate(header, start=1)]
    if again := [name for name in names if names.count(name) > 1]:
        raise refusal(path, f"column {again[0]} is there {names.count(again[0])} times; expected every name once")
    return names


def _few(names: Collection[str]) -> str:
    return ", ".join(list(names)[:20]) + (", ..." if len(names) > 20 else "")
