"""From examples to a trained model: kinds, adapters, recomputing, precision, and what is counted or refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from prm_core.errors import InputError
from prm_core.models.chains import collate
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.reward import RewardModel
from prm_core.scoring.scorer import RewardScorer, load_scorer, save_reward_model
from prm_core.scoring.settings import reward_settings
from prm_core.scoring.surprisal import FEATURES, HISTORY
from prm_core.training.examples import Encoded, Example, Pair, encode_examples
from prm_core.training.reward import recipe
from prm_core.training.reward.loop import Objective
from prm_core.training.reward.probe import read_regression
from prm_core.training.reward.recipe import TrainedModel, held_out_scores, lora, train_on
from prm_core.training.trees import cut, grow
from prm_core.types import Step
from tests.builders.training import (
    CHAINS,
    KINDS,
    assert_same_weights,
    changed,
    files,
    make_encoder,
    make_reward_model,
    reward_model_on,
    save_lm,
    small_config,
    weights,
)

ENCODER = make_encoder()
TARGETS = {"process": lambda steps: tuple(float("+" in step.text) for step in steps),
           "outcome": lambda steps: (float(len(steps) % 2),),
           "advantage": lambda steps: tuple(k / 8 for k in range(len(steps) + 1))}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return save_lm(tmp_path_factory.mktemp("lm"), ENCODER)


def examples_for(kind: str, count: int = 8) -> list[Example]:
    return [Example(f"p{i}", *CHAINS[i], TARGETS[kind](CHAINS[i][1])) for i in range(count)]


def train(
    backbone: Path, work: Path, kind: str = "process", *, examples: list[Example] | None = None,
    pairs: tuple[Pair, ...] = (), models: dict | None = None, encoder: dict | None = None, **settings,
) -> TrainedModel:
    """One epoch."""
    config = small_config(models=models or {}, encoder=encoder or {}, train_prm={"epochs": 1, **settings})
    return train_on(kind, str(backbone), examples or examples_for(kind), pairs, config, work=work,
                    report=lambda figures, update: None)


def saved(trained: TrainedModel, folder: Path) -> tuple[list, list]:
    """Raw scores before and after a model is saved and loaded."""
    identity = Calibrator("identity", 0)
    before = RewardScorer(trained.model, trained.encoder, identity, "", 8).score(CHAINS[:4])
    save_reward_model(trained.model, trained.encoder, identity, folder)
    return before, load_scorer(folder, device="cpu", batch_size=8).score(CHAINS[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_model_is_of_its_kind_and_scores_as_it_does_when_loaded(backbone, tmp_path, kind: str) -> None:
    trained = train(backbone, tmp_path / "work", kind)
    assert isinstance(trained.model, KINDS[kind])
    assert trained.model.surprisal is not None
    assert not trained.model.training
    before, after = saved(trained, tmp_path / "model")
    assert before == after
    assert load_scorer(tmp_path / "model").kind == kind


def test_surprisal_is_for_the_kinds_that_are_named(backbone, tmp_path) -> None:
    found = {kind: train(backbone, tmp_path / kind, kind, models={"surprisal": ["advantage"]}, max_updates=1)
             for kind in KINDS}
    assert {kind: trained.model.surprisal is not None for kind, trained in found.items()} == {
        "process": False, "outcome": False, "advantage": True}


def test_what_was_trained_on_is_counted(backbone, tmp_path) -> None:
    dropped = Example("p0", CHAINS[0][0], (Step("word " * 400),), (1.0,))
    prompt, steps = CHAINS[1]
    pairs = [Pair(f"p{i}", prompt, steps[:1], steps[1], Step(text)) for i in range(8) for text in ("never", "x " * 300)]
    trained = train(backbone, tmp_path, examples=[*examples_for("process"), dropped], pairs=pairs, dev_share=0.25)
    held = {example.problem_id for example in trained.dev}
    own = [example for example in examples_for("process") if example.problem_id not in held]
    targets = [target for example in own for target in example.targets]
    assert len(held) == 2
    assert trained.counts == {
        "chains": 6, "dev_chains": 2, "targets": len(targets), "right": sum(targets), "pairs": 6, "truncated_pairs": 6,
        "rows": trained.counts["rows"], "tokens": trained.counts["tokens"],
        "chain_tokens": trained.counts["chain_tokens"],
        "truncated_steps": int("p0" not in held), "truncated_labels": int("p0" not in held),
        "dropped_chains": int("p0" not in held)}
    assert 0 < trained.counts["tokens"] < trained.counts["chain_tokens"]


def test_held_out_scores_are_those_of_the_dev_targets(backbone, tmp_path) -> None:
    trained = train(backbone, tmp_path, rows_per_pass=1)
    scores, targets = held_out_scores(trained)
    expected = []
    for example in trained.dev:
        chain = trained.encoder.encode(example.prompt, example.steps)
        with torch.inference_mode():
            logits = trained.model(collate([chain], trained.encoder.pad_id))[0]
        expected += [(round(logit.sigmoid().item(), 4), target)
                     for logit, target in zip(logits, example.targets, strict=True)]
    found = [(round(score, 4), target) for score, target in zip(scores, targets, strict=True)]
    assert [target for _, target in sorted(found)] == [target for _, target in sorted(expected)]
    assert sorted(score for score, _ in found) == pytest.approx(sorted(score for score, _ in expected), abs=2e-4)


def test_chains_of_one_problem_cannot_be_split(backbone, tmp_path) -> None:
    one = [Example("p", *CHAINS[i], TARGETS["process"](CHAINS[i][1])) for i in range(3)]
    with pytest.raises(InputError, match=r"chains of 1 problem\(s\); training and dev need one each"):
        train(backbone, tmp_path, examples=one)


def test_labels_that_all_fall_away_are_an_error_before_the_model_is_loaded(backbone, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(KINDS["process"], "from_backbone", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(InputError, match="no label is left to train the process model"):
        train(backbone, tmp_path, encoder={"max_length": 16})


def test_a_separator_that_text_can_spell_is_an_error_before_training(backbone, tmp_path) -> None:
    with pytest.raises(InputError, match=r"encoder\.separator 'q' is a token that text holds"):
        train(backbone, tmp_path, encoder={"separator": "q"})


def test_a_backbone_that_takes_no_trees_trains_too(tmp_path) -> None:
    window = MistralForCausalLM(MistralConfig(
        vocab_size=len(ENCODER.tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256, sliding_window=8))
    window.save_pretrained(tmp_path / "lm")
    ENCODER.tokenizer.save_pretrained(tmp_path / "lm")
    pair = Pair("p0", CHAINS[0][0], CHAINS[0][1][:1], CHAINS[0][1][1], Step("never"))
    trained = train(tmp_path / "lm", tmp_path / "work", examples=examples_for("process"), pairs=[pair] * 8)
    assert trained.counts["tokens"] >= trained.counts["chain_tokens"] - 8 * len(ENCODER.encode(*CHAINS[0]).ids)
    before, after = saved(trained, tmp_path / "model")
    assert before == after


# Adapters


def test_adapters_leave_the_backbone_alone_until_they_are_merged(backbone, tmp_path, monkeypatch) -> None:
    start = weights(reward_model_on(backbone))
    seen: dict[str, dict[str, torch.Tensor]] = {}
    train_reward_model = recipe.train_reward_model

    def watched(model: RewardModel, *args, **kwargs):
        trainable = {name for name, value in model.named_parameters() if value.requires_grad}
        seen["trainable"] = dict.fromkeys(trainable)
        seen["before"] = weights(model)
        history = train_reward_model(model, *args, **kwargs)
        seen["after"] = weights(model)
        batch = collate([ENCODER.encode(*chain) for chain in CHAINS[:3]], ENCODER.pad_id)
        with torch.inference_mode():
            seen["logits"] = model(batch)
        return history

    monkeypatch.setattr(recipe, "train_reward_model", watched)
    trained = train(backbone, tmp_path / "work", lora_rank=2, learning_rate=0.01, head_learning_rate=0.01)
    moved = changed(seen["before"], seen["after"])
    assert moved == set(seen["trainable"])
    assert {name.split(".")[-2 if "lora" not in name else -3] for name in moved} == {
        "lora_A", "lora_B", "score", "surprisal"}
    # Every linear layer of the backbone: seven of each of the two blocks, two matrices each.
    assert sum("lora" in name for name in moved) == 2 * 7 * 2
    # What is frozen is bit for bit what it was, under the name the adapter gave it.
    frozen = {name.replace(".base_layer", ""): value for name, value in seen["after"].items() if name not in moved}
    assert_same_weights(frozen, {name: start[name] for name in frozen})
    merged = weights(trained.model)
    assert merged.keys() == start.keys(), "no trace of adapters"
    assert changed(start, merged) == {
        name for name in start if "proj" in name or "score" in name or name == "surprisal.weight"}
    with torch.inference_mode():
        logits = trained.model(collate([ENCODER.encode(*chain) for chain in CHAINS[:3]], ENCODER.pad_id))
    assert torch.allclose(logits, seen["logits"], atol=1e-3)
    before, after = saved(trained, tmp_path / "model")
    assert before == after
    assert not [name for name in files(tmp_path / "model") if "adapter" in name]


def test_adapters_start_at_nothing_and_by_seed(backbone) -> None:
    batch = collate([ENCODER.encode(*CHAINS[0])], ENCODER.pad_id)
    found = []
    for seed in (0, 0, 1):
        model = make_reward_model(backbone, ENCODER)
        plain = model(batch)
        with lora(model, 2, seed):
            assert torch.equal(model(batch), plain)
            found.append({name: value for name, value in weights(model).items() if "lora" in name})
        assert torch.equal(model(batch), plain)
    assert_same_weights(found[0], found[1])
    assert changed(found[0], found[2])


def test_a_training_that_fails_leaves_a_model_without_adapters(backbone) -> None:
    model = reward_model_on(backbone)
    names = set(weights(model))
    with pytest.raises(ZeroDivisionError), lora(model, 2, 0):
        raise ZeroDivisionError
    assert set(weights(model)) == names


def test_a_rate_of_0_freezes_the_backbone(backbone, tmp_path) -> None:
    start = weights(reward_model_on(backbone))
    for rank in (0, 2):
        trained = train(backbone, tmp_path / str(rank), learning_rate=0.0, lora_rank=rank)
        assert changed(start, weights(trained.model)) == {
            "network.score.weight", "network.score.bias", "surprisal.weight"}


def test_a_frozen_backbone_is_saved_by_name(backbone, tmp_path) -> None:
    frozen = {"learning_rate": 0.0}
    for number, (settings, left_out) in enumerate(((frozen, True), ({**frozen, "lora_rank": 2}, False), ({}, False))):
        trained = train(backbone, tmp_path / f"work{number}", max_updates=1, **settings)
        assert (trained.model.base is not None) is left_out
        folder = tmp_path / f"model{number}"
        before, after = saved(trained, folder)
        assert before == after
        assert ("model.safetensors" in files(folder)) is not left_out


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_says_in_which_precision_it_was_trained(backbone, tmp_path, monkeypatch, precision: str) -> None:
    monkeypatch.setattr(recipe, "resolve", lambda config: dataclasses.replace(
        config, train_prm=dataclasses.replace(config.train_prm, precision=precision)))
    trained = train(backbone, tmp_path / "work", max_updates=1, precision="auto")
    saved(trained, tmp_path / "model")
    assert load_scorer(tmp_path / "model").model.precision == precision
    assert reward_settings(str(tmp_path / "model"))["precision"] == precision


def test_a_chain_longer_than_a_row_trains_as_far_as_it_fits_and_is_scored_whole(backbone, tmp_path) -> None:
    examples = examples_for("process")
    lengths = [len(ENCODER.encode(example.prompt, example.steps).ids) for example in examples]
    width = sorted(lengths)[len(lengths) // 2]
    trained = train(backbone, tmp_path, examples=examples, row_tokens=width, max_updates=1)
    assert trained.counts["truncated_steps"] > 0
    assert trained.encoder.config.max_length == ENCODER.config.max_length
    scorer = RewardScorer(trained.model, trained.encoder, Calibrator("identity", 0), "v", 4)
    longest = examples[lengths.index(max(lengths))]
    assert len(scorer.score([(longest.prompt, longest.steps)])[0].step_scores) == len(longest.steps)


def test_an_encoder_beyond_the_model_s_context_is_an_error(backbone, tmp_path) -> None:
    with pytest.raises(InputError, match=r"encoder.max_length 4096 is beyond the \d+ positions of .*lower it"):
        train(backbone, tmp_path, encoder={"max_length": 4096})


def test_harmless_steps_are_for_training_and_not_for_dev(backbone, tmp_path) -> None:
    trained = train(backbone, tmp_path, harmless_steps=1.0, max_updates=1)
    assert (trained.counts["chains"], trained.counts["dev_chains"], len(trained.dev)) == (12, 2, 2)


def test_nonsense_is_for_the_training_of_a_process_model(backbone, tmp_path) -> None:
    chains = {}
    for kind in ("process", "outcome"):
        trained = train(backbone, tmp_path / kind, kind=kind, nonsense_steps=1.0, max_updates=1)
        chains[kind] = (trained.counts["chains"], trained.counts["dev_chains"])
    assert chains == {"process": (12, 2), "outcome": (6, 2)}


def test_turns_before_their_replies_are_for_the_training_of_what_scores_steps(backbone, tmp_path) -> None:
    chains = {}
    for kind in ("process", "advantage", "outcome"):
        replied = [dataclasses.replace(one, steps=tuple(Step(step.text, observation="so") for step in one.steps))
                   for one in examples_for(kind)]
        trained = train(backbone, tmp_path / kind, kind=kind, examples=replied, unheard_steps=1.0, max_updates=1)
        held = {one.problem_id for one in trained.dev}
        steps = sum(len(one.steps) for one in replied if one.problem_id not in held)
        chains[kind] = (trained.counts["chains"] - steps * (kind != "outcome"), trained.counts["dev_chains"])
    assert chains == {"process": (6, 2), "advantage": (6, 2), "outcome": (6, 2)}


# Memory and precision


@pytest.mark.parametrize("rank", [0, 2])
def test_recomputed_activations_give_the_same_gradients(backbone, rank: int) -> None:
    example, = encode_examples(ENCODER, examples_for("process", 1), "process")[0]
    tree, = grow([example, Encoded(example.chain, (math.nan, *example.targets[1:]))], [], share=True)
    row, objective = cut(tree, 256), Objective(ENCODER.pad_id, (1.0, 1.0), 1.0)
    found = []
    for recompute in (False, True):
        model = make_reward_model(backbone, ENCODER).train()
        if recompute:
            model.network.activation_checkpointing_enable()
        layers = []
        model.backbone.layers[0].mlp.register_forward_pre_hook(lambda *args, layers=layers: layers.append(1))
        with lora(model, rank, 0):
            objective.loss(model, [row], torch.device("cpu"), objective.weight([row])).backward()
            found.append(({name: value.grad for name, value in model.named_parameters() if value.grad is not None},
                          len(layers)))
    (plain, once), (checked, twice) = found
    assert (once, twice) == (1, 2)
    assert plain.keys() == checked.keys()
    assert max(value.abs().max() for value in plain.values()) > 1e-3
    for name, value in plain.items():
        assert torch.allclose(value, checked[name], atol=1e-6), name


def test_recomputing_activations_is_over_when_training_is(backbone, tmp_path) -> None:
    plain, checked = (train(backbone, tmp_path / str(flag), gradient_checkpointing=flag) for flag in (False, True))
    assert not checked.model.network.is_activation_checkpointing
    assert [r["dev_loss"] for r in checked.history] == pytest.approx([r["dev_loss"] for r in plain.history], abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_precision_trains_float32_weights(backbone, tmp_path, monkeypatch, dtype: str) -> None:
    types: list[set] = []
    train_reward_model = recipe.train_reward_model

    def watched(model: RewardModel, *args, **kwargs):
        model.head.register_forward_hook(lambda module, inputs, output: types.append(
            {output.dtype, *(value.dtype for value in model.parameters())}))
        return train_reward_model(model, *args, **kwargs)

    monkeypatch.setattr(recipe, "train_reward_model", watched)
    exact = train(backbone, tmp_path / "exact", models={"dtype": "float32"})
    assert types.pop() == {torch.float32}
    types.clear()
    # In one process with a training in float32, as `prm run` has them.
    trained = train(backbone, tmp_path / "work", precision="bfloat16", models={"dtype": dtype})
    assert types[-1] == {torch.bfloat16, torch.float32}
    assert trained.history[-1]["dev_loss"] == pytest.approx(exact.history[-1]["dev_loss"], rel=0.1)
    assert trained.history[-1]["dev_loss"] != exact.history[-1]["dev_loss"]
    assert {value.dtype for value in trained.model.parameters()} == {getattr(torch, dtype)}
    before, after = saved(trained, tmp_path / "model")
    assert before == after, "neither autocast nor rounded positions are left in the model"


@pytest.mark.parametrize("settings", [{"solver": "convex"}, {"solver": "gradient", "learning_rate": 0.01},
                                      {"solver": "gradient", "learning_rate": 0.0, "probe_rows": 0}])
def test_a_calculator_is_fitted_beside_the_model_and_saved(backbone, tmp_path, settings) -> None:
    examples = [dataclasses.replace(one, steps=(Step("3 + 4 = 8"), *one.steps[1:]), targets=(0.0, *one.targets[1:]))
                if at % 2 else one for at, one in enumerate(examples_for("process"))]
    trained = train(backbone, tmp_path / "work", examples=examples, arithmetic=True, **settings)
    before, after = saved(trained, tmp_path / "prm")
    term = load_scorer(tmp_path / "prm", device="cpu").model.arithmetic
    assert term == trained.model.arithmetic
    assert abs(term.false) + abs(term.true) > 0.1
    assert [one.raw_scores for one in before] == [one.raw_scores for one in after]
    scores, _ = held_out_scores(trained)
    chains = [(one.prompt, one.steps) for one in trained.dev]
    said = RewardScorer(trained.model, trained.encoder, Calibrator("identity", 0), "", 8).score(chains)
    assert sorted(scores) == pytest.approx(sorted(raw for one in said for raw in one.raw_scores), abs=1e-5)
    assert train(backbone, tmp_path / "other", examples=examples, **settings).model.arithmetic is None


def test_history_and_a_ridge_are_taken_and_saved(backbone, tmp_path) -> None:
    trained = train(backbone, tmp_path / "work", solver="convex", history=True, head_ridge=1000.0)
    assert trained.model.feature_count == trained.model.network.config.hidden_size + len(FEATURES) + len(HISTORY)
    # Hardly anything of the hidden state counts.
    assert trained.model.head.weight.abs().max() < 1e-2 < trained.model.surprisal.weight.abs().max()
    before, after = saved(trained, tmp_path / "prm")
    assert [one.raw_scores for one in before] == [one.raw_scores for one in after]


def test_a_head_is_solved_for_on_as_many_rows_as_updates_would_take(backbone, tmp_path, monkeypatch) -> None:
    read = []
    monkeypatch.setattr(recipe, "read_regression",
                        lambda model, rows, **more: read.append(len(rows)) or read_regression(model, rows, **more))
    for updates in (0, 1):
        train(backbone, tmp_path / str(updates), solver="convex", rows_per_update=1, max_updates=updates, row_tokens=64)
    assert read[0] > read[1] == 1


@pytest.mark.parametrize("solver", ["convex", "gradient"])
def test_further_heads_of_a_model_in_bfloat16_are_float32_and_score_as_when_loaded(backbone, tmp_path, solver) -> None:
    config = small_config(models={"dtype": "bfloat16"}, train_prm={
        "epochs": 1, "max_updates": 1, "precision": "bfloat16", "solver": solver, "committee": 2})
    trained = train_on("process", str(backbone), examples_for("process"), (), config, work=tmp_path / "work",
                       report=lambda figures, update: None, outcomes=examples_for("outcome"))
    assert {value.dtype for value in trained.model.heads.parameters()} == {torch.float32}
    before, after = saved(trained, tmp_path / "model")
    assert before == after
    assert all(score.members for score in before)
