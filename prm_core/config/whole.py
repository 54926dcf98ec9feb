"""Typed configuration: `params.yaml`, a profile over it, and the checks that catch a typo before anything runs.

Sections are plain dataclasses, so that models and trainers take them on a machine without pydantic, which checks what
`params.yaml` and profiles say. What a value may be is declared with it (values.py); what two values may not be together
is in `_contradictions`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_origin, get_type_hints

from prm_core.config.data import (
    MERGES,
    CalibrateConfig,
    DataConfig,
    EncoderConfig,
    GenerateConfig,
    LabelConfig,
    ModelsConfig,
    SamplingConfig,
    ValidateConfig,
    WarmupConfig,
)
from prm_core.config.profiles import PARAMS_FILE, find_profile, merge, read_profile, read_yaml
from prm_core.config.service import (
    AdaptConfig,
    DriftConfig,
    EngineConfig,
    EvaluateConfig,
    HttpConfig,
    PromoteConfig,
    RegisterConfig,
    RulesConfig,
    SearchConfig,
    ServeConfig,
    SwapConfig,
    WorkersConfig,
)
from prm_core.config.training import IMPLICIT, LaunchConfig, PolicyTrainingConfig, ProbeConfig, RewardTrainingConfig
from prm_core.config.values import Text, faults, is_alias, section, setting, truth_for_a_number, unknown
from prm_core.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
# A learning rate beyond which pretrained weights forget.
MOST_FOR_A_BASE = 0.001


@section
class Config:
    """Everything a run is decided by; `params.yaml` of a workspace holds it resolved."""

    profile: Text
    seed: int = setting(ge=0, lt=2**32)
    domain: str = setting(registry="prm_core.domains:DOMAINS")
    launch: LaunchConfig = setting(default=LaunchConfig())
    data: DataConfig
    models: ModelsConfig
    sampling: SamplingConfig = setting(default=SamplingConfig())
    encoder: EncoderConfig
    warmup: WarmupConfig
    generate: GenerateConfig
    label: LabelConfig
    validate: ValidateConfig
    calibrate: CalibrateConfig
    train_prm: RewardTrainingConfig
    probe: ProbeConfig
    train_policy: PolicyTrainingConfig
    evaluate: EvaluateConfig
    search: SearchConfig
    register: RegisterConfig
    promote: PromoteConfig
    serve: ServeConfig
    engine: EngineConfig = setting(default=EngineConfig())
    http: HttpConfig = setting(default=HttpConfig())
    swap: SwapConfig = setting(default=SwapConfig())
    drift: DriftConfig = setting(default=DriftConfig())
    workers: WorkersConfig = setting(default=WorkersConfig())
    rules: RulesConfig = setting(default=RulesConfig())
    adapt: AdaptConfig = setting(default=AdaptConfig())


def parse(raw: Mapping[str, Any], source: str) -> Config:
    """Checks raw values. Raises InputError with one line for all faults, naming `source` and the keys.

    Without pydantic keys are checked, and values are taken as they are.
    """
    try:
        from pydantic import ValidationError
    except ImportError:
        return _unchecked(Config, raw, source)
    try:
        config = _schema().validate_python(raw)
    except ValidationError as error:
        found = [(".".join(map(str, e["loc"])), _fault(e["type"], e["msg"])) for e in error.errors()]
    else:
        found = [*faults(config), *_contradictions(config)]
    found += truth_for_a_number(Config, raw)
    if found:
        told = "; ".join(f"{key}: {fault}" for key, fault in found)
        raise InputError(f"{source}: {told}. Correct these keys (params.yaml shows each with its meaning).")
    return config


def _contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """(key, fault) of values that each may be, but not beside another one."""
    label, evaluate, promote, probe = config.label, config.evaluate, config.promote, config.probe
    if config.warmup.hidden_size % config.warmup.heads:
        yield "warmup.heads", f"{config.warmup.heads} does not divide warmup.hidden_size {config.warmup.hidden_size}"
    if config.warmup.base and config.warmup.learning_rate > MOST_FOR_A_BASE:
        yield "warmup.learning_rate", (f"{config.warmup.learning_rate:g} is for random weights, and would undo what "
                                       f"warmup.base has learned: set it to {MOST_FOR_A_BASE:g} or less, such as 5e-5")
    if label.merge not in label.strategies and (fault := unknown(MERGES, label.merge)):
        yield "label.merge", f"{fault}, or one of label.strategies"
    if "teacher" in label.strategies and not label.teacher.model:
        yield "label.teacher.model", "names no reward model, and label.strategies has teacher"
    for name in ("correct_share", "mean_confidence"):
        low, high = getattr(config.validate, name)
        if low > high:
            yield f"validate.{name}", f"from {low:g} to {high:g} there is nothing"
    if config.launch.processes > 1 and config.models.device not in ("auto", "cpu"):
        yield "launch.processes", (f"{config.launch.processes} processes cannot all compute on models.device "
                                   f"{config.models.device}: set that to auto, which gives each its own GPU, or cpu")
    if config.train_prm.solver == "convex" and config.train_prm.lora_rank:
        yield "train_prm.lora_rank", "trains the backbone, which solver convex leaves as it is: set one of them back"
    given = config.train_policy.advantages
    if not given.outcome_weight and not given.process_weight:
        yield "train_policy.advantages.outcome_weight", "is 0, and so is process_weight: nothing would be rewarded"
    if max(given.late_weights) == 0:
        yield "train_policy.advantages.late_weights", "are both 0: no step would be rewarded"
    if given.chain_filter != "none" and not 0 < given.left_out < config.train_policy.group_size:
        yield "train_policy.advantages.left_out", (f"is {given.left_out}, and chain_filter {given.chain_filter} leaves "
                                                   "out at least 1 and fewer than group_size")
    if config.train_policy.critic.kind != "none" and given.process_weight and given.credit != "to_go":
        yield "train_policy.advantages.credit", (f"is {given.credit}, and a critic credits each token with what is to "
                                                 "come: set it to to_go, with a form that pays no padding (lowest)")
    yield from _of_implicit(config.train_policy)
    yield from _of_rules(config)
    if config.train_policy.kl_target and not config.train_policy.kl_coef:
        yield "train_policy.kl_target", "adapts kl_coef, which stays at 0 whatever the divergence: set it above 0"
    if max(evaluate.best_of) > evaluate.samples:
        yield "evaluate.best_of", (f"{max(evaluate.best_of)} is more than evaluate.samples {evaluate.samples}: lower N "
                                   "or raise evaluate.samples")
    for name in ("alias", "challenger_alias"):
        if not is_alias(getattr(promote, name)):
            yield f"promote.{name}", (f"{getattr(promote, name)!r} can be no alias: letters, digits, _ and -, and "
                                      "neither latest nor v1, v2, …, which MLflow keeps for versions")
    for name, gate in (("promote", promote), ("train_policy.guard", config.train_policy.guard)):
        if gate.require_probe and not (probe.enabled and probe.suffix_chains and probe.updates):
            yield f"{name}.require_probe", ("demands figures that nothing measures: set probe.enabled to true, and "
                                            "probe.suffix_chains and probe.updates above 0")
    if config.train_policy.guard.require_probe and config.train_policy.reward_model != "prm":
        yield "train_policy.guard.require_probe", (
            f"is about the run's own prm, which alone is probed, and train_policy.reward_model is "
            f"{config.train_policy.reward_model}: try that one by `prm probe`, and set require_probe to false")
    if config.http.drain_timeout < config.engine.deadline:
        yield "http.drain_timeout", (f"is {config.http.drain_timeout}, and requests may take engine.deadline "
                                     f"{config.engine.deadline:g} s: those that were taken in last would be cut off")
    if config.sampling.backend == "server" and not config.sampling.endpoint:
        yield "sampling.endpoint", "is empty; name the server's base URL, such as http://localhost:8000/v1"
    if "train_policy" in config.sampling.stages:
        yield "sampling.stages", ("names train_policy, which learns from samples of its own weights, with their token "
                                  "ids and log-probabilities, and no backend is given those weights after each update; "
                                  "leave it out")
    if promote.alias == promote.challenger_alias:
        yield "promote.challenger_alias", f"is {promote.alias!r} too: every new version would be the champion"


def _of_implicit(config: PolicyTrainingConfig) -> Iterator[tuple[str, str]]:
    """Of a policy that an implicit reward model pays: its rewards are log-ratios, and no probabilities."""
    given = config.advantages
    if config.reward_model != IMPLICIT:
        return
    if not given.process_weight:
        yield "train_policy.advantages.process_weight", ("is 0: nothing would ask the implicit reward model; set it "
                                                         "above 0, or train_policy.reward_model to prm")
    for name, allowed in (("form", ("sum", "mean", "min")),
                          ("baseline", ("none", "group", "leave_one_out", "step", "token"))):
        if given.process_weight and (chosen := getattr(given, name)) not in allowed:
            yield f"train_policy.advantages.{name}", (f"{chosen} reads scores as probabilities, and an implicit reward "
                                                      f"model gives log-ratios: set it to {', '.join(allowed)}")


def _of_rules(config: Config) -> Iterator[tuple[str, str]]:
    """Of what rules are asked to do, where there are none."""
    constraint = config.train_policy.constraint.kind
    if not config.rules.file:
        for key, asked in (("train_policy.constraint.kind", constraint != "none"),
                           ("rules.block", config.rules.block != "none"),
                           ("promote.max_violations", config.promote.max_violations < 1)):
            if asked:
                yield key, "is about rules, and rules.file names none"
    if constraint == "lexicographic" and config.train_policy.critic.kind != "none":
        yield "train_policy.constraint.kind", ("lexicographic puts rules above advantages, which a critic gives; set "
                                               "it to lagrangian, or train_policy.critic.kind to none")


def _unchecked(kind: type[T], raw: Mapping[str, Any], source: str) -> T:
    """A section from raw values whose types and limits nobody looks at."""
    hints, values = get_type_hints(kind), {}
    for name, value in raw.items():
        if dataclasses.is_dataclass(hints.get(name)):
            value = _unchecked(hints[name], value, f"{source}: {name}")
        values[name] = tuple(value) if get_origin(hints.get(name)) is tuple else value
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"{source}: {error}. Correct these keys (params.yaml shows each with its meaning).") from None


@cache
def _schema() -> TypeAdapter[Config]:
    from pydantic import TypeAdapter

    # Building it takes longer than checking by it.
    return TypeAdapter(Config)


def _fault(kind: str, message: str) -> str:
    # pydantic speaks of the dataclass's constructor.
    return "no such key" if kind == "unexpected_keyword_argument" else message


def load(workspace: Path) -> Config:
    """The configuration of a workspace, from its `params.yaml`."""
    path = workspace / PARAMS_FILE
    return parse(read_yaml(path), str(path))


def workers_of(workspace: Path) -> WorkersConfig:
    """Section `workers` of a folder, for commands that need no workspace; where it has no `params.yaml`, the default.
    """
    return load(workspace).workers if (workspace / PARAMS_FILE).is_file() else WorkersConfig()


def resolve(base: Path, profile: str) -> dict[str, Any]:
    """The raw values of a profile: `base` (a params.yaml) with the profile's YAML over it, checked.

    Args:
        base: the defaults, normally the repository's `params.yaml`.
        profile: `default`, the name of a shipped profile, or a path to a YAML file. One that says `extends: NAME` is
            laid over that profile (a name, or a path from its own folder).
    """
    raw = read_yaml(base)
    if profile != "default":
        path = find_profile(profile)
        raw = {**merge(raw, read_profile(path)), "profile": path.stem}
    parse(raw, f"profile {profile}")
    return raw
