"""The loop of policies: whose reward reaches which token, the frozen reference, exact resume, that the reward rises;
alone, and with a critic."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from prm_core.config import ConstraintConfig, CriticConfig, EncoderConfig, PolicyTrainingConfig
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform import steps, workers
from prm_core.rules.constitution import load
from prm_core.rules.verdicts import Overseer
from prm_core.sampling.policy import Policy
from prm_core.sampling.sampler import Continuation, Prefix
from prm_core.scoring.scorer import ChainScore
from prm_core.training.policy import loop
from prm_core.training.policy.experience import (
    Choices,
    Experience,
    Reading,
    estimated,
    informed,
    sample_and_score,
    to_experience,
)
from prm_core.training.policy.gae import adapted
from prm_core.training.policy.groups import Layout, passes
from prm_core.training.policy.networks import states_before
from prm_core.turns import AGENT
from prm_core.types import Problem, Step
from tests.builders import errands
from tests.builders.training import (
    PROBLEMS,
    Interrupted,
    assert_same_weights,
    changed,
    make_encoder,
    make_policy,
    small_config,
    weights,
)

ENCODER = make_encoder()
SETTINGS = small_config().train_policy


class DigitScorer:
    """Scripted: a step is worth the share of digits in its text."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, tuple[str, ...]]] = []

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        self.seen += [(prompt, tuple(step.text for step in steps)) for prompt, steps in chains]
        values = [tuple(sum(c.isdigit() for c in s.text) / len(s.text) for s in steps) for _, steps in chains]
        return [ChainScore(value, value, 0) for value in values]


class TableScorer:
    """Scripted: a step's score by its text."""

    def __init__(self, table: dict[str, float]) -> None:
        self.table = table

    def score(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[ChainScore]:
        values = [tuple(self.table[step.text] for step in steps if step.text in self.table) for _, steps in chains]
        return [ChainScore(value, value, 0) for value in values]


def tokens(text: str) -> list[int]:
    return ENCODER.tokenizer.encode(text, add_special_tokens=False)


def scripted(*sampled: tuple[list[int], bool]):
    """A policy that samples these continuations, whatever it is asked."""
    drawn = [Continuation(ids, [-0.1 * (i + 1) for i in range(len(ids))], finished) for ids, finished in sampled]
    return SimpleNamespace(encoder=ENCODER, continue_chains=lambda *args, **kwargs: drawn)


def collect(policy, scorer, problems: Sequence[Problem], group_size: int,
            settings: PolicyTrainingConfig = SETTINGS) -> Experience:
    settings = dataclasses.replace(settings, group_size=group_size)
    chains = sample_and_score(policy, scorer, DOMAINS, problems, settings, batch_size=8, seed=0)
    return to_experience(chains, ENCODER.pad_id, settings, settings.kl_coef)


# Collecting

SEP, EOS = [ENCODER.separator_id], [ENCODER.eos_id]
PROBLEM = Problem("p", "arithmetic", "How many pens?", "7")
PROMPT = ENCODER.encode_prompt(PROBLEM.prompt)
ONE, TWO, RIGHT, WRONG = "3 + 4", "7 pens", "The answer is 7.", "The answer is 8."


def test_rewards_reach_the_tokens_of_their_step_and_those_before() -> None:
    """Two chains. Scores 1, 0 and 1 against 0, 0: mean 2/5, so normalised a = √1.5 for 1 and b = -√(2/3) for 0."""
    chains = [
        (tokens(ONE) + SEP + tokens(TWO) + SEP + tokens(RIGHT) + SEP + EOS, True),
        # An empty step is none, its token counts with the next; the last step ends at the end token.
        (tokens(ONE) + SEP + SEP + tokens(WRONG) + EOS, True),
    ]
    scorer = TableScorer({ONE: 1.0, TWO: 0.0, RIGHT: 1.0})
    scorer.table[WRONG] = 0.0
    found = collect(scripted(*chains), scorer, [PROBLEM], 2)

    # ONE is in both chains: scores 1, 0, 1 | 1, 0.
    high, low = math.sqrt(2 / 3), -math.sqrt(3 / 2)
    lengths = [[len(tokens(text)) + 1 for text in row] for row in ((ONE, TWO, RIGHT), (ONE, WRONG))]
    first = [*[high + low + high] * lengths[0][0], *[low + high] * lengths[0][1], *[high] * lengths[0][2], 0.0]
    second = [*[high + low] * lengths[1][0], *[low] * (1 + lengths[1][1])]
    for row, (process, outcome) in enumerate(((first, 1.0), (second, -1.0))):
        expected = torch.tensor([0.3 * outcome + 0.7 * value for value in process])
        begin, end = len(PROMPT), len(PROMPT) + len(chains[row][0])
        assert_close(found.advantages[row, begin:end], expected, atol=1e-4, rtol=0)
        assert found.ids[row, :end].tolist() == PROMPT + chains[row][0]
        assert found.learned[row].tolist() == [begin <= t < end for t in range(found.ids.shape[1])]
        logprobs = [-0.1 * (i + 1) for i in range(end - begin)]
        assert found.old_logprobs[row, begin:end].tolist() == pytest.approx(logprobs)
        for outside in (found.advantages, found.old_logprobs):
            assert not outside[row][~found.learned[row]].any()
    count = len(chains[0][0]) + len(chains[1][0])
    assert found.figures == pytest.approx({
        "reward/outcome": 0.5, "reward/outcome_error": 0.0, "reward/lowest_error": 0.0, "reward/agreement": 0.0,
        "reward/process": 3 / 5, "reward/lowest_step": 0.0, "reward/paid": (2 + 1) / 2,
        "chain/steps": 2.5, "chain/tokens": count / 2, "chain/unfinished_share": 0.0, "chain/unjudged_share": 0.0,
        "chain/repeated_share": 0.0, "chain/nothing_new_share": 0.0,
        "entropy": sum(0.1 * (i + 1) for ids, _ in chains for i in range(len(ids))) / count,
    })


def test_steps_that_repeat_or_say_nothing_are_counted() -> None:
    filler = tokens("pens 7") + SEP
    chains = [(tokens(TWO) + SEP + tokens(TWO) + SEP + filler + tokens(ONE) + SEP + EOS, True), (EOS, True)]
    figures = collect(scripted(*chains), DigitScorer(), [PROBLEM], 2).figures
    # Of four steps one is there twice, and two hold no word that was not there before.
    assert figures["chain/repeated_share"] == pytest.approx(1 / 4)
    assert figures["chain/nothing_new_share"] == pytest.approx(2 / 4)
    assert figures["chain/unjudged_share"] == pytest.approx(1 / 2)


def test_a_score_that_is_no_number_stops_before_anything_is_learned() -> None:
    scorer = TableScorer({ONE: math.nan})
    with pytest.raises(InputError, match=r"scores a step of problem p as \(nan,\): not a number; train it again, or"):
        collect(scripted((tokens(ONE) + SEP + EOS, True)), scorer, [PROBLEM], 1)


def test_a_chain_without_steps_has_an_outcome_only() -> None:
    chains = [(tokens(RIGHT) + EOS, True), (EOS, True), (tokens(RIGHT), False)]
    found = collect(scripted(*chains), TableScorer({RIGHT: 0.9}), [PROBLEM], 3)
    # Outcomes 1, 0, 0 (the last was cut off); the process rewards 0.9, 0.9 of the two chains that have one are equal.
    values = [0.3 * math.sqrt(2), -0.3 * math.sqrt(0.5), -0.3 * math.sqrt(0.5)]
    for row, value in enumerate(values):
        expected = [value] * len(chains[row][0])
        assert found.advantages[row][found.learned[row]].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.figures["chain/unfinished_share"] == pytest.approx(1 / 3)
    assert found.figures["reward/process"] == pytest.approx(0.9)


def test_a_chain_that_outgrows_the_scorer_s_context_has_no_process_reward() -> None:
    """What of it was scored says nothing of the rest."""
    chains = [(tokens(ONE) + SEP + tokens(TWO) + SEP + EOS, True), (tokens(WRONG) + SEP + EOS, True),
              (tokens(RIGHT) + SEP + EOS, True)]
    found = collect(scripted(*chains), TableScorer({ONE: 1.0, WRONG: 0.0, RIGHT: 1.0}), [PROBLEM], 3)
    # Outcomes 0, 0, 1; process rewards 0 and 1 of two chains.
    low, high = -math.sqrt(0.5), math.sqrt(2)
    for row, step, end in ((0, 0.3 * low, 0.3 * low), (1, 0.3 * low - 0.7, 0.3 * low),
                           (2, 0.3 * high + 0.7, 0.3 * high)):
        length = len(chains[row][0])
        assert found.advantages[row][found.learned[row]].tolist() == pytest.approx(
            [*[step] * (length - 1), end], abs=1e-4)


def test_groups_are_of_one_problem_and_scored_with_its_question() -> None:
    scorer, problems = DigitScorer(), PROBLEMS[:3]
    found = collect(make_policy(ENCODER), scorer, problems, 4)
    assert len(found.ids) == 12
    for row in range(12):
        prompt = ENCODER.encode_prompt(problems[row // 4].prompt)
        assert found.ids[row, : len(prompt)].tolist() == prompt
    texts = [(problems[row // 4].prompt, ENCODER.decode_steps(found.ids[row][found.learned[row]].tolist()))
             for row in range(12)]
    assert scorer.seen == [(prompt, steps) for prompt, steps in texts if steps]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_the_tokens_were_sampled_with(temperature: float) -> None:
    policy = make_policy(ENCODER)
    prompts = [ENCODER.encode_prompt(problem.prompt) for problem in PROBLEMS[:3]]
    drawn = policy.continue_chains(prompts, [Prefix(i, len(p)) for i, p in enumerate(prompts)], temperature=temperature,
                                   max_new_tokens=10, batch_size=8, seed=1)
    for prompt, one in zip(prompts, drawn, strict=True):
        ids = torch.tensor([[*prompt, *one.ids, ENCODER.pad_id, ENCODER.pad_id]])
        sampled = torch.zeros(ids.shape, dtype=torch.bool)
        sampled[0, len(prompt) : len(prompt) + len(one.ids)] = True
        (read,) = passes(ids, sampled, Layout.of(policy.model))
        found = loop.token_logprobs(policy.model, states_before(policy.model, read), read, temperature)
        assert found[sampled].tolist() == pytest.approx(one.logprobs, abs=1e-4)
        assert not found[~sampled].any()


# Training


def train(policy: Policy, work: Path, *, crash_after: int | None = None, settings: PolicyTrainingConfig = SETTINGS,
          seed: int = 0) -> list[dict[str, float]]:
    def report(figures: dict[str, float], update: int) -> None:
        if update == crash_after:
            raise Interrupted

    return loop.train_policy(policy, DigitScorer(), DOMAINS, PROBLEMS[:5], settings, dev=PROBLEMS[5:], batch_size=64,
                             seed=seed, work=work, report=report).history


def changed_settings(**values: Any) -> PolicyTrainingConfig:
    return dataclasses.replace(SETTINGS, **values)


def test_the_reward_rises_on_a_trivial_task(tmp_path) -> None:
    settings = changed_settings(updates=25, group_size=8, learning_rate=0.03, inner_epochs=1, minibatch_size=64,
                                kl_coef=0.0, checkpoint_every=100)
    rewards = [record["reward/process"] for record in train(make_policy(ENCODER), tmp_path, settings=settings)]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.3


def test_a_strong_kl_keeps_the_policy_near_the_reference(tmp_path) -> None:
    kl = [
        train(make_policy(ENCODER), tmp_path / str(coef), settings=changed_settings(
            updates=8, learning_rate=0.01, inner_epochs=1, minibatch_size=64, kl_coef=coef))[-1]["kl"]
        for coef in (0.0, 5.0)
    ]
    assert kl[0] > 0.01
    assert kl[1] < 0.5 * kl[0]


def test_the_reference_is_the_base_policy_and_never_changes(tmp_path, monkeypatch) -> None:
    models, original = [], loop.token_logprobs

    def noted(model, *args):
        models.append(model)
        return original(model, *args)

    monkeypatch.setattr(loop, "token_logprobs", noted)
    policy = make_policy(ENCODER)
    base = weights(policy.model)
    train(policy, tmp_path)
    (reference,) = {id(model): model for model in models if model is not policy.model}.values()
    assert_same_weights(weights(reference), base)
    assert not any(p.requires_grad for p in reference.parameters())
    assert changed(base, weights(policy.model)) == set(base), "every weight of the policy is trained"


def test_the_first_pass_is_on_policy(tmp_path) -> None:
    """Before any update the ratio is 1: nothing is clipped and no distance to the reference; later there is."""
    settings = changed_settings(inner_epochs=1, minibatch_size=64, updates=3, learning_rate=0.01)
    history = train(make_policy(ENCODER), tmp_path, settings=settings)
    assert [record["clip_share"] for record in history] == [0.0, 0.0, 0.0]
    assert [record["kl"] > 1e-6 for record in history] == [False, True, True]


def test_with_several_passes_the_clip_is_active(tmp_path) -> None:
    settings = changed_settings(inner_epochs=4, updates=1, learning_rate=0.01)
    assert train(make_policy(ENCODER), tmp_path, settings=settings)[0]["clip_share"] > 0


def test_the_rate_warms_up_from_the_first_update_on(tmp_path, monkeypatch) -> None:
    """A first update at rate 0 would sample its chains for nothing."""
    rates, step = [], torch.optim.AdamW.step

    def noted(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    train(make_policy(ENCODER), tmp_path, settings=changed_settings(
        updates=5, warmup_updates=3, learning_rate=0.04, inner_epochs=1, minibatch_size=64))
    assert rates == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.04])


def test_equal_rewards_move_nothing(tmp_path) -> None:
    policy = make_policy(ENCODER)
    base = weights(policy.model)
    settings = changed_settings(kl_coef=0.0, advantages=dataclasses.replace(SETTINGS.advantages, process_weight=0.0))
    history = train(policy, tmp_path, settings=settings)
    assert {record["reward/outcome"] for record in history} == {0.0}
    assert_same_weights(weights(policy.model), base)


def run(policy: Policy, work: Path, monkeypatch, outcomes: Sequence[float], **values: Any) -> loop.Trained:
    """A training whose evaluations find these outcomes, one after the other."""
    # The dev problems are asked in two parts.
    found = iter([value for value in outcomes for _ in range(2)])
    plain = loop.sample_chains
    monkeypatch.setattr(loop, "sample_chains", lambda policy, domains, problems, **rest: [
        dataclasses.replace(chain, outcome=value) for value in [next(found)] for chain in plain(
            policy, domains, problems, **rest)])
    return loop.train_policy(policy, DigitScorer(), DOMAINS, PROBLEMS[:5], changed_settings(**values),
                             dev=PROBLEMS[5:7], batch_size=64, seed=0, work=work, report=lambda *given: None)


def test_the_policy_that_does_best_on_dev_problems_is_kept(tmp_path, monkeypatch) -> None:
    policy, last = make_policy(ENCODER), make_policy(ENCODER)
    trained = run(policy, tmp_path / "a", monkeypatch, [0.2, 0.6, 0.6, 0.4], eval_every=1)
    monkeypatch.undo()
    assert trained.kept == 2
    assert [record["dev/outcome"] for record in trained.history] == [0.2, 0.6, 0.6, 0.4]
    history = train(last, tmp_path / "b", settings=changed_settings(updates=2))
    assert history[-1]["loss/policy"] == trained.history[1]["loss/policy"]
    assert_same_weights(weights(policy.model), weights(last.model))


def test_an_alarm_ends_training_and_says_why(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(loop, "alarm", lambda history, settings: "it is hacked" if len(history) == 3 else None)
    policy = make_policy(ENCODER)
    trained = run(policy, tmp_path, monkeypatch, [0.5, 0.4], eval_every=2, updates=9)
    assert (len(trained.history), trained.kept, trained.alarm) == (3, 2, "it is hacked")
    assert "policy training stops after update 3: it is hacked" in caplog.text


@pytest.mark.parametrize(("broken", "updates", "alone"), [
    # More is broken than may be, to the end; and less from the fifth update on, whose chains tell so.
    ([0.5] * 9, 6, [0, 0, 0, 1, 1, 1]), ([0.5, 0.5, 0.5, 0.5, 0.0], 5, [0, 0, 0, 1, 1]),
])
def test_after_an_alarm_rules_go_on_being_learned(broken, updates, alone, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(loop, "alarm", lambda history, settings: "it is hacked" if len(history) >= 3 else None)
    told = iter(broken)
    plain = loop.to_experience

    def counted(*given):
        found = plain(*given)
        return dataclasses.replace(found, figures={**found.figures, "rules/broken": next(told)})

    monkeypatch.setattr(loop, "to_experience", counted)
    constraint = ConstraintConfig(kind="lagrangian", limit=0.1)
    begun = run(make_policy(ENCODER), tmp_path, monkeypatch, [], updates=4, constraint=constraint, checkpoint_every=1)
    assert [record["rules/alone"] for record in begun.history] == [0, 0, 0, 1]
    # Gone on with after a stop, it knows that the reward is hacked.
    trained = run(make_policy(ENCODER), tmp_path, monkeypatch, [], updates=6, constraint=constraint)
    assert (len(trained.history), trained.alarm) == (updates, "it is hacked")
    assert [record["rules/alone"] for record in trained.history] == alone
    assert "from update 4 on nothing is paid, and rules alone are learned: it is hacked" in caplog.text


def test_without_dev_problems_nothing_begins(tmp_path) -> None:
    with pytest.raises(InputError, match="no dev problem to evaluate the policy on; give some, or set"):
        loop.train_policy(make_policy(ENCODER), DigitScorer(), DOMAINS, PROBLEMS[:5], changed_settings(eval_every=1),
                          dev=[], batch_size=64, seed=0, work=tmp_path, report=lambda *given: None)


def test_questions_that_tell_nothing_are_replaced(tmp_path, monkeypatch) -> None:
    """All questions but one are made to; others take their places while there are attempts left."""
    plain = loop.sample_and_score
    dull = {problem.id for problem in PROBLEMS[:5]} - {PROBLEMS[0].id}

    def scored(*args: Any, **kwargs: Any) -> list[Any]:
        return [dataclasses.replace(chain, outcome=0.0, scores=tuple(0.5 for _ in chain.scores) and (0.5,),
                                    steps=chain.steps[:1] or (Step("x"),)) if chain.problem in dull else
                dataclasses.replace(chain, outcome=float(at % 2)) for at, chain in enumerate(plain(*args, **kwargs))]

    monkeypatch.setattr(loop, "sample_and_score", scored)
    plain_tokens, tokens = (
        train(make_policy(ENCODER), tmp_path / str(resample), settings=changed_settings(
            updates=1, resample=resample, problems_per_update=2))[0]["tokens"] for resample in (0, 4))
    assert tokens > plain_tokens


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The records of a run and the weights it ends with."""
    policy = make_policy(ENCODER)
    history = train(policy, tmp_path_factory.mktemp("undisturbed"))
    assert len({record["loss/policy"] for record in history}) == len(history)
    return history, weights(policy.model)


# Checkpoints are written after updates 2 and 4.
@pytest.mark.parametrize("crash_after", [1, 2, 3, 4])
def test_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path, crash_after: int, undisturbed) -> None:
    with pytest.raises(Interrupted):
        train(make_policy(ENCODER), tmp_path / "work", crash_after=crash_after)
    again = make_policy(ENCODER)
    # The distance to the reference in the records shows that it is the base policy still.
    history, trained = undisturbed
    assert train(again, tmp_path / "work") == history
    assert_same_weights(weights(again.model), trained)


def test_a_run_with_workers_ends_bit_for_bit_as_one_without(tmp_path, monkeypatch, undisturbed) -> None:
    shared = make_policy(ENCODER)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    history, trained = undisturbed
    assert train(shared, tmp_path) == history
    assert_same_weights(weights(shared.model), trained)


def test_the_seed_decides(tmp_path, undisturbed) -> None:
    found = [train(make_policy(ENCODER), tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    assert found[0] == undisturbed[0] != found[1]


@pytest.mark.parametrize("critic", [None, "shared", "separate"])
@pytest.mark.parametrize("share", [True, False])
def test_trees_have_the_gradient_and_figures_of_chains_one_by_one(critic: str | None, share: bool) -> None:
    policy, reference = make_policy(ENCODER), make_policy(ENCODER, seed=1).model
    settings = SETTINGS if critic is None else with_critic(critic)
    experience = collect(policy, DigitScorer(), PROBLEMS[:5], 4, settings)
    # One stops early and so stands within others; one is another's twin, and is worth something else.
    experience.learned[3, int(experience.learned[3].nonzero()[2]) :] = False
    experience.ids[5], experience.learned[5] = experience.ids[7], experience.learned[7]
    experience = experience.take([7, 3, 12, 0, 19, 5, 11, 6, 1]).weighed("token_mean", 256)
    head = None if critic is None else loop.Critic(policy.model, separate=critic == "separate")
    modules = torch.nn.ModuleList([policy.model] + ([] if head is None else [head]))
    if head is not None:
        torch.nn.init.normal_(head.head.weight)

    def found(parts: Sequence[Experience], layout: Layout) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        modules.zero_grad()
        total: dict[str, float] = {}
        for part in parts:
            for read in passes(part.ids, part.learned, layout):
                loss, figures = loop._loss(policy.model, head, reference, part, read, settings)
                loss.backward()
                total = {name: total.get(name, 0.0) + value for name, value in figures.items()}
        return total, {name: parameter.grad.clone() for name, parameter in modules.named_parameters()}

    alone = found([experience.take([row]) for row in range(9)], Layout(share=False, width=1, tokens=1))
    # Rows narrower than the trees: some are cut.
    for layout in (Layout(share, width=400, tokens=900), Layout(share, width=110, tokens=230)):
        figures, gradients = found([experience], layout)
        assert figures == pytest.approx(alone[0], abs=1e-5)
        for name, gradient in gradients.items():
            assert_close(gradient, alone[1][name], atol=1e-5, rtol=1e-4)


def test_a_loss_that_is_not_finite_stops_with_the_way_out(tmp_path) -> None:
    with pytest.raises(InputError, match=r"loss is (nan|inf) at update \d; lower train_policy.learning_rate"):
        train(make_policy(ENCODER), tmp_path, settings=changed_settings(learning_rate=1e30, warmup_updates=0))


@pytest.mark.parametrize(("of", "worked"), [
    (errands.problem(), errands.WORKED), (errands.problem(team=True), errands.TEAM_WORKED)], ids=["one", "team"])
def test_an_episode_is_learned_from_in_the_tokens_that_the_policy_chose(of: Problem, worked: Sequence[Step]) -> None:
    """What was heard, and whose turn it is, is context; a word spelled in other tokens than the encoder's stays as it
    was sampled."""
    heard = errands.run(of, worked)
    texts = [of.prompt, *(text for step in heard for text in steps.texts(step))]
    encoder = Encoder(train_tokenizer(texts), EncoderConfig(max_length=512))
    drawn = []
    for step in worked:
        [block] = encoder.encode_steps([dataclasses.replace(step, agent="")])
        own = [token for token, written in block if written]
        drawn.append(own[: next(at for at, token in enumerate(own) if token in encoder.turn_ends) + 1])
    # A word of the first turn in bytes.
    words = encoder.tokenizer.convert_ids_to_tokens(drawn[0])
    at = next(at for at, word in enumerate(words) if len(word) > 1 and not word.startswith("<|"))
    drawn[0][at : at + 1] = encoder.tokenizer.convert_tokens_to_ids(list(words[at]))
    turns = iter(drawn)
    policy = SimpleNamespace(encoder=encoder, continue_chains=lambda *args, **kwargs: [
        Continuation(ids := next(turns), [-0.5] * len(ids), True)])
    settings = dataclasses.replace(SETTINGS, group_size=1)
    scorer = SimpleNamespace(score=lambda chains: [ChainScore((0.5,) * len(one), (), 0) for _, one in chains])
    [chain] = sample_and_score(policy, scorer, DOMAINS, [of], settings, batch_size=8, seed=0)

    sampled = [token for token, logprob in zip(chain.ids, chain.logprobs, strict=True) if logprob is not None]
    assert sampled == [token for ids in drawn for token in ids]
    assert chain.outcome == 1.0
    assert len(chain.scores) == len(heard)
    assert chain.slots[-1] == len(heard) - 1
    assert chain.ids.count(encoder.separator_id) == 1 + len(heard)
    names = [step.agent for step in chain.steps if step.agent]
    assert chain.ids.count(encoder.tokenizer.convert_tokens_to_ids(AGENT)) == len(names)
    assert len(chain.ids) == len(chain.logprobs) == len(chain.slots)


# With a critic

KINDS = ("shared", "separate")
PLAIN = {"over": "tokens", "gae_lambda": 0.95, "learning_rate": 0.005, "clip": 0.2, "coef": 0.5}


def with_critic(kind: str = "shared", *, settings: PolicyTrainingConfig = SETTINGS, **values: Any
                ) -> PolicyTrainingConfig:
    return dataclasses.replace(settings, critic=CriticConfig(kind=kind, **PLAIN | values))


def test_with_a_critic_tokens_have_rewards_and_no_comparison() -> None:
    chains = [(tokens(ONE) + SEP + tokens(RIGHT) + SEP + EOS, True),
              # Not scored whole; and without any step.
              (tokens(ONE) + SEP + tokens(TWO) + SEP + EOS, True), (EOS, True)]
    scorer = TableScorer({ONE: 1.0, RIGHT: 0.5})
    for over in ("tokens", "steps"):
        found = collect(scripted(*chains), scorer, [PROBLEM], 3, with_critic(over=over))
        assert not found.advantages.any()
        assert found.learned.any(1).tolist() == [True, False, True]
        begin = len(PROMPT)
        ends = [begin + len(tokens(ONE)), begin + len(tokens(ONE) + SEP + tokens(RIGHT)), begin + len(chains[0][0]) - 1]
        expected = torch.zeros(found.ids.shape[1])
        # 0.7 of each score; 0.3 for the right answer, where it stops.
        expected[ends] = tensor([0.7, 0.35, 0.3])
        assert_close(found.choices.rewards[0], expected)
        assert not found.choices.rewards[2].any()
        starts = [begin, ends[0] + 1, ends[1] + 1] if over == "steps" else [*range(begin, ends[2] + 1)]
        assert found.choices.made[0].nonzero()[:, 0].tolist() == starts
        assert not found.choices.made[1].any()


def test_advantages_follow_from_values_and_are_whitened() -> None:
    """Two chains of one and two tokens, gamma = 1, lambda = 0: errors -1 | 1, 3 have the mean 1 and variance 8/3."""
    nothing = torch.zeros(2, 3)
    learned = tensor([[False, True, False], [False, True, True]])
    old, anchor = tensor([[0.0, -1.0, 0.0], [0.0, -2.0, -3.0]]), tensor([[0.0, -1.0, 0.0], [0.0, -1.0, -5.0]])
    asked = Choices(learned, tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 4.0]]), nothing, nothing, nothing)
    experience = Experience(torch.zeros(2, 3), learned, old, nothing, nothing, 0.5, {"known": 1.0}, asked)
    values = tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    found = estimated(experience, values, anchor, with_critic(gae_lambda=0.0))
    by = math.sqrt(8 / 3)
    assert_close(found.advantages, tensor([[0.0, -2 / by, 0.0], [0.0, 0.0, 2 / by]]), atol=1e-5, rtol=0)
    assert_close(found.choices.returns, tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 4.0]]))
    assert_close(found.choices.values, values)
    # Returns 1, 1, 4 have the variance 2, what is missed of them 8/3.
    assert found.figures == pytest.approx({"known": 1.0, "value/mean": 1.0, "value/explained": 1 - 4 / 3})
    assert found.kl_coef == 0.5
    # Half of log-probability less the reference's is taken off each token: 0 | -0.5, 1.
    found = estimated(experience, values, anchor, with_critic(gae_lambda=0.0, kl_in_reward=True))
    assert_close(found.choices.returns, tensor([[0.0, 1.0, 0.0], [0.0, 1.5, 3.0]]))
    assert found.kl_coef == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_critic_the_reward_rises_on_a_trivial_task(tmp_path, kind: str) -> None:
    settings = with_critic(kind, learning_rate=0.03, settings=changed_settings(
        updates=25, group_size=8, learning_rate=0.03, inner_epochs=1, minibatch_size=64, kl_coef=0.0,
        checkpoint_every=100, advantages=dataclasses.replace(SETTINGS.advantages, form="mean")))
    history = train(make_policy(ENCODER), tmp_path, settings=settings)
    rewards = [record["reward/process"] for record in history]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.3
    # A critic knows nothing before it has learned.
    assert (history[0]["value/mean"], history[0]["value/explained"]) == (0.0, 0.0)
    paid = 0.7 * sum(record["reward/paid"] for record in history[-4:]) / 4
    assert sum(record["value/mean"] for record in history[-4:]) / 4 == pytest.approx(paid, abs=0.1)
    assert paid > 0.2


@pytest.fixture(scope="module", params=KINDS)
def valued(request, tmp_path_factory) -> tuple[PolicyTrainingConfig, list[dict[str, float]], dict[str, torch.Tensor]]:
    """Settings with a critic, the records of a run and the weights it ends with."""
    settings = with_critic(request.param, over={"shared": "tokens", "separate": "steps"}[request.param],
                           kl_in_reward=request.param == "separate", settings=changed_settings(kl_target=0.01))
    policy = make_policy(ENCODER)
    history = train(policy, tmp_path_factory.mktemp(request.param), settings=settings)
    assert len({record["loss/value"] for record in history}) == len(history)
    return settings, history, weights(policy.model)


def test_with_a_critic_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path, valued) -> None:
    settings, history, trained = valued
    with pytest.raises(Interrupted):
        train(make_policy(ENCODER), tmp_path / "work", crash_after=3, settings=settings)
    again = make_policy(ENCODER)
    assert train(again, tmp_path / "work", settings=settings) == history
    assert_same_weights(weights(again.model), trained)


def test_with_a_critic_workers_change_nothing(tmp_path, monkeypatch, valued) -> None:
    settings, history, trained = valued
    shared = make_policy(ENCODER)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    assert train(shared, tmp_path, settings=settings) == history
    assert_same_weights(weights(shared.model), trained)


def test_the_kl_coefficient_adapts_from_update_to_update(valued) -> None:
    settings, history, _ = valued
    assert history[0]["kl_coef"] == settings.kl_coef
    for before, record in itertools.pairwise(history):
        assert record["kl_coef"] == adapted(before["kl_coef"], before["kl"], 0.01) != before["kl_coef"]


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_critic_the_first_pass_is_on_policy(tmp_path, kind: str) -> None:
    settings = with_critic(kind, settings=changed_settings(
        inner_epochs=1, minibatch_size=64, updates=2, learning_rate=0.01))
    history = train(make_policy(ENCODER), tmp_path, settings=settings)
    assert [(record["clip_share"], record["value/clip_share"]) for record in history] == [(0.0, 0.0)] * 2
    # In a second pass values have moved.
    again = dataclasses.replace(settings, inner_epochs=3, updates=1, critic=dataclasses.replace(
        settings.critic, learning_rate=0.1, clip=0.01))
    assert train(make_policy(ENCODER), tmp_path / "again", settings=again)[0]["value/clip_share"] > 0


def test_what_a_critic_learns_moves_only_a_shared_backbone(tmp_path, monkeypatch) -> None:
    critics, plain = [], loop.Critic

    def kept(*args: Any, **kwargs: Any) -> torch.nn.Module:
        critics.append(plain(*args, **kwargs))
        return critics[-1]

    monkeypatch.setattr(loop, "Critic", kept)

    def ends_with(kind: str, coef: float) -> dict[str, torch.Tensor]:
        policy = make_policy(ENCODER)
        # Two steps: the head is 0 at the first, and moves nothing behind it.
        train(policy, tmp_path / f"{kind}{coef}", settings=with_critic(kind, coef=coef, settings=changed_settings(
            updates=1, inner_epochs=2, minibatch_size=64)))
        return weights(policy.model)

    assert_same_weights(ends_with("separate", 0.0), ends_with("separate", 1.0))
    assert changed(ends_with("shared", 0.0), ends_with("shared", 1.0))
    still, moved, *_ = critics
    assert not still.head.weight.any()
    assert changed(weights(still), weights(moved)) == set(weights(moved)), "every weight of the critic is trained"


def test_kl_in_the_reward_keeps_the_policy_near_too(tmp_path) -> None:
    def ends_at(coef: float) -> float:
        settings = changed_settings(updates=8, learning_rate=0.01, inner_epochs=1, minibatch_size=64, kl_coef=coef)
        return train(make_policy(ENCODER), tmp_path / str(coef),
                     settings=with_critic(kl_in_reward=True, settings=settings))[-1]["kl"]

    kl = [ends_at(0.0), ends_at(5.0)]
    assert kl[0] > 0.01
    assert kl[1] < 0.5 * kl[0]


def test_where_no_chain_has_a_known_reward_nothing_is_learned_from(tmp_path) -> None:
    scorer = SimpleNamespace(score=lambda chains: [ChainScore((), (), 0) for _ in chains])
    with pytest.raises(InputError, match=r"score no chain of an update whole; lower train_policy.max_new_tokens, or"):
        loop.train_policy(make_policy(ENCODER, initializer_range=0.02), scorer, DOMAINS, PROBLEMS[:5],
                          with_critic(settings=changed_settings(max_new_tokens=24)), dev=[], batch_size=64, seed=0,
                          work=tmp_path, report=lambda *given: None)


# Another sampler


@pytest.mark.parametrize("kind", ["none", "shared"])
def test_where_sampler_and_trainer_agree_nothing_is_corrected(tmp_path, kind: str) -> None:
    settings = with_critic(kind, settings=changed_settings(inner_epochs=1, minibatch_size=64, updates=2))
    plain, other = make_policy(ENCODER), make_policy(ENCODER)
    history = train(plain, tmp_path / "plain", settings=settings)
    found = train(other, tmp_path / "other", settings=dataclasses.replace(settings, sampler_cap=2.0))
    for one, same in zip(history, found, strict=True):
        assert same.pop("sampler/ratio") == pytest.approx(1.0, abs=1e-4)
        assert same.pop("sampler/capped_share") == 0.0
        assert same == pytest.approx(one, abs=1e-4)


def test_a_token_counts_by_what_the_trainer_thinks_of_it() -> None:
    learned = tensor([[False, True, True, True]])
    sampled = tensor([[0.0, -1.0, -2.0, -3.0]])
    trainer = tensor([[0.0, -1.0, -2.0 + math.log(3.0), -3.0 - math.log(2.0)]])
    nothing = torch.zeros(1, 4)
    experience = Experience(nothing, learned, sampled, tensor([[0.0, 1.0, -1.0, 4.0]]), nothing, 0.0, {})
    found = informed(experience, Reading(trainer, nothing, nothing), changed_settings(sampler_cap=2.0))
    assert_close(found.advantages, tensor([[0.0, 1.0, -2.0, 2.0]]))
    assert_close(found.old_logprobs, trainer)
    assert found.figures == pytest.approx({"sampler/ratio": (1 + 3 + 0.5) / 3, "sampler/capped_share": 1 / 3})


def test_rules_are_counted_and_cost_advantages_and_not_rewards(tmp_path) -> None:
    (tmp_path / "rules.yaml").write_text(
        "rules:\n  - {id: sums, text: No sums., severity: low, predicate: 'contains(text, \"+\")'}\n"
        "  - {id: never, text: Not this., severity: low, predicate: 'false'}\n")
    overseer = Overseer(load(tmp_path / "rules.yaml"))
    sampled = scripted((tokens(ONE) + SEP + tokens(RIGHT) + SEP + EOS, True), (tokens(RIGHT) + SEP + EOS, True))
    settings = dataclasses.replace(SETTINGS, group_size=2, constraint=ConstraintConfig(kind="lexicographic"))
    chains = sample_and_score(sampled, TableScorer({ONE: 1.0, RIGHT: 1.0}), DOMAINS, [PROBLEM], settings, batch_size=8,
                              seed=0, overseer=overseer)
    assert [chain.broken for chain in chains] == [(("sums",), ()), ((),)]
    found = to_experience(chains, ENCODER.pad_id, settings, 0.0, rules=["sums", "never"])
    assert [found.figures[name] for name in ("rules/broken", "rules/sums", "rules/never")] == [0.5, 0.5, 0.0]
    assert (found.figures["reward/outcome"], found.figures["reward/process"]) == (1.0, 1.0)
    begin = len(PROMPT)
    assert (found.advantages[0, begin : begin + len(tokens(ONE)) + 1] <= -1).all()
    assert (found.advantages[1] > -1).all()
