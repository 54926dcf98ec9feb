"""The section on training: names, order, what was kept, and the curves that stand on one scale."""

from __future__ import annotations

from prm_core.evaluation.report.training import POLICY, REWARD_MODELS, Curve, curves, sections

RECORDS = [{"update": 1, "kl": 0.0, "reward/process": 0.5, "reward/outcome": 0.4, "own": 1.0, "why": "text"},
           {"update": 2, "kl": 0.1, "reward/process": 0.7, "reward/outcome": 0.5, "own": 2.0, "dev/outcome": 0.6},
           {"update": 3, "kl": 0.2, "reward/process": 0.8, "reward/outcome": 0.6, "own": 2.0},
           {"update": 4, "kl": 0.3, "reward/process": 0.9, "reward/outcome": 0.3, "own": 2.0, "dev/outcome": 0.6},
           {"update": 5, "kl": 0.4, "reward/process": 0.9, "reward/outcome": 0.3, "own": 2.0, "dev/outcome": 0.5}]


def test_a_policy_s_curves_have_names_an_order_and_the_best_on_dev_problems() -> None:
    found = curves({POLICY: RECORDS})[POLICY]
    assert [curve.name for curve in found] == [
        "right answers on dev problems", "right answers while sampling", "mean process reward",
        "KL divergence from the base policy, a token", "own"]
    assert found[0].points == [(2, 0.6), (4, 0.6), (5, 0.5)]
    assert {curve.kept for curve in found} == {(2, 0.6), (2, 0.5), (2, 0.7), (2, 0.1), (2, 2.0)}


def test_without_an_evaluation_the_last_is_kept() -> None:
    plain = [{name: value for name, value in record.items() if name != "dev/outcome"} for record in RECORDS]
    assert {curve.kept[0] for curve in curves({POLICY: plain})[POLICY]} == {5}


def test_a_reward_model_keeps_the_lowest_loss_of_equal_ones_the_last() -> None:
    history = {"prm": [{"update": at, "epoch": 1, "dev_loss": loss} for at, loss in ((1, 0.3), (2, 0.2), (3, 0.2))],
               "orm": [{"update": 1, "loss": 0.3}]}
    # Of one point there is no curve.
    assert curves({REWARD_MODELS: history}) == {
        REWARD_MODELS: [Curve("prm dev_loss", [(1, 0.3), (2, 0.2), (3, 0.2)], (3, 0.2))]}


def test_outcomes_and_process_rewards_stand_on_one_scale() -> None:
    found = sections(curves({POLICY: RECORDS, REWARD_MODELS: {"prm": [
        {"update": at, "dev_loss": 0.1} for at in (1, 2)]}}))
    assert found[REWARD_MODELS].together is None
    chart = found[POLICY].together
    assert chart is not None
    assert [chart.count(f'class="line {style}"') for style in ("s-weighted", "s-orm", "s-prm")] == [1, 1, 1]
    assert ">kept</text>" in chart
    assert len(found[POLICY].small) == 5
    # All equal: no scale to divide by.
    assert sections(curves({POLICY: [{"update": at, "reward/outcome": 0.5} for at in (1, 2)]}))[POLICY].together
