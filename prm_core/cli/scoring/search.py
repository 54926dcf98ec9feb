"""`prm search`: a policy and a reward model at work on problems, at a counted cost."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prm_core.errors import InputError

if TYPE_CHECKING:
    from prm_core.config import SearchConfig
    from prm_core.search.base import Found
    from prm_core.types import Problem, Trajectory


def read_problems(file: Path, domain: str) -> list[Problem]:
    """The problems of JSON lines with `prompt`, and where they have them `answer`, `id`, `domain` and `meta`."""
    from prm_core.domains import DOMAINS
    from prm_core.platform import store
    from prm_core.types import Problem

    found: dict[str, Problem] = {}
    for number, (where, record) in enumerate(store.read_json_lines(file)):
        problem = store.from_record(Problem, {"id": str(number), "domain": domain, "answer": "", "meta": {}} | record,
                                    where)
        if not problem.prompt.strip():
            raise InputError(f"{where}: `prompt` is empty; give the question")
        if problem.domain not in DOMAINS:
            raise InputError(f"{where}: unknown domain {problem.domain!r}; known: {', '.join(sorted(DOMAINS))}")
        if problem.id in found:
            raise InputError(f"{where}: the id {problem.id!r} is another problem's too; give each its own")
        found[problem.id] = problem
    if not found:
        raise InputError(f"{file}: holds no problems")
    return list(found.values())


def settings(given: SearchConfig, **options: float | None) -> SearchConfig:
    """The settings of `params.yaml` with the options that were given over them. Raises InputError for a value that is
    none."""
    over = {name: value for name, value in options.items() if value is not None}
    for name in ("threshold", "gain"):
        if name in over and not 0 <= over[name] <= 1:
            raise InputError(f"--{name} {over[name]:g}: must lie between 0 and 1")
    return dataclasses.replace(given, **over)


def chosen_record(found: Found, method: str, known: bool) -> Trajectory:
    """The chosen chain with what it cost in `meta`; without a known answer nobody can say whether it is right."""
    meta = {"search": {"method": method, "value": found.value, "drawn": found.drawn, "tokens": found.meter.flat()}}
    trajectory = dataclasses.replace(found.trajectory, meta=meta)
    return trajectory if known else dataclasses.replace(trajectory, outcome=None)


def summary(found: Sequence[Found], problems: Sequence[Problem], seconds: float) -> list[str]:
    """What came of it: accuracy where answers are known, tokens and seconds."""
    from prm_core.search.base import mean_cost

    known = [one for one, problem in zip(found, problems, strict=True) if problem.answer]
    lines = []
    if known:
        right = sum(bool(one.trajectory.outcome) for one in known)
        lines.append(f"right: {right} of {len(known)} ({right / len(known):.1%})")
    cost = mean_cost(found)
    lines.append(f"tokens a problem: {cost['total']:.0f} ({cost['generated']:.0f} sampled, {cost['read']:.0f} of "
                 f"prefixes, {cost['scored']:.0f} scored); {cost['without_reuse']:.0f} if nothing were kept")
    lines.append(f"{seconds:.1f} s for {len(found)} problems")
    return lines


def search(
    method: Annotated[str, typer.Argument(help="majority, best_of_n, weighted_majority, self_consistency_prm, "
                                          "adaptive_best_of_n, step_best_of_n, beam, dvts or blocks.")],
    out: Annotated[Path, typer.Option(help="JSONL for the chosen chains, as trajectories with their cost in `meta`.")],
    problems: Annotated[Path | None, typer.Option(help="JSONL with `prompt` and where known `answer`; default: the "
                                                  "workspace's test problems.")] = None,
    model: Annotated[str, typer.Option(help="Reward model: models:/prm@champion, runs:/ID/reward_model or a folder.")
                     ] = "models:/prm@champion",
    policy: Annotated[str | None, typer.Option(help="Folder or hub id of the policy; default: the workspace's base "
                                               "policy.")] = None,
    candidates: Annotated[int | None, typer.Option(min=1, help="Chains, or next steps of each beam.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Beams, or trees.")] = None,
    granularity: Annotated[int | None, typer.Option(min=1, help="Steps between two choices of `blocks`.")] = None,
    threshold: Annotated[float | None, typer.Option(help="A step that scores as much is taken at once.")] = None,
    back_offs: Annotated[int | None, typer.Option(min=0, help="Times that a step may be given up.")] = None,
    gain: Annotated[float | None, typer.Option(help="Of another chain, for which adaptive_best_of_n goes on.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of the policy.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many problems.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the workspace's.")] = None,
    workspace: Annotated[Path, typer.Option(help="Folder with params.yaml and the model store.")] = Path("."),
) -> None:
    """Choose an answer for each problem among chains, or among steps while they are written.

    Options that are left out are those of the section `search` in params.yaml. The methods are in docs/search.md. Both
    models' tokens are counted: what the policy samples, what it reads to go on from, what the reward model reads.

    Example:  prm search step_best_of_n --problems questions.jsonl --out chosen.jsonl
    """
    from prm_core import config as configuration
    from prm_core.domains import DOMAINS
    from prm_core.labeling.rule_judge import overseer_of
    from prm_core.platform import store
    from prm_core.sampling.backends import policy_for
    from prm_core.sampling.policy import load_policy
    from prm_core.sampling.rollouts import without_long
    from prm_core.scoring.foreign import load_any_scorer
    from prm_core.scoring.session import ScoringSession
    from prm_core.search.base import Tools
    from prm_core.search.methods import METHODS, search_all
    from prm_core.serving.model_registry import reward_model_folder
    from prm_core.stages.base import model_path

    chosen = METHODS[method]
    if out.is_dir():
        raise InputError(f"--out {out}: that is a folder; name a file")
    config = configuration.load(workspace)
    options: dict[str, Any] = {"candidates": candidates, "width": width, "granularity": granularity,
                               "threshold": threshold, "back_offs": back_offs, "gain": gain,
                               "temperature": temperature}
    asked = settings(config.search, **options)
    # Before models load: a bad line should not cost a minute.
    file = problems or workspace / "data/test.jsonl"
    if not file.is_file():
        raise InputError(f"{file}: there is no such file; name one with --problems, or a --workspace that has "
                         "data/test.jsonl")
    given = read_problems(file, config.domain)[:limit]
    writer = load_policy(policy, config) if policy else policy_for(
        "search", model_path(workspace, config.models.policy), config)
    scorer = load_any_scorer(reward_model_folder(model, workspace), device=config.models.device) if (
        chosen.scores) else None
    tools = Tools(writer, ScoringSession(scorer, writer.encoder) if scorer else None, DOMAINS, asked,
                  config.generate.max_new_tokens, config.generate.batch_size, overseer_of(config, workspace))
    kept = without_long(given, writer.encoder)
    start = time.perf_counter()
    found = search_all(method, kept, tools, config.seed if seed is None else seed, config.workers)
    seconds = time.perf_counter() - start
    store.write_jsonl(out, [chosen_record(one, method, bool(problem.answer))
                            for one, problem in zip(found, kept, strict=True)])
    for line in summary(found, kept, seconds):
        typer.echo(line)
    if tools.overseer is not None:
        broken = sum(map(bool, tools.broken([(problem, one.trajectory.steps)
                                             for one, problem in zip(found, kept, strict=True)])))
        typer.echo(f"break a rule: {broken} of {len(found)} ({broken / len(found):.1%})")
