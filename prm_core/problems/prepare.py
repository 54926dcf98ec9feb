"""A run's workspace made ready: which problems its data/ holds, its params.yaml and dvc.yaml.

How a workspace is laid out, locked and kept from being overwritten is prm_core/platform/workspace.py.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from prm_core import config as configuration
from prm_core import domains, maths
from prm_core.config import PARAMS_FILE, Config
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.platform import store, workspace
from prm_core.problems import embedded, own
from prm_core.problems.embedded import make_data

log = logging.getLogger(__name__)


def check(root: Path, profile: str, problems: Path | None = None) -> Config:
    """The config of a run. Raises InputError for what `prepare` would refuse of its files; writes nothing."""
    raw = configuration.resolve(root / PARAMS_FILE, profile)
    config = configuration.parse(raw, f"profile {profile}")
    if problems is not None:
        user = own.read_problems(problems, config.encoder.max_length)
        config = configuration.parse({**raw, "domain": user.domain}, f"profile {profile}")
    embedded.check_level(config)
    return config


def prepare(root: Path, profile: str, problems: Path | None = None) -> Path:
    """Makes the workspace of a run ready and returns it: params.yaml, dvc.yaml, data/ and data.dvc.

    Args:
        root: the checkout.
        profile: as `config.resolve` takes it.
        problems: a file or folder of the user's own problems instead of the profile's; see `own.read_problems`.

    Raises InputError for an unknown profile, a bad problem file, or data that would have to be overwritten.
    """
    raw = configuration.resolve(root / PARAMS_FILE, profile)
    config = configuration.parse(raw, f"profile {profile}")
    folder = workspace.locate(root, profile, problems)
    if folder == root:
        workspace.restore_data(root, lambda target: make_data(target, config))
        return root
    source, make = _made_from(config), lambda target: make_data(target, config)
    if problems is not None:
        # Read whole before anything is written.
        user = own.read_problems(problems, config.encoder.max_length)
        raw = {**raw, "domain": user.domain}
        # A profile whose domain makes no problems starts from pretrained models, or from the root's warm-up problems.
        warmup = None if makes_problems(config) else root / "data" / "warmup.jsonl"
        kept = store.digest(warmup) if warmup is not None and warmup.exists() else ""
        source = "/".join((source, user.source, kept, *user.too_long))
        make = partial(write_user_data, user, config=config, warmup=warmup)
    workspace.initialise(folder, root)
    header = f"# Profile {profile}, resolved by `prm run`, which overwrites this file: edit the profile instead.\n"
    workspace.write_changed(folder / PARAMS_FILE, header + yaml.safe_dump(raw, sort_keys=False))
    workspace.write_changed(folder / "dvc.yaml", workspace.derive_graph(root, folder))
    workspace.ensure_data(folder, source, make)
    return folder


def write_user_data(user: own.UserProblems, folder: Path, config: Config, warmup: Path | None = None) -> None:
    """A user's problems as a data folder.

    The problems that train base models from scratch are those of the file `warmup`, else the ones the configured
    domain makes, unless the user's own solutions are enough (see `own.write_data`). A pretrained model (`warmup.base`)
    learns the user's own alone.
    """
    if config.warmup.base:
        own.write_data(user, folder, base=True)
        return
    if warmup is not None and warmup.exists():
        folder.mkdir(parents=True)
        shutil.copyfile(warmup, folder / "warmup.jsonl")
    elif makes_problems(config):
        make_data(folder, config)
    own.write_data(user, folder)


def import_problems(file: Path, data: Path, config: Config, *, force: bool = False, drop_labels: bool = False
                    ) -> own.UserProblems:
    """Replaces a data folder by a user's problems. Human labels in it stay, with their chains, unless dropped.

    Raises InputError for what `own.read_problems` refuses, a file that lies in the folder it would replace, and as
    `workspace.replace_data`; nothing is changed then.
    """
    if file.resolve().is_relative_to(data.resolve()):
        raise InputError(f"{file}: lies in {data}, which the import replaces; move it elsewhere first")
    user = own.read_problems(file, config.encoder.max_length)

    def make(fresh: Path) -> None:
        write_user_data(user, fresh, config, data / "warmup.jsonl")
        if not drop_labels:
            _keep_labels(data / "human", fresh / "human")

    workspace.replace_data(data, make, force=force)
    return user


def remake_data(data: Path, config: Config, *, force: bool = False, drop_labels: bool = False) -> None:
    """Makes a data folder anew from the seed. What people have said in it stays, with its chains, unless dropped.

    Raises InputError as `make_data` and `workspace.replace_data`; nothing is changed then.
    """
    def make(fresh: Path) -> None:
        make_data(fresh, config)
        if not drop_labels and _people_said(data / "human"):
            _keep_labels(data / "human", fresh / "human")

    workspace.replace_data(data, make, force=force)


def _labels(human: Path) -> list[dict[str, Any]]:
    path = human / own.HUMAN_FILES[-1]
    return [record for _, record in store.read_json_lines(path)] if path.is_file() and path.stat().st_size else []


def _people_said(human: Path) -> bool:
    """Whether there is a label that the seed did not make."""
    return any(label.get("strategy") != embedded.REVIEWER for label in _labels(human))


def _keep_labels(human: Path, fresh: Path) -> None:
    labels = _labels(human)
    if labels:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(human, fresh)
        who = ", ".join(sorted({str(label.get("strategy")).removeprefix("human:") for label in labels}))
        log.warning("%s: %d human labels (by %s) stay, with the chains they are about; --drop-labels starts without "
                    "them", human, len(labels), who)


def makes_problems(config: Config) -> bool:
    """Whether the configured domain makes problems itself."""
    return bool(DOMAINS[config.domain].levels)


def _made_from(config: Config) -> str:
    """Identifies what made data depends on: its config and the code that makes it."""
    values: dict[str, Any] = {"seed": config.seed, "domain": config.domain, "data": dataclasses.asdict(config.data)}
    code = store.digest(*(Path(package.__file__).parent for package in (domains, maths)), Path(embedded.__file__))
    return f"{json.dumps(values, sort_keys=True)}/{code}"
