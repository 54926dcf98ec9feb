"""Warm-up: the loss of solution tokens, who optimises what, which checkpoint is the policy, and exact resume."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from prm_core.config import EncoderConfig
from prm_core.domains import arithmetic
from prm_core.errors import GateError, InputError
from prm_core.models.encoder import Encoder
from prm_core.models.padding import pad
from prm_core.models.tokenizer import train_tokenizer
from prm_core.platform import workers
from prm_core.sampling.policy import load_policy
from prm_core.training import warmup
from prm_core.types import Problem
from tests.builders.training import Interrupted, assert_same_weights, changed, make_encoder, make_lm, small_config

ENCODER = make_encoder()
CONFIG = small_config()
PROBLEMS = arithmetic.make_problems("warmup", 24, 0)


def train(work: Path, accuracies: dict[int, float], *, config=CONFIG, crash_at: int | None = None, problems=PROBLEMS):
    """A run in which the evaluations after these updates find these accuracies, and others 0.

    Returns its result and what it reported. Raises Interrupted at the evaluation after `crash_at` updates.
    """
    reported: list[tuple[int, dict[str, float]]] = []
    done = {"update": 0}

    def accuracy(model) -> float:
        update = done["update"]
        if update == crash_at:
            raise Interrupted
        return accuracies.get(update, 0.0)

    original = warmup.batches_from

    def counted(*args, **kwargs):
        for update, rows in original(*args, **kwargs):
            done["update"] = update + 1
            yield update, rows

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(warmup, "batches_from", counted)
        result = warmup.train(config, ENCODER, problems, accuracy, work,
                              lambda figures, update: reported.append((update, figures)))
    return result, reported


# Every second update until the policy is found, then as often as checkpoints are written, and at the end.
RISING = {2: 0.1, 4: 0.4, 6: 0.6, 9: 0.7, 10: 0.9}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return train(tmp_path_factory.mktemp("undisturbed"), RISING)


def test_the_loss_is_the_cross_entropy_of_the_solution_s_tokens() -> None:
    model = make_lm(ENCODER)
    _, chains = warmup._encode_solutions(ENCODER, PROBLEMS[:3])
    ids = pad([ids for ids, _ in chains], ENCODER.pad_id)
    solution = pad([flags for _, flags in chains], 0).bool()
    found = warmup.solution_loss(model, ids, solution).item() / int(solution[:, 1:].sum())
    losses = []
    for row, flags in chains:
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([row])).logits[0], -1)
        losses += [-logprobs[t - 1, row[t]].item() for t in range(1, len(row)) if flags[t]]
    assert found == pytest.approx(sum(losses) / len(losses), abs=1e-4)


def test_a_solution_is_every_step_and_the_end_token() -> None:
    _, [(ids, flags)] = warmup._encode_solutions(ENCODER, PROBLEMS[:1])
    prompt = len(ENCODER.encode_prompt(PROBLEMS[0].prompt))
    assert flags == [0] * prompt + [1] * (len(ids) - prompt)
    assert ids[-1] == ENCODER.eos_id
    assert ENCODER.decode_steps(ids[prompt:]) == tuple(PROBLEMS[0].meta["solution"])


def test_mistakes_are_read_and_not_learned() -> None:
    problem = dataclasses.replace(PROBLEMS[0], meta={**PROBLEMS[0].meta, "mistakes": [1]})
    _, [(ids, flags)] = warmup._encode_solutions(ENCODER, [problem])
    encoded = ENCODER.encode(problem.prompt, problem.meta["solution"], end=True)
    start, end = encoded.step_ends[0] + 1, encoded.step_ends[1]
    assert ids == encoded.ids
    assert [at for at, learned in enumerate(flags) if not learned] == [
        *range(encoded.prompt_length), *range(start, end + 1)]
    # Also among remarks.
    for seed in range(20):
        ids, flags = warmup._with_remarks(ENCODER, problem, random.Random(seed))
        learned = ENCODER.decode_steps([token for token, flag in zip(ids, flags, strict=True) if flag])
        assert learned == (problem.meta["solution"][0], *problem.meta["solution"][2:])


@pytest.mark.parametrize("mistakes", [["1"], [-1], [99], [True], "none", None])
def test_mistakes_that_are_no_steps_are_named(mistakes) -> None:
    problem = dataclasses.replace(PROBLEMS[0], meta={**PROBLEMS[0].meta, "mistakes": mistakes})
    with pytest.raises(InputError, match=f"problem {problem.id}: meta.mistakes is"):
        warmup._encode_solutions(ENCODER, [problem])


def test_remarks_are_read_and_not_learned() -> None:
    for seed in range(20):
        ids, flags = warmup._with_remarks(ENCODER, PROBLEMS[0], random.Random(seed))
        prompt = len(ENCODER.encode_prompt(PROBLEMS[0].prompt))
        assert flags[:prompt] == [0] * prompt
        steps = ENCODER.decode_steps(ids[prompt:])
        learned = [token for token, flag in zip(ids, flags, strict=True) if flag]
        assert ENCODER.decode_steps(learned) == tuple(PROBLEMS[0].meta["solution"])
        assert len(steps) > len(PROBLEMS[0].meta["solution"])
        assert learned[-1] == ENCODER.eos_id


def test_a_solution_with_remarks_that_is_too_long_or_has_no_place_for_one_stays_as_it_is() -> None:
    problem = PROBLEMS[0]
    one = dataclasses.replace(problem, meta={**problem.meta, "solution": problem.meta["solution"][-1:]})
    assert warmup._with_remarks(ENCODER, one, random.Random(0)) is None
    _, [(ids, _)] = warmup._encode_solutions(ENCODER, [problem])
    plain = len(ids)
    tight = Encoder(ENCODER.tokenizer, dataclasses.replace(ENCODER.config, max_length=plain))
    assert warmup._with_remarks(tight, problem, random.Random(0)) is None


def test_a_share_of_the_chains_has_remarks_the_same_after_a_crash(tmp_path, monkeypatch) -> None:
    asked, original = [], warmup._with_remarks

    def remarks(encoder, problem, rng):
        asked.append(problem.id)
        return original(encoder, problem, rng)

    monkeypatch.setattr(warmup, "_with_remarks", remarks)
    train(tmp_path / "half", RISING)
    chains = CONFIG.warmup.max_updates * CONFIG.warmup.batch_size
    assert 0.25 * chains < len(asked) < 0.75 * chains
    undisturbed = list(asked)
    asked.clear()
    with pytest.raises(Interrupted):
        train(tmp_path / "crashed", RISING, crash_at=9)
    asked.clear()
    train(tmp_path / "crashed", RISING)
    assert asked
    assert asked == undisturbed[-len(asked):]
    asked.clear()
    never = dataclasses.replace(CONFIG, warmup=dataclasses.replace(CONFIG.warmup, harmless_steps=0.0))
    train(tmp_path / "never", RISING, config=never)
    assert not asked


def test_muon_has_the_matrices_and_adamw_the_rest_each_once() -> None:
    model = warmup.build_model(ENCODER, CONFIG)
    muon, adamw = warmup.build_optimizers(model, CONFIG)
    names = {id(p): name for name, p in model.named_parameters()}
    owned = [[names[id(p)] for group in one.param_groups for p in group["params"]] for one in (muon, adamw)]
    assert sorted(owned[0] + owned[1]) == sorted(names.values())
    assert all(name.endswith("_proj.weight") for name in owned[0])
    assert "model.embed_tokens.weight" in owned[1]


def test_the_first_checkpoint_past_the_bound_is_the_policy_and_the_last_the_backbone(undisturbed) -> None:
    result, reported = undisturbed
    assert result.policy_update == 4
    assert [(r["update"], r["accuracy"], r.get("policy", False)) for r in result.history] == [
        (2, 0.1, False), (4, 0.4, True), (6, 0.6, False), (9, 0.7, False), (10, 0.9, False),
    ]
    policy, backbone = load_file(result.policy / "model.safetensors"), load_file(result.backbone / "model.safetensors")
    assert changed(policy, backbone) == set(policy), "the backbone learned on after the policy was taken"
    assert [update for update, _ in reported] == [2, 4, 6, 9, 10]
    # A uniform guess costs log(vocabulary); ten updates are better than that.
    assert result.history[-1]["loss"] < result.history[0]["loss"] < math.log(len(ENCODER.tokenizer)) + 0.5


def test_the_folders_load_as_plain_hugging_face_models(undisturbed) -> None:
    result, _ = undisturbed
    for folder in (result.policy, result.backbone):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert model.config.vocab_size == len(tokenizer) == len(ENCODER.tokenizer)
        assert tokenizer.encode("Mia has 3 pens<|step|>") == ENCODER.encode_prompt("Mia has 3 pens")
        assert model.config.max_position_embeddings == ENCODER.config.max_length


# Checkpoints are written after 3, 6 and 9 updates: a run goes on from the beginning, from between two evaluations (in
# the middle of what a record's mean loss is over), from before the policy was taken and from after.
@pytest.mark.parametrize(("crash_at", "first"), [(2, 2), (4, 4), (6, 4), (9, 9), (10, 10)])
def test_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(
    undisturbed, tmp_path, crash_at: int, first: int
) -> None:
    expected, _ = undisturbed
    with pytest.raises(Interrupted):
        train(tmp_path / "work", RISING, crash_at=crash_at)
    torch.manual_seed(99)
    found, reported = train(tmp_path / "work", RISING)
    assert reported[0][0] == first
    assert found.history == expected.history
    assert found.policy_update == expected.policy_update
    for one, other in ((found.policy, expected.policy), (found.backbone, expected.backbone)):
        assert_same_weights(load_file(one / "model.safetensors"), load_file(other / "model.safetensors"))


def test_a_run_with_workers_ends_bit_for_bit_as_one_without(undisturbed, tmp_path, monkeypatch) -> None:
    expected, _ = undisturbed
    monkeypatch.setattr(workers, "cores", lambda: 2)
    with pytest.raises(Interrupted):
        train(tmp_path / "work", RISING, crash_at=4)
    found, _ = train(tmp_path / "work", RISING)
    assert found.history == expected.history
    assert_same_weights(*(load_file(one.backbone / "model.safetensors") for one in (found, expected)))


def test_evaluations_are_closer_together_from_two_thirds_of_the_policy_s_accuracy_on(tmp_path) -> None:
    settings = dataclasses.replace(CONFIG.warmup, max_updates=20, eval_every=10, checkpoint_every=16)
    config = dataclasses.replace(CONFIG, warmup=settings)
    result, _ = train(tmp_path / "near", {10: 0.21, 12: 0.22, 14: 0.3, 16: 0.4, 20: 0.9}, config=config)
    assert [record["update"] for record in result.history] == [10, 12, 14, 16, 20]
    assert result.policy_update == 14
    result, _ = train(tmp_path / "far", {10: 0.19, 20: 0.9}, config=config)
    assert [record["update"] for record in result.history] == [10, 20]


def test_a_run_that_never_reaches_its_bounds_stops_with_the_figures(tmp_path) -> None:
    with pytest.raises(GateError, match=r"at accuracy 0\.200, the best on the way was 0\.250;.*policy_accuracy 0\.3"):
        train(tmp_path / "no-policy", {8: 0.25, 10: 0.2})
    with pytest.raises(GateError, match=r"ended at accuracy 0\.400.*backbone_accuracy 0\.5 at the end"):
        train(tmp_path / "no-backbone", {4: 0.6, 10: 0.4})


def without_solution(problem: Problem) -> Problem:
    return dataclasses.replace(problem, meta={})


@pytest.mark.parametrize(("problems", "over", "reason"), [
    ([*PROBLEMS, without_solution(PROBLEMS[3])], {}, f"problem {PROBLEMS[3].id} has no worked solution"),
    (PROBLEMS, {"encoder": {"max_length": 60}}, "no worked solution fits encoder.max_length 60: warmup-0"),
    (PROBLEMS, {"warmup": {"matrix_learning_rate": 1e30}}, "the loss is (nan|inf) at update .*; lower warmup"),
])
def test_what_cannot_be_trained_is_an_error(tmp_path, problems, over, reason: str) -> None:
    encoder = make_encoder(over.get("encoder", {}).get("max_length", 256))
    with pytest.raises(InputError, match=reason):
        warmup.train(small_config(**over), encoder, problems, lambda model: 0.0, tmp_path, lambda *_: None)


def test_a_solution_longer_than_the_context_is_left_out_and_named(caplog) -> None:
    long = dataclasses.replace(PROBLEMS[1], id="long-one", meta={"solution": ["1 + 1 = 2."] * 90})
    kept, chains = warmup._encode_solutions(ENCODER, [PROBLEMS[0], long, PROBLEMS[2]])
    assert kept == [PROBLEMS[0], PROBLEMS[2]]
    assert chains == warmup._encode_solutions(ENCODER, kept)[1]
    assert "1 of 3 worked solutions do not fit encoder.max_length 256 and are left out: long-one" in caplog.text


def test_device_auto_trains_where_there_is_no_gpu(undisturbed, tmp_path) -> None:
    found, _ = train(tmp_path, RISING, config=small_config(models={"device": "auto"}))
    if not torch.cuda.is_available():
        assert found.history == undisturbed[0].history


def test_the_seed_decides(undisturbed, tmp_path) -> None:
    same, other = (train(tmp_path / str(seed), RISING, config=small_config(seed=seed))[0].history[-1]["loss"]
                   for seed in (0, 1))
    assert same == undisturbed[0].history[-1]["loss"] != other


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A pretrained model, as far as a test can have one: it knows no boundary, and is tied and instruction-tuned."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer((text for p in PROBLEMS for text in (p.prompt, *p.meta["solution"])), special=())
    tokenizer.chat_template = ("{% for message in messages %}user: {{ message['content'] }}\n{% endfor %}"
                               "{% if add_generation_prompt %}assistant:{% endif %}")
    make_lm(Encoder(tokenizer, EncoderConfig(max_length=256))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def of_base(folder: Path, **over):
    return small_config(
        warmup={"base": str(folder), "learning_rate": 0.0005, "policy_accuracy": 0.0, "backbone_accuracy": 0.0,
                "harmless_steps": 0.0, **over}, encoder={"chat_template": True})


def train_base(work: Path, config, *, crash_at: int | None = None):
    """A run in which no evaluation finds a right answer. Raises Interrupted at the one of this number."""
    model, encoder = warmup.load_base(config.warmup.base, config)
    calls = iter(range(1, 100))

    def accuracy(_) -> float:
        if next(calls) == crash_at:
            raise Interrupted
        return 0.0

    return warmup.train(config, encoder, PROBLEMS, accuracy, work, lambda *_: None, model)


def test_a_pretrained_base_goes_on_from_its_own_weights_and_tokenizer(base, tmp_path) -> None:
    config = of_base(base)
    model, encoder = warmup.load_base(str(base), config)
    before = {name: values.detach().clone() for name, values in model.named_parameters()}
    # Where the rows of its marks come from.
    line = encoder.tokenizer.encode("\n", add_special_tokens=False)
    assert torch.equal(before["model.embed_tokens.weight"][encoder.separator_id],
                       before["model.embed_tokens.weight"][line].mean(0))
    _, chains = warmup._encode_solutions(encoder, PROBLEMS)
    total = sum(warmup.solution_loss(model, torch.tensor([ids]), torch.tensor([flags]).bool()).item()
                for ids, flags in chains)
    result = train_base(tmp_path / "work", config)
    after = load_file(result.backbone / "model.safetensors")
    assert changed(before, after) == set(before)
    # Ten updates of at most this rate.
    assert max((after[name] - before[name]).abs().max().item() for name in before) < 10 * 0.0005 * 3
    first = result.history[0]["loss"]
    assert first == pytest.approx(total / sum(sum(flags) for _, flags in chains), rel=0.1)
    assert result.history[-1]["loss"] < first
    # No checkpoint reaches an accuracy: the last one is the policy.
    assert result.policy_update == CONFIG.warmup.max_updates
    assert_same_weights(load_file(result.policy / "model.safetensors"), after)
    policy = load_policy(str(result.policy), config)
    assert policy.encoder.encode_prompt("Mia") == encoder.encode_prompt("Mia")
    assert policy.encoder.encode_prompt("Mia")[-1] == encoder.separator_id
    assert AutoTokenizer.from_pretrained(result.policy).chat_template


def test_the_accuracy_of_a_base_is_looked_at_no_more_often_near_nothing(base, tmp_path) -> None:
    result = train_base(tmp_path, of_base(base, eval_every=5))
    assert [record["update"] for record in result.history] == [5, 10]


def test_an_interrupted_run_of_a_base_ends_as_an_undisturbed_one(base, tmp_path) -> None:
    config = of_base(base)
    expected = train_base(tmp_path / "undisturbed", config)
    with pytest.raises(Interrupted):
        train_base(tmp_path / "work", config, crash_at=3)
    found = train_base(tmp_path / "work", config)
    assert found.history == expected.history
    assert_same_weights(*(load_file(one.backbone / "model.safetensors") for one in (found, expected)))


@pytest.mark.parametrize("over", [{"rows_per_pass": 1}, {"gradient_checkpointing": True}])
def test_what_saves_memory_changes_nothing_but_rounding(base, tmp_path, over) -> None:
    plain, saving = (train_base(tmp_path / str(number), of_base(base, **values))
                     for number, values in enumerate(({}, over)))
    assert [record["loss"] for record in saving.history] == pytest.approx(
        [record["loss"] for record in plain.history], rel=1e-3)


def test_mixed_precision_trains_float32_weights(base, tmp_path) -> None:
    plain, mixed = (train_base(tmp_path / name, of_base(base, precision=name)) for name in ("float32", "bfloat16"))
    losses = [[record["loss"] for record in one.history] for one in (plain, mixed)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {values.dtype for values in load_file(mixed.backbone / "model.safetensors").values()} == {torch.float32}


def test_a_rate_for_random_weights_is_refused_for_a_base() -> None:
    with pytest.raises(InputError, match=r"warmup\.learning_rate: 0\.01 is for random weights"):
        small_config(warmup={"base": "somewhere", "learning_rate": 0.01})
    assert small_config(warmup={"learning_rate": 0.01})


def test_a_base_that_is_not_there_is_an_error(tmp_path) -> None:
    with pytest.raises(InputError, match=r"no config\.json there"):
        warmup.load_base(str(tmp_path / "nowhere"), CONFIG)
