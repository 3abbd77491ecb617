"""Recipes: TOML files that say what to train and how. Shipped ones are known by name, others by path.

A recipe has ``task``, a table ``[training]`` (:class:`~.engine.Training`), and the keys and tables of the task's own
configuration. Unknown keys, wrong types and ranges are errors.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MITSGANLib.errors import InputError
from MITSGANLib.runtime.resources import resources_folder

from .configuration import build, keys, plain, unknown
from .engine import Task, Training

RECIPES_FOLDER = resources_folder(Path(__file__).resolve().parents[1]) / "Recipes"


@dataclass(frozen=True)
class Recipe:
    """What to train and how.

    :param name: the recipe file's stem.
    :param task: name of the task, which is its module in this package with "-" for "_".
    """

    name: str
    task: str
    training: Training
    config: Any

    def plain(self) -> dict[str, Any]:
        """All values as JSON holds them, laid out as in the file."""
        return {"task": self.task, "training": plain(self.training), **plain(self.config)}


def shipped_recipes(folder: Path = RECIPES_FOLDER) -> list[str]:
    """Names of the recipes that are installed."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def load_recipe(name_or_path: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, or one from a TOML file, with some values changed.

    :param changes: dotted keys, such as ``training.steps``, and their values.
    :raises InputError: when it is not there or not TOML, or a key or value is wrong, naming the key.
    """
    path = _find(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"The recipe {path} cannot be read ({error}); correct it.") from error
    for key, value in (changes or {}).items():
        _set(values, key, value)
    try:
        return _recipe(path.stem, values)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error


def parse_change(text: str) -> tuple[str, Any]:
    """``key=value`` as a dotted key and a TOML value; what is no TOML value is taken as text.

    :raises InputError: when there is no key or no equals sign.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"'{text}' is no change of a recipe; write key=value, such as training.batch_size=4.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def find_task(name: str) -> type[Task]:
    """The task of this name.

    :raises InputError: when there is none, naming the nearest.
    """
    module = f"{__package__}.{name.replace('-', '_')}"
    found = getattr(importlib.import_module(module), "TASK", None) if importlib.util.find_spec(module) else None
    if found is None:
        raise unknown("task", name, _task_names())
    return found


def _task_names() -> list[str]:
    package = importlib.import_module(__package__)
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    tasks = [name for name in names if hasattr(importlib.import_module(f"{__package__}.{name}"), "TASK")]
    return [name.replace("_", "-") for name in tasks]


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise InputError(f"There is no recipe {path}; check the path.")
        return path
    shipped = RECIPES_FOLDER / f"{name_or_path}.toml"
    if not shipped.is_file():
        raise unknown("recipe", str(name_or_path), shipped_recipes())
    return shipped


def _recipe(name: str, values: Mapping[str, Any]) -> Recipe:
    rest = dict(values)
    task = rest.pop("task", None)
    if not isinstance(task, str):
        raise InputError("The recipe lacks 'task'; add a line such as task = \"attacker\".")
    training = rest.pop("training", {})
    if not isinstance(training, Mapping):
        raise InputError(f"'training' must be a table of keys, not {training!r}.")
    kind = find_task(task)
    return Recipe(
        name,
        task,
        build(Training, training, "training"),
        build(kind.Configuration, rest, beside=keys(Training, "training")),
    )


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise InputError(f"'{key}' cannot be set: '{table}' is no table of keys.")
    values[last] = value
