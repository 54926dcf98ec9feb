"""What each version was made of, which versions were made of something, and a promotion undone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prm_core.adaptation.relabel import Trust
from prm_core.adaptation.rounds import UNDONE, Round, home, rounds, undone
from prm_core.config import Config
from prm_core.errors import GateError, InputError
from prm_core.labeling.human.labels import HUMAN_PREFIX, digest_of
from prm_core.platform import store, tracking
from prm_core.serving import model_registry
from prm_core.serving.drift.withdrawn import Withdrawn
from prm_core.serving.promotion import UNDONE as UNDONE_TAG

PARENT, ROUND, RECIPE = "adapted_from", "adaptation_round", "adaptation_recipe"
# What MLflow takes of a tag.
LONGEST = 5000


@dataclass(frozen=True, slots=True)
class Lineage:
    """What a challenger was made of. Ids and names, no texts.

    Attributes:
        parent: the version it was trained from.
        round: its number.
        trajectories: served ones it was trained on.
        held_out: served ones it was measured on.
        labels: people's verdicts: (trajectory, step, reviewer) each.
        people: who gave them.
        reporters: who told outcomes.
        tenants: whose trajectories these are.
        chain: digest of the chain's own training set that was trained again, empty without.
        trust: source → how far it was relied upon.
        recipe: digest of all of it and of the settings: of two rounds of one recipe the challengers are equal.
    """

    parent: str
    round: int
    trajectories: list[str]
    held_out: list[str]
    labels: list[tuple[str, int, str]]
    people: list[str]
    reporters: list[str]
    tenants: list[str]
    chain: str
    trust: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipe: str = ""

    def made_of(self, withdrawn: Withdrawn) -> bool:
        """Whether anything of what was withdrawn went into it, training or measuring."""
        return bool(withdrawn.trajectories & {*self.trajectories, *self.held_out}
                    or withdrawn.people & {*self.people} or withdrawn.tenants & {*self.tenants})

    def believed(self) -> Trust:
        """How far sources were relied upon."""
        reporters = {name: (sound, unsound) for name, (sound, unsound) in self.trust["reporters"].items()}
        return Trust(self.trust["reviewers"], reporters)

    def write(self, path: Path) -> None:
        """Writes the file."""
        store.write_json(path, asdict(self))


def read(path: Path) -> Lineage:
    """What `Lineage.write` wrote."""
    return Lineage(**store.read_json(path))


def recipe(lineage: Lineage, config: Config, evidence: Sequence[object]) -> str:
    """The digest of a recipe.

    Args:
        evidence: labels and outcomes as JSON values.
    """
    values = asdict(config)
    mine = ("held_out", "train", "lora_rank", "replay", "replay_weight", "max_weight")
    kept = {key: values[key] for key in ("seed", "encoder", "calibrate", "train_prm")} | {
        key: values["adapt"][key] for key in mine}
    return digest_of(lineage.parent, lineage.trajectories, lineage.chain, sorted(map(json.dumps, evidence)), kept)


def versions(workspace: Path, config: Config) -> dict[str, tuple[Round, Lineage]]:
    """`models:/NAME/VERSION` of each version that a round registered → the round, and what it was made of."""
    found = {}
    for one in rounds(workspace, config):
        if one.version.exists() and one.lineage.exists():
            found[store.read_json(one.version)["uri"]] = one, read(one.lineage)
    return found


def ancestors(uri: str, known: dict[str, tuple[Round, Lineage]]) -> list[str]:
    """A version and those it goes back to, the first one last: that one is the chain's own."""
    found = [uri]
    while found[-1] in known and known[found[-1]][1].parent not in found:
        found.append(known[found[-1]][1].parent)
    return found


def trained_on(workspace: Path, config: Config, what: Withdrawn) -> list[str]:
    """The versions that something went into, themselves or by what they were trained from, in order."""
    known = versions(workspace, config)
    return [uri for uri in known
            if any(known[one][1].made_of(what) for one in ancestors(uri, known) if one in known)]


def undo(workspace: Path, config: Config, because: str = "") -> tuple[str, str]:
    """Moves the champion alias back to the version that was champion before; returns (from, to) as URIs.

    The version's trajectories are remembered: no later round trains on them, so that the loop does not make the same
    version again, and `promote` refuses the version itself.

    Raises InputError where there is no champion, or none before it; GateError where somebody else moved the alias.
    """
    client, name, alias = tracking.connect(workspace), config.register.model_name, config.promote.alias
    with model_registry.promotion_lock(client, name) as still_held:
        now = model_registry.version_by_alias(client, name, alias)
        if now is None:
            raise InputError(f"model {name!r} has no {alias}; there is nothing to undo")
        before = now.tags.get("promoted_over", "none")
        if before == "none" or model_registry.known_version(client, name, before) is None:
            raise InputError(f"{name} version {now.version} is the first {alias}: there is none to go back to; move "
                             "the alias by hand where you must")
        uri = f"models:/{name}/{now.version}"
        _remember(workspace, config, uri, because)
        said = f"undone by {tracking.user()} on {datetime.now(UTC).isoformat(timespec='seconds')}"
        client.set_model_version_tag(name, str(now.version), UNDONE_TAG, f"{said}{': ' + because if because else ''}")
        if not still_held():
            raise GateError(f"{name} {alias} is not moved: somebody else holds the lock of its promotions; try again")
        client.set_registered_model_alias(name, alias, before)
    return uri, f"models:/{name}/{before}"


def _remember(workspace: Path, config: Config, uri: str, because: str) -> None:
    known = versions(workspace, config)
    listed = [one for one in undone(workspace, config) if one["version"] != uri]
    if uri in known:
        one, made = known[uri]
        new = {sample.prefixes[-1] for sample in one.samples(workspace / config.drift.folder)}
        listed.append({"version": uri, "round": one.number, "because": because, "recipe": made.recipe,
                       "trajectories": sorted(name for name in (*made.trajectories, *made.held_out)
                                              if name.removeprefix("served-") in new)})
    if listed:
        home(workspace, config).mkdir(parents=True, exist_ok=True)
        store.write_json(home(workspace, config) / UNDONE, listed)


def tags(lineage: Lineage) -> dict[str, str]:
    """Of the registered version; the whole is an artifact of its run."""
    return {PARENT: lineage.parent, ROUND: str(lineage.round), RECIPE: lineage.recipe,
            "adaptation_trajectories": str(len(lineage.trajectories)), "adaptation_labels": str(len(lineage.labels)),
            "adaptation_people": _names(lineage.people)}


def _names(people: Iterable[str]) -> str:
    return ", ".join(people)[:LONGEST]


def people_of(labels: Iterable[object]) -> list[str]:
    """The reviewers among labels, in order."""
    return sorted({label.strategy.removeprefix(HUMAN_PREFIX) for label in labels})
