"""Reward models that teach: a large one a small one, and a verifier that writes checks a model of one pass.

    python -m benchmarks.distillation DEFAULT… --what large --out benchmarks/results/distillation.json
    python -m benchmarks.distillation HARD… --what verifier --out benchmarks/results/distillation.json

Workspaces are finished runs of the embedded domain (`python -m benchmarks.robustness --work FOLDER` makes them), one a
seed; nothing in them is changed. What the result holds already of other workspaces or of the other part stays.

large: a backbone of twice the layers is warmed up on the run's worked solutions, and the PRM on it, from the run's
automatic labels, teaches one on the run's own backbone. The student sees chains of the base policy without any label.
verifier: one that writes checks is trained from the same automatic labels as the run's own PRM, and is measured beside
it; then it teaches a PRM of one pass. A PRM on the verifier's own language model says how much of its gain the writing
is. First-error F1 on test chains, thresholds chosen on dev chains, as stage evaluate does both.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.prm_embedded import Workspace
from benchmarks.report import Bar, parsed, write
from benchmarks.robustness_figures import first_error_f1
from prm_core.config import Config
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.evaluation import protocol
from prm_core.evaluation.judged_chains import Chain, compared, score_with_prm
from prm_core.evaluation.metrics import first_error
from prm_core.labeling.calibrate import measure_scores
from prm_core.labeling.human.labels import read_human
from prm_core.models.encoder import Encoder
from prm_core.models.saving import save_language_model
from prm_core.platform import store
from prm_core.sampling.policy import load_policy
from prm_core.sampling.rollouts import sample_trajectories
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.domain import fit_domain
from prm_core.scoring.scorer import ChainScorer, RewardScorer, load_scorer
from prm_core.scoring.teacher import teach
from prm_core.stages.base import model_path
from prm_core.stages.train_prm import calibrate_scores
from prm_core.training import warmup
from prm_core.training.examples import IGNORED, Example
from prm_core.training.generative import TrainedVerifier, train_verifier
from prm_core.training.reward.recipe import train_on
from prm_core.types import Trajectory

LAYERS, TIMED = 6, 100
PARTS = ("large", "verifier")
# What is asked.
LARGE, GAIN, KEPT, CHEAPER = 97.0, 5.0, 95.0, 20.0


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """A model on the test chains.

    Attributes:
        f1: of first errors, in percent.
        first: chain → its first error, -1 for none; of the chains that it scores.
        seconds: of the processor, a step.
        people: calibration error and count of steps people judged.
    """

    f1: float
    first: dict[str, int]
    seconds: float
    people: Mapping[str, float]

    def figures(self) -> dict[str, float]:
        """Without the single chains."""
        return {"f1": self.f1, "seconds_a_step": self.seconds, **self.people}


def measure(workspace: Workspace, scorer: ChainScorer) -> Measured:
    """A model beside the oracle, and beside the people's labels."""
    scored: dict[str, list[Chain]] = {}
    for split in ("dev", "test"):
        with tempfile.TemporaryDirectory() as work:
            scored[split] = score_with_prm(scorer, workspace.chains(f"{split}-base", split), workspace.problems[split],
                                           workspace.config.evaluate.aggregate, Path(work))
    threshold, _ = protocol.choose_threshold(scored["dev"], workspace.config.serve.threshold)
    human = read_human(workspace.folder / "data/human")
    prompts = {problem.id: problem.prompt for problem in (*workspace.problems["train"], *human.problems)}
    said = scorer.score([(prompts[chain.problem_id], chain.steps) for chain in human.trajectories])
    # Chains that somebody corrupted are another population, the only one here.
    scores = {chain.id: score.step_scores for chain, score in zip(human.trajectories, said, strict=True)}
    people = measure_scores(scores, human.labels, {chain.id: chain.policy for chain in human.trajectories},
                            workspace.config.calibrate.bins)
    return Measured(
        100 * first_error_f1(scored["test"], len(workspace.problems["test"]), threshold),
        {chain.trajectory.id: first_error(compared(chain, chain.step_scores), threshold)
         for chain in scored["test"] if chain.step_scores}, seconds_a_step(workspace, scorer), people)


def seconds_a_step(workspace: Workspace, scorer: ChainScorer) -> float:
    """Processor time of a step when some test chains, of as many problems, are scored together."""
    chains = [chain for chain in workspace.chains("test-base", "test") if chain.trajectory.steps]
    some = chains[:: max(len(chains) // TIMED, 1)][:TIMED]
    pairs = [(workspace.problems["test"][chain.problem].prompt, chain.trajectory.steps) for chain in some]
    scorer.score(pairs[:1])
    start = time.process_time()
    scorer.score(pairs)
    return (time.process_time() - start) / sum(len(steps) for _, steps in pairs)


def train(backbone: str, examples: Sequence[Example], config: Config) -> RewardScorer:
    """A calibrated PRM, as stage train_prm makes it of such examples."""
    with tempfile.TemporaryDirectory() as work:
        trained = train_on("process", backbone, examples, [], config, work=Path(work), report=lambda *_: None)
    known = [(example.problem_id, example.prompt, example.steps) for example in examples]
    raw = RewardScorer(trained.model, trained.encoder, Calibrator("identity", 0), "", config.serve.batch_size)
    return RewardScorer(trained.model, trained.encoder, calibrate_scores(raw, trained.dev, config), "",
                        config.serve.batch_size, fit_domain(trained.model, trained.encoder, known))


def unlabelled(workspace: Workspace, samples: int) -> list[tuple[str, Trajectory]]:
    """New chains of the base policy on all training problems, each with its prompt."""
    config = workspace.config
    policy = load_policy(model_path(workspace.folder, config.models.policy), config)
    prompts = {problem.id: problem.prompt for problem in workspace.problems["train"]}
    drawn = sample_trajectories(
        policy, workspace.problems["train"], DOMAINS, samples=samples, temperature=config.generate.temperature,
        max_new_tokens=config.generate.max_new_tokens, batch_size=config.generate.batch_size, seed=config.seed,
        prefix="unlabelled")
    return [(prompts[chain.problem_id], chain) for chain in drawn]


def taught(teacher: ChainScorer, chains: Sequence[tuple[str, Trajectory]]) -> list[Example]:
    """The chains with what a teacher says of them."""
    lessons = teach(teacher, [(prompt, chain.steps) for prompt, chain in chains])
    return [Example(chain.problem_id, prompt, chain.steps,
                    tuple(IGNORED if target is None else target for target in lesson.targets))
            for (prompt, chain), lesson in zip(chains, lessons, strict=True)]


def warm_up(workspace: Workspace, layers: int, work: Path) -> Path:
    """A backbone of so many layers, warmed up as the run's own; kept in `work`."""
    folder = work / f"{workspace.folder.name}-layers-{layers}"
    if not folder.exists():
        config = dataclasses.replace(workspace.config, warmup=dataclasses.replace(
            workspace.config.warmup, layers=layers, policy_accuracy=0.0, backbone_accuracy=0.0,
            eval_every=workspace.config.warmup.max_updates))
        problems = store.read_jsonl(type(workspace.problems["train"][0]), workspace.folder / "data/warmup.jsonl")
        backbone = model_path(workspace.folder, workspace.config.models.reward_backbone)
        encoder: Encoder = load_policy(backbone, config).encoder
        found = warmup.train(config, encoder, problems, lambda model: 0.0, work / f"{folder.name}.work",
                             lambda *_: None)
        found.backbone.rename(folder)
    return folder


def measure_large(workspace: Workspace, work: Path, samples: int) -> dict[str, Any]:
    """A model on twice the layers, its student, and the run's own PRM."""
    config, backbone = workspace.config, model_path(workspace.folder, workspace.config.models.reward_backbone)
    _, labelled = workspace.examples()["auto"]
    teacher = train(str(warm_up(workspace, LAYERS, work)), labelled, config)
    lessons = taught(teacher, unlabelled(workspace, samples))
    found = {"teacher": measure(workspace, teacher), "student": measure(workspace, train(backbone, lessons, config)),
             "own": measure(workspace, load_scorer(workspace.folder / "artifacts/train_prm/prm", device="cpu"))}
    return {"chains": len(lessons), **{name: one.figures() for name, one in found.items()},
            "kept": 100 * found["student"].f1 / found["teacher"].f1}


def measure_verifier(workspace: Workspace, work: Path, samples: int) -> dict[str, Any]:
    """A verifier, the run's own PRM, a PRM on the verifier's language model, and the verifier's student."""
    config = workspace.config
    _, labelled = workspace.examples()["auto"]
    verifier: TrainedVerifier = train_verifier(
        model_path(workspace.folder, config.models.reward_backbone), labelled, config, report=lambda *_: None)
    written = work / f"{workspace.folder.name}-verifier"
    save_language_model(verifier.scorer.model, verifier.scorer.encoder, written)
    lessons = taught(verifier.scorer, unlabelled(workspace, samples))
    models = {
        "verifier": verifier.scorer, "scalar": load_scorer(workspace.folder / "artifacts/train_prm/prm", device="cpu"),
        "scalar_on_its_model": train(str(written), labelled, config),
        "student": train(str(written), lessons, config),
        "student_on_backbone": train(model_path(workspace.folder, config.models.reward_backbone), lessons, config)}
    found = {name: measure(workspace, scorer) for name, scorer in models.items()}
    one, other = found["verifier"].first, found["scalar"].first
    agree = statistics.mean(one[chain] == other[chain] for chain in one.keys() & other.keys())
    return {"counts": verifier.counts, **{name: one.figures() for name, one in found.items()},
            "agreement": 100 * agree, "gain": found["verifier"].f1 - found["scalar"].f1,
            "kept": 100 * found["student"].f1 / found["verifier"].f1,
            "cheaper": found["verifier"].seconds / found["student"].seconds}


def bars(runs: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Median, worst and best over the workspaces; the bars are held to the median."""
    asked: list[tuple[str, str, str, float]] = [
        ("large", "kept", f"PRM of {LAYERS} layers taught to the run's own backbone: F1 of the teacher, %", LARGE),
        ("verifier", "gain", "verifier that writes checks over the scalar PRM: points of F1", GAIN),
        ("verifier", "kept", "student of the verifier: F1 of its teacher, %", KEPT),
        ("verifier", "cheaper", "student of the verifier: times cheaper a step", CHEAPER),
    ]
    found = []
    for part, figure, name, bar in asked:
        values = [run[part][figure] for run in runs.values() if part in run]
        if values:
            middle = statistics.median(values)
            found.append(Bar(f"{name} (median of {len(values)}, worst, best)", middle, min(values), max(values),
                             f">= {bar:g}", middle >= bar))
    return found


MEASURES: dict[str, Callable[[Workspace, Path, int], dict[str, Any]]] = {
    "large": measure_large, "verifier": measure_verifier}


def main() -> None:
    """Measures what was asked of each workspace; writes and prints the result after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation")
    parser.add_argument("workspaces", nargs="+", type=Path, help="finished runs, one a seed")
    parser.add_argument("--what", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--samples", type=int, default=2, help="unlabelled chains of each training problem")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder for large backbones, which are kept there")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, or to add to")
    given = parsed(parser)
    import torch

    torch.set_num_threads(given.threads)
    before = store.read_json(given.out) if given.out.exists() else {}
    runs: dict[str, dict[str, Any]] = before.get("runs", {})
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for folder in given.workspaces:
            try:
                workspace = Workspace.read(folder)
            except InputError as error:
                raise SystemExit(f"error: {error}") from None
            for part in given.what:
                runs.setdefault(folder.name, {})[part] = MEASURES[part](workspace, work, given.samples)
                write(given, bars(runs), runs=runs)


if __name__ == "__main__":
    main()
