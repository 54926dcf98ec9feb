"""Typed configuration: `params.yaml`, a profile over it, and the checks that catch a typo before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from prm_core.errors import InputError

PROFILES = Path(__file__).parent / "profiles"
PARAMS_FILE = "params.yaml"
StrategyName = Literal["rollout", "mc_dropout", "mcts", "verifier", "judge"]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """One block of `params.yaml`. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    warmup: int = Field(ge=1, description="problems with worked solutions for the base models")
    train: int = Field(ge=1, description="problems the chain generates on and trains the policy with")
    dev: int = Field(ge=1, description="problems on which thresholds are chosen")
    test: int = Field(ge=1, description="held-out problems every reported figure is measured on")
    human_chains: int = Field(ge=0, description="chains with a human label for each step")


class ModelsConfig(Section):
    policy: str = Field(description="Hugging Face folder or hub id of the base policy")
    reward_backbone: str = Field(description="Hugging Face folder or hub id of the reward models' backbone")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    sampling_memory: PositiveFloat = Field(description="GiB that sampling may take beside the model; bounds the rows "
                                                       "decoded together")
    surprisal: list[Literal["process", "outcome", "advantage"]] = Field(
        description="reward models whose head also sees the steps' surprisal under the backbone (METHODS 8)")


class EncoderConfig(Section):
    separator: str = Field(description="text of the one token that ends the prompt and every step")
    max_length: int = Field(ge=16, description="tokens; longer chains lose whole trailing steps, counted")
    chat_template: bool = Field(default=False, description="wrap the prompt in the tokenizer's chat template")


class WarmupConfig(Section):
    enabled: bool = Field(description="false where `models` names pretrained ones; the stage then writes none")
    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    intermediate_size: PositiveInt
    batch_size: PositiveInt
    max_updates: PositiveInt = Field(description="the learning-rate schedule ends here")
    learning_rate: float = Field(description="AdamW: embeddings and norms")
    matrix_learning_rate: float = Field(description="Muon: weight matrices")
    weight_decay: float
    warmup_updates: NonNegativeInt
    decay_share: float = Field(gt=0, le=1, description="last share of the updates in which the rate falls to zero")
    policy_accuracy: float = Field(ge=0, lt=1, description="first checkpoint at or past this accuracy is the policy")
    backbone_accuracy: float = Field(ge=0, le=1, description="training must end at or past this accuracy")
    harmless_steps: Share = Field(description="share of the chains that get harmless steps inserted once the policy is "
                                              "taken: what comes after a remark should not surprise the backbone")
    eval_every: PositiveInt
    eval_problems: PositiveInt
    checkpoint_every: PositiveInt


class GenerateConfig(Section):
    problems: int
    samples: int = Field(ge=1, description="chains per problem")
    temperature: float = Field(ge=0)
    max_new_tokens: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="sequences decoded together")
    shard_size: int = Field(ge=1, description="problems per shard")


class RolloutConfig(Section):
    rollouts: int = Field(ge=1, description="K continuations per prefix, at most")
    rule: str = Field(description="verdict rule: any, majority, relative")
    temperature: float = 1.0
    decided: float = Field(gt=0.5, le=1, description="posterior probability of a verdict that needs no more rollouts; "
                                                     "1 buys all K for every prefix")
    max_tokens: NonNegativeInt = Field(description="tokens the strategy may generate in all; 0 is no limit")


class McDropoutConfig(Section):
    samples: int = Field(ge=2, description="forward passes with dropout on")
    measure: str = Field(description="what of a step's passes is mapped: predictive, likelihood, bald, representation")
    dropout: float = Field(gt=0, lt=1)
    fit_chains: int = Field(ge=20, description="chains whose outcomes the map from spread to P(right) is fitted on")
    batch_size: int = Field(ge=1, description="chains a pass")


class MctsConfig(Section):
    problems: int = Field(ge=0, description="questions that get a tree")
    simulations: NonNegativeInt = Field(description="selections per tree after its chains are searched")
    selection: str = Field(description="which state is rolled out next: omega, ucb1, puct")
    rollouts: int = Field(ge=1, description="continuations sampled from a state")
    exploration: float = Field(ge=0, description="c of ucb1 and c_puct of puct and omega")
    temperature: float = 1.0
    preference_confidence: float = Field(gt=0.5, lt=1, description="posterior probability that the chosen one of two "
                                                                   "sibling steps is worth more")


class VerifierConfig(Section):
    timeout: PositiveFloat = Field(description="seconds for one step; a step that takes longer gets no verdict")


class JudgeConfig(Section):
    model: str = Field(description="name at the endpoint, or a Hugging Face folder or hub id without one")
    endpoint: str = Field(description="base URL of an OpenAI-compatible server (…/v1); empty for a local model")
    api_key_env: str = Field(description="environment variable that holds the key; unset is no key")
    structured: Literal["json_schema", "json_object", "none"]
    temperature: float = Field(ge=0)
    max_new_tokens: PositiveInt
    timeout: PositiveFloat = Field(description="seconds for one answer")
    retries: NonNegativeInt
    concurrency: PositiveInt = Field(description="requests under way at once")
    input_price: float = Field(ge=0, description="cost of a million tokens read, in your currency")
    output_price: float = Field(ge=0, description="cost of a million tokens written")


class LabelConfig(Section):
    strategies: list[StrategyName] = Field(min_length=1)
    rollout: RolloutConfig
    mc_dropout: McDropoutConfig
    mcts: MctsConfig
    verifier: VerifierConfig
    judge: JudgeConfig
    merge: str = Field(description="how strategies combine: first_error, dawid_skene, vote, or one strategy's name")
    consensus: bool = Field(description="keep only chains whose first error two strategies agree on")
    lone_vote_factor: float = Field(ge=0, le=1, description="confidence of a verdict only one strategy gives")
    max_failed_share: float = Field(ge=0, le=1, description="a strategy failing on more chains fails the stage")
    batch_size: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    shard_size: int = Field(ge=1, description="chains per shard")


class ValidateConfig(Section):
    min_coverage: float = Field(ge=0, le=1, description="share of steps with a merged verdict, up to the "
                                                        "first wrong one of a chain")
    max_abstention: Share | dict[StrategyName, Share] = Field(
        description="share of a strategy's rows without a verdict; one number for all, or by strategy, and then one "
                    "that is not named has no bound")
    correct_share: tuple[float, float]
    mean_confidence: tuple[float, float]
    min_agreement: float = Field(ge=0, le=1, description="share of steps on which two strategies agree")
    max_drift: float = Field(ge=0, le=1, description="Jensen-Shannon divergence (base 2) of verdicts and of values, "
                                                     "and difference of mean confidences, from the previous run's")
    critical: list[str] = Field(description="expectations whose failure stops the chain")

    def abstention_of(self, strategy: str) -> float:
        """The largest share of its rows that a strategy may leave without a verdict."""
        if isinstance(self.max_abstention, dict):
            return self.max_abstention.get(strategy, 1.0)
        return self.max_abstention


class CalibrateConfig(Section):
    method: Literal["isotonic", "platt", "temperature"]
    stack: bool = Field(description="with enough human labels, weigh all strategies anew instead of mapping the merged "
                                    "probability")
    min_labels: int = Field(ge=1, description="fewer joined human labels give the identity calibrator and a warning")
    bins: int = Field(ge=2)
    min_confidence: float = Field(ge=0, le=1, description="labels below it leave the training set")
    review_share: float = Field(ge=0, le=1, description="share of the generated steps put in the review queue")


class RewardTrainingConfig(Section):
    labels: Literal["hard", "soft"]
    harmless_steps: Share = Field(description="share of the chains of which a copy is trained too, with steps inserted "
                                              "that change nothing (filler, restatements, irrelevant facts)")
    class_weights: Literal["none", "balanced"] = Field(description="balanced: right and wrong targets weigh the same")
    probe_rows: NonNegativeInt = Field(description="rows on which the surprisal's weights are fitted before training; "
                                                   "0 starts them at nothing")
    epochs: PositiveInt
    max_updates: NonNegativeInt = Field(description="stop there; 0 is all epochs")
    row_tokens: int = Field(ge=16, description="tokens of a packed row; a longer chain trains as far as it fits one")
    rows_per_update: PositiveInt
    rows_per_pass: PositiveInt = Field(description="rows of a forward pass of a process; bounds the memory")
    precision: Literal["float32", "bfloat16"] = Field(description="bfloat16: mixed, the weights stay float32")
    gradient_checkpointing: bool = Field(description="recompute activations: less memory, a third more time")
    lora_rank: NonNegativeInt = Field(description="0 trains all weights; else LoRA of that rank on every linear layer")
    learning_rate: float = Field(description="of the backbone; 0 freezes it, which trains three times as fast")
    head_learning_rate: float
    surprisal_learning_rate: float = Field(description="of the few weights of the surprisal's term")
    weight_decay: float
    warmup_share: float
    max_grad_norm: float
    dev_share: float = Field(gt=0, lt=1, description="problems kept for choosing the weights")
    eval_every: NonNegativeInt = Field(description="updates between evaluations on them; 0 is once an epoch")
    patience: NonNegativeInt = Field(description="evaluations without a better dev loss that end training; 0 is never")
    prover_samples: int = Field(ge=2, description="the prover of the advantages is the best of so many continuations")
    preference_weight: float = Field(ge=0, description="of the Bradley-Terry loss of step preferences")
    checkpoint_every: PositiveInt = Field(description="updates")
    log_every: PositiveInt


class PolicyTrainingConfig(Section):
    warmup_updates: NonNegativeInt
    updates: PositiveInt
    problems_per_update: PositiveInt
    group_size: int = Field(ge=2, description="chains a question, compared with each other")
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


class EvaluateConfig(Section):
    samples: int = Field(ge=1, description="chains per problem; N of best-of-N goes up to it")
    best_of: list[int]
    temperature: float
    aggregate: str
    bootstrap: int = Field(ge=100)
    bins: int = Field(ge=2)
    shown_trajectories: int = Field(ge=10)
    latency_repeats: int


class RegisterConfig(Section):
    model_name: str


class PromoteConfig(Section):
    max_ece: float
    alias: str = "champion"
    challenger_alias: str = "challenger"


class ServeConfig(Section):
    threshold: float
    aggregate: str
    cache_size: int
    cache_ttl: float = Field(description="seconds")
    batch_size: int


class Config(Section):
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
    validate_: ValidateConfig = Field(alias="validate")
    calibrate: CalibrateConfig
    train_prm: RewardTrainingConfig
    train_policy: PolicyTrainingConfig
    evaluate: EvaluateConfig
    register_: RegisterConfig = Field(alias="register")
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
    """Checks raw values. Raises InputError with one line per fault, naming `source` and the key."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputError(f"{source}: {faults}. Correct these keys (params.yaml shows each with its meaning).") from None


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
