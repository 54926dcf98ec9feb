"""Sections on training: reward models, the probe of one, and policies."""

from __future__ import annotations

from typing import Literal

from prm_core.config.values import (
    AGGREGATIONS,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    Text,
    section,
    setting,
)

ADVANTAGES = "prm_core.training.policy.advantages"
# Of `train_policy.reward_model`: one that learns while the policy does.
IMPLICIT = "implicit"


@section
class GenerativeConfig:
    votes: PositiveInt = setting("checks that a verifier writes of a step, whose verdicts it means", default=16)
    temperature: NonNegativeFloat = setting("they are sampled at", default=1.0)
    max_new_tokens: PositiveInt = setting("of a check", default=32)
    samples: PositiveInt = setting("checks of a labelled step, of which those are kept that match the label", default=4)
    epochs: PositiveInt = setting("over what was kept", default=3)
    batch_size: PositiveInt = setting("chains and verdicts an update, each", default=16)
    learning_rate: PositiveFloat = setting("AdamW, falling to zero", default=0.001)


@section
class LaunchConfig:
    """How stages that train are run, which decides nothing of what they give: no stage runs again for it."""

    processes: PositiveInt = setting(
        "of a stage that trains (train_prm, train_policy), and of `prm train`, on this machine: a GPU each, or a share "
        "of the processor's cores", default=1)
    sharding: Literal["none", "full"] = setting(
        "none: each process holds the whole model (DDP); full: reward models, a share of the weights, their gradients "
        "and the optimizer's state (FSDP); policies, which every process samples from, of the optimizer's state (ZeRO)",
        default="none")


@section
class RewardTrainingConfig:
    labels: Literal["hard", "soft"]
    harmless_steps: Share = setting(
        "share of the chains of which a copy is trained too, with steps inserted that change nothing (filler, "
        "restatements, irrelevant facts)")
    unheard_steps: Share = setting(
        "process and advantage models: share of the steps with a reply that are trained before it too, as a search in "
        "an environment scores them", default=1.0)
    nonsense_steps: Share = setting(
        "process model: share of the chains of which a copy is trained too with random words as a step or behind one, "
        "which is wrong then: what nobody can read must not pass for something unusual")
    class_weights: Literal["none", "balanced"] = setting("balanced: right and wrong targets weigh the same")
    solver: Literal["gradient", "convex"] = setting(
        "gradient: every weight that has a rate is trained; convex: the backbone stays as it is and the head is solved "
        "for, which no seed moves and takes seconds on a small model")
    head_ridge: PositiveFloat = setting(
        "convex: penalty on the weights of the hidden state, which lets little of it count where it is high: then less "
        "fits the training problems and more carries over to text of another kind", default=0.003)
    history: bool = setting(
        "process model: its surprisal's term reads the chain before a step too: the least expected so far, and how far "
        "on the step is", default=False)
    committee: NonNegativeInt = setting(
        "further heads of the process model, each solved for on another draw of the training problems: how far they "
        "differ is how unsure a score is; 0 is none")
    arithmetic: bool = setting(
        "process model: a calculator's verdict on a step's equations moves its score, as far as labels say; for "
        "questions in which arithmetic is written out and models that are too small to do it", default=False)
    probe_rows: NonNegativeInt = setting(
        "gradient: rows on which the surprisal's weights are fitted before training, and the arithmetic's after it; 0 "
        "starts the former at nothing and takes all rows for the latter")
    epochs: PositiveInt
    max_updates: NonNegativeInt = setting(
        "stop there; 0 is all epochs; convex: the head is solved for on as many rows as those updates take")
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
    generative: GenerativeConfig = setting(default=GenerativeConfig())


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
class ConstraintConfig:
    """What broken rules (section `rules`) do to a policy's training: they are no part of the reward."""

    kind: Literal["none", "lagrangian", "lexicographic"] = setting(
        "none: rules are counted; lagrangian: a multiplier rises while more than `limit` is broken, and falls below "
        "it; lexicographic: while more is, a step that breaks a rule is learned to be left, whatever it earns",
        default="none")
    limit: Share = setting("of the runs that may break a rule", default=0.01)
    multiplier: NonNegativeFloat = setting("lagrangian: at first", default=1.0)
    rate: PositiveFloat = setting("lagrangian: that the multiplier rises by in an update whose runs all break a rule",
                                  default=1.0)
    most: PositiveFloat = setting("lagrangian: the largest multiplier", default=10.0)


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
    constraint: ConstraintConfig = ConstraintConfig()
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
