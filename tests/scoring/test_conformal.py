"""prm_core/scoring/conformal.py: thresholds worked by hand, the promises over many draws, and bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.platform import sums
from prm_core.scoring.conformal import FILE, Alarm, CleanPrefix, Promises, TooFewRuns, fit_alarm, fit_clean_prefix

unit = st.floats(0, 1, allow_nan=False)
runs_of = st.lists(st.lists(unit, min_size=1, max_size=5), min_size=60, max_size=90)


def draw(rng, count):
    """Runs of 2 to 6 steps whose wrong steps score lower on average, and their first errors, -1 for none."""
    runs, errors = [], []
    for _ in range(count):
        steps = int(rng.integers(2, 7))
        wrong = rng.random(steps) < 0.15
        runs.append(np.where(wrong, rng.beta(2, 3, steps), rng.beta(5, 2, steps)).tolist())
        errors.append(int(wrong.argmax()) if wrong.any() else -1)
    return runs, errors


def test_the_alarm_spares_as_many_sound_runs_as_n_plus_one_allows():
    lowest = [0.01 * number for number in range(1, 40)]
    runs = [[0.9, low, 0.8] for low in lowest]
    failing = [[0.0, 0.0]] * 30
    alarm = fit_alarm(runs + failing, [False] * 39 + [True] * 30, alpha=0.05, confidence=0)
    # 0.05 · 40 = 2: the new run may be the lowest or the second, so the threshold is the second, which is spared.
    assert alarm == Alarm(0.05, 0, 39, lowest[1])
    assert alarm.step(runs[0]) == 1
    assert alarm.step(runs[1]) == -1
    assert fit_alarm(runs[:-1], [False] * 38, alpha=0.05, confidence=0).threshold == lowest[0]


def test_the_alarm_with_confidence_spares_fewer():
    lowest = [0.01 * number for number in range(1, 97)]
    runs = [[low] for low in lowest]
    # P(Binomial(96, 0.05) <= 1) = 0.044 and P(… <= 2) = 0.136.
    assert fit_alarm(runs, [False] * 96, 0.05, 0.9).threshold == lowest[1]
    assert fit_alarm(runs, [False] * 96, 0.05, 0.86).threshold == lowest[2]
    # 0.05 · 97 = 4.85
    assert fit_alarm(runs, [False] * 96, 0.05, 0).threshold == lowest[3]


def test_the_clean_prefix_breaks_in_as_few_runs_as_n_plus_one_allows():
    # The errors come after scores of 0.9, 0.8, … 0.1 and later scores say nothing; ten runs are clean.
    erring = [[0.95, score, 0.0] for score in np.arange(0.9, 0, -0.1).round(1).tolist()]
    runs, errors = [*erring, *[[0.05, 0.05]] * 10], [1] * 9 + [-1] * 10
    prefix = fit_clean_prefix(runs, errors, alpha=0.1, confidence=0)
    # 0.1 · 20 = 2: the second highest of the erring runs is not promised, the highest is.
    assert prefix == CleanPrefix(0.1, 0, 19, 0.8)
    assert [prefix.length(scores) for scores in runs[:3]] == [2, 1, 1]
    assert prefix.length([0.95, 0.81, 0.82]) == 3
    assert prefix.length([0.8, 0.9]) == 0


def test_a_first_step_that_is_wrong_counts_by_its_own_score():
    prefix = fit_clean_prefix([[0.7, 0.1], [0.3, 0.2]] * 5, [0, 0] * 5, alpha=0.5, confidence=0)
    assert prefix.threshold == 0.7


def test_errors_that_are_rarer_than_alpha_let_every_run_be_called_clean():
    prefix = fit_clean_prefix([[0.2, 0.1]] * 30, [1] + [-1] * 29, alpha=0.1, confidence=0)
    assert prefix == CleanPrefix(0.1, 0, 30, None)
    assert prefix.length([0.0, 0.0]) == 2


@pytest.mark.parametrize("confidence", [0, 0.9])
def test_the_promises_are_kept_over_many_draws(confidence):
    rng, alpha, draws = np.random.default_rng(3), 0.1, 600
    runs, errors = draw(rng, 20_000)
    sound = np.array([min(scores) for scores, error in zip(runs, errors, strict=True) if error < 0])
    erring = np.array([min(scores[: error + 1]) for scores, error in zip(runs, errors, strict=True) if error >= 0])
    rates = []
    for _ in range(draws):
        runs, errors = draw(rng, 150)
        alarm = fit_alarm(runs, np.array(errors) >= 0, alpha, confidence)
        prefix = fit_clean_prefix(runs, errors, alpha, confidence)
        rates.append(((sound < alarm.threshold).mean(), (erring > prefix.threshold).sum() / 20_000))
    # Each rate is measured on 20,000 runs or half of them: 0.003 is their error.
    for found, fitted in zip(np.array(rates).T, (75, 150), strict=True):
        error = 3 * found.std() / draws**0.5 + 0.003
        assert found.mean() <= alpha + error
        if confidence:
            chance = 1 - confidence
            assert (found > alpha + 0.003).mean() <= chance + 3 * (chance * (1 - chance) / draws) ** 0.5
        else:
            # Nor wasteful: the rate is r / (n + 1), r the whole part of alpha (n + 1).
            assert found.mean() >= alpha - 1.5 / fitted - error


@settings(max_examples=40, deadline=None)
@given(runs_of, st.data())
def test_thresholds_are_invariant_to_order_and_monotone_in_alpha_and_confidence(runs, data):
    errors = [data.draw(st.integers(-1, len(scores) - 1)) for scores in runs]
    order = data.draw(st.permutations(range(len(runs))))
    mixed, theirs = [runs[i] for i in order], [errors[i] for i in order]
    never = [False] * len(runs)
    at = {level: (fit_alarm(runs, never, *level), fit_clean_prefix(runs, errors, *level))
          for level in ((0.1, 0.9), (0.2, 0.9), (0.2, 0.5), (0.2, 0))}
    for level, fitted in at.items():
        assert (fit_alarm(mixed, never, *level), fit_clean_prefix(mixed, theirs, *level)) == fitted
    scores = data.draw(st.lists(unit, min_size=1, max_size=5))
    for (alarm, prefix), (freer_alarm, freer_prefix) in zip(list(at.values())[:-1], list(at.values())[1:], strict=True):
        assert alarm.threshold <= freer_alarm.threshold
        assert prefix.length(scores) <= freer_prefix.length(scores)
        # On the runs it was fitted on the promise is broken in fewer than alpha (n + 1).
        assert sum(alarm.step(run) >= 0 for run in runs) < alarm.alpha * (len(runs) + 1)


@given(st.lists(unit, max_size=6), st.lists(unit, max_size=6), unit)
def test_more_steps_take_nothing_back(scores, more, threshold):
    alarm, prefix = Alarm(0.05, 0.9, 100, threshold), CleanPrefix(0.1, 0.9, 100, threshold)
    if alarm.step(scores) >= 0:
        assert alarm.step(scores + more) == alarm.step(scores)
    assert prefix.length(scores + more) >= prefix.length(scores)


def test_both_are_restored_from_json():
    for made in (Alarm(0.05, 0.9, 99, 0.25), CleanPrefix(0.1, 0, 30, 0.5), CleanPrefix(0.1, 0.9, 30, None)):
        assert type(made).from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_promises_lie_beside_a_model_under_its_digests(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    made = Promises(Alarm(0.05, 0.9, 99, 0.25), CleanPrefix(0.1, 0.9, 30, None))
    for promises in (made, Promises(made.alarm), Promises()):
        promises.save(tmp_path)
        assert Promises.load(tmp_path) == promises
        assert not list(sums.differences(tmp_path))
    (tmp_path / FILE).unlink()
    assert Promises.load(tmp_path) == Promises()


@pytest.mark.parametrize("text", ["[]", "{}", '{"alarm": {}, "prefix": null}', '{"alarm": null, "prefix": 0.5}'])
def test_a_file_without_promises_is_named(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=rf"{FILE}: holds no alarm and clean prefix"):
        Promises.load(tmp_path)


@pytest.mark.parametrize(("change", "error"), [
    ({"alpha": 1.5}, ValueError), ({"alpha": True}, TypeError), ({"runs": 0}, ValueError), ({"runs": 9.0}, TypeError),
    ({"confidence": 1}, ValueError), ({"threshold": float("nan")}, ValueError), ({"threshold": "low"}, TypeError),
    ({"more": 1}, TypeError),
])
def test_what_is_no_promise_is_not_restored(change, error):
    for kind in (Alarm, CleanPrefix):
        with pytest.raises(error):
            kind.from_dict({"alpha": 0.1, "confidence": 0.9, "runs": 30, "threshold": 0.5, **change})


def test_an_alarm_needs_a_threshold():
    with pytest.raises(TypeError):
        Alarm.from_dict({"alpha": 0.1, "confidence": 0.9, "runs": 30, "threshold": None})
    with pytest.raises(KeyError):
        CleanPrefix.from_dict({"alpha": 0.1, "confidence": 0.9, "runs": 30})


def test_too_few_runs_say_how_many_are_needed():
    for count, confidence in ((44, 0.9), (18, 0)):
        with pytest.raises(TooFewRuns, match=rf"{count} calibration runs that do not fail.*needs {count + 1};"):
            fit_alarm([[0.5]] * count, [False] * count, 0.05, confidence)
        assert fit_alarm([[0.5]] * (count + 1), [False] * (count + 1), 0.05, confidence).runs == count + 1
    with pytest.raises(TooFewRuns, match=r"0 calibration runs that do not fail"):
        fit_alarm([[0.5]] * 99, [True] * 99, 0.05)
    with pytest.raises(TooFewRuns, match=r"^0 calibration runs, and"):
        fit_clean_prefix([], [], 0.1)


@pytest.mark.parametrize("alpha", [0, 1, -0.1, float("nan")])
def test_alpha_is_a_share(alpha):
    for fit, said in ((fit_alarm, [False] * 50), (fit_clean_prefix, [-1] * 50)):
        with pytest.raises(ValueError, match="alpha"):
            fit([[0.5]] * 50, said, alpha)


def test_bad_runs_are_refused():
    for fit in (fit_alarm, fit_clean_prefix):
        with pytest.raises(ValueError, match="finite"):
            fit([[0.5], [float("nan")]] * 30, [0] * 60, 0.1)
        with pytest.raises(ValueError, match="without a step"):
            fit([[0.5], []] * 30, [0] * 60, 0.1)
        with pytest.raises(ValueError, match="60 runs need"):
            fit([[0.5]] * 60, [0] * 59, 0.1)
        with pytest.raises(ValueError, match="60 runs need"):
            fit([[0.5]] * 60, [0.5] * 60, 0.1)
    with pytest.raises(ValueError, match="index of a step"):
        fit_clean_prefix([[0.5]] * 60, [1] * 60, 0.1)
    for made in (Alarm(0.05, 0.9, 99, 0.25), CleanPrefix(0.1, 0, 30, 0.5)):
        with pytest.raises(ValueError, match="finite"):
            (made.step if isinstance(made, Alarm) else made.length)([0.9, float("nan")])
