"""A round of adaptation, from served trajectories to a champion or the reason why not: its parts in order, each once.

What each part does is in the modules beside this one. A call does what can be done now and says what it waits for; one
that was killed is gone on with by the next.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prm_core.adaptation import ask, gate, lineage, measure, training
from prm_core.adaptation.refine import refined
from prm_core.adaptation.relabel import Chain, Trust, chains_of, find_trust, recalibrated, trusted
from prm_core.adaptation.rounds import REVIEW, Opened, Round, home, open_round, rounds, undone
from prm_core.adaptation.traffic import Served, chances, is_held_out, to_served, window
from prm_core.config import Config
from prm_core.errors import GateError, InputError
from prm_core.platform import store, tracking
from prm_core.platform.tracking import stage_run
from prm_core.scoring.scorer import RewardScorer, load_scorer
from prm_core.serving import model_registry, promotion
from prm_core.serving.drift.outcomes import Outcome, read_outcomes
from prm_core.serving.drift.reference import Reference
from prm_core.serving.drift.samples import PREFIX, sample
from prm_core.serving.drift.withdrawn import read_withdrawn
from prm_core.serving.model_registry import ECE, F1, OUTCOME_AUROC
from prm_core.types import StepLabel

log = logging.getLogger(__name__)
WAITING, PROMOTED, REFUSED = "waiting", "promoted", "refused"


@dataclass(frozen=True, slots=True)
class Done:
    """What a call came to.

    Attributes:
        state: WAITING, PROMOTED or REFUSED.
        reason: what for or why, with the figures.
        round: its number, None where none was begun.
        version: the challenger, None where none was registered.
    """

    state: str
    reason: str
    round: int | None = None
    version: str | None = None

    def __str__(self) -> str:
        what = f"round {self.round}: " if self.round else ""
        return f"{what}{self.state}{' ' + self.version if self.version else ''}: {self.reason}"


def adapt(workspace: Path, config: Config, now: float, *, go: bool = False, retrain: bool = False) -> Done:
    """Begins a round where there is enough new traffic, or goes on with the one that was begun.

    Args:
        now: seconds since 1970.
        go: train with the answers that there are, though not all that were asked have one.
        retrain: begin a round without new traffic, from the last version that nothing withdrawn went into.

    Raises InputError for a workspace without a champion, a chain's data, or samples with texts.
    """
    known = rounds(workspace, config)
    current = known[-1] if known and not known[-1].over else None
    if current is None:
        begun = _begin(workspace, config, now, known, retrain)
        if isinstance(begun, Done):
            return begun
        current = begun
    elif retrain and not current.beginning().retrain:
        raise InputError(f"round {current.number} is at work; go on with it first (`prm adapt`, with --go as far as "
                         "people have answered), then retrain")
    return _Work(workspace, config, current).go_on(go)


def _begin(workspace: Path, config: Config, now: float, known: Sequence[Round], retrain: bool) -> Round | Done:
    folder, number = workspace / config.drift.folder, len(known) + 1
    champion = model_registry.pinned(f"models:/{config.register.model_name}@{config.promote.alias}", workspace)
    if retrain:
        return open_round(workspace, config, number, Opened(_clean_parent(workspace, config, champion), now, True), [])
    before = {one.prefixes[-1] for past in known for one in past.samples(folder)}
    fresh = [one for one in window(workspace, config, now) if one.prefixes[-1] not in before]
    if len(fresh) < config.adapt.min_trajectories:
        hint = "" if config.drift.texts else "; texts are not kept here, set drift.texts to true for the server"
        return Done(WAITING, f"{len(fresh)} new served trajectories with texts, and adapt.min_trajectories is "
                             f"{config.adapt.min_trajectories}{hint}")
    return open_round(workspace, config, number, Opened(champion, now), fresh)


def _clean_parent(workspace: Path, config: Config, champion: str) -> str:
    """The champion, or the last of those it goes back to that nothing withdrawn went into."""
    gone, known = read_withdrawn(workspace / config.drift.folder), lineage.versions(workspace, config)
    tainted = set(lineage.trained_on(workspace, config, gone))
    return next((one for one in lineage.ancestors(champion, known) if one not in tainted), champion)


class _Work:
    """One round's parts."""

    def __init__(self, workspace: Path, config: Config, one: Round) -> None:
        self.workspace, self.config, self.round = workspace, config, one
        self.folder = workspace / config.drift.folder
        self.beginning = one.beginning()
        self.seed = config.seed + 1000 * one.number
        self._scores: dict[str, Sequence[float]] | None = None

    def go_on(self, go: bool) -> Done:
        """The parts that are not done, in order."""
        if not self.round.queue.exists():
            self._ask()
        if not self.round.known.exists():
            waits = self._freeze(go)
            if waits:
                return Done(WAITING, waits, self.round.number)
        if not self.round.lineage.exists():
            self._train()
        if not self.round.figures.exists():
            self._measure()
        by = gate.compared(self._figures())
        if by != self.config.promote.by:
            raise InputError(f"round {self.round.number} was measured with promote.by {by}, and it is "
                             f"{self.config.promote.by} now; set it back until this round is over")
        if not self.round.version.exists():
            self._register()
        return self._decide()

    def served(self) -> list[Served]:
        """The trajectories of all rounds up to this one, but those of undone versions and what was withdrawn."""
        left_out = {name for one in undone(self.workspace, self.config) for name in one["trajectories"]}
        found = [to_served(one, self.config.domain) for past in rounds(self.workspace, self.config)
                 if past.number <= self.round.number for one in past.samples(self.folder)]
        return [one for one in found if one.trajectory.id not in left_out]

    def parent(self) -> RewardScorer:
        """The version that it trains from, loaded anew."""
        folder = model_registry.reward_model_folder(self.beginning.parent, self.workspace)
        return load_scorer(folder, device=self.config.models.device, batch_size=self.config.serve.batch_size)

    def chains(self, served: Sequence[Served], labels: Sequence[StepLabel], outcomes: Sequence[Outcome]
               ) -> tuple[dict[str, Chain], Trust]:
        """What is known of trajectories from sources that are believed, with scores that agree with it best."""
        if self._scores is None:
            said = self.parent().score([(one.problem.prompt, one.trajectory.steps) for one in served])
            self._scores = {one.trajectory.id: found.step_scores for one, found in zip(served, said, strict=True)}
        # What is held out measures the challenger, and must not have told it how sure to be.
        held = {one.trajectory.id for one in served if self.held_out(one)}
        mine = [row for row in labels if row.trajectory_id not in held]
        first = find_trust(list(chains_of(self._scores, labels, outcomes).values()))
        corrected = recalibrated(self._scores, mine, first, self.config.calibrate)
        chance = self._chance(served, trusted(mine, first), outcomes)
        counts = training.weights(chance, self.config.adapt.max_weight)
        steps, _ = training.replayed(self.workspace, self.config)
        found = refined(self.parent(), served, chains_of(corrected, labels, outcomes), held, steps, counts,
                        self.config.train_prm.head_ridge)
        trust = find_trust(list(found.values()))
        return chains_of({name: chain.scores for name, chain in found.items()}, trusted(labels, trust), outcomes), trust

    def _chance(self, served: Sequence[Served], labels: Sequence[StepLabel], outcomes: Sequence[Outcome]
                ) -> dict[str, float]:
        """Trajectory id → chance that it is here with what is known of it, of those of which something is."""
        judged = {label.trajectory_id for label in labels}
        return {one.trajectory.id: one.chance for one in served if one.trajectory.id in judged
                } | chances(served, outcomes)

    def held_out(self, one: Served) -> bool:
        """Whether it is kept for measuring."""
        return is_held_out(one.problem.id, self.config.adapt.held_out)

    def _ask(self) -> None:
        review, everything = home(self.workspace, self.config) / REVIEW, self.served()
        labels = ask.of_served(ask.answers(review).labels)
        chains, trust = self.chains(everything, labels, read_outcomes(self.folder))
        judged = {label.trajectory_id for label in labels}
        mine = {PREFIX + one.prefixes[-1] for one in self.round.samples(self.folder)} - judged
        new = [one for one in everything if one.trajectory.id in mine and one.trajectory.id in chains]
        rows = ask.choose(new, {one.trajectory.id: chains[one.trajectory.id] for one in new}, trust, self.config,
                          self.seed) if new else []
        ask.put(review, new, rows)
        store.write_jsonl(self.round.queue, rows)

    def _freeze(self, go: bool) -> str | None:
        """Notes people's labels and outcomes; or what is waited for."""
        review = home(self.workspace, self.config) / REVIEW
        human, gone = ask.answers(review), read_withdrawn(self.folder)
        rows = [row for _, row in store.read_json_lines(self.round.queue)] if self.round.queue.stat().st_size else []
        given, settings = ask.answered(rows, human.labels), self.config.adapt
        how = f"prm review --workspace {review}"
        few = f"{len(human.labels)} verdicts of people, and adapt.min_labels is {settings.min_labels}"
        if len(human.labels) < settings.min_labels and not self.beginning.retrain:
            if given < len(rows):
                return f"{few}; {given} of {len(rows)} steps that were asked have one: {how}"
            # Nobody is asked any more; what is here goes into the next round.
            few += "; all that were asked have one, the next round asks for more (adapt.review_share)"
            store.write_json(self.round.decision, asdict(Done(WAITING, few, self.round.number)))
            return few
        if given < settings.answered * len(rows) and not go:
            return f"{given} of {len(rows)} steps that were asked have a verdict: {how}, or go on with these by --go"
        names = {one.trajectory.id for one in self.served()}
        labels = [row for row in ask.of_served(human.labels) if row.trajectory_id in names
                  and not set(lineage.people_of([row])) & gone.people]
        labels.sort(key=lambda row: (row.trajectory_id, row.step_index, row.strategy))
        self.round.freeze(labels, [one for one in read_outcomes(self.folder) if one.trajectory in names])
        return None

    def _train(self) -> None:
        config = training.settings(self.config)
        served = self.served()
        labels, outcomes = self.round.evidence()
        chains, trust = self.chains(served, labels, outcomes)
        learned = [one for one in served if not self.held_out(one)]
        chance = {name: value for name, value in self._chance(learned, trusted(labels, trust), outcomes).items()
                  if name in chains}
        made = self._made_of(served, labels, outcomes, chance, trust)
        steps, ends = training.served_examples(learned, chains, trust, chance, config)
        old_steps, old_ends = training.replayed(self.workspace, config)
        work = self.round.folder / "work"
        figures = training.train(self.parent(), [*old_steps, *steps], [*old_ends, *ends], config, work=work,
                                 into=self.round.model)
        log.info("round %d: trained on %d served trajectories and %d of the chain's own, %d verdicts of %d people",
                 self.round.number, len(chance), len(old_steps), len(made.labels), len(made.people))
        store.write_json(self.round.folder / "training.json", figures)
        made.write(self.round.lineage)
        shutil.rmtree(work, ignore_errors=True)

    def _made_of(
        self, served: Sequence[Served], labels: Sequence[StepLabel], outcomes: Sequence[Outcome],
        chance: Mapping[str, float], trust: Trust,
    ) -> lineage.Lineage:
        held = sorted(one.trajectory.id for one in served if self.held_out(one))
        people, replay = lineage.people_of(labels), self.workspace / training.TRAINING_SET
        made = lineage.Lineage(
            self.beginning.parent, self.round.number, sorted(chance), held,
            [(row.trajectory_id, row.step_index, *lineage.people_of([row])) for row in labels], people,
            sorted({one.reporter for one in outcomes}), sorted({one.tenant for one in served if one.tenant}),
            store.digest(replay) if self.config.adapt.replay and replay.is_dir() else "",
            {"reviewers": dict(trust.reviewers),
             "reporters": {name: list(two) for name, two in trust.reporters.items()}})
        evidence = [*map(store.to_record, labels), *map(asdict, outcomes)]
        return dataclasses.replace(made, recipe=lineage.recipe(made, self.config, evidence))

    def _measure(self) -> None:
        labels, outcomes = self.round.evidence()
        served = self.served()
        trust = lineage.read(self.round.lineage).believed()
        uri, champion = self._champion()
        challenger = self._challenger()
        held = [one for one in served if self.held_out(one)]
        old = measure.old_chains(self.workspace, self.config.promote.by)
        figures = {promotion.COMPARED: uri, "old/best": self._best(uri),
                   **measure.old_figures(champion, challenger, old, self.config),
                   **measure.new_figures(champion, challenger, held, labels, outcomes, trust, self.config),
                   **measure.probe_figures(champion, challenger, old, self.config)}
        store.write_json(self.round.figures, figures)

    def _challenger(self) -> RewardScorer:
        return load_scorer(self.round.model, device=self.config.models.device, batch_size=self.config.serve.batch_size)

    def _champion(self) -> tuple[str, RewardScorer]:
        """The URI and the model of what serves now, which need not be what the round was begun with."""
        alias = f"models:/{self.config.register.model_name}@{self.config.promote.alias}"
        uri = model_registry.pinned(alias, self.workspace)
        folder = model_registry.reward_model_folder(uri, self.workspace)
        return uri, load_scorer(folder, device=self.config.models.device, batch_size=self.config.serve.batch_size)

    def _best(self, champion: str) -> float | None:
        """The highest figure on the evaluation's chains of a version and those it goes back to, as registered of the
        same data; None where none has one."""
        client, name = tracking.connect(self.workspace), self.config.register.model_name
        key = OUTCOME_AUROC if self.config.promote.by == "outcomes" else F1
        line = lineage.ancestors(champion, lineage.versions(self.workspace, self.config))
        versions = [model_registry.known_version(client, name, uri.rsplit("/", 1)[1]) for uri in line]
        tags = [one.tags for one in versions if one is not None]
        found = [promotion.figure(one, key) for one in tags if one.get("data_hash") == tags[0].get("data_hash")]
        return max((value for value in found if value is not None), default=None)

    def _register(self) -> None:
        """Registers the challenger, or finds it registered by a call that was killed after."""
        name, made, figures = self.config.register.model_name, lineage.read(self.round.lineage), self._figures()
        client = tracking.connect(self.workspace)
        known = client.search_model_versions(f"name = '{name}'") if tracking.store_exists(self.workspace) else []
        mine = [one for one in known if one.tags.get(lineage.RECIPE) == made.recipe
                and one.tags.get(lineage.ROUND) == str(self.round.number)]
        version = min((int(one.version) for one in mine), default=None)
        if version is None:
            version = self._log(name, made, figures)
        client.set_registered_model_alias(name, self.config.promote.challenger_alias, str(version))
        store.write_json(self.round.version, {"uri": f"models:/{name}/{version}"})

    def _figures(self) -> dict[str, Any]:
        return store.read_json(self.round.figures)

    def _log(self, name: str, made: lineage.Lineage, figures: Mapping[str, Any]) -> int:
        parent = model_registry.reward_model_folder(self.beginning.parent, self.workspace)
        client = tracking.connect(self.workspace)
        old = client.get_model_version(name, self.beginning.parent.rsplit("/", 1)[1]).tags
        kept = {key: old[key] for key in ("data_hash", "git_commit", "profile", "precision") if key in old}
        tags = kept | _gate_tags(figures) | lineage.tags(made)
        with stage_run(self.workspace, "adapt", self.config) as run, TemporaryDirectory() as temporary:
            run.tag(lineage.ROUND, str(self.round.number))
            run.log_metrics(_flat(figures))
            for path in (self.round.lineage, self.round.figures):
                run.log_artifact(path)
            copy = Path(shutil.copytree(self.round.model, Path(temporary, "prm")))
            model_id = model_registry.log_reward_model(
                self.workspace, run.run_id, copy, model_registry.logged_settings(parent), [self._reference()])
            return int(model_registry.add_version(self.workspace, name, model_id, tags).version)

    def _reference(self) -> Reference:
        """What drift is measured against from now on: the window, as the challenger scores it; figures, no texts."""
        scorer = self._challenger()
        mine = {PREFIX + one.prefixes[-1] for one in self.round.samples(self.folder)}
        served = [one for one in self.served() if one.trajectory.id in mine or self.beginning.retrain]
        said = scorer.score([(one.problem.prompt, one.trajectory.steps) for one in served])
        rows = [sample(one.problem.prompt, one.trajectory.steps, found.step_scores,
                       time=one.trajectory.meta["time"], threshold=self.config.serve.threshold,
                       renderer=scorer.encoder.config.renderer, chance=one.chance, raw=found.raw_scores,
                       in_domain=None if found.out_of_domain is None else not found.out_of_domain)
                for one, found in zip(served, said, strict=True) if found.step_scores]
        return Reference(f"served until {int(self.beginning.until)}", scorer.encoder.config.renderer, rows)

    def _decide(self) -> Done:
        uri = store.read_json(self.round.version)["uri"]
        if self.round.over:
            return Done(**store.read_json(self.round.decision))
        name, version = uri.removeprefix("models:/").split("/")
        client = tracking.connect(self.workspace)
        found = gate.faults(self._figures(), self.config, retrain=self.beginning.retrain)
        state, reason = REFUSED, "; ".join(found)
        if not found:
            try:
                done = promotion.promote(self.workspace, self.config.promote, self.config.drift, uri)
                # By a call that was killed after.
                told = client.get_model_version(name, version).tags
                state, reason = PROMOTED, done.reason if done.moved else told.get("promoted_because", done.reason)
            except (GateError, InputError) as error:
                reason = str(error)
        client.set_model_version_tag(name, version, "adaptation_gate", f"{state}: {reason}"[: lineage.LONGEST])
        done = Done(state, reason, self.round.number, uri)
        store.write_json(self.round.decision, asdict(done))
        # The registry has it.
        shutil.rmtree(self.round.model, ignore_errors=True)
        return done


def _gate_tags(figures: Mapping[str, Any]) -> dict[str, str]:
    """What the registry's gate goes by, measured as the evaluation measures it; suffixes on chains that the champion
    finds wrong too."""
    found = {key.removeprefix("challenger/"): value for key, value in figures.items()
             if key.startswith("challenger/probe/suffix/passed")}
    if gate.compared(figures) == "outcomes":
        told = figures["old/challenger/outcome_auroc"]
        found |= {OUTCOME_AUROC: told["value"], f"{OUTCOME_AUROC}_low": told["low"]}
        key, gain = OUTCOME_AUROC, figures["old/outcome_auroc_gain"]
    else:
        f1, ece = figures["old/evaluated_f1"], figures["old/challenger/ece"]
        found |= {F1: f1["value"], f"{F1}_low": f1["low"], f"{F1}_spread": figures["old/evaluated_f1_spread"],
                  ECE: ece["value"]}
        key, gain = F1, figures["old/f1_gain"]
    found |= {promotion.COMPARED: figures.get(promotion.COMPARED), f"{key}_gain": gain["value"],
              f"{key}_gain_low": gain["low"], f"{key}_gain_high": gain["high"]}
    return {key: str(value) for key, value in found.items() if value is not None}


def _flat(figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures as MLflow takes them."""
    table: dict[str, float] = {}
    for key, value in figures.items():
        parts = {f"{key}{'' if part == 'value' else '_' + part}": found for part, found in value.items()
                 } if isinstance(value, dict) else {key: value}
        table |= {name: float(found) for name, found in parts.items() if isinstance(found, int | float)}
    return table
