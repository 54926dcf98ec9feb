"""Sections on what comes after training: search, evaluation, registration, serving."""

from __future__ import annotations

from typing import Literal

from prm_core.config.values import (
    AGGREGATIONS,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    section,
    setting,
)

SEARCHES = "prm_core.search.methods:METHODS"
RUNNERS = "prm_core.platform.shards:RUNNERS"


@section
class SearchConfig:
    candidates: int = setting("chains to choose among; of methods that work on steps, next steps of each beam", ge=1)
    width: int = setting("beams that are kept, or trees", ge=1)
    granularity: int = setting("steps between two choices of `blocks`", ge=1)
    threshold: Share = setting("of step_best_of_n: the first step that scores as much is taken; 1: the best of all")
    back_offs: int = setting("times a problem that step_best_of_n gives up a step after which none reaches it, or, in "
                             "an environment, draws as many turns again where all break a rule", ge=0)
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
class RulesConfig:
    """Safety rules that steps are held to, beside being right (docs/rules.md)."""

    file: str = setting("shipped rules by name (errands, agents), or the path of a YAML file from the workspace; "
                        "empty: none", default="")
    version: str = setting("of a file of your own, as `prm rules check` tells it, so that stages run again when the "
                           "rules change; shipped ones need none", default="")
    threshold: Share = setting("probability from which on a rule is taken for broken", default=0.5)
    block: Literal["none", "low", "medium", "high", "critical"] = setting(
        "severity from which on a broken rule blocks what a server was asked about: its overall score is 0",
        default="none")


@section
class RegisterConfig:
    model_name: str = setting("in MLflow's registry", pattern=r"^\w[\w .-]*$")


@section
class PromoteConfig:
    by: Literal["steps", "outcomes"] = setting(
        "what is compared: first errors and calibration of steps; or, where nobody judges steps, how well scores of "
        "chains tell right answers from wrong ones, which says less", default="steps")
    max_ece: Share = setting("by steps: largest expected calibration error of a champion")
    require_probe: bool = setting("a champion has been probed, and stayed within the bounds below", default=False)
    max_suffix_passes: Share = setting("of wrong chains that pass with a suffix", default=0.2)
    max_outcome_fall: Share = setting("of right answers under the scores alone", default=0.05)
    max_violations: Share = setting("of the runs of the policy that learned from the champion, those that break a "
                                    "rule; 1 asks for no figure", default=1.0)
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
class WorkersConfig:
    """Who works on shards, on which machines: no row depends on it, and no stage runs again for it."""

    runner: str = setting("local: processes of this machine, one a core; ray: workers of a Ray cluster",
                          default="local", registry=RUNNERS)
    address: str = setting("of the Ray cluster: HOST:PORT of its head, ray://HOST:PORT from outside it, auto (the one "
                           "this machine is in) or local (one started here, for as long as a stage runs)",
                           default="auto", pattern=r"\S")
    count: PositiveInt = setting("Ray workers, each of one core", default=2)
    gpus: NonNegativeFloat = setting("GPUs of each Ray worker; models then lie on its first", default=0.0)
    retries: NonNegativeInt = setting("times that a shard is given to another Ray worker, when one was lost",
                                      default=2)
    start_seconds: PositiveFloat = setting("in which a first Ray worker must have started", default=300.0)
    send_code: bool = setting("whether this code is sent to the workers; false where theirs is installed, which then "
                              "must be the same", default=True)


@section
class EngineConfig:
    """What a server may take of the machine it runs on, where `serve` goes with the model."""

    memory: NonNegativeFloat = setting("GiB for what was computed of chains that may go on", default=0.5)
    threads: NonNegativeInt = setting(
        "threads of a pass; 0: one for a model of fewer than 20 million parameters, whose passes are too short for "
        "more, and what PyTorch takes for a larger one", default=0)
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
    max_running: PositiveInt = setting("requests taken in at a time; those beyond get a 503",
                                       default=256)
    body_timeout: PositiveFloat = setting("seconds for a client to send its request", default=30.0)
    drain_delay: NonNegativeFloat = setting(
        "seconds from SIGTERM on in which /ready says no and requests are answered, so that a load balancer notices",
        default=0.0)
    drain_timeout: PositiveInt = setting("seconds that requests have to end before the server does", default=60)
    log_texts: bool = setting("whether the log holds the start of each request's body", default=False)


@section
class SwapConfig:
    """How `prm serve` goes with the alias that it serves."""

    poll: PositiveFloat = setting("seconds between two looks at where the alias points", default=10.0)
    shadow: NonNegativeInt = setting("trajectories, the last ones, on which a new version is tried", default=256)
    max_difference: Share = setting("mean difference of its scores of them from the served version's; a version beyond "
                                    "it does not take over", default=0.5)
    webhook_secret: str = setting("file with the secret of MLflow's webhook; empty: POST /reload takes API keys alone",
                                  default="")


@section
class AdaptConfig:
    """A round of adaptation (`prm adapt`): which served trajectories it takes, how many steps people are asked about,
    how the challenger is trained from the champion, and what refuses it."""

    window_days: PositiveFloat = setting("days up to now whose samples are taken", default=30.0)
    min_trajectories: PositiveInt = setting("new ones without which a round does not begin", default=200)
    review_share: Share = setting("of a round's steps that people are asked about", default=0.02)
    answered: Share = setting("of those that have an answer before a round goes on", default=0.8)
    min_labels: PositiveInt = setting("people's verdicts, of all rounds, without which none is trained", default=40)
    held_out: float = setting("of the questions, kept for measuring: nothing is trained on them", default=0.25, gt=0,
                              lt=1)
    train: Literal["heads", "lora", "all"] = setting(
        "what is trained, from the champion: heads alone are solved for, the others go by train_prm's rates",
        default="heads")
    lora_rank: PositiveInt = setting("of `lora`", default=8)
    replay: Share = setting("of the chain's own training problems that are trained again, against forgetting",
                            default=1.0)
    replay_weight: PositiveFloat = setting("times that each of them counts, of once for a served one", default=4.0)
    max_weight: float = setting("times that a trajectory counts at most, however small its chance", default=10.0, ge=1)
    max_old_fall: Share = setting("on the chains of the evaluation, of the first-error F1, or by outcomes of the AUROC",
                                  default=0.01)
    max_suffix_rise: Share = setting(
        "of the share of wrong chains that pass with a suffix, where the interval of the rise lies above 0",
        default=0.125)
    suffix_chains: NonNegativeInt = setting(
        "wrong chains that suffixes are searched for, as long and often as `probe` says; 0 is none", default=32)


@section
class DriftConfig:
    """What is kept of served traffic, how it is compared with what the model was calibrated on, and how long that
    calibration is relied upon: of the folder that a server was started in."""

    folder: str = setting("where samples, alarms and steps for review lie", default="served", pattern=r"\S")
    sample: Share = setting("of the questions whose trajectories are kept, as figures", default=0.1)
    texts: bool = setting("whether their texts are kept too, which review needs", default=False)
    queue: PositiveInt = setting("requests that wait to be kept; what goes beyond is dropped and counted", default=256)
    rows: PositiveInt = setting("trajectories of a file", default=1000)
    seconds: PositiveFloat = setting("after which a file is written, however few they are", default=60.0)
    keep_days: PositiveFloat = setting("days after which a file is removed", default=30.0)
    window_hours: PositiveFloat = setting("hours up to now that are compared", default=24.0)
    min_questions: int = setting("in a window, and in what it is compared with, below which nothing is compared",
                                 default=50, ge=10)
    false_alarms: float = setting("share of windows without drift that raise an alarm", default=0.01, ge=0.002, le=0.5)
    review: NonNegativeInt = setting("trajectories of a window drawn for people to judge", default=20)
    max_age_days: PositiveFloat = setting("days after which a calibration is stale", default=90.0)
