"""Stage evaluate: both policies and both reward models on held-out problems; metrics, plots, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prm_core.config import Config
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO, model_path
from prm_core.types import Problem, StepLabel, Trajectory

if TYPE_CHECKING:
    from prm_core.evaluation.conduct import Judged
    from prm_core.evaluation.judged_chains import Chain
    from prm_core.evaluation.label_quality import LabelQuality
    from prm_core.evaluation.protocol import Evaluation
    from prm_core.evaluation.report.tree_drawing import TreeSection
    from prm_core.evaluation.search_costs import Searched, SearchRow
    from prm_core.models.encoder import Encoder
    from prm_core.rules.verdicts import Overseer

log = logging.getLogger(__name__)

ROWS_PER_SHARD = 10_000
# Measured, the one that the verdict is about first.
SPLITS = ("test", "shifted")
# Figures that are not made again of saved scores; and what an agent's turns cost (evaluation/blame.py).
OF_THE_MODEL = ("prm/first_error_f1_spread", "prm/latency_ms_per_step")
OF_AGENTS = ("cost", "cost_error", "cost_runs")


def _read_problems(inputs: Mapping[str, Path]) -> dict[str, list[Problem]]:
    """The held-out problems by split; those of the user's own have no shifted ones, and no such split here."""
    held_out = ("dev", *SPLITS) if inputs["shifted"].stat().st_size else ("dev", "test")
    return {split: store.read_jsonl(Problem, inputs[split]) for split in held_out}


def _sample(
    config: Config, io: StageIO, problems: Mapping[str, Sequence[Problem]]
) -> tuple[dict[str, list[Chain]], dict[str, dict[str, float]]]:
    """Chains as `<split>-<policy>`: the base policy's on every split, the trained policy's on the measured ones; and
    for each measured split what the turns of the base policy's agents cost, where there are several.

    One policy is in memory at a time.
    """
    from prm_core.domains import DOMAINS
    from prm_core.evaluation import blame
    from prm_core.evaluation.judged_chains import Plan, sample_chains
    from prm_core.evaluation.protocol import STEP_CHAINS
    from prm_core.sampling.backends import policy_for

    samples = config.evaluate.samples
    # Dev serves the threshold alone, which the step chains decide; of the trained policy nothing is chosen among many.
    few = {"dev-base": STEP_CHAINS, "test-trained": STEP_CHAINS, "shifted-trained": STEP_CHAINS}

    def plan(tag: str) -> Plan:
        return Plan(min(samples, few.get(tag, samples)), config.evaluate.temperature, config.generate.max_new_tokens,
                    config.generate.batch_size, config.generate.shard_size, config.seed)

    found, costs = {}, {}
    for name, path in (("base", model_path(io.workspace, config.models.policy)), ("trained", str(io.inputs["policy"]))):
        policy = policy_for("evaluate", path, config, trained=name == "trained")
        for split in problems:
            tag = f"{split}-{name}"
            if tag != "dev-trained":
                found[tag] = sample_chains(policy, problems[split], tag, plan(tag), io.work, config.workers)
            if tag in (f"{measured}-base" for measured in _measured(problems)):
                failing = blame.one_a_problem(found[tag], blame.COST_RUNS)
                costs[split] = blame.cost_figures(blame.replay(
                    policy, DOMAINS, [(problems[split][chain.problem], chain.trajectory.steps, False)
                                      for chain in failing], rollouts=blame.COST_ROLLOUTS, seed=config.seed,
                    temperature=config.evaluate.temperature, max_new_tokens=config.generate.max_new_tokens,
                    batch_size=config.generate.batch_size))
        del policy
    return found, costs


def _score(
    config: Config, io: StageIO, problems: Mapping[str, Sequence[Problem]], chains: dict[str, list[Chain]]
) -> dict[str, dict[str, float]]:
    """Adds the reward models' scores to `chains`, in place; returns the figures that only the loaded PRM can give:
    split → its latency in ms a step, and the spread of its committee's first-error F1.

    The trained policy's chains are scored as far as step-level figures use them.
    """
    from prm_core.evaluation.judged_chains import (
        first_per_problem,
        latency_ms_per_step,
        score_with_both,
        score_with_orm,
        score_with_prm,
    )
    from prm_core.evaluation.protocol import STEP_CHAINS, choose_threshold, f1_spread
    from prm_core.scoring.scorer import load_scorer

    device, settings = config.models.device, config.evaluate
    prm = load_scorer(io.inputs["prm"], device=device, batch_size=config.serve.batch_size)
    orm_tags = [f"{split}-base" for split in _measured(problems)]
    # A second backbone in a GPU's memory beside the first might be one too many.
    orm = load_scorer(io.inputs["orm"], device="cpu", batch_size=config.serve.batch_size)
    both = prm.shares_pass(orm)
    if both:
        orm.model.to(prm.model.device)
    else:
        del orm
    for tag, group in chains.items():
        split, policy = tag.split("-")
        head = first_per_problem(group, STEP_CHAINS) if policy == "trained" else group
        if both and tag in orm_tags:
            rows = score_with_both(prm, orm, head, problems[split], settings.aggregate, io.work / f"{tag}-both",
                                   who=config.workers)
        else:
            rows = score_with_prm(prm, head, problems[split], settings.aggregate, io.work / f"{tag}-prm",
                                  who=config.workers)
        scored = {chain.trajectory.id: chain for chain in rows}
        chains[tag] = [scored.get(chain.trajectory.id, chain) for chain in group]
    threshold, _ = choose_threshold(chains["dev-base"], config.serve.threshold)
    found: dict[str, dict[str, float]] = {}
    for split in _measured(problems):
        spread = f1_spread(first_per_problem(chains[f"{split}-base"], STEP_CHAINS), len(problems[split]), threshold)
        found[split] = {} if spread is None else {"prm/first_error_f1_spread": spread}
    found["test"]["prm/latency_ms_per_step"] = latency_ms_per_step(
        prm, chains["test-base"], problems["test"], settings.latency_repeats)
    if not both:
        del prm
        orm = load_scorer(io.inputs["orm"], device=device, batch_size=config.serve.batch_size)
        for split, tag in zip(_measured(problems), orm_tags, strict=True):
            chains[tag] = score_with_orm(orm, chains[tag], problems[split], io.work / f"{tag}-orm",
                                         who=config.workers)
    return found


def _search(
    config: Config, io: StageIO, problems: Sequence[Problem], overseer: Overseer | None
) -> list[Searched]:
    """What each method of `evaluate.search` finds on the test problems with the base policy and the PRM, and with the
    rules before what that says."""
    from prm_core.domains import DOMAINS
    from prm_core.evaluation import conduct
    from prm_core.evaluation.judged_chains import Chain
    from prm_core.evaluation.search_costs import Searched
    from prm_core.sampling.backends import policy_for
    from prm_core.scoring.scorer import load_scorer
    from prm_core.scoring.session import ScoringSession
    from prm_core.search.base import Tools
    from prm_core.search.methods import search_all

    if not config.evaluate.search:
        return []
    policy = policy_for("evaluate", model_path(io.workspace, config.models.policy), config)
    prm = load_scorer(io.inputs["prm"], device=config.models.device, batch_size=config.serve.batch_size)
    tools = Tools(policy, ScoringSession(prm, policy.encoder), DOMAINS, config.search, config.generate.max_new_tokens,
                  config.generate.batch_size, overseer)
    rows = []
    for method in config.evaluate.search:
        found = search_all(method, problems, tools, config.seed, config.workers)
        chosen = [Chain(place, one.trajectory) for place, one in enumerate(found)]
        broken = None if overseer is None else [one.any for one in conduct.judge(chosen, problems, overseer)]
        rows.append(Searched(method, [one.right for one in chosen], [one.meter.total for one in found], broken))
    return rows


def _compare_searches(
    config: Config, problems: Sequence[Problem], chains: Sequence[Chain], searched: Sequence[Searched],
    encoder: Encoder, judged: Sequence[Judged] | None,
) -> list[SearchRow]:
    """Whether each method beats weighted majority at equal total tokens, which are counted in the policy's.

    Args:
        judged: which rules the chains break, None without rules.
    """
    from prm_core.evaluation import conduct, search_costs
    from prm_core.evaluation.protocol import selection_accuracies

    settings = config.evaluate
    accuracies = selection_accuracies(chains, problems, settings.best_of, config.seed)
    violations = None
    if judged is not None:
        violations = selection_accuracies(chains, problems, settings.best_of, config.seed,
                                          [one.any for one in judged])
        for (method, figure, n), values in conduct.choices(
                chains, judged, len(problems), settings.best_of, config.rules.threshold).items():
            (violations if figure == conduct.VIOLATIONS else accuracies)[method, n] = values
    tokens = {models: search_costs.whole_tokens(
        chains, problems, lambda prompt, steps: len(encoder.encode(prompt, steps, may_be_empty=True).ids),
        settings.best_of, models) for models in sorted(set(search_costs.WHOLE.values()))}
    return search_costs.compare(accuracies, tokens, searched, settings.bootstrap, config.seed, violations)


def _is_of_the_model(name: str) -> bool:
    return name in OF_THE_MODEL or (name.startswith("agent/") and name.rsplit("/", 1)[1] in OF_AGENTS)


def _measured(problems: Mapping[str, Sequence[Problem]]) -> list[str]:
    return [split for split in SPLITS if split in problems]


def _measure_labels(inputs: Mapping[str, Path]) -> LabelQuality:
    from prm_core.evaluation.label_quality import measure_labels
    from prm_core.labeling.human.labels import chain_digests, human_verdicts, read_human
    from prm_core.labeling.human.population import other_authors

    human = read_human(inputs["human"])
    problems = {problem.id: problem for problem in (*store.read_jsonl(Problem, inputs["train"]), *human.problems)}
    generated = store.read_shards(Trajectory, inputs["generated"])
    labels, merged = (store.read_shards(StepLabel, inputs[name]) for name in ("labels", "merged"))
    digests, judged = (chain_digests(chains, problems) for chains in (generated, human.trajectories))
    others = other_authors(human.trajectories, judged, generated, digests.values())
    # What people say of a copy that review kept is said of the generated chain.
    copies: dict[str, list[str]] = {}
    for name, digest in digests.items():
        copies.setdefault(digest, []).append(name)
    people = human_verdicts(human.labels).verdicts
    people |= {(name, index): right for (chain, index), right in people.items()
               for name in copies.get(judged[chain], ())}
    return measure_labels(labels, merged, generated, [chain for chain in human.trajectories if chain.id in others],
                          problems, people, store.read_json(inputs["calibration"]))


def _judge(
    chains: Mapping[str, Sequence[Chain]], problems: Mapping[str, Sequence[Problem]], overseer: Overseer | None
) -> dict[str, list[Judged]]:
    """Which rules the chains of the measured splits break, as `<split>-<policy>`; empty without rules."""
    from prm_core.evaluation import conduct

    return {} if overseer is None else {
        tag: conduct.judge(chains[tag], problems[split], overseer)
        for split in _measured(problems) for tag in (f"{split}-base", f"{split}-trained")}


def _measure(
    config: Config, chains: Mapping[str, list[Chain]], problems: Mapping[str, Sequence[Problem]],
    of_the_model: Mapping[str, Mapping[str, float]], overseer: Overseer | None, judged: Mapping[str, Sequence[Judged]],
) -> tuple[dict[str, Evaluation], str | None]:
    """The evaluation of each measured split, and why the threshold was not chosen on dev.

    Args:
        of_the_model: split → figures that only loaded models could give.
        overseer: the rules that runs are held to, where there are any.
        judged: what `_judge` says by them.
    """
    from dataclasses import replace

    from prm_core.evaluation import conduct, protocol

    settings = config.evaluate
    threshold, reason = protocol.choose_threshold(chains["dev-base"], config.serve.threshold)
    if reason is not None:
        log.warning("first-error threshold: %s", reason)
    found = {}
    for split in _measured(problems):
        evaluation = protocol.measure(
            chains[f"{split}-base"], chains[f"{split}-trained"], problems[split], threshold=threshold,
            best_of=settings.best_of, bins=settings.bins, resamples=settings.bootstrap, seed=config.seed, split=split,
        )
        reasons = dict(evaluation.reasons) | ({"prm/chosen_threshold": reason} if reason else {})
        ruled, counted = ({}, {}) if overseer is None else conduct.measure(
            chains[f"{split}-base"], chains[f"{split}-trained"], problems[split], overseer, judged[f"{split}-base"],
            judged[f"{split}-trained"], best_of=settings.best_of, bins=settings.bins, resamples=settings.bootstrap,
            seed=config.seed)
        found[split] = replace(evaluation, reasons=reasons, figures={**evaluation.figures, **ruled},
                               numbers={**evaluation.numbers, **of_the_model[split], **counted})
    return found, reason


def render_again(config: Config, workspace: Path) -> str:
    """The report of a finished evaluation, from its saved trajectories, scores and figures: no model is loaded.

    Raises InputError where an artifact that it is made of is missing, or does not belong to the others.
    """
    from prm_core.evaluation.judged_chains import load_chains
    from prm_core.evaluation.report.tree_drawing import tree_section
    from prm_core.evaluation.search_costs import SearchRow
    from prm_core.labeling.rule_judge import overseer_of

    inputs, outputs = ({key: workspace / path for key, path in paths.items()} for paths in (STAGE.inputs,
                                                                                          STAGE.outputs))
    for path in (*inputs.values(), *(outputs[name] for name in ("trajectories", "scores", "searches", "metrics"))):
        if not path.exists():
            raise InputError(f"the report needs {path.relative_to(workspace)}, which is not there; run the chain up to "
                             "the stage evaluate (`prm run`)")
    # A problem that the evaluation left out has no chain.
    asked = {trajectory.problem_id for trajectory in store.read_shards(Trajectory, outputs["trajectories"])}
    problems = {split: [problem for problem in given if problem.id in asked]
                for split, given in _read_problems(inputs).items()}
    tags = ["dev-base", *(f"{split}-{policy}" for split in _measured(problems) for policy in ("base", "trained"))]
    chains = load_chains(outputs["trajectories"], outputs["scores"],
                         {tag: problems[tag.split("-")[0]] for tag in tags})
    table = store.read_json(outputs["metrics"])
    of_the_model = {split: {name: value for key, value in table.items()
                            if (name := key.removeprefix(f"{split}/")) != key and _is_of_the_model(name)}
                    for split in _measured(problems)}
    overseer = overseer_of(config, workspace)
    evaluations, reason = _measure(config, chains, problems, of_the_model, overseer,
                                   _judge(chains, problems, overseer))
    io = StageIO(inputs, outputs, workspace, workspace)
    made_by = table["commit"], table["committed"]
    searches = [SearchRow.from_record(row) for row in store.read_json(outputs["searches"])]
    return _report(config, io, problems, chains, evaluations, reason, tree_section(inputs["evidence"]),
                   _measure_labels(inputs), searches, made_by)


def _report(
    config: Config, io: StageIO, problems: Mapping[str, Sequence[Problem]], chains: Mapping[str, list[Chain]],
    evaluations: Mapping[str, Evaluation], reason: str | None, trees: TreeSection, labels: LabelQuality,
    searches: Sequence[SearchRow], made_by: tuple[str, str],
) -> str:
    from prm_core.evaluation import conduct, stopping
    from prm_core.evaluation.headline import promise_lines
    from prm_core.evaluation.judged_chains import first_per_problem
    from prm_core.evaluation.protocol import STEP_CHAINS
    from prm_core.evaluation.report.page import ReportData, render
    from prm_core.evaluation.report.training import POLICY, REWARD_MODELS, curves
    from prm_core.labeling.rule_judge import overseer_of
    from prm_core.models.loading import model_version
    from prm_core.platform.workspace import data_hash

    training = curves({stage: store.read_json(io.inputs[key]) for stage, key in (
        (REWARD_MODELS, "prm_history"), (POLICY, "policy_history"))})
    base = first_per_problem(chains["test-base"], STEP_CHAINS)
    trained = [chain for chain in chains["test-trained"] if chain.step_scores is not None]
    evaluation = evaluations["test"]
    facts = [
        # Of the code and not of the run: the same commit gives the same page, byte for byte but for the latency.
        ("commit", made_by[0]), ("committed", made_by[1]), ("data", data_hash(io.inputs["test"].parent)),
        ("profile", config.profile), ("seed", str(config.seed)),
        ("test problems", str(len(problems["test"]))), ("chains a problem", str(config.evaluate.samples)),
        ("base policy", base[0].trajectory.policy), ("trained policy", chains["test-trained"][0].trajectory.policy),
        ("PRM", model_version(str(io.inputs["prm"]))), ("ORM", model_version(str(io.inputs["orm"]))),
        ("chain score", f"{config.evaluate.aggregate} of step scores"),
        ("PRM latency", f"{evaluation.numbers['prm/latency_ms_per_step']:.2f} ms a step, one chain at a time"),
    ]
    note = (f"The threshold was chosen once, for the best F1 on {len(problems['dev'])} dev problems." if reason is None
            else f"Threshold: {reason}.")
    overseer = overseer_of(config, io.workspace)
    rules = [] if overseer is None else conduct.rows(evaluation.figures, overseer)
    promises, missing = stopping.fit(chains["dev-base"])
    kept = stopping.figures(promises, chains["test-base"], "test") | stopping.left_out(missing)
    return render(ReportData(
        title="Evaluation on held-out problems", facts=facts, evaluation=evaluation, chains=base, trained=trained,
        shifted=evaluations.get("shifted"), problems=problems["test"], threshold_note=note,
        promises=promise_lines(promises, kept), rules=rules,
        training=training, labels=labels, searches=searches,
        shown=config.evaluate.shown_trajectories, bars=config.profile == "default",
        promote=config.promote, probe=store.read_json(io.inputs["probe"]), trees=trees, seed=config.seed,
    ))


def run(config: Config, io: StageIO) -> None:
    """Samples, judges, scores, measures, and writes metrics, plots, trajectories and the report.

    Raises InputError when a best-of-N asks for more chains than are sampled.
    """
    from dataclasses import asdict

    from prm_core.evaluation import stopping
    from prm_core.evaluation.headline import headline
    from prm_core.evaluation.judged_chains import save_scores
    from prm_core.evaluation.plots import write_plots
    from prm_core.evaluation.protocol import check_best_of
    from prm_core.evaluation.report.tree_drawing import tree_section
    from prm_core.evaluation.search_costs import compared
    from prm_core.labeling.rule_judge import overseer_of
    from prm_core.models.loading import load_tokenizer, policy_encoder
    from prm_core.platform.tracking import code_date, code_version, stage_run
    from prm_core.sampling.rollouts import without_long

    check_best_of(config.evaluate.best_of, config.evaluate.samples)
    # Before anything is sampled: a broken file is found in seconds.
    overseer = overseer_of(config, io.workspace)
    trees = tree_section(io.inputs["evidence"])
    labels = _measure_labels(io.inputs)
    given = _read_problems(io.inputs)
    encoder = policy_encoder(load_tokenizer(model_path(io.workspace, config.models.policy)), config.encoder)
    problems = {split: without_long(group, encoder) for split, group in given.items()}
    with stage_run(io.workspace, "evaluate", config, io.inputs) as tracked:
        chains, costs = _sample(config, io, problems)
        of_the_model = {split: {**figures, **costs[split]}
                        for split, figures in _score(config, io, problems, chains).items()}
        judged = _judge(chains, problems, overseer)
        evaluations, reason = _measure(config, chains, problems, of_the_model, overseer, judged)
        searched = _search(config, io, problems["test"], overseer)
        searches = _compare_searches(config, problems["test"], chains["test-base"], searched, encoder,
                                     judged.get("test-base"))
        store.write_json(io.outputs["searches"], [asdict(row) for row in searches])
        rows: list[Trajectory] = [chain.trajectory for group in chains.values() for chain in group]
        for index, start in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
            store.write_shard(io.outputs["trajectories"], index, Trajectory, rows[start : start + ROWS_PER_SHARD])
        save_scores(io.outputs["scores"], (chain for group in chains.values() for chain in group))
        write_plots(evaluations["test"], io.outputs["plots"])
        made_by = code_version(), code_date()
        store.write_text(io.outputs["report"], _report(config, io, problems, chains, evaluations, reason, trees, labels,
                                                       searches, made_by))
        table: dict[str, Any] = {
            "commit": made_by[0], "committed": made_by[1], "dev/n_problems": len(problems["dev"]),
            **{f"{split}/n_dropped_long": len(group) - len(problems[split]) for split, group in given.items()},
            **labels.flat(), **store.read_json(io.inputs["probe"])}
        promises, missing = stopping.fit(chains["dev-base"])
        for name, why in missing.items():
            log.warning("no %s is fitted: %s", name, why)
        table |= stopping.left_out(missing)
        for split, evaluation in evaluations.items():
            table |= evaluation.flat(split) | stopping.figures(promises, chains[f"{split}-base"], split)
        for row in compared(searches):
            table |= {f"test/{key}": value for key, value in row.flat().items()}
        tracked.log_metrics({key: value for key, value in table.items() if not isinstance(value, str)})
        for output in ("report", "plots"):
            tracked.log_artifact(io.outputs[output])
        promises.write(io.outputs["promises"])
        store.write_json(io.outputs["metrics"], table)
        store.write_json(io.outputs["headline"], headline(table))
        tracked.note_output(io.outputs["metrics"])


def check(config: Config) -> None:
    """Raises InputError for an N of best-of-N beyond the samples, an aggregation that is not registered, or a search
    method that the domain's environment does not let work."""
    from prm_core.domains import DOMAINS
    from prm_core.evaluation.protocol import check_best_of
    from prm_core.search.aggregate import AGGREGATIONS
    from prm_core.search.methods import check_environment

    check_best_of(config.evaluate.best_of, config.evaluate.samples)
    _ = AGGREGATIONS[config.evaluate.aggregate], AGGREGATIONS[config.serve.aggregate]
    for method in config.evaluate.search:
        check_environment(method, [config.domain], DOMAINS)


STAGE = Stage(
    inputs={
        "dev": "data/dev.jsonl",
        "test": "data/test.jsonl",
        "shifted": "data/shifted.jsonl",
        "models": "artifacts/warmup/models",
        "train": "data/train.jsonl",
        "human": "data/human",
        "generated": "artifacts/generate/trajectories",
        "labels": "artifacts/label/labels",
        "merged": "artifacts/label/merged",
        "calibration": "artifacts/calibrate/metrics.json",
        "evidence": "artifacts/label/evidence",
        "prm": "artifacts/train_prm/prm",
        "orm": "artifacts/train_prm/orm",
        "prm_history": "artifacts/train_prm/history.json",
        "probe": "artifacts/probe/metrics.json",
        "policy": "artifacts/train_policy/policy",
        "policy_history": "artifacts/train_policy/history.json",
    },
    outputs={
        "report": "artifacts/evaluate/report.html",
        "trajectories": "artifacts/evaluate/trajectories",
        "scores": "artifacts/evaluate/scores.jsonl",
        "searches": "artifacts/evaluate/searches.json",
        "plots": "artifacts/evaluate/plots",
        "promises": "artifacts/evaluate/promises.json",
        "metrics": "artifacts/evaluate/metrics.json",
        "headline": "artifacts/evaluate/headline.json",
    },
    # Rules that are questions ask the judge of `label`.
    params=("profile", "seed", "models", "sampling", "encoder", "generate", "evaluate", "search", "serve", "promote",
            "rules", "label"),
    run=run,
    check=check,
)
