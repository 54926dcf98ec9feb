"""Does a reward model that learns from what it serves close the gap that a shifted stream opens, and nothing worse?

    python -m benchmarks.adaptation WORKSPACE… --others WORKSPACE… [--quick] --out benchmarks/results/adaptation.json

On finished runs of the default profile, one a seed, and as many of its level hard; each of the former gets a folder of
its own under --work, where a part that was measured is not measured again. The stream: problems of level hard (phrases,
names and facts that no training of the champion saw), answered by the base policy of the other run. Three rounds;
agents tell how all trajectories ended; people, played by the oracle, judge 2 % of the steps. F1 is that of the first
error on questions of the stream that nothing was trained on; the gap is to a model trained by the same recipe on the
oracle's verdict on every step of the same traffic. Served F1 is at the threshold that is served with. The gap is that
of F1 at each model's own threshold, chosen on other questions: at one for all it is mostly about where scores lie, and
a model trained on gold loses ten points by that alone.

- alike: people are asked about any step alike, with twice as many labels: active selection needs at most half of that.
- poisoned: one of five reviewers says the contrary throughout; false success: three of ten agents tell success of
  whatever they did.
- bias: of eight chains of a shifted question, as the evaluation scored them, the model has the best carried out, and
  one time in five any; the share that succeeds of all eight is estimated from those, ten times.
- kills: a small round killed at 20 random moments by SIGKILL, in a process of its own, and run again.
- withdrawal: after the rounds a trajectory is withdrawn; files that still hold its texts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.adaptation_service import (
    BEGIN,
    Piece,
    Service,
    champion,
    f1,
    gold_reference,
    prepare,
    stream,
)
from benchmarks.alarms import read
from benchmarks.report import Bar, parsed, write
from prm_core import config as configuration
from prm_core.adaptation import loop, measure
from prm_core.adaptation.rounds import rounds
from prm_core.adaptation.traffic import weighted_share
from prm_core.adaptation.withdrawal import forget
from prm_core.config import Config
from prm_core.platform import store, tracking
from prm_core.scoring.scorer import RewardScorer, load_scorer
from prm_core.serving import model_registry
from prm_core.serving.drift.outcomes import trajectory_id
from prm_core.serving.drift.withdrawn import Withdrawn

ROUNDS, LABELS = 3, 0.02
QUESTIONS, TEST = 500, 1000
KILLS, ESTIMATES = 20, 10
BEST_OF, EXPLORED = 8, 0.2
SCENARIOS: dict[str, tuple[float, dict[str, Any]]] = {
    "adapted": (1.0, {}), "alike, twice the labels": (2.0, {"alike": True}),
    "poisoned": (1.0, {"false_reviewers": 1}), "false success": (1.0, {"false_agents": 0.3}),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. Attributes: questions: of a round; test: of the stream, held out; scenarios: which."""

    questions: int
    test: int
    scenarios: Sequence[str]


def remembered(path: Path, make: Callable[[], Any]) -> Any:
    """What a part came to, from its file where it was measured before."""
    if not path.exists():
        store.write_json(path, make())
    return store.read_json(path)


def old_f1(scorer: RewardScorer, workspace: Path, config: Config) -> float:
    """First-error F1 in points on the evaluation's test chains, at the threshold that is served with."""
    old = measure.old_chains(workspace, "steps")
    pieces = [Piece(old.problems["test"][one.problem], one.trajectory, one.gold or ()) for one in old.chains["test"]]
    return f1(scorer, pieces, config.serve.threshold)["f1"]


def adapted(
    base: Path, folder: Path, pieces: Sequence[Piece], plan: Plan, name: str, served: dict[str, float]
) -> dict[str, Any]:
    """Three rounds of a scenario: F1 on new and old chains, of the champion after each and of each challenger.

    Args:
        served: of the first champion, as `f1` has it.
    """
    times, how = SCENARIOS[name]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    service = Service(folder, {"min_trajectories": 20, "min_labels": 10, "review_share": LABELS * times}, **how)
    config, test = service.config, pieces[ROUNDS * plan.questions :]
    steps, found = 0, []
    for number in range(ROUNDS):
        part = pieces[number * plan.questions : (number + 1) * plan.questions]
        steps += sum(len(one.gold) for one in part)
        service.serve(part)
        done = service.adapt()
        one = rounds(folder, config)[-1]
        won, figures = done.state == loop.PROMOTED, store.read_json(one.figures)
        model = load_scorer(model_registry.reward_model_folder(str(done.version), folder), device="cpu")
        challenger = f1(model, test, config.serve.threshold)
        served = challenger if won else served
        found.append({"state": done.state, "reason": done.reason, **served,
                      **{f"challenger_{name}": value for name, value in challenger.items()},
                      "old_f1": 100 * figures[f"old/{'challenger' if won else 'champion'}/f1"]["value"],
                      "labels": len(one.evidence()[0]), "trust": store.read_json(one.lineage)["trust"],
                      "figures": figures})
    return {"rounds": found, "steps": steps, "labels": found[-1]["labels"]}


def bias(workspace: Path, seed: int) -> dict[str, Any]:
    """Whether the share of success estimated from what the model chose has the truth in its interval, several times: on
    the base policy's chains of the shifted problems, as the evaluation scored them."""
    groups: dict[int, list[tuple[float, bool]]] = {}
    for one in read(workspace)["shifted-base"]:
        if one.step_scores and len(groups.setdefault(one.problem, [])) < BEST_OF:
            groups[one.problem].append((min(one.step_scores), one.right))
    # Each question has as many to choose among, so that a trajectory's share of the truth is that of its question.
    whole = [group for group in groups.values() if len(group) == BEST_OF]
    truth = statistics.fmean(right for group in whole for _, right in group)
    inside, plain, weighed = 0, [], []
    for number in range(ESTIMATES):
        rng = random.Random(f"bias/{seed}/{number}")
        hits, chance = [], []
        for group in whole:
            best = max(range(BEST_OF), key=lambda at, group=group: group[at][0])
            chosen = rng.randrange(BEST_OF) if rng.random() < EXPLORED else best
            hits.append(group[chosen][1])
            chance.append(EXPLORED / BEST_OF + (1 - EXPLORED) * (chosen == best))
        found = weighted_share(hits, chance, [str(at) for at in range(len(whole))], number)
        inside += found.low <= truth <= found.high
        plain.append(statistics.fmean(hits))
        weighed.append(found.value)
    return {"questions": len(whole), "truth": truth, "inside": inside, "plain": statistics.fmean(plain),
            "weighed": statistics.fmean(weighed)}


def kills(base: Path, folder: Path, pieces: Sequence[Piece], plan: Plan, count: int) -> dict[str, Any]:
    """How many of so many rounds that were killed, each at a random moment, came to what an unharmed one did."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder / "begun")
    # A small round has the same parts.
    service = Service(folder / "begun", {"min_trajectories": 20, "min_labels": 5, "review_share": LABELS,
                                         "replay": 0.1})
    service.serve(pieces[: min(plan.questions, 100)])
    now = BEGIN + 86400
    loop.adapt(folder / "begun", service.config, now)
    service.review()

    def run(copy: Path, seconds: float | None) -> bool:
        """In a process of its own; whether it came to its end."""
        child = os.fork()
        if not child:
            try:
                loop.adapt(copy, service.config, now, go=True)
            finally:
                os._exit(0)
        until = time.monotonic() + seconds if seconds is not None else None
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if until is not None and time.monotonic() >= until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return False
            time.sleep(0.01)
        return True

    def outcome(copy: Path) -> dict[str, Any]:
        (one,) = rounds(copy, service.config)
        known = tracking.connect(copy).search_model_versions(f"name = '{service.config.register.model_name}'")
        uri = store.read_json(one.version)["uri"]
        return {"model": store.digest(model_registry.reward_model_folder(uri, copy)),
                "versions": sorted(int(v.version) for v in known),
                **{path.name: store.read_json(path) for path in (one.figures, one.lineage, one.version, one.decision)}}

    shutil.copytree(folder / "begun", folder / "whole")
    began = time.monotonic()
    run(folder / "whole", None)
    seconds, expected = time.monotonic() - began, outcome(folder / "whole")
    equal, hit, rng = 0, 0, random.Random(service.config.seed)
    for number in range(count):
        copy = folder / f"killed-{number}"
        shutil.copytree(folder / "begun", copy)
        hit += not run(copy, rng.random() * seconds)
        run(copy, None)
        equal += outcome(copy) == expected
        shutil.rmtree(copy)
    return {"rounds": count, "killed": hit, "equal": equal}


def withdrawal(folder: Path, config: Config, pieces: Sequence[Piece]) -> dict[str, Any]:
    """The files of a workspace that hold the texts of a trajectory after it was withdrawn, outside the chain's own."""
    import pyarrow.parquet as pq

    # One whose question is nobody else's.
    piece = next(one for one in pieces if sum(other.problem.prompt == one.problem.prompt for other in pieces) == 1)

    def holding() -> list[str]:
        found = []
        for path in folder.rglob("*"):
            if path.is_file() and "/.stream/" not in str(path):
                said = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_bytes().decode(
                    errors="replace")
                if piece.problem.prompt in said:
                    found.append(str(path.relative_to(folder)))
        return found

    before = holding()
    done = forget(folder, config, Withdrawn(frozenset([trajectory_id(piece.problem.prompt, piece.trajectory.steps)])))
    return {"before": len(before), "after": len(holding()), "versions": done.versions}


def measured(workspace: Path, other: Path, work: Path, plan: Plan, count: int) -> dict[str, Any]:
    """The figures of a workspace, served with what the other run's policy does."""
    base = prepare(workspace, work / "base")
    config, pieces = configuration.load(base), stream(base, other, ROUNDS * plan.questions + plan.test)
    test, traffic = pieces[ROUNDS * plan.questions :], pieces[: ROUNDS * plan.questions]

    def ends() -> dict[str, Any]:
        first = champion(base, config)[1]
        best = gold_reference(base, config, traffic, work / "gold")
        return {"champion": f1(first, test, config.serve.threshold), "gold": f1(best, test, config.serve.threshold),
                "champion_old": old_f1(first, base, config), "gold_old": old_f1(best, base, config)}

    made: dict[str, Any] = {"workspace": workspace.name, **remembered(work / "ends.json", ends)}
    first, gold = made["champion"], made["gold"]
    for name in plan.scenarios:
        folder = work / name.split(",")[0].replace(" ", "-")
        made[name] = remembered(work / f"{folder.name}.json",
                                lambda folder=folder, name=name: adapted(base, folder, pieces, plan, name, first))
        last = made[name]["rounds"][-1]
        made[name] |= {key.replace("f1", "closed"): (last[key] - first[key]) / (gold[key] - first[key])
                       for key in first}
    made["bias"] = remembered(work / "bias.json", lambda: bias(workspace, config.seed))
    made["withdrawal"] = remembered(work / "withdrawal.json", lambda: withdrawal(work / "adapted", config, traffic))
    if count:
        made["kills"] = remembered(work / "kills.json", lambda: kills(base, work / "kills", pieces, plan, count))
    return made


def bars(found: Sequence[dict[str, Any]]) -> list[Bar]:
    """Each bar, the median and the worst of the workspaces."""
    made = []

    def add(name: str, values: Sequence[float], asked: str, worst: Callable[[Sequence[float]], float],
            holds: Callable[[float], bool]) -> None:
        for label, put_together in (("median", statistics.median), ("worst", worst)):
            value = float(put_together(values))
            made.append(Bar(f"{name}, {label} of {len(values)}", value, min(values), max(values), asked, holds(value)))

    add("share of the gap closed after three rounds with 2 % labels, each model at its own threshold",
        [one["adapted"]["closed_chosen"] for one in found], ">= 0.7", min, lambda value: value >= 0.7)
    add("... at the served threshold", [one["adapted"]["closed"] for one in found], "reported", min, lambda value: True)
    add("F1 on the old chains less the first champion's, points",
        [one["adapted"]["rounds"][-1]["old_f1"] - one["champion_old"] for one in found], ">= -1", min,
        lambda value: value >= -1)
    alike = [one for one in found if "alike, twice the labels" in one]
    if alike:
        add("F1 of active labels less that of twice as many alike, points, each model at its own threshold",
            [one["adapted"]["rounds"][-1]["f1_chosen"] - one["alike, twice the labels"]["rounds"][-1]["f1_chosen"]
             for one in alike], ">= 0", min, lambda value: value >= 0)
    for name in ("poisoned", "false success"):
        if rows := [one for one in found if name in one]:
            add(f"{name}: lowest F1 served less the first champion's, points",
                [min(row["f1"] for row in one[name]["rounds"]) - one["champion"]["f1"] for one in rows], ">= -1", min,
                lambda value: value >= -1)
    add("estimates of success from self-selected traffic whose interval holds the truth, of 10",
        [one["bias"]["inside"] for one in found], ">= 9", min, lambda value: value >= 9)
    add("files that hold a withdrawn trajectory's question", [one["withdrawal"]["after"] for one in found], "0", max,
        lambda value: value == 0)
    if rows := [one for one in found if "kills" in one]:
        add("killed rounds that came to what an unharmed one did, of those killed",
            [one["kills"]["equal"] / one["kills"]["rounds"] for one in rows], "1", min, lambda value: value == 1)
    return made


def main() -> None:
    """Measures, writes the JSON file and prints the table, after each workspace."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation")
    parser.add_argument("workspaces", type=Path, nargs="+", help="finished runs of the default profile, one a seed")
    parser.add_argument("--others", type=Path, nargs="+", required=True, help="finished runs of level hard, as many")
    parser.add_argument("--quick", action="store_true", help="fewer questions, the first scenario alone")
    parser.add_argument("--kills", type=int, help=f"of the first workspace; default: {KILLS}, with --quick none")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="of a round")
    parser.add_argument("--test", type=int, default=TEST, help="questions that F1 is measured on")
    parser.add_argument("--scenarios", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS))
    parser.add_argument("--work", type=Path, help="where parts that were measured are kept; default: nowhere")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    given = parsed(parser)
    if len(given.others) != len(given.workspaces):
        parser.error(f"{len(given.workspaces)} workspaces and {len(given.others)} others; give one of each a seed")
    plan = Plan(100, 200, ["adapted"]) if given.quick else Plan(given.questions, given.test, given.scenarios)
    kills_at_first = given.kills if given.kills is not None else 0 if given.quick else KILLS
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        found: list[dict[str, Any]] = []
        for path, other in zip(given.workspaces, given.others, strict=True):
            found.append(measured(path, other, work / path.name, plan, 0 if found else kills_at_first))
            write(given, bars(found), workspaces=json.loads(json.dumps(found)))


if __name__ == "__main__":
    main()
