"""Loss and gradient of packed trees are those of the chains one by one; and which backbones take trees at all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid
from transformers import (
    BloomConfig,
    BloomForTokenClassification,
    GPT2Config,
    GPT2ForTokenClassification,
    LlamaConfig,
    LlamaForTokenClassification,
    MistralConfig,
    MistralForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForTokenClassification,
)

from prm_core.models.causal import takes_trees
from prm_core.models.chains import collate
from prm_core.scoring.reward import RewardModel
from prm_core.scoring.surprisal import Surprisal
from prm_core.training.examples import Encoded, EncodedPair
from prm_core.training.reward.loop import Objective
from prm_core.training.trees import cut, grow, pack
from tests.builders.training import KINDS, open_eyes
from tests.builders.trees import STEPS, VOCABULARY, chain, examples_of_kind, least_width, pair, preference_pairs

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
         "num_labels": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 11}
GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3, "num_labels": 2,
       "bos_token_id": 1, "eos_token_id": 11}
Network = tuple[type[PreTrainedModel], PretrainedConfig]
LLAMA: Network = (LlamaForTokenClassification, LlamaConfig(**SIZES))
WINDOW = 5
TAKES_TREES: dict[str, Network] = {
    "llama": LLAMA,
    "qwen2": (Qwen2ForTokenClassification, Qwen2Config(**SIZES)),
    # Positions learned, not rotated.
    "gpt2": (GPT2ForTokenClassification, GPT2Config(**GPT, n_positions=64)),
    "mistral": (MistralForTokenClassification, MistralConfig(**SIZES, sliding_window=None)),
}
TAKES_NONE: dict[str, Network] = {
    "mistral with a window": (MistralForTokenClassification, MistralConfig(**SIZES, sliding_window=WINDOW)),
    "mistral with a wide window": (MistralForTokenClassification, MistralConfig(**SIZES, sliding_window=4096)),
    # Its position bias is computed from columns.
    "bloom": (BloomForTokenClassification, BloomConfig(**{**GPT, "hidden_size": 16})),
}
CLASS_WEIGHTS, PREFERENCE = (2.0, 0.75), 0.5


def model_of(network: Network, kind: str, surprisal: bool, attention: str | None = None) -> RewardModel:
    """Of random weights, with an opinion, in eval mode."""
    torch.manual_seed(0)
    cls, config = network
    reader = Surprisal(16, VOCABULARY) if surprisal else None
    if reader is not None:
        torch.nn.init.normal_(reader.vocabulary)
        reader.numbers[::2] = True
    built = cls._from_config(config, attn_implementation=attention)
    return open_eyes(KINDS[kind](built, {}, reader).eval())


MODELS = {(kind, surprisal): model_of(LLAMA, kind, surprisal) for kind in KINDS for surprisal in (False, True)}


def chain_by_chain(model: RewardModel, examples: Sequence[Encoded], pairs: Sequence[EncodedPair]) -> torch.Tensor:
    """The loss as one would write it without trees: each chain alone, a pair as its two chains."""
    wrong, right = CLASS_WEIGHTS
    total, weight, preferred = torch.zeros(()), 0.0, torch.zeros(())
    for example in examples:
        logits = model(collate([example.chain], 0, prompt_slot=model.prompt_slot))[0]
        for logit, target in zip(logits[-len(example.targets) :], example.targets, strict=True):
            if not math.isnan(target):
                total -= right * target * logsigmoid(logit) + wrong * (1 - target) * logsigmoid(-logit)
                weight += right * target + wrong * (1 - target)
    for one in pairs:
        chosen, rejected = (model(collate([side], 0, prompt_slot=model.prompt_slot))[0, -1]
                            for side in (one.chosen, one.rejected))
        preferred -= logsigmoid(chosen - rejected)
    return total / weight + PREFERENCE * preferred / max(len(pairs), 1)


def in_rows(
    model: RewardModel, examples: Sequence[Encoded], pairs: Sequence[EncodedPair], *, share: bool, room: int = 0,
    seed: int = 0,
) -> torch.Tensor:
    """The same as the trainer computes it, a row a pass."""
    width = least_width(examples, pairs) + room
    rows = pack([piece for tree in grow(examples, pairs, share=share) for piece in cut(tree, width)], width, seed)
    objective = Objective(0, CLASS_WEIGHTS, PREFERENCE)
    weight = objective.weight(rows)
    return sum(objective.loss(model, [row], torch.device("cpu"), weight) for row in rows)


def gradients(model: RewardModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_same(model: RewardModel, one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.item() == pytest.approx(other.item(), rel=1e-4, abs=1e-5)
    found, expected = gradients(model, one), gradients(model, other)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=2e-5), name


@pytest.mark.parametrize(("kind", "surprisal"), MODELS)
def test_packed_trees_train_as_the_chains_one_by_one(kind: str, surprisal: bool) -> None:
    model = MODELS[kind, surprisal]

    @settings(max_examples=12)
    @given(examples=examples_of_kind(kind), pairs=preference_pairs(), room=st.integers(0, 40), seed=st.integers(0, 9))
    def check(examples: list[Encoded], pairs: list[EncodedPair], room: int, seed: int) -> None:
        expected = chain_by_chain(model, examples, pairs)
        assert_same(model, in_rows(model, examples, pairs, share=True, room=room, seed=seed), expected)
        apart = in_rows(model, examples, pairs, share=False, room=room, seed=seed)
        assert_same(model, apart, chain_by_chain(model, examples, pairs))

    check()


# A prefix of another chain, the same chain twice, two prompts, and a pair that parts after the shared step.
EXAMPLES = [Encoded(chain([1, 9], steps), targets) for steps, targets in (
    ((STEPS[0], STEPS[3]), (1.0, 0.0)), ((STEPS[0],), (0.9,)), ((STEPS[0], STEPS[1], STEPS[2]), (1.0, 0.25, math.nan)),
    ((STEPS[0], STEPS[3]), (1.0, 1.0)))] + [Encoded(chain([1, 2, 9], (STEPS[3], STEPS[3])), (0.0, 0.0))]
PAIRS = [pair([1, 9], [STEPS[0]], STEPS[2], STEPS[3])]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TAKES_TREES)
def test_every_backbone_that_takes_trees_trains_on_them_as_on_chains(name: str, attention: str) -> None:
    model = model_of(TAKES_TREES[name], "process", surprisal=False, attention=attention)
    assert takes_trees(model.backbone)
    expected = chain_by_chain(model, EXAMPLES, PAIRS)
    assert_same(model, in_rows(model, EXAMPLES, PAIRS, share=True, room=9), expected)


@pytest.mark.parametrize("name", TAKES_NONE)
def test_a_backbone_that_takes_no_trees_trains_on_chains_kept_apart(name: str) -> None:
    model = model_of(TAKES_NONE[name], "process", surprisal=True)
    assert not takes_trees(model.backbone)
    assert_same(model, in_rows(model, EXAMPLES, PAIRS, share=False, room=9), chain_by_chain(model, EXAMPLES, PAIRS))


def test_a_tree_would_see_past_a_sliding_window() -> None:
    """Why such a model gets its chains one by one: under a mask of ours the window is gone."""
    model = model_of(TAKES_NONE["mistral with a window"], "process", surprisal=False)
    alone, tree = chain_by_chain(model, EXAMPLES, []), in_rows(model, EXAMPLES, [], share=True)
    assert tree.item() != pytest.approx(alone.item(), rel=1e-3)


def test_in_bfloat16_trees_are_judged_by_what_rounding_allows() -> None:
    model = model_of(LLAMA, "process", surprisal=False).to(torch.bfloat16)
    assert takes_trees(model.backbone)


def test_a_step_that_many_chains_share_is_computed_once() -> None:
    tree, = grow([Encoded(chain([1, 9], (STEPS[3], step)), (1.0, 1.0)) for step in STEPS], [], share=True)
    shared = sum(piece.tokens for piece in cut(tree, 64))
    alone = sum(2 + 6 + len(step) + 1 for step in STEPS)
    assert (shared, alone) == (2 + 6 + sum(len(step) + 1 for step in STEPS), alone)
    assert shared < 0.6 * alone
