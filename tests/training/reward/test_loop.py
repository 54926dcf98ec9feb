"""Training reward models: what moves, what is kept, when it ends, and that an interrupted run ends the same."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator

from prm_core.errors import InputError
from prm_core.scoring.reward import RewardModel
from prm_core.training.examples import Encoded, Example, Pair, encode_examples, encode_pairs
from prm_core.training.reward.loop import Objective, Rows, dev_loss, pack_rows, train_reward_model, updates_of
from prm_core.types import Step
from tests.builders.training import (
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
# The nine training chains make five rows: three updates an epoch, the last of one row.
SETTINGS = small_config(train_prm={"row_tokens": 192}).train_prm

# What surprisal is measured with.
FROZEN = {"surprisal.vocabulary", "surprisal.numbers"}


def labelled(count: int) -> list[Encoded]:
    """Chains whose steps are called right when they add."""
    rows = [Example(f"p{i}", *CHAINS[i], tuple(float("+" in step.text) for step in CHAINS[i][1])) for i in range(count)]
    return encode_examples(ENCODER, rows, "process")[0]


def rows_of(data: list[Encoded], settings=SETTINGS) -> Rows:
    return pack_rows(data, [], settings, share=True, seed=0)


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

    history = train_reward_model(model, rows_of(data[:9], settings), rows_of(data[9:], settings), settings,
                                 pad_id=ENCODER.pad_id, seed=seed, work=work, report=report)
    return history, reported


def losses_of(reported: list[tuple[int, dict[str, float]]]) -> list[float]:
    return [figures["process/loss"] for _, figures in reported if "process/loss" in figures]


def loss_on(model: RewardModel, data: list[Encoded], rows_per_pass: int = 4) -> float:
    objective = Objective(ENCODER.pad_id, (1.0, 1.0), 1.0)
    return dev_loss(model, rows_of(data).rows, objective, Accelerator(cpu=True), rows_per_pass)


# Rows


def test_rows_count_what_is_in_them() -> None:
    data = labelled(3)
    soft = Encoded(data[0].chain, tuple(0.5 if k == 0 else math.nan for k in range(len(data[0].targets))))
    prompt, steps = CHAINS[1]
    pairs, _ = encode_pairs(ENCODER, [Pair("p", prompt, steps[:2], steps[2], Step("never"))], 192)
    found = pack_rows([*data, soft], pairs, SETTINGS, share=True, seed=0)
    targets = [target for one in data for target in one.targets]
    assert (found.targets, found.right, found.pairs) == (len(targets) + 1, sum(targets) + 0.5, 1)
    sides = [*(one.chain for one in (*data, soft)), pairs[0].chosen, pairs[0].rejected]
    assert found.chain_tokens == sum(len(chain.ids) for chain in sides)
    # A chain given twice costs nothing, nor does the pair's chosen step; the rejected one is one token and its SEP.
    assert len(next(ENCODER.encode_steps(["never"]))) == len(pairs[0].rejected.ids) - data[1].chain.step_ends[1] - 1
    assert found.tokens == sum(len(one.chain.ids) for one in data) + len(next(ENCODER.encode_steps(["never"])))
    apart = pack_rows([*data, soft], pairs, SETTINGS, share=False, seed=0)
    assert (apart.targets, apart.right, apart.pairs) == (found.targets, found.right, found.pairs)
    assert found.tokens < apart.tokens <= apart.chain_tokens == found.chain_tokens


def test_a_chain_longer_than_a_row_is_an_error_before_training() -> None:
    data = labelled(3)
    longest = max(len(one.chain.ids) for one in data)
    settings = dataclasses.replace(SETTINGS, row_tokens=longest)
    assert rows_of(data, settings).targets
    with pytest.raises(InputError, match=f"row_tokens is {longest - 1}, and a chain has {longest} tokens; raise it"):
        rows_of(data, dataclasses.replace(SETTINGS, row_tokens=longest - 1))


def test_every_row_trains_once_an_epoch_in_an_order_of_its_own() -> None:
    rows = [[number] for number in range(7)]
    epochs = [[row for _, part in list(updates_of(rows, 3, 5, 0, 6))[start : start + 3] for row in part]
              for start in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [rows, rows]
    assert epochs[0] != epochs[1]
    assert [len(part) for _, part in updates_of(rows, 3, 5, 0, 6)] == [3, 3, 1, 3, 3, 1]
    assert list(updates_of(rows, 3, 5, 4, 6)) == list(updates_of(rows, 3, 5, 0, 6))[4:]
    assert list(updates_of(rows, 3, 6, 0, 3)) != list(updates_of(rows, 3, 5, 0, 3))


def test_the_dev_loss_is_a_mean_over_steps_whatever_the_passes(tmp_path) -> None:
    model = make_reward_model(tmp_path, ENCODER)
    losses = [loss_on(model, labelled(7), size) for size in (1, 3, 7)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-5)


# What training does


def test_training_moves_backbone_head_and_surprisal_and_freezes_the_vocabulary(tmp_path) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    before = weights(model)
    train(model, tmp_path / "work")
    assert changed(before, weights(model)) == set(before) - FROZEN
    assert not model.training


def test_training_learns_what_the_labels_say(tmp_path) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    settings = dataclasses.replace(SETTINGS, epochs=15, learning_rate=0.01, head_learning_rate=0.05)
    history, reported = train(model, tmp_path / "work", settings=settings)
    losses = losses_of(reported)
    assert sum(losses[-3:]) / 3 < 0.25 * sum(losses[:3]) / 3
    assert [record["epoch"] for record in history] == list(range(1, 16))
    assert [record["update"] for record in history] == [3 * n for n in range(1, 16)]
    assert [update for update, figures in reported if "process/dev_loss" in figures] == [3 * n for n in range(1, 16)]


def test_the_rate_warms_up_and_falls_along_a_cosine(tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=4, warmup_share=0.25)
    _, reported = train(make_reward_model(tmp_path / "lm", ENCODER), tmp_path / "work", settings=settings)
    rates = [figures["process/learning_rate"] for _, figures in reported if "process/learning_rate" in figures]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 9)) for k in range(10)]
    assert rates == pytest.approx([settings.learning_rate * share for share in [0, 1 / 3, 2 / 3, *cosine[:-1]]])


RATES = {
    "learning_rate": "network.model.",
    "head_learning_rate": "network.score.",
    "surprisal_learning_rate": "surprisal.",
}


@pytest.mark.parametrize("rate", RATES)
def test_backbone_head_and_surprisal_have_rates_of_their_own(tmp_path, rate: str) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    before = weights(model)
    train(model, tmp_path / "work", settings=dataclasses.replace(SETTINGS, **{**dict.fromkeys(RATES, 0.0), rate: 0.01}))
    assert changed(before, weights(model)) == {
        name for name in before if name.startswith(RATES[rate])} - FROZEN


def test_rows_of_a_pass_change_nothing_but_the_memory(tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, rows_per_update=4)
    runs = []
    for size in (1, 2, 4):
        model = make_reward_model(tmp_path / f"lm{size}", ENCODER)
        history, reported = train(model, tmp_path / f"work{size}",
                                  settings=dataclasses.replace(settings, rows_per_pass=size))
        runs.append((losses_of(reported), [record["dev_loss"] for record in history], weights(model)))
    for losses, dev, after in runs[1:]:
        assert losses == pytest.approx(runs[0][0], abs=1e-5)
        assert dev == pytest.approx(runs[0][1], abs=1e-5)
        assert all(torch.allclose(after[name], value, atol=1e-5) for name, value in runs[0][2].items())


def test_balanced_classes_weigh_the_rare_one_up(tmp_path) -> None:
    """With a frozen backbone and head bias alone the optimum is known: P(right) one half instead of the share."""
    found = {}
    for weighting in ("none", "balanced"):
        model = make_reward_model(tmp_path / weighting, ENCODER, surprisal=False)
        model.requires_grad_(False)
        model.head.weight.zero_()
        model.head.bias.requires_grad_(True)
        settings = dataclasses.replace(SETTINGS, class_weights=weighting, epochs=25, head_learning_rate=0.1,
                                       weight_decay=0.0, rows_per_update=99)
        data = labelled(9)
        train(model, tmp_path / f"work-{weighting}", settings=settings, data=[*data, *data])
        bias = model.head.bias.detach()
        found[weighting] = torch.sigmoid(bias[1] - bias[0]).item()
    targets = [target for one in labelled(9) for target in one.targets]
    assert found["none"] == pytest.approx(sum(targets) / len(targets), abs=0.01)
    assert found["balanced"] == pytest.approx(0.5, abs=0.01)


# When it ends and what is kept


def opposed(epochs: int, **values) -> tuple[dict, list[Encoded]]:
    """Settings and data whose dev labels contradict training: the better it learns, the higher the dev loss."""
    data = labelled(12)
    against = [Encoded(one.chain, tuple(1 - t for t in one.targets)) for one in data[:3]]
    update = {"epochs": epochs, "learning_rate": 0.01, "head_learning_rate": 0.05, **values}
    return dataclasses.replace(SETTINGS, **update), [*data[:9], *against]


def test_the_weights_with_the_lowest_dev_loss_are_kept(tmp_path) -> None:
    settings, data = opposed(8)
    model = make_reward_model(tmp_path / "lm", ENCODER)
    history, _ = train(model, tmp_path / "work", settings=settings, data=data)
    losses = [record["dev_loss"] for record in history]
    assert min(losses) < 0.9 * losses[-1]
    assert loss_on(model, data[9:]) == pytest.approx(min(losses), abs=1e-5)


def test_patience_ends_training_after_so_many_evaluations_without_a_better_one(tmp_path) -> None:
    endless, data = opposed(10, eval_every=2)
    whole, _ = train(make_reward_model(tmp_path / "lm", ENCODER), tmp_path / "endless", settings=endless, data=data)
    assert len(whole) == 15
    for patience in (1, 3):
        settings = dataclasses.replace(endless, patience=patience)
        model = make_reward_model(tmp_path / f"lm-{patience}", ENCODER)
        history, _ = train(model, tmp_path / f"work-{patience}", settings=settings, data=data)
        losses = [record["dev_loss"] for record in history]
        assert len(history) < 15
        assert len(losses) - 1 - losses.index(min(losses)) == patience
        assert [record["dev_loss"] for record in whole[: len(history)]] == losses


def test_evaluations_come_every_so_many_updates_and_at_the_end(tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, eval_every=4)
    history, _ = train(make_reward_model(tmp_path / "lm", ENCODER), tmp_path / "work", settings=settings)
    assert [(record["update"], record["epoch"]) for record in history] == [(4, pytest.approx(4 / 3)), (6, 2.0)]


def test_max_updates_ends_training_and_its_schedule(tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, max_updates=4, warmup_share=0.0)
    history, reported = train(make_reward_model(tmp_path / "lm", ENCODER), tmp_path / "work", settings=settings)
    assert [record["update"] for record in history] == [3, 4]
    rates = [figures["process/learning_rate"] for _, figures in reported if "process/learning_rate" in figures]
    shares = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx([settings.learning_rate * share for share in shares])


def test_a_loss_that_is_not_finite_stops_with_the_way_out(tmp_path) -> None:
    model = make_reward_model(tmp_path / "lm", ENCODER)
    with torch.no_grad():
        model.head.bias[1] = math.inf
    with pytest.raises(InputError, match=r"model's loss is (nan|inf) at update 0; lower train_prm.learning_rate"):
        train(model, tmp_path / "work")


def test_weights_that_break_in_the_last_update_are_noticed(tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, max_updates=1, warmup_share=0.0, learning_rate=math.inf)
    with pytest.raises(InputError, match=r"loss on dev problems is nan at update 0; lower train_prm.learning_rate"):
        train(make_reward_model(tmp_path / "lm", ENCODER), tmp_path / "work", settings=settings)


# Exact resume


def dropout_model(folder: Path) -> RewardModel:
    """Dropout makes every update depend on the random state."""
    return make_reward_model(folder, ENCODER, attention_dropout=0.2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[RewardModel, list[dict], list[tuple[int, dict[str, float]]]]:
    """A trained model with its history and reported figures."""
    folder = tmp_path_factory.mktemp("undisturbed")
    model = dropout_model(folder / "lm")
    return model, *train(model, folder / "work")


# Before any checkpoint, right after one, between two (epochs end at 3 and 6, checkpoints are at 2, 4, 6), at the end.
@pytest.mark.parametrize("crash_after", [1, 2, 3, 4, 5, 6])
def test_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(undisturbed, tmp_path, crash_after: int) -> None:
    model, history, reported = undisturbed
    assert len(set(losses_of(reported))) == 6

    with pytest.raises(Interrupted):
        train(dropout_model(tmp_path / "b"), tmp_path / "work", crash_after=crash_after)
    torch.manual_seed(1234)
    again = dropout_model(tmp_path / "c")
    resumed_history, resumed = train(again, tmp_path / "work")
    assert resumed[0][0] == (crash_after - 1) // 2 * 2 + 1, "it went on from the last checkpoint"
    assert resumed_history == history
    assert [row for row in reported if row[0] >= resumed[0][0]] == resumed
    assert_same_weights(weights(again), weights(model))


def test_a_run_killed_while_the_best_weights_are_saved_ends_the_same(undisturbed, tmp_path, monkeypatch) -> None:
    interrupted = dropout_model(tmp_path / "b")
    save_file = safetensors.torch.save_file

    def torn(tensors: dict[str, torch.Tensor], path, *args, **kwargs) -> None:
        if Path(path).parent == tmp_path / "work":
            Path(path).write_bytes(b"half")
            raise Interrupted
        save_file(tensors, path, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.torch, "save_file", torn)
        with pytest.raises(Interrupted):
            train(interrupted, tmp_path / "work")
    assert "best.safetensors" not in files(tmp_path / "work")
    again = dropout_model(tmp_path / "c")
    train(again, tmp_path / "work")
    assert_same_weights(weights(again), weights(undisturbed[0]))


def test_a_finished_run_has_nothing_left_to_do(tmp_path) -> None:
    model = dropout_model(tmp_path / "a")
    history, _ = train(model, tmp_path / "work")
    again = dropout_model(tmp_path / "b")
    assert train(again, tmp_path / "work") == (history, [])
    assert_same_weights(weights(again), weights(model))


def test_the_seed_decides(undisturbed, tmp_path) -> None:
    found = []
    for name, seed in (("b", 3), ("c", 4)):
        model = dropout_model(tmp_path / name)
        train(model, tmp_path / f"work-{name}", seed=seed)
        found.append(weights(model))
    assert_same_weights(weights(undisturbed[0]), found[0])
    assert changed(found[0], found[1])
