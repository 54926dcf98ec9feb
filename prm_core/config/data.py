"""Sections on data, models and labels: what the chain does before it trains."""

from __future__ import annotations

from typing import Literal

from prm_core.config.values import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    Text,
    section,
    setting,
)

STRATEGIES = "prm_core.labeling.strategies:STRATEGIES"
MERGES = "prm_core.labeling.merging.merge:MERGES"


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
        "level of difficulty of made problems; domain arithmetic: standard, hard; errands: standard, team; "
        "errands-rules: standard",
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
class SamplingConfig:
    backend: str = setting(
        "where the stages below sample: in_process; server, an OpenAI-compatible one; vllm, in this process",
        default="in_process", registry="prm_core.sampling.backends:BACKENDS")
    stages: list[Literal["generate", "label", "evaluate", "search", "train_policy"]] = setting(
        "that sample there; the others sample here. train_policy cannot: its weights change with every update",
        default=("generate", "label", "evaluate", "search"))
    endpoint: str = setting("server: base URL (…/v1)", default="")
    server: str = setting("kind of server: vllm, sglang, llama.cpp, transformers, or openai for any other",
                          default="vllm", registry="prm_core.sampling.backends.kinds:KINDS")
    model: str = setting("server: its name for models.policy; empty: the same", default="")
    trained_model: str = setting(
        "server: its name for the trained policy, which is evaluated; empty: that one is sampled here", default="")
    api_key_env: str = setting("environment variable that holds the key; empty or unset is no key", default="")
    timeout: PositiveFloat = setting("seconds for one try of a request", default=300.0)
    retries: NonNegativeInt = setting("of a request, with growing pauses", default=4)
    concurrency: PositiveInt = setting("continuations under way at once", default=64)
    input_price: NonNegativeFloat = setting("cost of a million tokens read, in your currency", default=0.0)
    output_price: NonNegativeFloat = setting("cost of a million tokens written", default=0.0)
    verify: bool = setting(
        "load the weights here once, and compare the first samples with them; false where they do not fit here",
        default=True)
    memory_share: float = setting("vllm: share of the GPU's memory that it may take", default=0.85, gt=0, le=1)


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
    base: str = setting(
        "Hugging Face folder or hub id of a pretrained model that learns the worked solutions, with its own tokenizer; "
        "empty: random weights, of the sizes below", default="")
    hidden_size: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    intermediate_size: PositiveInt
    batch_size: PositiveInt
    rows_per_pass: NonNegativeInt = setting(
        "solutions of a forward pass of a process; bounds the memory; 0 is its whole share of a batch", default=0)
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "bfloat16: mixed, the weights stay float32; auto: where the device multiplies in it", default="float32")
    gradient_checkpointing: bool = setting("recompute activations: less memory, a third more time", default=False)
    max_updates: PositiveInt = setting("the learning-rate schedule ends here")
    learning_rate: PositiveFloat = setting("AdamW: embeddings and norms; of a base, all weights")
    matrix_learning_rate: PositiveFloat = setting("Muon: weight matrices; not of a base")
    weight_decay: NonNegativeFloat
    warmup_updates: NonNegativeInt
    decay_share: float = setting("last share of the updates in which the rate falls to zero", gt=0, le=1)
    policy_accuracy: float = setting(
        "first checkpoint at or past this accuracy is the policy; 0: the last one, which is the backbone too",
        ge=0, lt=1)
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
class TeacherConfig:
    model: str = setting("folder or hub id of a process reward model, of this project or another one", default="")
    batch_size: PositiveInt = setting("chains it scores together", default=64)


@section
class LabelConfig:
    strategies: list[str] = setting(min_length=1, registry=STRATEGIES)
    rollout: RolloutConfig
    mc_dropout: McDropoutConfig
    mcts: MctsConfig
    verifier: VerifierConfig
    judge: JudgeConfig
    teacher: TeacherConfig = setting(default=TeacherConfig())
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
