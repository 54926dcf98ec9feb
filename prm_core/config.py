"""Typed configuration: `params.yaml`, a profile over it, and the checks that catch a typo before anything runs.

Sections are plain dataclasses, so that models and trainers take them on a machine without pydantic, which checks what
`params.yaml` and profiles say. What a value may be is declared with it (prm_core/config_values.py); what two values may
not be together is in `_contradictions`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_origin, get_type_hints

import yaml

from prm_core.config_values import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    Text,
    faults,
    is_alias,
    section,
    setting,
    truth_for_a_number,
    unknown,
)
from prm_core.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
PROFILES = Path(__file__).parent / "profiles"
PARAMS_FILE = "params.yaml"
# In a profile: the one it is laid over.
EXTENDS = "extends"
STRATEGIES = "prm_core.labeling.strategies:STRATEGIES"
MERGES = "prm_core.labeling.merging.merge:MERGES"
SEARCHES = "prm_core.search.methods:METHODS"
AGGREGATIONS = "prm_core.search.aggregate:AGGREGATIONS"
ADVANTAGES = "prm_core.training.policy.advantages"
# Of `train_policy.reward_model`: one that learns while the policy does.
IMPLICIT = "implicit"


@section
class DataConfig:
    warmup: int = setting("problems with worked solutions for the base models", ge=1)
    train: int = setting("problems the chain generates on and trains the policy with", ge=1)
    dev: int = setting("problems on which thresholds are chosen", ge=1)
    test: int = setting("held-out problems every reported figure is measured on", ge=1)
    shifted: int = setting(
        "held-out problems unlike all others in their names, phrases or lengths; made where the domain has such",
        default=0, ge=0)
    level: Text = setting(
        "level of difficulty of made problems; domain arithmetic: standard, hard; errands: standard, team",
        default="standard")
    human_chains: int = setting(
        "corrupted solutions with a human label for each step, which are measured and change no label; made for the "
        "domain arithmetic alone", ge=0)


@section
class ModelsConfig:
    policy: Text = setting("Hugging Face folder or hub id of the base policy")
    reward_backbone: Text = setting("Hugging Face folder or hub id of the reward models' backbone")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "of the weights; auto: bfloat16 where the device multiplies in it, else float32", default="float32")
    device: str = setting("auto, cpu, mps, cuda or cuda:N", default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    sampling_memory: PositiveFloat = setting(
        "GiB that sampling may take beside the model in each process; bounds the rows decoded together")
    surprisal: list[Literal["process", "outcome", "advantage"]] = setting(
        "reward models whose head also sees the steps' surprisal under the backbone (METHODS 8)")


@section
class EncoderConfig:
    separator: str = setting(
        "the token that ends the prompt and every step: a special one, added where the tokenizer lacks it",
        default="<|step|>", min_length=1)
    renderer: Literal[1, 2] = setting(
        "version of how a turn reads; 1, of models trained before there were marks, ends steps with a token of text",
        default=2)
    policy_steps: Literal["boundary", "line", "blank_line", "numbered", "message"] = setting(
        "what ends a step in the text of the policy: the separator, which warm-up teaches it, or how a pretrained one "
        "writes", default="boundary")
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
    learning_rate: PositiveFloat = setting("AdamW: embeddings and norms")
    matrix_learning_rate: PositiveFloat = setting("Muon: weight matrices")
    weight_decay: NonNegativeFloat
    warmup_updates: NonNegativeInt
    decay_share: float = setting("last share of the updates in which the rate falls to zero", gt=0, le=1)
    policy_accuracy: float = setting("first checkpoint at or past this accuracy is the policy", ge=0, lt=1)
    backbone_accuracy: float = setting("training must end at or past this accuracy", ge=0, le=1)
    harmless_steps: Share = setting(
        "share of the chains that get harmless steps inserted, which are read and not learned: what comes after a "
        "remark should not surprise the backbone")
    eval_every: PositiveInt = setting("updates; a fifth of that from two thirds of policy_accuracy on")
    eval_problems: PositiveInt
    eval_samples: PositiveInt = setting("chains of each problem")
    checkpoint_every: PositiveInt = setting("also between evaluations once the policy is taken")


@section
class GenerateConfig:
    problems: PositiveInt
    samples: int = setting("chains per problem", ge=1)
    temperature: float = setting(ge=0)
    max_new_tokens: int = setting(ge=1)
    batch_size: int = setting("sequences decoded together", ge=1)
    shard_size: int = setting("problems per shard", ge=1)


@section
class RolloutConfig:
    rollouts: int = setting("K continuations per prefix, at most", ge=1)
    rule: str = setting(
        "verdict rule: any, majority, relative", registry="prm_core.labeling.strategies.verdicts:VERDICTS")
    temperature: PositiveFloat = 1.0
    decided: float = setting(
        "posterior probability of a verdict that needs no more rollouts; 1 buys all K for every prefix", gt=0.5, le=1)
    max_tokens: NonNegativeInt = setting("tokens the strategy may generate in all; 0 is no limit")


@section
class McDropoutConfig:
    samples: int = setting("forward passes with dropout on", ge=2)
    measure: str = setting("what of a step's passes is mapped: predictive, likelihood, bald, representation",
                           registry="prm_core.labeling.strategies.uncertainty:MEASURES")
    dropout: float = setting(gt=0, lt=1)
    fit_chains: int = setting("chains whose outcomes the map from spread to P(right) is fitted on", ge=20)
    batch_size: int = setting("chains a pass", ge=1)


@section
class MctsConfig:
    problems: int = setting("questions that get a tree", ge=0)
    simulations: NonNegativeInt = setting("selections per tree after its chains are searched")
    selection: str = setting("which state is rolled out next: omega, ucb1, puct",
                             registry="prm_core.labeling.strategies.tree:SELECTIONS")
    rollouts: int = setting("continuations sampled from a state", ge=1)
    exploration: float = setting("c of ucb1 and c_puct of puct and omega", ge=0)
    temperature: PositiveFloat = 1.0
    preference_confidence: float = setting(
        "posterior probability that the chosen one of two sibling steps is worth more", gt=0.5, lt=1)


@section
class VerifierConfig:
    timeout: PositiveFloat = setting("seconds for one step; a step that takes longer gets no verdict")


@section
class JudgeConfig:
    model: str = setting("name at the endpoint, or a Hugging Face folder or hub id without one")
    endpoint: str = setting("base URL of an OpenAI-compatible server (…/v1); empty for a local model")
    api_key_env: str = setting("environment variable that holds the key; unset is no key",
                               pattern=r"^[A-Za-z_]\w*$")
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
    strategies: list[str] = setting(min_length=1, registry=STRATEGIES)
    rollout: RolloutConfig
    mc_dropout: McDropoutConfig
    mcts: MctsConfig
    verifier: VerifierConfig
    judge: JudgeConfig
    merge: Text = setting("how strategies combine: first_error, dawid_skene, vote, or one strategy's name")
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
        "named has no bound", registry=STRATEGIES)
    correct_share: tuple[Share, Share] = setting("share of merged verdicts that say right, from … to …")
    mean_confidence: tuple[Share, Share] = setting("mean confidence of the merged verdicts, from … to …")
    min_agreement: float = setting("share of steps on which two strategies agree", ge=0, le=1)
    max_drift: float = setting(
        "Jensen-Shannon divergence (base 2) of verdicts and of values, and difference of mean confidences, from the "
        "previous run's", ge=0, le=1)
    critical: list[str] = setting("expectations whose failure stops the chain",
                                  registry="prm_core.labeling.validation.expectations:EXPECTATIONS")

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
    min_labels: int = setting(
        "fewer human labels of the policy's own chains change no label, fewer held-out targets no score", ge=1)
    bins: int = setting(ge=2)
    min_confidence: float = setting("labels below it leave the training set", ge=0, le=1)
    review_share: float = setting("share of the generated steps put in the review queue", ge=0, le=1)


@section
class RewardTrainingConfig:
    labels: Literal["hard", "soft"]
    harmless_steps: Share = setting(
        "share of the chains of which a copy is trained too, with steps inserted that change nothing (filler, "
        "restatements, irrelevant facts)")
    nonsense_steps: Share = setting(
        "process model: share of the chains of which a copy is trained too with random words as a step or behind one, "
        "which is wrong then: what nobody can read must not pass for something unusual")
    class_weights: Literal["none", "balanced"] = setting("balanced: right and wrong targets weigh the same")
    solver: Literal["gradient", "convex"] = setting(
        "gradient: every weight that has a rate is trained; convex: the backbone stays as it is and the head is solved "
        "for, which no seed moves and takes seconds on a small model")
    committee: NonNegativeInt = setting(
        "further heads of the process model, each solved for on another draw of the training problems: how far they "
        "differ is how unsure a score is; 0 is none")
    probe_rows: NonNegativeInt = setting(
        "gradient: rows on which the surprisal's weights are fitted before training; 0 starts them at nothing")
    epochs: PositiveInt
    max_updates: NonNegativeInt = setting("stop there; 0 is all epochs")
    row_tokens: int = setting("tokens of a packed row; a longer chain trains as far as it fits one", ge=16)
    rows_per_update: PositiveInt
    rows_per_pass: PositiveInt = setting("rows of a forward pass of a process; bounds the memory")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "bfloat16: mixed, the weights stay float32; auto: where the device multiplies in it")
    gradient_checkpointing: bool = setting("recompute activations: less memory, a third more time")
    lora_rank: NonNegativeInt = setting("0 trains all weights; else LoRA of that rank on every linear layer")
    learning_rate: NonNegativeFloat = setting(
        "of the backbone, by gradient; 0 freezes it, which trains three times as fast")
    head_learning_rate: PositiveFloat
    surprisal_learning_rate: NonNegativeFloat = setting("of the few weights of the surprisal's term")
    weight_decay: NonNegativeFloat
    warmup_share: Share
    max_grad_norm: PositiveFloat
    dev_share: float = setting("problems kept for choosing the weights", gt=0, lt=1)
    eval_every: NonNegativeInt = setting("updates between evaluations on them; 0 is once an epoch")
    patience: NonNegativeInt = setting("evaluations without a better dev loss that end training; 0 is never")
    prover_samples: int = setting("the prover of the advantages is the best of so many continuations", ge=2)
    preference_weight: float = setting("of the Bradley-Terry loss of step preferences", ge=0)
    checkpoint_every: PositiveInt = setting("updates")
    log_every: PositiveInt


@section
class AdvantageConfig:
    outcome_weight: NonNegativeFloat
    process_weight: NonNegativeFloat
    form: str = setting("what the scores of a chain's steps pay: sum, mean, min, lowest, prod, delta, pav",
                        registry=f"{ADVANTAGES}:FORMS")
    credit: Literal["to_go", "chain", "step"] = setting(
        "a step is credited with the process rewards from its own on, with all of its chain, or with its own")
    baseline: str = setting("what a credit is compared with: none, group, leave_one_out, prefix, step, token",
                            registry=f"{ADVANTAGES}:BASELINES")
    scale: Literal["none", "group", "batch"] = setting(
        "divide each source's advantages by its standard deviation in the group, or in the batch")
    gate: bool = setting("process rewards count where the answer is right, and are paid at the end")
    chain_filter: str = setting("which chains are learned from: none, prof, top_k_rejected",
                                registry=f"{ADVANTAGES}:FILTERS", default="none")
    left_out: NonNegativeInt = setting("chains of each group that the filter leaves out", default=0)
    turn_weight: NonNegativeFloat = setting(
        "of the comparison among steps of a group that begin in the same state (GiGPO)", default=0.0)
    process_sets: bool = setting("divide by the number of chains that share a token's prefix (λ-GRPO)", default=False)
    per_agent: bool = setting("an agent's steps are credited with that agent's rewards, and compared with its own",
                              default=False)
    late_weights: tuple[NonNegativeFloat, NonNegativeFloat] = setting(
        "weights of a chain's first and last reward, with equal steps between them", default=(1.0, 1.0))
    right_bonus: NonNegativeFloat = setting("added to each score of a chain with a right answer", default=0.0)
    min_temperature: PositiveFloat = setting("of form min", default=0.1)
    pav_alpha: NonNegativeFloat = setting("weight of the prover's advantages in form pav", default=3.0)
    pav_samples: int = setting("continuations the prover of form pav takes the best of", default=4, ge=2)


@section
class CriticConfig:
    kind: Literal["none", "shared", "separate"] = setting(
        "none: chains of a question are compared with each other (GRPO); else a critic says what is to come (PPO), by "
        "a head on the policy's own hidden states, or on a copy of the base policy. Of `advantages` baseline, scale, "
        "turn_weight, process_sets and per_agent are not looked at then; with none no other key here is",
        default="none")
    over: Literal["tokens", "steps"] = setting("what it values: each token, or each step as a whole", default="steps")
    gamma: float = setting("what a reward is worth one token, or step, earlier", default=1.0, gt=0, le=1)
    gae_lambda: Share = setting("0 trusts the values alone, 1 the rewards alone", default=0.95)
    learning_rate: PositiveFloat = setting("of the critic's own weights", default=0.0005)
    clip: PositiveFloat = setting("how far a value may move its loss from what it was before the update", default=0.2)
    coef: NonNegativeFloat = setting("of the value loss in the loss", default=0.5)
    kl_in_reward: bool = setting("the KL divergence is taken off each token's reward, instead of being in the loss",
                                 default=False)


@section
class ImplicitConfig:
    placement: Literal["token", "step"] = setting(
        "its rewards are paid to each token, or to a step as their sum", default="token")
    beta: PositiveFloat = setting("scale of the log-ratio", default=0.05)
    learning_rate: PositiveFloat = setting("of the reward model", default=0.0005)


@section
class GuardConfig:
    window: NonNegativeInt = setting("updates whose means are compared; 0 looks at nothing")
    max_fall: Share = setting(
        "of outcomes below what the process rewards promise by the updates before, beyond two standard errors")
    max_stretch: PositiveFloat = setting("relative change of steps or tokens a chain while outcomes do not rise")
    max_filler: Share = setting("rise of the share of steps that repeat or say nothing new while outcomes do not")
    require_probe: bool = setting("the prm has been probed, and stayed within the bounds below, before it may reward",
                                  default=False)
    max_suffix_passes: Share = setting("of wrong chains that pass with a suffix", default=0.2)
    max_outcome_fall: Share = setting("of right answers under the scores alone", default=0.05)


@section
class PolicyTrainingConfig:
    warmup_updates: NonNegativeInt
    updates: PositiveInt
    problems_per_update: PositiveInt
    reward_model: Text = setting(
        "what scores the steps: prm, pav, or a folder or hub id of another reward model; implicit: none, a copy of the "
        "base policy learns from the outcomes of each update, and then rewards tokens (PRIME)")
    advantages: AdvantageConfig
    group_size: int = setting("chains a question, compared with each other", ge=2)
    resample: NonNegativeInt = setting(
        "times that questions whose chains are all worth the same are replaced by others in an update")
    learning_rate: PositiveFloat
    surrogate: Literal["clip", "cispo"]
    clip: tuple[Share, PositiveFloat] = setting(
        "how far below and above 1 a token's probability ratio may move the loss")
    normaliser: Literal["token_mean", "sequence_mean", "constant"] = setting("how the tokens of a minibatch weigh")
    kl_coef: NonNegativeFloat
    kl_target: NonNegativeFloat = setting(
        "KL divergence a token that kl_coef adapts to from update to update; 0 leaves it as it is", default=0.0)
    sampler_cap: NonNegativeFloat = setting(
        "largest weight of a token by its probability under the trainer over that under the sampler, where these are "
        "not one program; 0 corrects nothing", default=0.0)
    temperature: PositiveFloat
    max_new_tokens: PositiveInt
    max_grad_norm: PositiveFloat
    inner_epochs: PositiveInt
    minibatch_size: PositiveInt
    critic: CriticConfig = CriticConfig()
    implicit: ImplicitConfig = ImplicitConfig()
    eval_every: NonNegativeInt = setting(
        "updates between evaluations on dev problems, of which the best policy is kept; 0 keeps the last")
    eval_problems: PositiveInt
    eval_samples: PositiveInt = setting("chains of each dev problem")
    guard: GuardConfig
    checkpoint_every: PositiveInt
    log_every: PositiveInt


@section
class ProbeConfig:
    enabled: bool = setting("probe the process model before a policy is trained with it")
    problems: PositiveInt = setting("dev problems; a sound and a wrong chain of each are edited")
    aggregate: str = setting("step scores to a chain's: min, prod, mean, last", registry=AGGREGATIONS)
    suffix_chains: NonNegativeInt = setting("wrong chains that a suffix is searched for; 0 searches none")
    suffix_tokens: PositiveInt = setting("of a suffix")
    suffix_rounds: PositiveInt = setting("in each of which the best exchange of a token is kept")
    suffix_tries: PositiveInt = setting("exchanges tried for a suffix in a round")
    updates: NonNegativeInt = setting("of a policy that the scores alone pay, as train_policy has it; 0 trains none")


@section
class SearchConfig:
    candidates: int = setting("chains to choose among; of methods that work on steps, next steps of each beam", ge=1)
    width: int = setting("beams that are kept, or trees", ge=1)
    granularity: int = setting("steps between two choices of `blocks`", ge=1)
    threshold: Share = setting("of step_best_of_n: the first step that scores as much is taken; 1: the best of all")
    back_offs: int = setting("times a problem that step_best_of_n gives up a step after which none reaches it", ge=0)
    gain: Share = setting("of adaptive_best_of_n: goes on while another chain may add as much to P(right)")
    temperature: NonNegativeFloat
    step_aggregate: str = setting("step scores so far to a beam's: min, prod, mean, last", registry=AGGREGATIONS)
    chain_aggregate: str = setting("step scores to a chain's", registry=AGGREGATIONS)


@section
class EvaluateConfig:
    samples: int = setting("chains per problem; N of best-of-N goes up to it", ge=1)
    best_of: list[PositiveInt] = setting("the N of best-of-N that are reported", min_length=1)
    temperature: NonNegativeFloat
    aggregate: str = setting("step scores to a chain's: min, prod, mean, last", registry=AGGREGATIONS)
    search: list[str] = setting("methods tried on the test problems, compared at equal tokens", registry=SEARCHES)
    bootstrap: int = setting(ge=100)
    bins: int = setting(ge=2)
    shown_trajectories: int = setting(ge=10)
    latency_repeats: PositiveInt


@section
class RegisterConfig:
    model_name: str = setting("in MLflow's registry", pattern=r"^\w[\w .-]*$")


@section
class PromoteConfig:
    max_ece: Share = setting("largest expected calibration error of a champion")
    require_probe: bool = setting("a champion has been probed, and stayed within the bounds below", default=False)
    max_suffix_passes: Share = setting("of wrong chains that pass with a suffix", default=0.2)
    max_outcome_fall: Share = setting("of right answers under the scores alone", default=0.05)
    alias: str = "champion"
    challenger_alias: str = "challenger"


@section
class ServeConfig:
    threshold: Share = setting("a step that scores lower is called wrong, unless a request says otherwise")
    aggregate: str = setting("step scores to a chain's: min, prod, mean, last", registry=AGGREGATIONS)
    cache_size: NonNegativeInt = setting("scored chains kept")
    cache_ttl: PositiveFloat = setting("seconds")
    batch_size: PositiveInt


@section
class EngineConfig:
    """What a server may take of the machine it runs on, where `serve` goes with the model."""

    memory: NonNegativeFloat = setting("GiB for what was computed of chains that may go on", default=0.5)
    waiting: PositiveInt = setting("characters of requests that wait; what goes beyond gets a 503", default=2**23)
    deadline: PositiveFloat = setting("seconds after which a request that has no answer gets a 503", default=60.0)


@section
class HttpConfig:
    """The edge of `prm serve`: of the machine it runs on, where `serve` goes with the model."""

    keys: str = setting("file of API keys, a name and a SHA-256 a line; empty: whoever reaches the port may ask",
                        default="")
    max_body: PositiveInt = setting("bytes of a request", default=4 * 2**20)
    max_depth: PositiveInt = setting("how deep a request's JSON may be nested", default=32)
    max_trajectories: PositiveInt = setting("trajectories of a request", default=1024)
    max_steps: PositiveInt = setting("steps of a trajectory", default=1000)
    max_running: PositiveInt = setting("requests taken in at a time, each by a thread; those beyond get a 503",
                                       default=256)
    body_timeout: PositiveFloat = setting("seconds for a client to send its request", default=30.0)
    drain_delay: NonNegativeFloat = setting(
        "seconds from SIGTERM on in which /ready says no and requests are answered, so that a load balancer notices",
        default=0.0)
    drain_timeout: PositiveInt = setting("seconds that requests have to end before the server does", default=30)
    log_texts: bool = setting("whether the log holds the start of each request's body", default=False)


@section
class Config:
    """Everything a run is decided by; `params.yaml` of a workspace holds it resolved."""

    profile: Text
    seed: int = setting(ge=0, lt=2**32)
    domain: str = setting(registry="prm_core.domains:DOMAINS")
    data: DataConfig
    models: ModelsConfig
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
    if label.merge not in label.strategies and (fault := unknown(MERGES, label.merge)):
        yield "label.merge", f"{fault}, or one of label.strategies"
    for name in ("correct_share", "mean_confidence"):
        low, high = getattr(config.validate, name)
        if low > high:
            yield f"validate.{name}", f"from {low:g} to {high:g} there is nothing"
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


def find_profile(profile: str, beside: Path | None = None) -> Path:
    """The YAML file of a profile: a shipped one's name, or a path. Raises InputError naming the known ones.

    Args:
        beside: the folder a relative path is looked up in as well, that of the profile which extends this one.
    """
    if not profile.endswith((".yaml", ".yml")):
        path = PROFILES / f"{profile}.yaml"
    else:
        path = Path(profile)
        if beside is not None and not path.is_absolute():
            path = beside / path
    if not path.is_file():
        raise InputError(
            f"unknown profile {profile!r}; known: {', '.join(profile_names())}, or give the path of a YAML file"
        )
    return path


def read_profile(path: Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """The values of a profile's file over those of the profile it extends, if it names one, and so on down.

    Raises InputError for a base that is not there, naming the file that extends it, and for a circle.
    """
    chain = [*above, path.resolve()]
    if path.resolve() in above:
        raise InputError(f"{above[-1]}: {EXTENDS} goes in a circle: {' → '.join(file.stem for file in chain)}")
    raw = read_yaml(path)
    base = raw.pop(EXTENDS, "default")
    if not isinstance(base, str) or not base.strip():
        raise InputError(f"{path}: {EXTENDS} is {base!r}, expected the name of a profile or the path of a YAML file")
    if base == "default":
        return raw
    try:
        below = find_profile(base, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {EXTENDS}: {error}") from None
    return merge(read_profile(below, chain), raw)


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
