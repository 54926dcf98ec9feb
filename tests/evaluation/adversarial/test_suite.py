"""The adversarial suite: gold of edited chains, verdicts and figures by hand, faults, chart and command."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import typer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from prm_core.cli.scoring.adversarial import adversarial, short_names
from prm_core.domains.oracle import ORACLES, first_error
from prm_core.errors import InputError
from prm_core.evaluation.adversarial import attacks, gold_chains, suite
from prm_core.evaluation.adversarial.chart import bars, draw
from prm_core.evaluation.adversarial.gold_chains import GoldChain, judged, pick_chains, read_chains
from prm_core.evaluation.adversarial.perturbations import FILLERS, PERTURBATIONS, Edit
from prm_core.platform import store
from prm_core.scoring.scorer import ChainScore
from prm_core.types import Step, Trajectory
from tests.builders import evaluation as fakes


def worked(count: int, split: str = "test") -> list[GoldChain]:
    return [judged(p.id, p, [Step(text) for text in p.meta["solution"]]) for p in fakes.problems(count, split)]


def miscalculated(chain: GoldChain) -> GoldChain:
    """The same with the first result wrong, and nothing after it adapted."""
    first = chain.steps[0].text.rpartition("=")[0] + "= 99."
    return judged(chain.name + "/wrong", chain.problem, [Step(first), *chain.steps[1:]])


def plain(*texts: str, wrong: int = -1, prompt: str = "Q", name: str = "c") -> GoldChain:
    return GoldChain(name, prompt, tuple(map(Step, texts)), wrong)


WORKED = worked(200)


# ------------------------------------------------------------------------------------------------- edited chains


@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, 199), seed=st.integers(0, 5))
def test_the_oracle_finds_every_damaged_chain_unsound_and_says_where(number, seed):
    chain = WORKED[number]
    for name in PERTURBATIONS:
        found = attacks.attack(chain, 3, name, seed)
        assert isinstance(found, attacks.Attack)
        assert found.chain == 3
        if PERTURBATIONS[name].damaging:
            wrong = first_error(ORACLES["arithmetic"](chain.problem, found.edit.steps))
            assert (found.first_error, found.gold) == (wrong, "oracle")
            # Nothing before the edit became wrong.
            assert wrong == found.edit.at
        else:
            assert (found.first_error, found.gold) == (-1, "construction")


def test_a_harmless_edit_moves_the_first_error_with_its_step():
    chain = miscalculated(WORKED[0])
    assert chain.first_error == 0
    for seed in range(10):
        found = attacks.attack(chain, 0, "pad", seed)
        assert found.edit.steps[found.first_error] == chain.steps[0]
    assert {attacks.attack(chain, 0, "pad", seed).first_error for seed in range(30)} == {0, 1, 2}


def test_damage_is_done_to_sound_chains_only():
    chain = miscalculated(WORKED[0])
    assert {attacks.attack(chain, 0, name, 0) for name in ("number", "operator", "swap", "drop")} == {attacks.UNSOUND}
    edit = next(PERTURBATIONS["drop"].propose(chain.steps, random.Random(0)))
    with pytest.raises(ValueError, match="sound chains"):
        attacks.judge_damage(chain, edit)


def test_an_edit_that_the_oracle_has_nothing_against_is_left_out():
    steps = WORKED[0].steps
    assert attacks.judge_damage(WORKED[0], Edit(steps, tuple(range(len(steps))), 0)) is None


@pytest.mark.parametrize(("text", "holds"), [
    ("So 3 + 4 = 7 apples.", True), ("So 3 + 4 = 8 apples.", False), ("3 + 4 = 7 and 2 * 2 = 5", False),
    ("No equation at 3 pm.", None), ("2x + 3 = 7", None),
])
def test_equations_of_a_step(text, holds):
    assert attacks.equations_hold(text) is holds


def test_without_an_oracle_an_equation_must_break():
    chain = plain("There are 3 boxes of 4.", "So 3 * 4 = 12 pens.", "The answer is 12.")
    for seed in range(10):
        for name in ("number", "operator"):
            found = attacks.attack(chain, 0, name, seed)
            assert (found.first_error, found.edit.at, found.gold) == (1, 1, "equation")
            assert found.edit.steps[1].text != chain.steps[1].text
    assert attacks.attack(chain, 0, "operator", 0).edit.steps[1].text == "So 3 / 4 = 12 pens."
    assert attacks.attack(chain, 0, "swap", 0) == attacks.UNKNOWN
    assert attacks.attack(chain, 0, "drop", 0) == attacks.UNKNOWN
    assert attacks.attack(plain("3 pens", "4 pens"), 0, "number", 0) == attacks.UNKNOWN
    assert attacks.attack(plain("pens"), 0, "number", 0) == attacks.NOWHERE
    # A flip that keeps the equation true does no damage.
    assert attacks.attack(plain("5 + 0 = 5"), 0, "operator", 0) == attacks.UNKNOWN


# ------------------------------------------------------------------------------------------------- chains


def test_reading_problems_takes_worked_solutions_or_steps(tmp_path):
    problem = WORKED[0].problem
    row = {"id": "a", "domain": "arithmetic", "prompt": problem.prompt, "answer": problem.answer, "meta": problem.meta}
    broken = row | {"steps": problem.meta["solution"][1:]}
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(broken))
    sound, unsound = read_chains(path, "arithmetic")
    assert (sound.steps, sound.first_error) == (WORKED[0].steps, -1)
    assert (unsound.first_error, unsound.sound) == (0, False)
    path.write_text(json.dumps(row | {"meta": {"start": 3}}))
    with pytest.raises(InputError, match=r"p\.jsonl:1: meta lacks events, which the oracle needs"):
        read_chains(path, "arithmetic")
    with pytest.raises(InputError, match="unknown format 'x'; known: agentprocessbench, arithmetic"):
        read_chains(path, "x")


def test_reading_a_labelled_format(tmp_path):
    path = tmp_path / "b.json"
    path.write_text(json.dumps([
        {"problem": "P", "steps": ["3 + 4 = 7", "7"], "label": -1, "final_answer_correct": True},
        {"problem": "P", "steps": ["3 + 4 = 8", "8"], "label": 0, "final_answer_correct": False}]))
    chains = read_chains(path, "processbench")
    assert [(chain.prompt, chain.first_error, chain.problem) for chain in chains] == [("P", -1, None), ("P", 0, None)]
    assert len({chain.name for chain in chains}) == 2


def test_trajectories_are_judged_and_strangers_left_out(caplog):
    problem = WORKED[0].problem
    rows = [Trajectory("t/0", problem.id, "p", WORKED[0].steps, None, True, 0),
            Trajectory("t/1", problem.id, "p", (), None, False, 0), Trajectory("t/2", "other", "p", (), None, False, 0)]
    (chain,) = gold_chains.from_trajectories([problem], rows)
    assert (chain.name, chain.sound) == ("t/0", True)
    assert "1 trajectories without a step" in caplog.text


def test_picking_keeps_distinct_chains_of_both_kinds():
    chains = [plain("a", name="0"), plain("a", name="1"), plain("b", name="2"), plain("c", name="3"),
              plain("d", wrong=0, name="4"), plain("a", name="5", prompt="R")]
    assert [chain.name for chain in pick_chains(chains, 0, 0)] == ["0", "2", "3", "4", "5"]
    kept = pick_chains(chains, 1, 0)
    assert sorted((chain.prompt, chain.sound) for chain in kept) == [("Q", False), ("Q", True), ("R", True)]
    assert kept == pick_chains(chains, 1, 0)
    assert len({tuple(c.name for c in pick_chains(chains, 1, seed)) for seed in range(20)}) == 3


# ------------------------------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize(("scores", "sound", "threshold", "accuracy"), [
    ([0.2, 0.4, 0.8, 0.9], [False, False, True, True], 0.6, 1.0),
    ([0.1, 0.2], [False, True], 0.15, 1.0),
    # Upside down: every chain passed or none, both 0.5; the lower end is -1e-6 / 2 + 0.1, nearer than 1.0.
    ([0.2, 0.9], [True, False], (-1e-6 + 0.2) / 2, 0.5),
    ([0.3, 0.5, 0.5, 0.7], [False, True, False, True], 0.4, 0.75),
])
def test_threshold_by_hand(scores, sound, threshold, accuracy):
    assert suite.choose_threshold(scores, sound) == pytest.approx((threshold, accuracy))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=20))
@example([(0.0, False), (5e-324, True)])
def test_no_threshold_is_better(rows):
    scores, sound = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if sound.all() or not sound.any():
        with pytest.raises(ValueError, match="sound chains and unsound ones"):
            suite.choose_threshold(scores, sound)
        return

    def balanced(threshold):
        passed = scores >= threshold
        return (passed[sound].mean() + (~passed[~sound]).mean()) / 2

    threshold, accuracy = suite.choose_threshold(scores, sound)
    assert accuracy == pytest.approx(balanced(threshold))
    assert accuracy >= max(balanced(t) for t in [*scores, -1, 2]) - 1e-12


# ------------------------------------------------------------------------------------------------- the whole suite


class Rule:
    """Scores by a function of prompt and steps; one score a step, or one for the chain."""

    def __init__(self, kind, rule, limit=99):
        self.kind, self.version, self.rule, self.limit = kind, f"v-{kind}", rule, limit

    def score(self, chains):
        result = []
        for prompt, steps in chains:
            scores = tuple(self.rule(prompt, steps))
            lost = max(0, len(steps) - self.limit)
            result.append(ChainScore(scores[: self.limit], scores[: self.limit], lost))
        return result


def knows_all(prompt, steps):
    """The oracle's verdicts; an inserted step is nothing to it."""
    problem = PROBLEMS[prompt]
    kept = [step for step in steps if step.text in STEPS or ":" in step.text or "answer" in step.text]
    kept = [step for step in kept if not step.text.startswith(("In other", "That is", "To say", "Once"))]
    verdicts = iter(ORACLES["arithmetic"](problem, kept))
    return [0.9 if step not in kept or next(verdicts) else 0.1 for step in steps]


def sees_answer(prompt, steps):
    """Fooled by every damaging edit that leaves the answer, and by filler."""
    if any(step.text in FILLERS for step in steps):
        return [0.3]
    return [0.2 if any("= 99." in step.text for step in steps) else 0.8]


DEV = worked(6, "dev")
DEV_BOTH = [*DEV, *map(miscalculated, DEV)]
TEST = [chain for chain in WORKED[:10] if chain.prompt not in {dev.prompt for dev in DEV}]
PROBLEMS = {chain.prompt: chain.problem for chain in [*DEV, *TEST]}
STEPS = {step.text for chain in [*DEV, *TEST] for step in chain.steps}


def run(**more):
    scorers = {"prm": Rule("process", knows_all), "orm": Rule("outcome", sees_answer)}
    return suite.run_adversarial(scorers, [*TEST, *map(miscalculated, TEST)], DEV_BOTH, resamples=100, **more)


def test_figures_by_hand():
    result = run()
    value = {name: estimate.value for name, estimate in result.figures.items()}
    assert (value["prm/clean/accuracy"], value["orm/clean/accuracy"], value["orm/clean/auroc"]) == (1, 1, 1)
    assert result.numbers["prm/threshold"] == 0.5
    assert result.numbers["prm/dev_balanced_accuracy"] == 1
    for kind in PERTURBATIONS:
        assert value[f"prm/{kind}/accuracy_lost"] == 0
    for kind in ("operator", "swap", "drop"):
        # The answer is there still: every damaged chain passes.
        assert (value[f"orm/{kind}/accuracy_clean"], value[f"orm/{kind}/accuracy"]) == (1, 0)
        assert (value[f"orm/{kind}/accuracy_lost"], value[f"orm/{kind}/fooled"]) == (1, 1)
        assert value[f"orm/{kind}/score_shift"] == 0
        assert value[f"prm/{kind}/score_shift"] == pytest.approx(-0.8)
        assert value[f"prm/{kind}/first_error_found"] == 1
        assert result.numbers[f"{kind}/n_chains"] == len(TEST)
        assert result.skipped[kind] == {"wrong before the edit": len(TEST)}
        assert result.gold[kind] == {"oracle": len(TEST)}
    # Filler turns sound chains into unsound ones for the ORM, half of all; unsound ones stay.
    assert (value["orm/filler/accuracy_lost"], value["orm/filler/fooled_sound"]) == (0.5, 1)
    assert value["orm/filler/fooled_unsound"] == 0
    assert value["orm/restate/accuracy_lost"] == value["orm/pad/accuracy_lost"] == 0
    assert value["orm/damaging/accuracy_lost"] == 1
    assert value["orm/harmless/accuracy_lost"] == pytest.approx(0.5 / 3)
    assert value["orm/all/accuracy_lost"] == pytest.approx(4.5 / 7)
    assert value["prm vs orm/all/lost_ratio"] == 0
    assert value["prm vs orm/all/lost_difference"] == pytest.approx(-4.5 / 7)
    # Where the ORM loses nothing there is no ratio.
    assert "prm vs orm/pad/lost_ratio" not in value
    assert "orm/drop/first_error_found" not in value
    assert "prm/pad/first_error_found" not in value
    assert result.models["orm"] == {"kind": "outcome", "version": "v-outcome"}


def test_the_same_seed_gives_the_same_figures_and_another_seed_other_edits():
    first, again = run(perturbations=["number"], seed=1).to_dict(), run(perturbations=["number"], seed=1).to_dict()
    assert json.dumps(first) == json.dumps(again)
    edits = [[attacks.attack(chain, 0, "number", seed).edit.steps for chain in TEST] for seed in (1, 2)]
    assert edits[0] != edits[1]


def test_another_aggregate_changes_the_verdict_and_names_no_step():
    result = run(aggregate="last", perturbations=["number", "drop"])
    # Dropping the first step leaves the last as it was for most chains.
    assert "prm/drop/first_error_found" not in result.figures
    assert result.settings["aggregate"] == "last"


def test_repaired_verdicts_count_against_what_is_lost():
    verdicts = suite.Verdicts([0, 0, 1, 1], np.array([[True, False]] * 4),
                              np.array([[0.9, 0.8], [0.9, 0.2], [0.1, 0.2], [0.1, 0.9]]), 0.5)
    found = {name: float(statistic(np.ones((1, 2)))[0]) for name, statistic in verdicts.statistics(2).items()}
    # Right before: 0, 1; right after: 1, 2.
    assert (found["accuracy_clean"], found["accuracy"], found["accuracy_lost"], found["fooled"]) == (.5, .5, 0, .25)
    assert found["score_shift"] == pytest.approx((-0.1 - 0.7 + 0.1 + 0.8) / 4)
    assert (found["fooled_sound"], np.isnan(found["fooled_unsound"])) == (0.25, True)


def test_ratio_is_undefined_where_the_rival_loses_nothing():
    lost = suite.lost_ratio(lambda weights: weights[:, 0], lambda weights: weights[:, 1])
    np.testing.assert_array_equal(lost(np.array([[1., 2.], [1., 0.], [1., -1.]])), [0.5, np.nan, np.nan])


def test_chains_too_long_for_one_model_are_left_out_for_all():
    short = min(len(chain.steps) for chain in TEST)
    fitting = [chain for chain in TEST if len(chain.steps) == short]
    scorers = {"prm": Rule("process", knows_all, limit=short), "orm": Rule("outcome", sees_answer)}
    dev = [chain for chain in DEV_BOTH if len(chain.steps) <= short] or DEV_BOTH
    result = suite.run_adversarial(scorers, TEST, dev, perturbations=["number", "filler"], resamples=100)
    assert result.numbers["n_too_long"] == len(TEST) - len(fitting)
    assert result.numbers["number/n_chains"] == len(fitting)
    # One step more than the model reads.
    assert result.numbers["filler/n_chains"] == 0
    assert result.skipped["filler"] == {"longer than a model's context": len(TEST)}
    assert "prm/harmless/accuracy_lost" not in result.figures
    assert result.figures["prm/all/accuracy_lost"].value == result.figures["prm/number/accuracy_lost"].value


@pytest.mark.parametrize(("change", "message"), [
    ({"perturbations": ["typo"]}, "unknown perturbation 'typo'"),
    ({"aggregate": "median"}, "unknown aggregation 'median'"),
    ({"chains": []}, "needs a model, chains to edit and clean chains"),
    ({"dev": DEV}, "chains for prm's threshold: a threshold needs sound chains and unsound ones"),
    ({"dev": [*DEV_BOTH, TEST[0]]}, "1 problems are among the chains to edit and among those for the threshold"),
    ({"scorers": {"prm": Rule("process", knows_all, limit=0)}}, "chains for prm's threshold"),
])
def test_faults(change, message):
    given = {"scorers": {"prm": Rule("process", knows_all)}, "chains": TEST, "dev": DEV_BOTH} | change
    with pytest.raises(InputError, match=message):
        suite.run_adversarial(**given)


def test_a_chain_that_cannot_be_scored_is_named():
    def rule(prompt, steps):
        if prompt == TEST[2].prompt:
            raise InputError("the prompt does not fit")
        return [0.5] * len(steps)

    rows = [(chain.name, chain.prompt, chain.steps) for chain in TEST]
    with pytest.raises(InputError, match=f"chain {TEST[2].name}: the prompt does not fit"):
        suite.score_chains(Rule("process", rule), rows, "min")


# ------------------------------------------------------------------------------------------------- chart and command


def test_chart_groups_and_file(tmp_path):
    result = run()
    assert bars(result) == ["number", "operator", "swap", "drop", "filler", "restate", "pad", "damaging", "harmless",
                            "all"]
    draw(result, tmp_path / "deep" / "chart.png")
    assert (tmp_path / "deep" / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["chart.png"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    app = typer.Typer()
    app.command()(adversarial)
    rules = {"prm": Rule("process", knows_all), "orm": Rule("outcome", sees_answer)}
    monkeypatch.setattr("prm_core.scoring.foreign.load_any_scorer", lambda folder, **settings: rules[str(folder)])
    monkeypatch.setattr("prm_core.serving.model_registry.reward_model_folder", lambda uri, workspace: uri)
    for name, chains in (("test", TEST), ("dev", DEV)):
        store.write_jsonl(tmp_path / f"{name}.jsonl", [chain.problem for chain in chains])
    wrong = [miscalculated(chain) for chain in [*TEST, *DEV]]
    store.write_shard(tmp_path / "trajectories", 0, Trajectory,
                      [Trajectory(c.name, c.problem.id, "p", c.steps, None, False, 0) for c in wrong])
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


SIDES = ("test.jsonl", "--threshold-from", "dev.jsonl", "--trajectories", "trajectories")


def test_command_prints_and_writes(command, tmp_path):
    result = command(*SIDES, "--model", "prm", "--against", "orm", "--out", "o.json", "--plot", "c.png",
                     "--resamples", 100)
    assert result.exit_code == 0, result.output
    assert "prm vs orm: accuracy lost by the PRM over that lost by the ORM 0.00 (0.00 to 0.00)" in result.output
    assert f"drop: left out {len(TEST)} wrong before the edit" in result.output
    table = json.loads((tmp_path / "o.json").read_text())
    assert table["figures"]["orm/all/accuracy_lost"] == pytest.approx(4.5 / 7)
    assert table["inputs"]["format"] == "arithmetic"
    assert table["numbers"]["n_chains"] == 2 * len(TEST)
    assert (tmp_path / "c.png").stat().st_size > 5000


def test_models_are_called_by_the_last_part_of_their_address():
    assert short_names(["a/prm", "b/orm/"]) == ["prm", "orm"]
    assert short_names(["a/prm", "b/prm"]) == ["a/prm", "b/prm"]


@pytest.mark.parametrize(("arguments", "message"), [
    ((*SIDES, "--model", "orm"), "--model orm: outcome reward models go to --against"),
    ((*SIDES, "--model", "prm", "--against", "prm"), "named twice"),
    (("test.jsonl", "--threshold-from", "test.jsonl", "--model", "prm"), "a file is named twice"),
    ((*SIDES, "--model", "prm", "--format", "processbench"), "field problem"),
    (("none.jsonl", "--threshold-from", "dev.jsonl", "--model", "prm"), "no such file"),
])
def test_bad_commands_are_one_clear_line(command, arguments, message):
    result = command(*arguments)
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)
