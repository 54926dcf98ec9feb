"""YAML files of settings, and profiles that lie over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from prm_core.errors import InputError

PROFILES = Path(__file__).parents[1] / "profiles"
PARAMS_FILE = "params.yaml"
# In a profile: the one it is laid over.
EXTENDS = "extends"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, nested mappings key by key, everything else replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises InputError when the file is missing, unreadable or not a mapping."""
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run from a workspace (a folder with {PARAMS_FILE})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({str(error).splitlines()[0]}); correct the file") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    return raw


def profile_names() -> list[str]:
    """The profiles that ship with the project, `default` first."""
    return ["default", *sorted(path.stem for path in PROFILES.glob("*.yaml"))]


def find_profile(profile: str, beside: Path | None = None) -> Path:
    """The YAML file of a profile: a shipped one's name, or a path. Raises InputError naming the known ones.

    Args:
        beside: the folder a relative path is looked up in as well, that of the profile which extends this one.
    """
    if not profile.endswith((".yaml", ".yml")):
        path = PROFILES / f"{profile}.yaml"
    else:
        path = Path(profile)
        if beside is not None and not path.is_absolute():
            path = beside / path
    if not path.is_file():
        raise InputError(
            f"unknown profile {profile!r}; known: {', '.join(profile_names())}, or give the path of a YAML file"
        )
    return path


def read_profile(path: Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """The values of a profile's file over those of the profile it extends, if it names one, and so on down.

    Raises InputError for a base that is not there, naming the file that extends it, and for a circle.
    """
    chain = [*above, path.resolve()]
    if path.resolve() in above:
        raise InputError(f"{above[-1]}: {EXTENDS} goes in a circle: {' → '.join(file.stem for file in chain)}")
    raw = read_yaml(path)
    base = raw.pop(EXTENDS, "default")
    if not isinstance(base, str) or not base.strip():
        raise InputError(f"{path}: {EXTENDS} is {base!r}, expected the name of a profile or the path of a YAML file")
    if base == "default":
        return raw
    try:
        below = find_profile(base, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {EXTENDS}: {error}") from None
    return merge(read_profile(below, chain), raw)
