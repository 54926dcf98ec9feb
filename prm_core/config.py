"""Typed configuration: `params.yaml`, a profile over it, and the checks that catch a typo before anything runs.

Sections are plain dataclasses, so that models and trainers take them on a machine without pydantic, which checks what
`params.yaml` and profiles say. Names that stand for something registered (strategies, rules, …) are checked by the
stages that look them up (`Stage.check`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, dataclass_transform, get_origin, get_type_hints

import yaml

from prm_core.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
PROFILES = Path(__file__).parent / "profiles"
PARAMS_FILE = "params.yaml"


class Bounds:
    """Limits of a type, in pydantic's words (gt, ge, lt, le); pydantic calls the method where it is installed."""

    def __init__(self, **limits: float) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {**handler(source), **self.limits}


Share = Annotated[float, Bounds(ge=0, le=1)]
PositiveInt = Annotated[int, Bounds(gt=0)]
NonNegativeInt = Annotated[int, Bounds(ge=0)]
PositiveFloat = Annotated[float, Bounds(gt=0)]


def setting(description: str = "", *, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    """A key of a section: what it means, and its limits in pydantic's words (gt, ge, lt, le, min_length)."""
    return dataclasses.field(default=default, metadata={"description": description, **limits})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(setting,))
def section(cls: type[T]) -> type[T]:
    """One block of `params.yaml`: a frozen dataclass whose unknown keys are errors."""
    cls.__pydantic_config__ = {"extra": "forbid"}
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@section
class DataConfig:
    warmup: int = setting("problems with worked solutions for the base models", ge=1)
    train: int = setting("problems the chain generates on and trains the policy with", ge=1)
    dev: int = setting("problems on which thresholds are chosen", ge=1)
    test: int = setting("held-out problems every reported figure is measured on", ge=1)
    human_chains: int = setting("chains with a human label for each step; made for the domain arithmetic alone", ge=0)


@section
class ModelsConfig:
    policy: str = setting("Hugging Face folder or hub id of the base policy")
    reward_backbone: str = setting("Hugging Face folder or hub id of the reward models' backbone")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    sampling_memory: PositiveFloat = setting(
        "GiB that sampling may take beside the model; bounds the rows decoded together")
    surprisal: list[Literal["process", "outcome", "advantage"]] = setting(
        "reward models whose head also sees the steps' surprisal under the backbone (METHODS 8)")


@section
class EncoderConfig:
    separator: str = setting("text of the one token that ends the prompt and every step")
    max_length: int = setting("tokens; longer chains lose whole trailing steps, counted", ge=16)
    chat_template: bool = setting("wrap the prompt in the tokenizer's chat template", default=False)


@section
class WarmupConfig:
    enabled: bool = setting("false where `models` names pretrained ones; the stage then writes none")
    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    intermediate_size: PositiveInt
    batch_size: PositiveInt
    max_updates: PositiveInt = setting("the learning-rate schedule ends here")
    learning_rate: float = setting("AdamW: embeddings and norms")
    matrix_learning_rate: float = setting("Muon: weight matrices")
    weight_decay: float
    warmup_updates: NonNegativeInt
    decay_share: float = setting("last share of the updates in which the rate falls to zero", gt=0, le=1)
    policy_accuracy: float = setting("first checkpoint at or past this accuracy is the policy", ge=0, lt=1)
    backbone_accuracy: float = setting("training must end at or past this accuracy", ge=0, le=1)
    harmless_steps: Share = setting(
        "share of the chains that get harmless steps inserted once the policy is taken: what comes after a remark "
        "should not surprise the backbone")
    eval_every: PositiveInt
    eval_problems: PositiveInt
    checkpoint_every: PositiveInt


@section
class GenerateConfig:
    problems: int
    samples: int = setting("chains per problem", ge=1)
    temperature: float = setting(ge=0)
    max_new_tokens: int = setting(ge=1)
    batch_size: int = setting("sequences decoded together", ge=1)
    shard_size: int = setting("problems per shard", ge=1)


@section
class RolloutConfig:
    rollouts: int = setting("K continuations per prefix, at most", ge=1)
    rule: str = setting("verdict rule: any, majority, relative")
    temperature: float = 1.0
    decided: float = setting(
        "posterior probability of a verdict that needs no more rollouts; 1 buys all K for every prefix", gt=0.5, le=1)
    max_tokens: NonNegativeInt = setting("tokens the strategy may generate in all; 0 is no limit")


@section
class McDropoutConfig:
    samples: int = setting("forward passes with dropout on", ge=2)
    measure: str = setting("what of a step's passes is mapped: predictive, likelihood, bald, representation")
    dropout: float = setting(gt=0, lt=1)
    fit_chains: int = setting("chains whose outcomes the map from spread to P(right) is fitted on", ge=20)
    batch_size: int = setting("chains a pass", ge=1)


@section
class MctsConfig:
    problems: int = setting("questions that get a tree", ge=0)
    simulations: NonNegativeInt = setting("selections per tree after its chains are searched")
    selection: str = setting("which state is rolled out next: omega, ucb1, puct")
    rollouts: int = setting("continuations sampled from a state", ge=1)
    exploration: float = setting("c of ucb1 and c_puct of puct and omega", ge=0)
    temperature: float = 1.0
    preference_confidence: float = setting(
        "posterior probability that the chosen one of two sibling steps is worth more", gt=0.5, lt=1)


@section
class VerifierConfig:
    timeout: PositiveFloat = setting("seconds for one step; a step that takes longer gets no verdict")


@section
class JudgeConfig:
    model: str = setting("name at the endpoint, or a Hugging Face folder or hub id without one")
    endpoint: str = setting("base URL of an OpenAI-compatible server (…/v1); empty for a local model")
    api_key_env: str = setting("environment variable that holds the key; unset is no key")
    structured: Literal["json_schema", "json_object", "none"]
    temperature: float = setting(ge=0)
    max_new_tokens: PositiveInt
    timeout: PositiveFloat = setting("seconds for one answer")
    retries: NonNegativeInt
    concurrency: PositiveInt = setting("requests under way at once")
    input_price: float = setting("cost of a million tokens read, in your currency", ge=0)
    output_price: float = setting("cost of a million tokens written", ge=0)


@section
class LabelConfig:
    strategies: list[str] = setting(min_length=1)
    rollout: RolloutConfig
    mc_dropout: McDropoutConfig
    mcts: MctsConfig
    verifier: VerifierConfig
    judge: JudgeConfig
    merge: str = setting("how strategies combine: first_error, dawid_skene, vote, or one strategy's name")
    consensus: bool = setting("keep only chains whose first error two strategies agree on")
    lone_vote_factor: float = setting("confidence of a verdict only one strategy gives", ge=0, le=1)
    max_failed_share: float = setting("a strategy failing on more chains fails the stage", ge=0, le=1)
    batch_size: int = setting(ge=1)
    max_new_tokens: int = setting(ge=1)
    shard_size: int = setting("chains per shard", ge=1)


@section
class ValidateConfig:
    min_coverage: float = setting(
        "share of steps with a merged verdict, up to the first wrong one of a chain", ge=0, le=1)
    max_abstention: Share | dict[str, Share] = setting(
        "share of a strategy's rows without a verdict; one number for all, or by strategy, and then one that is not "
        "named has no bound")
    correct_share: tuple[float, float]
    mean_confidence: tuple[float, float]
    min_agreement: float = setting("share of steps on which two strategies agree", ge=0, le=1)
    max_drift: float = setting(
        "Jensen-Shannon divergence (base 2) of verdicts and of values, and difference of mean confidences, from the "
        "previous run's", ge=0, le=1)
    critical: list[str] = setting("expectations whose failure stops the chain")

    def abstention_of(self, strategy: str) -> float:
        """The largest share of its rows that a strategy may leave without a verdict."""
        if isinstance(self.max_abstention, dict):
            return self.max_abstention.get(strategy, 1.0)
        return self.max_abstention


@section
class CalibrateConfig:
    method: Literal["isotonic", "platt", "temperature"]
    stack: bool = setting(
        "with enough human labels, weigh all strategies anew instead of mapping the merged probability")
    min_labels: int = setting("fewer joined human labels give the identity calibrator and a warning", ge=1)
    bins: int = setting(ge=2)
    min_confidence: float = setting("labels below it leave the training set", ge=0, le=1)
    review_share: float = setting("share of the generated steps put in the review queue", ge=0, le=1)


@section
class RewardTrainingConfig:
    labels: Literal["hard", "soft"]
    harmless_steps: Share = setting(
        "share of the chains of which a copy is trained too, with steps inserted that change nothing (filler, "
        "restatements, irrelevant facts)")
    class_weights: Literal["none", "balanced"] = setting("balanced: right and wrong targets weigh the same")
    probe_rows: NonNegativeInt = setting(
        "rows on which the surprisal's weights are fitted before training; 0 starts them at nothing")
    epochs: PositiveInt
    max_updates: NonNegativeInt = setting("stop there; 0 is all epochs")
    row_tokens: int = setting("tokens of a packed row; a longer chain trains as far as it fits one", ge=16)
    rows_per_update: PositiveInt
    rows_per_pass: PositiveInt = setting("rows of a forward pass of a process; bounds the memory")
    precision: Literal["float32", "bfloat16"] = setting("bfloat16: mixed, the weights stay float32")
    gradient_checkpointing: bool = setting("recompute activations: less memory, a third more time")
    lora_rank: NonNegativeInt = setting("0 trains all weights; else LoRA of that rank on every linear layer")
    learning_rate: float = setting("of the backbone; 0 freezes it, which trains three times as fast")
    head_learning_rate: float
    surprisal_learning_rate: float = setting("of the few weights of the surprisal's term")
    weight_decay: float
    warmup_share: float
    max_grad_norm: float
    dev_share: float = setting("problems kept for choosing the weights", gt=0, lt=1)
    eval_every: NonNegativeInt = setting("updates between evaluations on them; 0 is once an epoch")
    patience: NonNegativeInt = setting("evaluations without a better dev loss that end training; 0 is never")
    prover_samples: int = setting("the prover of the advantages is the best of so many continuations", ge=2)
    preference_weight: float = setting("of the Bradley-Terry loss of step preferences", ge=0)
    checkpoint_every: PositiveInt = setting("updates")
    log_every: PositiveInt


@section
class PolicyTrainingConfig:
    warmup_updates: NonNegativeInt
    updates: PositiveInt
    problems_per_update: PositiveInt
    estimator: str = setting("from the rewards of a group to advantages: hybrid")
    group_size: int = setting("chains a question, compared with each other", ge=2)
    learning_rate: float
    clip: float
    kl_coef: float
    outcome_weight: float
    process_weight: float
    temperature: PositiveFloat
    max_new_tokens: PositiveInt
    max_grad_norm: float
    inner_epochs: PositiveInt
    minibatch_size: PositiveInt
    checkpoint_every: PositiveInt
    log_every: PositiveInt


@section
class EvaluateConfig:
    samples: int = setting("chains per problem; N of best-of-N goes up to it", ge=1)
    best_of: list[int]
    temperature: float
    aggregate: str
    bootstrap: int = setting(ge=100)
    bins: int = setting(ge=2)
    shown_trajectories: int = setting(ge=10)
    latency_repeats: int


@section
class RegisterConfig:
    model_name: str


@section
class PromoteConfig:
    max_ece: float
    alias: str = "champion"
    challenger_alias: str = "challenger"


@section
class ServeConfig:
    threshold: float
    aggregate: str
    cache_size: int
    cache_ttl: float = setting("seconds")
    batch_size: int


@section
class Config:
    """Everything a run is decided by; `params.yaml` of a workspace holds it resolved."""

    profile: str
    seed: int
    domain: str
    data: DataConfig
    models: ModelsConfig
    encoder: EncoderConfig
    warmup: WarmupConfig
    generate: GenerateConfig
    label: LabelConfig
    validate: ValidateConfig
    calibrate: CalibrateConfig
    train_prm: RewardTrainingConfig
    train_policy: PolicyTrainingConfig
    evaluate: EvaluateConfig
    register: RegisterConfig
    promote: PromoteConfig
    serve: ServeConfig


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, nested mappings key by key, everything else replaced."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def parse(raw: Mapping[str, Any], source: str) -> Config:
    """Checks raw values. Raises InputError with one line for all faults, naming `source` and the keys.

    Without pydantic keys are checked, and values are taken as they are.
    """
    try:
        from pydantic import ValidationError
    except ImportError:
        return _unchecked(Config, raw, source)
    try:
        return _schema().validate_python(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {_fault(e['type'], e['msg'])}" for e in error.errors())
        raise InputError(f"{source}: {faults}. Correct these keys (params.yaml shows each with its meaning).") from None


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


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises InputError when the file is missing, unreadable or not a mapping."""
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run from a workspace (a folder with {PARAMS_FILE})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({str(error).splitlines()[0]}); correct the file") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    return raw


def load(workspace: Path) -> Config:
    """The configuration of a workspace, from its `params.yaml`."""
    path = workspace / PARAMS_FILE
    return parse(read_yaml(path), str(path))


def profile_names() -> list[str]:
    """The profiles that ship with the project, `default` first."""
    return ["default", *sorted(path.stem for path in PROFILES.glob("*.yaml"))]


def resolve(base: Path, profile: str) -> dict[str, Any]:
    """The raw values of a profile: `base` (a params.yaml) with the profile's YAML over it, checked.

    Args:
        base: the defaults, normally the repository's `params.yaml`.
        profile: `default`, the name of a shipped profile, or a path to a YAML file.
    """
    raw = read_yaml(base)
    if profile != "default":
        path = Path(profile) if profile.endswith((".yaml", ".yml")) else PROFILES / f"{profile}.yaml"
        if not path.is_file():
            raise InputError(
                f"unknown profile {profile!r}; known: {', '.join(profile_names())}, or give the path of a YAML file"
            )
        raw = {**merge(raw, read_yaml(path)), "profile": path.stem}
    parse(raw, f"profile {profile}")
    return raw
