"""The implicit reward model: rewards by hand from two language models, trees, what moves, and its folder."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, Gemma2Config, Gemma2ForCausalLM

from prm_core.errors import InputError
from prm_core.models.chains import ChainBatch, collate
from prm_core.models.encoder import EncodedChain, Encoder
from prm_core.models.tokenizer import train_tokenizer
from prm_core.scoring import implicit
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.implicit import ImplicitRewardModel
from prm_core.scoring.kinds import load_reward_model
from prm_core.scoring.reward import ProcessRewardModel, RewardModel
from prm_core.scoring.scorer import load_scorer, save_reward_model
from prm_core.training.examples import Encoded, Example
from prm_core.training.reward.loss import cross_entropy_sum
from prm_core.training.reward.recipe import TrainedModel, train_on
from prm_core.training.trees import collate_trees, cut, grow
from prm_core.types import Step
from tests.builders.training import (
    CHAINS,
    assert_same_weights,
    changed,
    files,
    make_encoder,
    save_lm,
    small_config,
    weights,
)

ENCODER = make_encoder()
SETTINGS = dataclasses.asdict(ENCODER.config)
BETA = 0.05


def model_on(path: Path, *, beta: float = BETA) -> ImplicitRewardModel:
    return ImplicitRewardModel.from_backbone(str(path), encoder=SETTINGS, dtype="float32", device="cpu", beta=beta)


def moved(model: ImplicitRewardModel, seed: int = 1) -> ImplicitRewardModel:
    """The network away from its reference, as training would leave it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return save_lm(tmp_path_factory.mktemp("backbone"), ENCODER)


@pytest.fixture
def model(backbone: Path) -> ImplicitRewardModel:
    return moved(model_on(backbone))


def observed(number: int) -> EncodedChain:
    """A chain whose first step has an observation, which nobody wrote."""
    prompt, steps = CHAINS[number]
    return ENCODER.encode(prompt, (Step(steps[0].text, observation=steps[1].text), *steps[1:]))


ENCODED = [ENCODER.encode(*CHAINS[0]), observed(1), ENCODER.encode(*CHAINS[2])]


def make_encoder_of(texts: list[str]) -> Encoder:
    """An encoder of fewer words."""
    return Encoder(train_tokenizer(texts), ENCODER.config)


def batch_of(chains: list[EncodedChain]) -> ChainBatch:
    return collate(chains, ENCODER.pad_id)


def rewards_by_hand(model: ImplicitRewardModel, chain: EncodedChain) -> list[float]:
    """beta · log-ratio of each position's token from two whole forward passes, 0 where the policy wrote none."""
    ids = torch.tensor([chain.ids])
    with torch.inference_mode():
        own, reference = (torch.log_softmax(network(input_ids=ids).logits[0].double(), -1)
                          for network in (model.network, model.reference))
    return [model.beta * (own[t - 1, chain.ids[t]] - reference[t - 1, chain.ids[t]]).item() if chain.scored[t] else 0.0
            for t in range(len(chain.ids))]


# What the rewards are


def test_token_rewards_are_scaled_log_ratios_of_the_written_tokens(model) -> None:
    found = model.token_rewards(batch_of(ENCODED))
    assert found.dtype == torch.float32
    for row, chain in zip(found.tolist(), ENCODED, strict=True):
        assert row[: len(chain.ids)] == pytest.approx(rewards_by_hand(model, chain), abs=1e-6)
        assert not any(row[len(chain.ids) :])


def test_the_logit_of_a_slot_is_the_sum_of_its_chain_s_rewards_so_far(model) -> None:
    found = model(batch_of(ENCODED))
    for row, chain in zip(found.tolist(), ENCODED, strict=True):
        tokens = rewards_by_hand(model, chain)
        expected = [sum(tokens[: end + 1]) for end in chain.step_ends]
        assert row[: len(expected)] == pytest.approx(expected, abs=1e-5)
        assert max(map(abs, expected)) > 0.1, "rewards of nothing would show nothing"


def test_step_rewards_telescope_to_the_chain_s_reward(model) -> None:
    batch = batch_of(ENCODED)
    with torch.inference_mode():
        steps, values, tokens = model.step_rewards(batch), model(batch), model.token_rewards(batch)
    assert torch.allclose(steps[:, 1:], values.diff(dim=1), atol=1e-6)
    for row, chain in enumerate(ENCODED):
        last = len(chain.step_ends)
        assert values[row, last - 1].item() == pytest.approx(steps[row, :last].sum().item(), abs=1e-6)
        assert values[row, last - 1].item() == pytest.approx(tokens[row].sum().item(), abs=1e-5)
        assert not steps[row, last:].any()


def test_a_model_that_is_its_reference_has_no_opinion(backbone: Path) -> None:
    model = model_on(backbone)
    assert not model(batch_of(ENCODED)).any()
    assert not model.token_rewards(batch_of(ENCODED)).any()


def test_rewards_grow_with_beta(backbone: Path, model) -> None:
    twice = moved(model_on(backbone, beta=2 * BETA))
    assert torch.allclose(twice(batch_of(ENCODED)), 2 * model(batch_of(ENCODED)), atol=1e-6)


def test_a_chain_without_steps_has_no_reward(model) -> None:
    assert not model(batch_of([ENCODER.encode(CHAINS[0][0], [])])).any()


def test_a_bare_prompt_is_worth_nothing(model) -> None:
    batch = collate(ENCODED, ENCODER.pad_id, prompt_slot=True)
    values = model(batch)
    assert values[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert torch.allclose(values[:, 1:], model(batch_of(ENCODED)), atol=1e-6)


def test_vocabulary_logits_exist_at_written_tokens_only_a_chunk_at_a_time(model, monkeypatch) -> None:
    whole, size, shapes = model(batch_of(ENCODED)), len(ENCODER.tokenizer), []
    monkeypatch.setattr(implicit, "CHUNK", 7)
    for network in (model.network, model.reference):
        network.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    assert torch.allclose(model(batch_of(ENCODED)), whole, atol=1e-6)
    written = sum(sum(chain.scored) for chain in ENCODED)
    full, rest = divmod(written, 7)
    assert shapes == 2 * ([(7, size)] * full + [(rest, size)] * (rest > 0))


# Trees


def branches() -> list[EncodedChain]:
    """Chains of one prompt: two share a step with an observation, a third begins otherwise."""
    prompt, steps = CHAINS[0]
    first = Step(steps[0].text, observation=steps[1].text)
    return [ENCODER.encode(prompt, chain) for chain in (
        (first, *steps[1:]), (first, *CHAINS[1][1]), (CHAINS[2][1][0], *steps[2:]))]


OUTCOMES = [1.0, 0.0, 1.0]


def loss_of_chains(model: ImplicitRewardModel) -> torch.Tensor:
    """Cross-entropy of the chains' last slots with their outcomes, chain by chain."""
    total = torch.zeros(())
    for chain, outcome in zip(branches(), OUTCOMES, strict=True):
        logit = model(batch_of([chain]))[0, len(chain.step_ends) - 1]
        total = total + torch.nn.functional.softplus(logit) - outcome * logit
    return total


def test_trees_score_steps_as_their_chains_do(model) -> None:
    tree, = grow([Encoded(chain, (outcome,)) for chain, outcome in zip(branches(), OUTCOMES, strict=True)], [],
                 share=True)
    piece, = cut(tree, 1000)
    rows = collate_trees([[piece, piece]], ENCODER.pad_id)
    assert rows.chains.ids.shape[1] < 2 * sum(len(chain.ids) for chain in branches()), "nothing is shared"
    with torch.inference_mode():
        values, steps = model(rows.chains)[0], model.step_rewards(rows.chains)[0]
        for chain in branches():
            alone = batch_of([chain])
            nodes = tree.add_chain(chain)
            # The row's slots are the piece's nodes, twice.
            slots = [piece.nodes.index(node) for node in nodes[1:]]
            again = [len(piece.nodes) + slot for slot in slots]
            for place in (slots, again):
                assert torch.allclose(values[place], model(alone)[0], atol=1e-5)
                assert torch.allclose(steps[place], model.step_rewards(alone)[0], atol=1e-5)
    assert values[0] == 0


def test_trees_train_as_their_chains_do(model) -> None:
    loss_of_chains(model).backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.network.named_parameters()}
    model.zero_grad()
    tree, = grow([Encoded(chain, (outcome,)) for chain, outcome in zip(branches(), OUTCOMES, strict=True)], [],
                 share=True)
    batch = collate_trees([cut(tree, 1000)], ENCODER.pad_id)
    loss = cross_entropy_sum(model(batch.chains), batch.targets, batch.weights)
    loss.backward()
    assert loss.item() == pytest.approx(loss_of_chains(model).item(), rel=1e-5)
    for name, parameter in model.network.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name], atol=1e-5), name


# What training does


def test_the_gradient_is_the_network_s_alone(model, monkeypatch) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss_of_chains(model).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    found = gradients()
    assert set(found) == {f"network.{name}" for name, _ in model.network.named_parameters()}
    assert all(gradient.any() for gradient in found.values())
    # Chunks compute their logits again.
    monkeypatch.setattr(implicit, "CHUNK", 5)
    for name, gradient in gradients().items():
        assert torch.allclose(gradient, found[name], atol=1e-6), name


def test_the_gradient_is_that_of_whole_forward_passes(model) -> None:
    chain = branches()[0]
    ids = torch.tensor([chain.ids])
    own = torch.log_softmax(model.network(input_ids=ids).logits[0], -1)
    written = [t for t in range(len(chain.ids)) if chain.scored[t]]
    parameters = list(model.network.parameters())
    wanted = torch.autograd.grad(BETA * sum(own[t - 1, chain.ids[t]] for t in written), parameters)
    alone = torch.autograd.grad(model(batch_of([chain]))[0, -1], parameters)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(alone, wanted, strict=True))


def test_the_reference_never_drops_out(model) -> None:
    model.train()
    assert model.network.training
    assert not model.reference.training


SLIP = Step(" ".join(reversed(CHAINS[0][1][0].text.split())))
# Of each problem a chain that succeeds, and one that fails and has something senseless for its second step.
EXAMPLES = [
    Example(f"p{number}", prompt, chain, (outcome,))
    for number, (prompt, steps) in enumerate(CHAINS)
    for chain, outcome in ((steps, 1.0), ((steps[0], SLIP, *steps[2:]), 0.0))
]


def train(backbone: Path, work: Path, **settings) -> TrainedModel:
    values = {"epochs": 1, "row_tokens": 256, "learning_rate": 0.02, **settings}
    return train_on("implicit", str(backbone), EXAMPLES, [], small_config(train_prm=values), work=work,
                    report=lambda figures, update: None)


def test_outcomes_alone_teach_which_step_is_wrong(backbone: Path, tmp_path) -> None:
    trained = train(backbone, tmp_path, epochs=15)
    assert min(record["dev_loss"] for record in trained.history) < 0.3
    start = model_on(backbone)
    assert_same_weights(weights(trained.model.reference), weights(start.reference))
    assert changed(weights(start.network), weights(trained.model.network)) == set(weights(start.network))
    assert not trained.model.training
    assert len(trained.dev) >= 4, "chains of problems it was not trained on"
    for example in trained.dev:
        steps = trained.model.step_rewards(batch_of([ENCODER.encode(example.prompt, example.steps)]))[0].tolist()
        assert (sum(steps) > 0) == (example.targets == (1.0,))
        if example.targets == (0.0,):
            assert steps.index(min(steps)) == 1


def test_a_frozen_model_has_no_implicit_reward(tmp_path) -> None:
    path = save_lm(tmp_path / "lm", ENCODER)
    with pytest.raises(InputError, match=r"learning_rate 0 freezes the model.*set a rate"):
        train(path, tmp_path / "work", learning_rate=0.0)


def test_adapters_train_all_but_embeddings_and_vocabulary(tmp_path) -> None:
    path = save_lm(tmp_path / "lm", ENCODER, tie_word_embeddings=False)
    start = model_on(path)
    trained = train(path, tmp_path / "work", lora_rank=2)
    before, after = weights(start.network), weights(trained.model.network)
    assert changed(before, after) == {name for name in before if "proj" in name}
    assert_same_weights(weights(trained.model.reference), weights(start.reference))
    assert trained.model(batch_of(ENCODED)).abs().max() > 1e-3


@pytest.mark.parametrize("rank", [0, 2])
def test_recomputed_activations_change_nothing(backbone: Path, tmp_path, rank: int) -> None:
    plain, checked = (train(backbone, tmp_path / str(recompute), max_updates=3, lora_rank=rank,
                            gradient_checkpointing=recompute) for recompute in (False, True))
    for name, value in weights(plain.model).items():
        assert torch.allclose(value, weights(checked.model)[name], atol=1e-5), name


def test_mixed_precision_trains(backbone: Path, tmp_path) -> None:
    trained = train(backbone, tmp_path, epochs=10, precision="bfloat16")
    losses = [record["dev_loss"] for record in trained.history]
    assert min(losses) < 0.6 * losses[0]
    assert {value.dtype for value in trained.model.parameters()} == {torch.float32}


# Its folder


def test_a_saved_model_is_the_same_model(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    for of in (RewardModel, ImplicitRewardModel):
        again = load_reward_model(tmp_path, of, device="cpu")
        assert type(again) is ImplicitRewardModel
        assert_same_weights(weights(again), weights(model))
        assert (again.beta, again.encoder, again.training) == (BETA, SETTINGS, False)
        assert {name for name, value in again.named_parameters() if value.requires_grad} == {
            f"network.{name}" for name, _ in model.network.named_parameters()}


def test_its_folder_is_a_causal_lm_with_another_inside(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    assert [name for name in files(tmp_path) if not name.endswith(".json")] == [
        "model.safetensors", "reference/model.safetensors"]
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(weights(plain), weights(model.network))
    assert_same_weights(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "reference")), weights(model.reference))
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["prm"] == {"kind": "implicit", "surprisal": False, "beta": BETA, "encoder": SETTINGS}
    assert "prm" not in json.loads((tmp_path / "reference/config.json").read_text())


def test_no_path_of_this_machine_enters_the_folder(backbone: Path, model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    for file in ("config.json", "reference/config.json"):
        assert str(backbone) not in (tmp_path / file).read_text()


def test_scorers_report_the_sigmoid_of_the_rewards_so_far(model, tmp_path) -> None:
    save_reward_model(model, ENCODER, Calibrator("identity", 0), tmp_path / "one")
    scorer = load_scorer(tmp_path / "one", device="cpu")
    assert scorer.kind == "process"
    for (prompt, steps), score in zip(CHAINS[:3], scorer.score(CHAINS[:3]), strict=True):
        chain = ENCODER.encode(prompt, steps)
        tokens = rewards_by_hand(model, chain)
        expected = [1 / (1 + math.exp(-sum(tokens[: end + 1]))) for end in chain.step_ends]
        assert score.step_scores == score.raw_scores == pytest.approx(tuple(expected), abs=1e-5)
        assert (score.truncated_steps, score.prompt_score) == (0, None)
    # The reference is part of what the version names.
    model.reference.get_input_embeddings().weight.data.mul_(2)
    save_reward_model(model, ENCODER, Calibrator("identity", 0), tmp_path / "other")
    assert load_scorer(tmp_path / "other", device="cpu").version != scorer.version


# Faults


def test_a_surprisal_term_is_refused(backbone: Path) -> None:
    with pytest.raises(InputError, match=r"no surprisal term.*models\.surprisal"):
        ImplicitRewardModel.from_backbone(str(backbone), encoder={}, dtype="float32", device="cpu", surprisal=True)


@pytest.mark.parametrize("beta", [0.0, -1.0, math.nan])
def test_beta_is_above_zero(backbone: Path, beta: float) -> None:
    with pytest.raises(InputError, match=f"beta is {beta}"):
        model_on(backbone, beta=beta)


def test_a_backbone_that_reads_ahead_is_refused(tmp_path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                        initializer_range=0.5)
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="it reads ahead"):
        model_on(tmp_path)


def test_logits_that_are_capped_after_the_output_layer_are_refused(tmp_path) -> None:
    config = Gemma2Config(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
                          num_key_value_heads=2, intermediate_size=32)
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="Gemma2ForCausalLM scales or caps its logits"):
        model_on(tmp_path)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda folder: shutil.rmtree(folder / "reference"), "no folder reference with the weights"),
    (lambda folder: (folder / "reference/model.safetensors").rename(folder / "reference/pytorch_model.bin"),
     r"reference: only pickled weights"),
    (lambda folder: save_lm(folder / "reference", make_encoder_of(["a", "b"])), "both must have the same tokenizer"),
])
def test_a_reference_that_does_not_fit_is_named(model, tmp_path, change, reason: str) -> None:
    model.save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=reason):
        load_reward_model(tmp_path, device="cpu")


@pytest.mark.parametrize("beta", [None, 0, "0.05"])
def test_a_folder_without_its_beta_is_named(model, tmp_path, beta) -> None:
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["prm"]["beta"] = beta
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=f"prm.beta is {beta!r}"):
        load_reward_model(tmp_path, device="cpu")


def test_models_of_other_kinds_are_not_taken_for_it(backbone: Path, model, tmp_path) -> None:
    model.save_pretrained(tmp_path / "implicit")
    with pytest.raises(InputError, match="of kind 'implicit', where one of kind 'process'"):
        load_reward_model(tmp_path / "implicit", ProcessRewardModel, device="cpu")
    process = ProcessRewardModel.from_backbone(str(backbone), surprisal=False, encoder=SETTINGS, dtype="float32",
                                               device="cpu")
    process.save_pretrained(tmp_path / "process")
    with pytest.raises(InputError, match="of kind 'process', where one of kind 'implicit'"):
        load_reward_model(tmp_path / "process", ImplicitRewardModel, device="cpu")
