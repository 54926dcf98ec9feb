"""Training reward models: what is a target, what moves, what is kept, and that an interrupted run ends the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import tensor

from prm_core.errors import InputError
from prm_core.models.encoder import Encoder
from prm_core.models.reward import RewardModel
from prm_core.training.reward import IGNORED, Encoded, Example, dev_loss, encode_examples, step_loss, train_reward_model
from prm_core.types import Step
from tests.training_builders import (
    CHAINS,
    Interrupted,
    assert_same_weights,
    changed,
    files,
    make_encoder,
    make_reward_model,
    small_config,
    weights,
)

ENCODER = make_encoder()
SETTINGS = small_config().train_prm


def example(number: int, targets: tuple[float, ...]) -> Example:
    return Example(f"p{number}", *CHAINS[number], targets)


def labelled(count: int) -> list[Encoded]:
    """Chains whose steps are called right when they add."""
    rows = [example(i, tuple(float("+" in step.text) for step in CHAINS[i][1])) for i in range(count)]
    return encode_examples(ENCODER, rows, "process")[0]


def train(
    model: RewardModel, work: Path, *, settings=SETTINGS, crash_after: int | None = None, data=None, seed: int = 3
) -> tuple[list[dict], list[tuple[int, dict[str, float]]]]:
    """History and reported figures."""
    data = data or labelled(12)
    reported: list[tuple[int, dict[str, float]]] = []

    def report(figures: dict[str, float], update: int) -> None:
        reported.append((update, figures))
        if update == crash_after and "process/loss" in figures:
            raise Interrupted

    history = train_reward_model(model, ENCODER, data[:9], data[9:], settings, seed=seed, work=work, report=report)
    return history, reported


# What is a target


def test_the_loss_is_the_mean_cross_entropy_of_known_steps() -> None:
    logits = tensor([[0.0, 2.0, 5.0], [-1.0, 9.0, 9.0]])
    targets = tensor([[1.0, 0.9, IGNORED], [0.0, IGNORED, IGNORED]])
    # softplus(x) - target · x for each known step; a soft 0.9 stays 0.9.
    expected = (math.log(2) + (math.log1p(math.exp(2)) - 0.9 * 2) + math.log1p(math.exp(-1))) / 3
    assert step_loss(logits, targets).item() == pytest.approx(expected, abs=1e-6)


def test_steps_without_a_target_never_train() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    step_loss(logits, tensor([[IGNORED, 1.0], [IGNORED, IGNORED]])).backward()
    assert logits.grad.tolist() == [[0.0, -0.5], [0.0, 0.0]]


def test_targets_stand_with_their_steps() -> None:
    (one, other), lost = encode_examples(ENCODER, [example(0, (1.0, 0.9, IGNORED)), example(1, (0.0,))], "process")
    assert [str(t) for t in one.targets] == ["1.0", "0.9", "nan"]
    assert (other.targets, other.chain) == ((0.0,), ENCODER.encode(*CHAINS[1]))
    assert lost == {"truncated_steps": 0, "truncated_labels": 0, "dropped_chains": 0}


def cut_encoder(number: int, steps: int) -> Encoder:
    """One whose context ends after so many steps of that chain."""
    return make_encoder(max_length=ENCODER.encode(*CHAINS[number]).step_ends[steps - 1] + 1)


LONG = max(range(len(CHAINS)), key=lambda i: len(CHAINS[i][1]))
STEPS = len(CHAINS[LONG][1])


def test_labels_cut_by_the_context_are_counted() -> None:
    targets = (1.0, 0.0, IGNORED, *[1.0] * (STEPS - 3))
    (found,), lost = encode_examples(cut_encoder(LONG, 2), [example(LONG, targets)], "process")
    assert found.targets == (1.0, 0.0)
    assert lost == {"truncated_steps": STEPS - 2, "truncated_labels": STEPS - 3, "dropped_chains": 0}


def test_chains_left_without_a_label_are_dropped_and_counted(caplog) -> None:
    rows = [example(0, (IGNORED,) * len(CHAINS[0][1])), example(1, (1.0,))]
    found, lost = encode_examples(ENCODER, rows, "process")
    assert (len(found), lost["dropped_chains"]) == (1, 1)
    assert caplog.messages == ["process model: 1 dropped_chains"]


def test_an_outcome_needs_the_end_of_the_chain() -> None:
    rows = [example(LONG, (1.0,)), Example("q", "?", (Step("a"),), (0.0,))]
    found, lost = encode_examples(cut_encoder(LONG, 2), rows, "outcome")
    assert [one.targets for one in found] == [(0.0,)]
    assert (lost["truncated_steps"], lost["dropped_chains"]) == (STEPS - 2, 1)


@pytest.mark.parametrize("kind", ["process", "outcome"])
def test_all_labels_lost_is_an_error_before_training(kind: str) -> None:
    with pytest.raises(InputError, match=f"no label is left to train the {kind} model on .1 chains"):
        encode_examples(ENCODER, [example(0, (IGNORED,))], kind)


def test_the_dev_loss_is_a_mean_over_steps_whatever_the_batches(tmp_path) -> None:
    model = make_reward_model(tmp_path, ENCODER)
    data = labelled(7)
    losses = [dev_loss(model, data, ENCODER.pad_id, size) for size in (1, 3, 7)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


# What training does


def test_training_moves_backbone_and_head_and_freezes_the_vocabulary(tmp_path) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    # A model that was saved and loaded has lost the mark of what is frozen.
    model.vocabulary.requires_grad_(True)
    before = weights(model)
    train(model, tmp_path / "work")
    assert changed(before, weights(model)) == set(before) - {"vocabulary.weight"}
    assert not model.training


def test_training_learns_what_the_labels_say(tmp_path) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    settings = SETTINGS.model_copy(update={"epochs": 15, "learning_rate": 0.01, "head_learning_rate": 0.05})
    history, reported = train(model, tmp_path / "work", settings=settings)
    losses = [figures["process/loss"] for _, figures in reported if "process/loss" in figures]
    assert sum(losses[-3:]) / 3 < 0.25 * sum(losses[:3]) / 3
    assert [record["epoch"] for record in history] == list(range(1, 16))
    assert [update for update, figures in reported if "process/dev_loss" in figures] == [3 * n for n in range(1, 16)]


def test_the_rate_warms_up_and_falls_along_a_cosine(tmp_path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 4, "warmup_share": 0.25})
    _, reported = train(make_reward_model(tmp_path / "lm", ENCODER), tmp_path / "work", settings=settings)
    rates = [figures["process/learning_rate"] for _, figures in reported if "process/learning_rate" in figures]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 9)) for k in range(10)]
    assert rates == pytest.approx([settings.learning_rate * share for share in [0, 1 / 3, 2 / 3, *cosine[:-1]]])


def test_the_head_has_a_rate_of_its_own(tmp_path) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    before = weights(model)
    train(model, tmp_path / "work", settings=SETTINGS.model_copy(update={"learning_rate": 0.0}))
    assert changed(before, weights(model)) == {"head.weight", "head.bias"}


def test_the_epoch_with_the_lowest_dev_loss_is_kept(tmp_path) -> None:
    """Dev labels that contradict training: the better it learns, the higher the dev loss."""
    data = labelled(12)
    against = [Encoded(one.chain, tuple(1 - t for t in one.targets)) for one in data[:3]]
    settings = SETTINGS.model_copy(update={"epochs": 8, "learning_rate": 0.01, "head_learning_rate": 0.05})
    model = make_reward_model(tmp_path / "lm", ENCODER)
    history, _ = train(model, tmp_path / "work", settings=settings, data=[*data[:9], *against])
    losses = [record["dev_loss"] for record in history]
    assert min(losses) < 0.9 * losses[-1]
    assert dev_loss(model, against, ENCODER.pad_id, 4) == pytest.approx(min(losses), abs=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_way_out(tmp_path) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    with torch.no_grad():
        model.head.bias.fill_(math.inf)
    with pytest.raises(InputError, match=r"loss is (nan|inf) at update 0; lower train_prm.learning_rate"):
        train(model, tmp_path / "work")


# Exact resume


def dropout_model(folder: Path) -> RewardModel:
    """Dropout makes every update depend on the random state."""
    return make_reward_model(folder, ENCODER, attention_dropout=0.2)


# Before any checkpoint, right after one, between two (epochs end at 3 and 6, checkpoints are at 2, 4, 6), at the end.
@pytest.mark.parametrize("crash_after", [1, 2, 3, 4, 5, 6])
def test_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(tmp_path, crash_after: int) -> None:
    model = dropout_model(tmp_path / "a")
    history, reported = train(model, tmp_path / "undisturbed")
    assert len({figures["process/loss"] for _, figures in reported if "process/loss" in figures}) == 6

    with pytest.raises(Interrupted):
        train(dropout_model(tmp_path / "b"), tmp_path / "work", crash_after=crash_after)
    torch.manual_seed(1234)
    again = dropout_model(tmp_path / "c")
    resumed_history, resumed = train(again, tmp_path / "work")
    assert resumed[0][0] == (crash_after - 1) // 2 * 2 + 1, "it went on from the last checkpoint"
    assert resumed_history == history
    assert [row for row in reported if row[0] >= resumed[0][0]] == resumed
    assert_same_weights(weights(again), weights(model))


def test_a_run_killed_while_the_best_epoch_is_saved_ends_the_same(tmp_path, monkeypatch) -> None:
    model = dropout_model(tmp_path / "a")
    train(model, tmp_path / "undisturbed")

    def torn(self: RewardModel, folder: Path) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise Interrupted

    interrupted = dropout_model(tmp_path / "b")
    with monkeypatch.context() as patched:
        patched.setattr(RewardModel, "save_pretrained", torn)
        with pytest.raises(Interrupted):
            train(interrupted, tmp_path / "work")
    assert "best/model.safetensors" not in files(tmp_path / "work")
    again = dropout_model(tmp_path / "c")
    train(again, tmp_path / "work")
    assert_same_weights(weights(again), weights(model))


def test_a_finished_run_has_nothing_left_to_do(tmp_path) -> None:
    model = dropout_model(tmp_path / "a")
    history, _ = train(model, tmp_path / "work")
    again = dropout_model(tmp_path / "b")
    assert train(again, tmp_path / "work") == (history, [])
    assert_same_weights(weights(again), weights(model))


def test_the_seed_decides(tmp_path) -> None:
    found = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        model = dropout_model(tmp_path / name)
        train(model, tmp_path / f"work-{name}", seed=seed)
        found.append(weights(model))
    assert_same_weights(found[0], found[1])
    assert changed(found[0], found[2])
