"""`prm train`: a reward model from files of labelled chains, in any format of `prm data convert`."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prm_core.errors import InputError

if TYPE_CHECKING:
    from prm_core.config import Config
    from prm_core.formats import LabelledChain
    from prm_core.training.examples import Example

log = logging.getLogger(__name__)
# Kinds that learn labels of steps, which a teacher gives too.
GENERATIVE = "generative"
STEPWISE = ("process", GENERATIVE)
# Chains that share beginnings lie together, and are read once.
TAUGHT_TOGETHER = 1024


def train(
    files: Annotated[list[Path], typer.Argument(help="Labelled chains, or with --teacher any: JSON lines, JSON arrays "
                                                     "or Parquet.")],
    format_name: Annotated[str, typer.Option("--format", help="Their format: trl, prm800k, prm800k_flat, "
                                                              "math_shepherd, … (those of `prm data convert`).")],
    out: Annotated[Path, typer.Option(help="Folder for the model; it must not exist.")],
    profile: Annotated[str, typer.Option(help="Shipped profile or path of a YAML file: backbone, encoder, "
                                              "train_prm.")] = "prm800k-smollm2",
    backbone: Annotated[str | None, typer.Option(help="Causal LM, folder or hub id; default: the profile's "
                                                      "models.reward_backbone.")] = None,
    kind: Annotated[Literal["process", "outcome", "implicit", "generative"], typer.Option(
        help="process: step labels; outcome and implicit: outcomes; generative: step labels, for a verifier that "
             "writes checks.")] = "process",
    neutral: Annotated[Literal["right", "wrong"] | None, typer.Option(
        help="What a neutral rating counts as, where the format has them.")] = None,
    teacher: Annotated[str | None, typer.Option(
        help="Reward model whose scores are the labels, in place of the files': models:/prm@champion, "
             "runs:/ID/reward_model or a folder.")] = None,
    mask_after_error: Annotated[bool, typer.Option(help="Steps after a chain's first wrong one train nothing.")] = True,
    work: Annotated[Path | None, typer.Option(help="Folder for checkpoints, from which an interrupted run goes on; "
                                                   "default: OUT with .work after its name.")] = None,
    workspace: Annotated[Path, typer.Option(help="Folder whose MLflow store takes the run's curves.")] = Path("."),
) -> None:
    """Train a reward model on labelled chains and save it as a Hugging Face folder.

    With --teacher the chains need no labels: a process model is distilled from another one, of this project or another.

    Problems are held out to choose the weights and to calibrate the scores; beside the model, training.json tells what
    was trained on what, and the held-out figures. The folder scores with `prm score`, `prm evaluate` and
    `prm adversarial`, and a process model also loads with AutoModelForTokenClassification; one on a frozen backbone
    (train_prm.learning_rate 0) holds only what was trained and needs the backbone beside it. A profile with
    `launch: {processes: 2}` trains in two processes: two GPUs, or halves of a CPU.
    """
    from prm_core import config as configuration
    from prm_core.formats import FORMATS
    from prm_core.platform import environment, processes
    from prm_core.platform.environment import is_main
    from prm_core.training.reward.labelled import examples_of

    if out.exists() and is_main():
        raise InputError(f"--out {out}: exists; name a new folder or remove it")
    if len({file.resolve() for file in files}) < len(files):
        raise InputError("a file is named twice; name each once")
    reader = FORMATS[format_name]
    config = configuration.parse(
        configuration.resolve(environment.project_root() / configuration.PARAMS_FILE, profile), f"profile {profile}")
    if teacher is not None and kind not in STEPWISE:
        raise InputError(f"--teacher {teacher}: it says which steps are right, and a model of kind {kind} learns "
                         "outcomes; leave --kind out")
    # A verifier learns from what it writes itself, in one process.
    many = 1 if kind == GENERATIVE else config.launch.processes
    if processes.launch(many, [sys.executable, "-m", "prm_core.cli", *sys.argv[1:]]):
        return
    with processes.member():
        source = backbone or config.models.reward_backbone
        _meet(files, source, config)
        chains = itertools.chain.from_iterable(reader.read(file, neutral=neutral) for file in files)
        version = None
        if teacher is not None:
            chains, version = _taught(chains, teacher, config, workspace)
        examples = examples_of(chains, "process" if kind in STEPWISE else kind, mask_after_error=mask_after_error)
        settings = {"files": [str(file) for file in files], "format": format_name, "neutral": neutral,
                    "mask_after_error": mask_after_error, "profile": profile, "backbone": source, "teacher": version}
        folder = work or out.with_name(f"{out.name}.work")
        if kind == GENERATIVE:
            _train_verifier(source, examples, config, settings, out, folder, workspace)
        else:
            _train(kind, source, examples, config, settings, out, folder, workspace)


def _meet(files: list[Path], backbone: str, config: Config) -> None:
    from prm_core.models.loading import model_version, pick_device
    from prm_core.platform import processes, store

    if processes.count() > 1:
        facts = {**{str(file): store.digest(file) for file in files}, "the backbone": model_version(backbone),
                 "the profile": repr(config), "the code": store.code_digest()}
        processes.meet(facts, on_cpu=pick_device(config.models.device).type == "cpu")


def _taught(
    chains: Iterable[LabelledChain], name: str, config: Config, workspace: Path
) -> tuple[Iterator[LabelledChain], str]:
    """The chains with what a teacher says of their steps, in batches as they are read; and its version."""
    from prm_core.platform.progress import track
    from prm_core.scoring.foreign import load_any_scorer
    from prm_core.scoring.teacher import check_teacher, teach
    from prm_core.serving.model_registry import reward_model_folder

    scorer = load_any_scorer(reward_model_folder(name, workspace), device=config.models.device,
                             batch_size=config.serve.batch_size)
    check_teacher(scorer, name)

    def labelled() -> Iterator[LabelledChain]:
        left = iter(track(chains, "the teacher scores", unit="chain"))
        while batch := list(itertools.islice(left, TAUGHT_TOGETHER)):
            lessons = teach(scorer, [(one.asked, one.steps) for one in batch])
            silent = sum(set(lesson.targets) == {None} for lesson in lessons)
            if silent:
                log.warning("the teacher can judge no step of %d of %d chains, which are left out", silent, len(batch))
            yield from (dataclasses.replace(one, labels=lesson.targets)
                        for one, lesson in zip(batch, lessons, strict=True))

    return labelled(), scorer.version


def _train(
    kind: str, backbone: str, examples: list[Example], config: Config, settings: dict[str, Any], out: Path, work: Path,
    workspace: Path,
) -> None:
    import shutil

    from prm_core.models.encoder import Encoder
    from prm_core.platform import store, sums
    from prm_core.platform.environment import is_main
    from prm_core.platform.processes import wait_for_all
    from prm_core.platform.tracking import stage_run
    from prm_core.scoring.calibration import fit_calibrator
    from prm_core.scoring.domain import fit_domain
    from prm_core.scoring.scorer import save_reward_model
    from prm_core.training.checkpoint import replace_folder
    from prm_core.training.reward.recipe import held_out_scores, train_on

    work.mkdir(parents=True, exist_ok=True)
    data = {f"training_{number}": Path(file) for number, file in enumerate(settings["files"])}
    with stage_run(workspace, "train_prm", config, data) as tracked:
        # The whole path: the model may be scored with from another folder.
        name = str(Path(backbone).resolve()) if Path(backbone).is_dir() else backbone
        trained = train_on(kind, backbone, examples, [], config, work=work, report=tracked.log_metrics, name=name)
        # Whoever reads what another one removes is through.
        wait_for_all()
        if not is_main():
            return
        scores, targets = held_out_scores(trained)
        calibrator = fit_calibrator(scores, targets, config.calibrate.method, config.calibrate.min_labels)
        figures = {"loss": min(record["dev_loss"] for record in trained.history), **_held_out(scores, targets)}
        tracked.log_metrics({f"dev/{what}": value for what, value in figures.items()})
        precision = str(trained.model.precision)
        tracked.tag("precision", precision)
        staging = work / "model"
        shutil.rmtree(staging, ignore_errors=True)
        # As far as chains were trained on.
        length = min(trained.encoder.config.max_length, config.train_prm.row_tokens)
        known = Encoder(trained.encoder.tokenizer, dataclasses.replace(trained.encoder.config, max_length=length))
        domain = fit_domain(trained.model, known,
                            [(example.problem_id, example.prompt, example.steps) for example in examples])
        save_reward_model(trained.model, trained.encoder, calibrator, staging, domain)
        store.write_json(staging / "training.json", {
            **_told(settings), "kind": kind, "precision": precision, "config": dataclasses.asdict(config.train_prm),
            "counts": trained.counts, "held_out": figures, "history": trained.history,
        })
        sums.write_sums(staging)
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(out, staging)
    shutil.rmtree(work)
    log.info("%s: trained in %s, %s", out, precision,
             ", ".join(f"{what} {value:.4g}" for what, value in figures.items()))


def _train_verifier(
    backbone: str, examples: list[Example], config: Config, settings: dict[str, Any], out: Path, work: Path,
    workspace: Path,
) -> None:
    import shutil

    from prm_core.platform import store, sums
    from prm_core.platform.tracking import stage_run
    from prm_core.scoring.generative.scorer import save_generative
    from prm_core.training.checkpoint import replace_folder
    from prm_core.training.generative import train_verifier

    data = {f"training_{number}": Path(file) for number, file in enumerate(settings["files"])}
    with stage_run(workspace, "train_prm", config, data) as tracked:
        trained = train_verifier(backbone, examples, config, report=tracked.log_metrics)
        figures = _held_out(*zip(*trained.held_out, strict=True))
        tracked.log_metrics({f"dev/{what}": value for what, value in figures.items()})
        staging = work / "model"
        shutil.rmtree(staging, ignore_errors=True)
        save_generative(trained.scorer, staging)
        store.write_json(staging / "training.json", {
            **_told(settings), "kind": GENERATIVE, "config": dataclasses.asdict(config.train_prm.generative),
            "counts": trained.counts, "held_out": figures, "history": trained.history})
        sums.write_sums(staging)
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_folder(out, staging)
    shutil.rmtree(work)
    log.info("%s: %s", out, ", ".join(f"{what} {value:.4g}" for what, value in figures.items()))


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as a model's folder says them wherever it goes: files and folders of this machine by name and digest."""
    from prm_core.platform import store

    backbone = Path(settings["backbone"])
    files = [{"name": Path(file).name, "sha256": store.digest(Path(file))} for file in settings["files"]]
    return {**settings, "files": files, "profile": Path(settings["profile"]).name,
            "backbone": backbone.resolve().name if backbone.is_dir() else settings["backbone"]}


def _held_out(scores: Sequence[float], targets: Sequence[float]) -> dict[str, float]:
    """Figures of raw scores of held-out steps, or chains, whose targets are known."""
    from sklearn.metrics import roc_auc_score

    right = [target > 0.5 for target in targets]
    figures = {"targets": len(right), "share_right": sum(right) / len(right)}
    return figures | ({"auroc": float(roc_auc_score(right, scores))} if len(set(right)) == 2 else {})
