"""GRPO: whose reward reaches which token, the frozen reference, exact resume, and that the reward rises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from prm_core.config import EncoderConfig, PolicyTrainingConfig
from prm_core.domains import DOMAINS
from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform import steps, workers
from prm_core.sampling.policy import Policy
from prm_core.sampling.sampler import Continuation, Prefix
from prm_core.scoring.scorer import ChainScore
from prm_core.training.policy import grpo
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


def collect(policy, scorer, problems: Sequence[Problem], group_size: int) -> grpo.Experience:
    settings = dataclasses.replace(SETTINGS, group_size=group_size)
    chains = grpo.sample_and_score(policy, scorer, DOMAINS, problems, settings, batch_size=8, seed=0)
    return grpo.to_experience(chains, ENCODER.pad_id, settings)


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
        assert found.sampled[row].tolist() == [begin <= t < end for t in range(found.ids.shape[1])]
        logprobs = [-0.1 * (i + 1) for i in range(end - begin)]
        assert found.old_logprobs[row, begin:end].tolist() == pytest.approx(logprobs)
        for outside in (found.advantages, found.old_logprobs):
            assert not outside[row][~found.sampled[row]].any()
    assert found.figures == pytest.approx({
        "reward/outcome": 0.5, "reward/process": 3 / 5, "reward/hybrid": 0.3 * 0.5 + 0.7 * 0.6, "chain/steps": 2.5,
        "chain/tokens": (len(chains[0][0]) + len(chains[1][0])) / 2, "chain/unfinished_share": 0.0,
    })


def test_a_chain_without_steps_has_an_outcome_only() -> None:
    chains = [(tokens(RIGHT) + EOS, True), (EOS, True), (tokens(RIGHT), False)]
    found = collect(scripted(*chains), TableScorer({RIGHT: 0.9}), [PROBLEM], 3)
    # Outcomes 1, 0, 0 (the last was cut off); the process rewards 0.9, 0.9 of the two chains that have one are equal.
    values = [0.3 * math.sqrt(2), -0.3 * math.sqrt(0.5), -0.3 * math.sqrt(0.5)]
    for row, value in enumerate(values):
        expected = [value] * len(chains[row][0])
        assert found.advantages[row][found.sampled[row]].tolist() == pytest.approx(expected, abs=1e-4)
    assert found.figures["chain/unfinished_share"] == pytest.approx(1 / 3)
    assert found.figures["reward/process"] == pytest.approx(0.9)


def test_steps_beyond_the_scorer_s_context_have_no_reward() -> None:
    chains = [(tokens(ONE) + SEP + tokens(TWO) + SEP + EOS, True), (tokens(WRONG) + SEP + EOS, True)]
    found = collect(scripted(*chains), TableScorer({ONE: 1.0, WRONG: 0.0}), [PROBLEM], 2)
    expected = [0.7] * (len(tokens(ONE)) + 1) + [0.0] * (len(tokens(TWO)) + 2)
    assert found.advantages[0][found.sampled[0]].tolist() == pytest.approx(expected, abs=1e-4)


def test_groups_are_of_one_problem_and_scored_with_its_question() -> None:
    scorer, problems = DigitScorer(), PROBLEMS[:3]
    found = collect(make_policy(ENCODER), scorer, problems, 4)
    assert len(found.ids) == 12
    for row in range(12):
        prompt = ENCODER.encode_prompt(problems[row // 4].prompt)
        assert found.ids[row, : len(prompt)].tolist() == prompt
    texts = [(problems[row // 4].prompt, ENCODER.decode_steps(found.ids[row][found.sampled[row]].tolist()))
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
        found = grpo.token_logprobs(policy.model, ids, sampled, temperature)
        assert found[sampled].tolist() == pytest.approx(one.logprobs, abs=1e-4)
        assert not found[~sampled].any()


# Training


def train(policy: Policy, work: Path, *, crash_after: int | None = None, settings: PolicyTrainingConfig = SETTINGS,
          seed: int = 0) -> list[dict[str, float]]:
    def report(figures: dict[str, float], update: int) -> None:
        if update == crash_after:
            raise Interrupted

    return grpo.train_policy(policy, DigitScorer(), DOMAINS, PROBLEMS[:5], settings, batch_size=64, seed=seed,
                             work=work, report=report)


def changed_settings(**values: float) -> PolicyTrainingConfig:
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
    models, original = [], grpo.token_logprobs

    def noted(model, *args):
        models.append(model)
        return original(model, *args)

    monkeypatch.setattr(grpo, "token_logprobs", noted)
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
    settings = changed_settings(process_weight=0.0, kl_coef=0.0)
    history = train(policy, tmp_path, settings=settings)
    assert {record["reward/outcome"] for record in history} == {0.0}
    assert_same_weights(weights(policy.model), base)


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


def test_passes_of_like_length_have_the_gradient_and_figures_of_the_whole_minibatch(monkeypatch) -> None:
    policy = make_policy(ENCODER)
    reference = make_policy(ENCODER, seed=1).model
    experience = collect(policy, DigitScorer(), PROBLEMS[:5], 4)
    experience.sampled[3, 70:] = False
    # Twins: the model reads them once, whatever their advantages.
    experience.ids[5], experience.sampled[5] = experience.ids[7], experience.sampled[7]
    rows = torch.tensor([7, 3, 12, 0, 19, 5, 11])
    monkeypatch.setattr(grpo, "ROWS_PER_PASS", 3)
    whole, figures = grpo._loss(policy.model, reference, experience, rows, SETTINGS)
    whole.backward()
    expected = {name: parameter.grad.clone() for name, parameter in policy.model.named_parameters()}
    policy.model.zero_grad()
    experience = experience.take(rows.tolist())
    passes = grpo._passes(experience)
    assert sorted(map(len, passes)) == [3, 4]
    assert sorted(row for part in passes for row in part.tolist()) == list(range(7))
    assert any({0, 5} <= set(part.tolist()) for part in passes)
    first, second = ([int(experience.sampled[row].nonzero().max()) for row in part] for part in passes)
    assert max(first) <= min(second)
    read = []
    plain = grpo.token_logprobs
    monkeypatch.setattr(grpo, "token_logprobs", lambda model, ids, *rest: (
        read.append(len(ids)), plain(model, ids, *rest))[1])
    found = dict.fromkeys(figures, 0.0)
    for part in passes:
        share = (experience.sampled[part].sum() / experience.sampled.sum()).item()
        loss, own = grpo._loss(policy.model, reference, experience, part, SETTINGS)
        (loss * share).backward()
        found = {name: value + share * own[name] for name, value in found.items()}
    # By the policy and by the reference.
    assert read == [3, 3] * 2
    assert found == pytest.approx(figures, abs=1e-5)
    for name, parameter in policy.model.named_parameters():
        assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


def test_a_loss_that_is_not_finite_stops_with_the_way_out(tmp_path) -> None:
    with pytest.raises(InputError, match=r"loss is (nan|inf) at update \d; lower train_policy.learning_rate"):
        train(make_policy(ENCODER), tmp_path, settings=changed_settings(learning_rate=1e30, warmup_updates=0))


def test_an_episode_is_learned_from_in_the_tokens_that_the_policy_chose() -> None:
    """What was heard is context; a word spelled in other tokens than the encoder's stays as it was sampled."""
    of = errands.problem()
    heard = errands.run(of, errands.WORKED)
    texts = [of.prompt, *(text for step in heard for text in steps.texts(step))]
    encoder = Encoder(train_tokenizer(texts), EncoderConfig(max_length=512))
    drawn = []
    for step in errands.WORKED:
        [block] = encoder.encode_steps([step])
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
    [chain] = grpo.sample_and_score(policy, scorer, DOMAINS, [of], settings, batch_size=8, seed=0)

    sampled = [token for token, logprob in zip(chain.ids, chain.logprobs, strict=True) if logprob is not None]
    assert sampled == [token for ids in drawn for token in ids]
    assert chain.outcome == 1.0
    assert len(chain.scores) == len(heard)
    assert chain.steps[-1] == len(heard) - 1
    assert chain.ids.count(encoder.separator_id) == 1 + len(heard)
