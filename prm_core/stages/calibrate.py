"""Stage `calibrate`: merged labels against human labels, the training set of the reward models, the review queue."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping
from pathlib import Path

from prm_core.config import Config
from prm_core.errors import GateError
from prm_core.labeling.calibrate import (
    Calibration,
    calibrate,
    calibrated_labels,
    join_human,
    tabulate,
    training_set,
)
from prm_core.labeling.human.labels import chain_digests, read_human
from prm_core.labeling.human.population import OTHER, POLICY, other_authors
from prm_core.platform import store, tracking
from prm_core.review.queue import review_queue
from prm_core.stages.base import Stage, StageIO
from prm_core.types import Problem, StepLabel, Trajectory

log = logging.getLogger(__name__)

ROWS_PER_SHARD = 100_000
SERIES = {"before": "as labelled", "after": "calibrated (held out)"}
CHAINS = {POLICY: "the policy's own chains", OTHER: "another population"}


def run(config: Config, io: StageIO) -> None:
    """Fits and measures the calibrator, writes the training set and the review queue.

    Raises InputError when a trajectory's problem is not in the workspace's data; GateError when no label is left to
    train on.
    """
    settings = config.calibrate
    merged = store.read_shards(StepLabel, io.inputs["passed"])
    generated = store.read_shards(Trajectory, io.inputs["trajectories"])
    human = read_human(io.inputs["human"])
    problems = {p.id: p for p in (*store.read_jsonl(Problem, io.inputs["problems"]), *human.problems)}

    labels = store.read_shards(StepLabel, io.inputs["labels"])
    evidence = tabulate(merged, labels)
    joined = join_human(evidence, human.labels)
    digests = chain_digests(generated, problems)
    human_digests = chain_digests(human.trajectories, problems)
    others = other_authors(human.trajectories, human_digests, generated, digests.values())
    calibration = calibrate(joined, settings, config.seed, others)
    calibrated = calibrated_labels(merged, evidence, calibration.map)
    reviewed = set(human_digests.values())
    rows, lost = training_set(calibrated, digests, reviewed, settings.min_confidence)
    for reason, count in {**joined.counts, **lost}.items():
        log.info("%s: %d", reason, count)
    if not rows:
        raise GateError(f"no label is left to train on; of {len(merged)} that passed validation, by reason: {lost}. "
                        "Lower calibrate.min_confidence, or see artifacts/label/metrics.json for why labels are "
                        "undecided or unsure")

    store.write_json(io.outputs["calibrator"], {
        "merged": calibration.map.calibrator.to_dict(),
        "stack": calibration.map.stack.to_dict() if calibration.map.stack else None,
        "strategies": {name: one.to_dict() for name, one in calibration.strategies.items()},
    })
    for index, start in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        store.write_shard(io.outputs["training_set"], index, StepLabel, rows[start : start + ROWS_PER_SHARD])
    unreviewed = [t for t in generated if digests[t.id] not in reviewed]
    # What people have answered about these chains is spent.
    known = set(digests.values())
    answered = {(row.trajectory_id, row.step_index) for row in human.labels
                if human_digests[row.trajectory_id] in known}
    budget = max(round(settings.review_share * sum(len(t.steps) for t in generated)) - len(answered), 0)
    queue = review_queue(calibrated, labels, unreviewed, problems, budget=budget, seed=config.seed)
    store.write_jsonl(io.outputs["review_queue"], queue)
    authors = ", ".join(sorted(set(others.values())))
    _write_plots(calibration, authors, io.outputs["plots"])
    figures = calibration.metrics | _error_figures(calibration, store.read_json(io.inputs["label_metrics"]))
    for population in CHAINS:
        log.info("%s", _in_words(figures, population))
    metrics = {
        **joined.counts, **figures,
        "calibrated": int(calibration.map.method != "identity"),
        "training_rows": len(rows), "training_chains": len({row.trajectory_id for row in rows}),
        "training_correct_share": sum(bool(row.is_correct) for row in rows) / len(rows),
        **lost, "review_queue": len(queue),
    }
    with tracking.stage_run(io.workspace, "calibrate", config, io.inputs) as tracked:
        tracked.log_metrics(metrics)
        tracked.log_artifact(io.outputs["plots"])
    store.write_json(io.outputs["metrics"], {**metrics, "method": calibration.map.method,
                                             "identity_reason": calibration.map.calibrator.reason})


def _error_figures(calibration: Calibration, labelled: Mapping[str, float]) -> dict[str, float]:
    """How wrong the merged labels of the policy's chains are: shares of chains by the merge's own account, as the label
    stage's figures have it, and of steps by what people say; each where it is known."""
    names = ("label_error", "label_error_low", "label_error_high")
    figures = {f"{POLICY}/{name}": labelled[key] for name in names if (key := f"train/merged/{name}") in labelled}
    if (error := calibration.error) is not None:
        figures |= {f"{POLICY}/label_error_human": error.share, f"{POLICY}/label_error_human_low": error.low,
                    f"{POLICY}/label_error_human_high": error.high, f"{POLICY}/label_error_human_labels": error.labels}
    return figures


def _in_words(figures: Mapping[str, float], population: str) -> str:
    """What is known of the labels of a population of chains."""
    said = [f"{figures[f'{population}/human_labels']:.0f} human labels"]
    if f"{population}/ece_before" in figures:
        before, after = (figures[f"{population}/ece_{series}"] for series in SERIES)
        said.append(f"calibration error {before:.4f} as labelled, {after:.4f} calibrated")
    for name, of in (("label_error", "of the chains wrong by the merge's own estimate"),
                     ("label_error_human", "of the steps wrong by people")):
        if (key := f"{population}/{name}") in figures:
            share, low, high = (figures[key + end] for end in ("", "_low", "_high"))
            said.append(f"{share:.1%} {of} (95 % interval {low:.1%} to {high:.1%})")
    return f"labels on {CHAINS[population]}: {'; '.join(said)}"


def _write_plots(calibration: Calibration, authors: str, folder: Path) -> None:
    """reliability.csv for `dvc plots` and reliability.png for people, before and after, each population apart."""
    lines = ["series,mean_probability,observed_share,count"]
    for population, curves in calibration.curves.items():
        for series, curve in curves.items():
            lines += [f"{population}: {SERIES[series]},{b.mean_probability!r},{b.observed_share!r},{b.count}"
                      for b in curve]
    store.write_text(folder / "reliability.csv", "\n".join(lines) + "\n")

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    populations = list(calibration.curves) or [POLICY]
    figure, panels = plt.subplots(1, len(populations), figsize=(6 * len(populations), 7), layout="constrained",
                                  squeeze=False)
    for population, axes in zip(populations, panels[0], strict=True):
        axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", linewidth=1, label="perfect")
        for series, curve in calibration.curves.get(population, {}).items():
            ece, labels = calibration.metrics[f"{population}/ece_{series}"], sum(b.count for b in curve)
            x, y = [b.mean_probability for b in curve], [b.observed_share for b in curve]
            line, = axes.plot(x, y, linewidth=1.5, label=f"{SERIES[series]}: ECE {ece:.3f}")
            # Area of a dot in proportion to its share of the labels.
            axes.scatter(x, y, s=[10 + 500 * b.count / labels for b in curve], color=line.get_color(), alpha=0.45)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal",
                 xlabel="probability that the step is right", ylabel="share of steps that are right")
        axes.set_title(_title(calibration, population, authors), fontsize=10)
        axes.grid(alpha=0.25)
        axes.legend(loc="upper left", frameon=False)
    figure.savefig(folder / "reliability.png", dpi=120)
    plt.close(figure)


def _title(calibration: Calibration, population: str, authors: str) -> str:
    """What a panel shows, and of which chains."""
    before, after = (calibration.metrics.get(f"{population}/ece_{series}") for series in SERIES)
    method = calibration.map.method
    if before is None or after is None:
        said = "Merged labels against people"
    elif method == "identity":
        said = f"The labels' calibration error is {before:.4f}"
    else:
        way = "lowers" if after < before else "does not lower"
        said = f"Calibration ({method}) {way} the labels' error: {before:.4f} to {after:.4f}"
    chains = CHAINS[population] + (f" ({authors})" if population == OTHER else "")
    chains = f"{chains}, {calibration.metrics[f'{population}/human_labels']:.0f} human labels"
    return f"{said}\n{textwrap.shorten(chains, 75, placeholder=' …')}"


STAGE = Stage(
    inputs={
        "gate": "artifacts/validate_gate/passed.json",
        "passed": "artifacts/validate/passed",
        "labels": "artifacts/label/labels",
        "label_metrics": "artifacts/label/metrics.json",
        "trajectories": "artifacts/generate/trajectories",
        "problems": "data/train.jsonl",
        "human": "data/human",
    },
    outputs={
        "training_set": "artifacts/calibrate/training_set",
        "calibrator": "artifacts/calibrate/calibrator.json",
        "review_queue": "artifacts/calibrate/review_queue.jsonl",
        "plots": "artifacts/calibrate/plots",
        "metrics": "artifacts/calibrate/metrics.json",
    },
    params=("seed", "calibrate"),
    run=run,
)
