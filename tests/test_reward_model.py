"""Reward models: where a step is read, what the head sees, and that padding and later steps change nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.models.reward import RewardModel
from prm_core.models.scorer import collate
from prm_core.types import Step
from tests.training_builders import CHAINS, make_encoder, make_lm, make_reward_model, save_lm

ENCODER = make_encoder()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[tuple[str, bool], RewardModel]:
    folder = tmp_path_factory.mktemp("models")
    return {(kind, surprisal): make_reward_model(folder / f"{kind}{surprisal}", ENCODER, kind, surprisal)
            for kind in ("process", "outcome") for surprisal in (False, True)}


def scores(model: RewardModel, chains, pad_to: int = 0, filler: int | None = None) -> list[list[float]]:
    """Logits of each chain's steps, in a batch padded to `pad_to` with `filler`."""
    encoded = [ENCODER.encode(prompt, steps) for prompt, steps in chains]
    ids, steps, ends = collate(encoded, ENCODER.pad_id)
    extra = max(pad_to - ids.shape[1], 0)
    ids = torch.nn.functional.pad(ids, (0, extra), value=ENCODER.pad_id)
    steps = torch.nn.functional.pad(steps, (0, extra), value=-1)
    if filler is not None:
        for row, chain in enumerate(encoded):
            ids[row, len(chain.ids) :] = filler
    with torch.inference_mode():
        logits = model(ids, steps, ends)
    count = [len(chain.step_ends) if model.config.kind == "process" else 1 for chain in encoded]
    return [row[:n].tolist() for row, n in zip(logits, count, strict=True)]


ALL = [(kind, surprisal) for kind in ("process", "outcome") for surprisal in (False, True)]


@pytest.mark.parametrize("key", ALL)
def test_padding_of_any_width_and_content_changes_no_score(models, key) -> None:
    alone = [scores(models[key], [chain])[0] for chain in CHAINS[:4]]

    @given(width=st.integers(0, 200), filler=st.integers(0, len(ENCODER.tokenizer) - 1))
    def check(width: int, filler: int) -> None:
        for one, other in zip(alone, scores(models[key], CHAINS[:4], width, filler), strict=True):
            assert one == pytest.approx(other, abs=2e-5)

    check()
    assert max(map(max, alone)) - min(map(min, alone)) > 0.01, "scores that are all alike would show nothing"


@pytest.mark.parametrize("surprisal", [False, True])
def test_one_pass_scores_every_step_as_its_prefix_alone(models, surprisal: bool) -> None:
    for prompt, steps in CHAINS[:3]:
        whole = scores(models["process", surprisal], [(prompt, steps)])[0]
        prefixes = [scores(models["process", surprisal], [(prompt, steps[: k + 1])])[0][-1] for k in range(len(steps))]
        assert whole == pytest.approx(prefixes, abs=2e-5)


def test_the_outcome_is_read_at_the_last_step_not_at_the_padding(models) -> None:
    model = models["outcome", False]
    found = scores(model, CHAINS[:4], pad_to=220)
    for (prompt, steps), value in zip(CHAINS[:4], found, strict=True):
        chain = ENCODER.encode(prompt, steps)
        hidden = model.backbone(input_ids=torch.tensor([chain.ids])).last_hidden_state[0, chain.step_ends[-1]]
        assert value == pytest.approx(model.head(hidden).tolist(), abs=2e-5)


def test_without_surprisal_there_is_no_vocabulary_head(models) -> None:
    size = len(ENCODER.tokenizer)
    model = models["process", False]
    assert model.vocabulary is None
    assert not [name for name, module in model.named_modules() if getattr(module, "out_features", 0) == size]
    assert [name for name, value in model.named_parameters() if size in value.shape] == ["backbone.embed_tokens.weight"]


def test_vocabulary_logits_are_computed_at_written_tokens_only(models) -> None:
    model, rows = models["process", True], []
    chain = ENCODER.encode(*CHAINS[0])
    hook = model.vocabulary.register_forward_hook(lambda module, inputs, output: rows.append(output.shape))
    scores(model, CHAINS[:1], pad_to=200)
    hook.remove()
    assert rows == [(sum(chain.scored), len(ENCODER.tokenizer))]


def lowest_logprobs(prompt: str, steps: tuple[Step, ...]) -> list[float]:
    """By hand from the causal LM: each step's least likely written token."""
    chain = ENCODER.encode(prompt, steps)
    logprobs = torch.log_softmax(make_lm(ENCODER)(input_ids=torch.tensor([chain.ids])).logits[0], -1)
    begin, result = chain.prompt_length, []
    for end in chain.step_ends:
        written = [t for t in range(begin, end + 1) if chain.scored[t]]
        result.append(min(logprobs[t - 1, chain.ids[t]].item() for t in written))
        begin = end + 1
    return result


@pytest.mark.parametrize("observed", [False, True])
def test_surprisal_is_the_lowest_logprob_of_the_written_tokens(tmp_path, observed: bool) -> None:
    chains = CHAINS[:3]
    if observed:
        chains = [(prompt, (Step(steps[0].text, observation="Zoe has 39 pens"), *steps[1:]))
                  for prompt, steps in chains]
    expected = [lowest_logprobs(*chain) for chain in chains]
    for kind, wanted in (("process", expected), ("outcome", [[min(row)] for row in expected])):
        model = make_reward_model(tmp_path / kind, ENCODER, kind)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.weight[0, -1] = 1.0
        for found, row in zip(scores(model, chains), wanted, strict=True):
            assert found == pytest.approx(row, abs=1e-4)


def test_a_new_model_has_the_backbone_s_weights_and_no_opinion(tmp_path) -> None:
    source = make_lm(ENCODER)
    path = save_lm(tmp_path / "lm", ENCODER)
    model = RewardModel.from_backbone(str(path), kind="process", surprisal=True, encoder={}, dtype="float32",
                                      device="cpu", seed=3)
    assert scores(model, CHAINS[:1])[0] == [0.0] * len(CHAINS[0][1])
    assert torch.equal(model.vocabulary.weight, source.lm_head.weight)
    for name, value in source.model.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)


def test_no_path_of_this_machine_enters_the_model(tmp_path) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    model.save_pretrained(tmp_path / "prm")
    assert str(tmp_path) not in (tmp_path / "prm/config.json").read_text()


def test_a_backbone_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"gone.*no config\.json"):
        RewardModel.from_backbone(str(tmp_path / "gone"), kind="process", surprisal=False, encoder={}, dtype="float32",
                                  device="cpu", seed=0)
