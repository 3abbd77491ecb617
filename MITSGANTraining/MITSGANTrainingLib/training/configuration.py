"""Plain values, as a TOML file holds them, to frozen dataclasses and back; nothing is ignored silently.

Fields say what they take by their types. ``Annotated`` types such as :data:`Count` add limits; tables are fields that
are dataclasses themselves.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from MITSGANLib.errors import InputError

Config = TypeVar("Config")


@dataclass(frozen=True)
class Limits:
    """The range of a number: from ``low`` to ``high``, or above ``above``."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def admits(self, value: float) -> bool:
        """Whether a number lies in the range."""
        return self.low <= value <= self.high and value > self.above

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"from {self.low:g} to {self.high:g}"
        return f"above {self.above:g}" if self.above > -math.inf else f"at least {self.low:g}"


Count = Annotated[int, Limits(low=1)]
CountOrNone = Annotated[int, Limits(low=0)]
"""0 switches off what is counted."""
Share = Annotated[float, Limits(low=0, high=1)]
Positive = Annotated[float, Limits(above=0)]
Weight = Annotated[float, Limits(low=0)]


def build(kind: type[Config], values: Mapping[str, Any], where: str = "", beside: Sequence[str] = ()) -> Config:
    """The dataclass ``kind`` from a table of plain values; fields that are absent keep their defaults.

    :param where: the table's own key, for messages.
    :param beside: dotted keys that are known and lie elsewhere.
    :raises InputError: for an unknown key (naming the nearest known one), a missing one, a wrong type or range.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind, include_extras=True)
    for key in values:
        if key not in fields:
            raise unknown("key", _join(where, key), [*keys(kind, where), *beside])
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not optional:
            raise InputError(f"The recipe lacks '{_join(where, name)}'; add it.")
    built = {key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    try:
        return kind(**built)
    except InputError as error:
        raise InputError(f"In the recipe's {where or 'keys'}: {error}") from error


def require_counts(config: Any, table: str, keys: Iterable[str]) -> None:
    """Refuse numbers below 1 in a table that is a dataclass of the library, whose fields name no limits.

    :raises InputError: naming the key.
    """
    for key in keys:
        if (value := getattr(getattr(config, table), key)) < 1:
            raise InputError(f"{table}.{key} must be at least 1, not {value}.")


def plain(config: Any) -> dict[str, Any]:
    """A dataclass as JSON holds it: tables, lists, numbers, strings."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = _join(where, key)
        flat.update(flatten(value, name) if isinstance(value, Mapping) else {name: value})
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, old_name: str, new_name: str) -> list[str]:
    """What differs between two plain configurations, one phrase per dotted key."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key} is {_shown(before, key)} in the {old_name} and {_shown(after, key)} in the {new_name}"
        for key in sorted(before.keys() | after.keys())
        if key not in before or key not in after or before[key] != after[key]
    ]


def unknown(what: str, given: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not among ``known``; it names the nearest one, or one that lacks its table."""
    names = sorted(known)
    near = [name for name in names if name.endswith(f".{given}")]
    near = near or difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(names)}."
    return InputError(f"Unknown {what} '{given}'; {hint}")


def keys(kind: type, where: str) -> list[str]:
    """The dotted keys of a dataclass, those of its tables as well."""
    found = []
    for name, hint in typing.get_type_hints(kind).items():
        found.append(_join(where, name))
        if dataclasses.is_dataclass(hint):
            found += keys(hint, _join(where, name))
    return found


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        converted = _convert(arguments[0], value, where)
        for limits in arguments[1:]:
            if not limits.admits(converted):
                raise InputError(f"'{where}' must be {limits}, not {value}.")
        return converted
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"'{where}' must be one of {', '.join(map(repr, arguments))}, not {value!r}.")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _convert(inner, value, where)
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise InputError(f"'{where}' must be a table of keys, not {value!r}.")
        return build(hint, value, where)
    # A bool is an int to Python, but 'steps = true' is a mistake.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise InputError(f"'{where}' must be {_NAMES[hint]}, not {value!r}.")
    if hint is float and not math.isfinite(value):
        raise InputError(f"'{where}' must be a finite number, not {value}.")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise InputError(f"'{where}' must be a list, not {value!r}.")
    hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    if len(value) != len(hints):
        raise InputError(f"'{where}' must hold {len(hints)} values, not {len(value)}.")
    return tuple(_convert(hint, item, f"{where}[{n}]") for n, (hint, item) in enumerate(zip(hints, value, strict=True)))


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "absent"
