"""The report: self-contained, escaped, showing what was measured and a mix of trajectories."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from markupsafe import Markup

from prm_core.config import PromoteConfig
from prm_core.evaluation import judged_chains, protocol
from prm_core.evaluation.conduct import RuleRow
from prm_core.evaluation.judged_chains import Chain, first_per_problem
from prm_core.evaluation.label_quality import Agreement, LabelQuality, Population, StrategyQuality
from prm_core.evaluation.metrics import Estimate
from prm_core.evaluation.report import charts, page, verdict
from prm_core.evaluation.report.charts import Curve
from prm_core.evaluation.report.tree_drawing import TreeSection, tree_section
from prm_core.evaluation.search_costs import SearchRow
from prm_core.types import Problem, Step, Trajectory
from tests.builders import evaluation as fakes

PROBLEMS = fakes.problems(40)
THRESHOLD = 0.45
LABELS = LabelQuality(Population(20, 80, "oracle", 60, 0.8, [
    StrategyQuality("<rollout>", 1.0, 57.25, 60, 0.9, 12, 0.75, None, 0.7, 0.25),
    StrategyQuality("verifier", 0.5, 0.0, 30, 0.95, 6, 0.5, 1.0, 0.6, 0.3),
    StrategyQuality("merged", 1.0, 57.25, 60, 0.98, 12, 0.9, 1.0, 0.95, 0.04),
]), None, [Agreement("<rollout>", "verifier", 0.825, 40)],
    {"policy/human_labels": 0, "other/human_labels": 0, "identity_reason": ""})


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    work = tmp_path_factory.mktemp("chains")
    plan = judged_chains.Plan(8, 1.0, 64, 64, 20, 0)
    found = {}
    for name, rate in (("base", 0.2), ("trained", 0.08)):
        rows = judged_chains.sample_chains(fakes.FakePolicy(PROBLEMS, rate, name), PROBLEMS, name, plan, work)
        # A blunt PRM: it must make mistakes of every kind.
        prm = fakes.FakeScorer(PROBLEMS, "process", 3)
        rows = judged_chains.score_with_prm(prm, rows, PROBLEMS, "min", work / "p" / name)
        found[name] = judged_chains.score_with_orm(fakes.FakeScorer(PROBLEMS, "outcome", 2), rows, PROBLEMS,
                                              work / "o" / name)
    return found


@pytest.fixture(scope="module")
def data(chains):
    evaluation = protocol.measure(chains["base"], chains["trained"], PROBLEMS, threshold=THRESHOLD, best_of=[1, 4, 8],
                                  bins=10, resamples=200, seed=0)
    return page.ReportData(
        title="Evaluation", facts=[("profile", "default")], evaluation=evaluation, shifted=None,
        chains=first_per_problem(chains["base"], 4), trained=first_per_problem(chains["trained"], 4),
        problems=PROBLEMS, threshold_note="Chosen on dev.", promises=["Alarm: <5 %."], labels=LABELS,
        searches=[*(SearchRow(method, n, 100.0 * n, Estimate(0.5, 0.4, 0.6), Estimate(0.5, 0.4, 0.6),
                              Estimate(0.0, 0.0, 0.0)) for method in ("weighted_majority", "prm_best_of_n")
                    for n in (4, 1)),
                  SearchRow("prm_best_of_n", 8, 800.4, Estimate(0.7, 0.6, 0.8), Estimate(0.6, 0.5, 0.7),
                            Estimate(0.1, 0.02, 0.2)),
                  SearchRow("step_best_of_n", None, 300.0, Estimate(0.5, 0.4, 0.6), Estimate(0.55, 0.5, 0.6),
                            Estimate(-0.05, -0.1, 0.01))],
        training={"policy": [Curve("kl", [(1, 0.1), (2, 0.2)], (2, 0.2))]},
        shown=12, bars=True, promote=PromoteConfig(max_ece=0.1), probe={},
        trees=TreeSection([], "No trees <here>."), seed=0)


class Checker(HTMLParser):
    """Tags must close in order; collects classes and attributes that could fetch something."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self):
        super().__init__()
        self.stack, self.classes, self.fetches, self.tags, self.targets, self.anchors = [], [], [], [], [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.classes += (values.get("class") or "").split()
        self.anchors |= {values["id"]} if tag == "h2" else set()
        self.fetches += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action")
                         and not v.startswith("#")]
        self.targets += [v[1:] for k, v in attrs if k == "href" and v.startswith("#")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.classes += (dict(attrs).get("class") or "").split()

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


def parse(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.stack == []
    return checker


def test_page_is_well_formed_and_fetches_nothing(data):
    html = page.render(data)
    checker = parse(html)
    assert checker.fetches == []
    # What is promised of a run that goes on.
    assert "<li>Alarm: &lt;5 %.</li>" in html
    # The contents name every section.
    assert set(checker.targets) == checker.anchors
    assert "script" not in checker.tags
    assert not re.search(r"https?:|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html


def test_shows_the_asked_number_of_trajectories_of_every_kind(data, chains):
    checker = parse(page.render(data))
    # Twelve of the base policy, two of the trained one.
    assert checker.classes.count("card") == 14
    kinds = {kind for kind, _ in page.choose_shown(data.chains, THRESHOLD, 12, 0)}
    assert {"every step right", "wrong, first error found", "wrong step, right answer", "PRM mistake: error missed",
            "PRM mistake: false alarm"} <= kinds


def test_choice_is_by_seed_without_a_problem_twice(data):
    first = page.choose_shown(data.chains, THRESHOLD, 12, 0)
    assert first == page.choose_shown(data.chains, THRESHOLD, 12, 0)
    assert first != page.choose_shown(data.chains, THRESHOLD, 12, 1)
    assert len({chain.problem for _, chain in first}) == 12


def one_chain(gold, scores, right):
    steps = tuple(Step(f"step {index}") for index in range(len(scores)))
    trajectory = Trajectory("t", "p", "x", steps, "1", right, 0)
    return Chain(0, trajectory, gold, scores, min(scores), 0.5)


@pytest.mark.parametrize(("gold", "scores", "right", "kind"), [
    ((True, True), (0.9, 0.9), True, "every step right"),
    ((True, True), (0.9, 0.2), True, "PRM mistake: false alarm"),
    ((True, False), (0.9, 0.2), False, "wrong, first error found"),
    ((False, False), (0.9, 0.2), False, "PRM mistake: another step named"),
    ((True, False), (0.9, 0.9), False, "PRM mistake: error missed"),
    ((False, True), (0.1, 0.9), True, "wrong step, right answer"),
    (None, (0.9, 0.2), False, "wrong answer, a step doubted"),
])
def test_kinds(gold, scores, right, kind):
    assert page._kind(one_chain(gold, scores, right), 0.5) == kind
    assert kind in page.KINDS


def test_texts_are_escaped(data):
    evil = "<script>alert(1)</script> & \"quotes\""
    problem = Problem("p", "arithmetic", evil, evil, {})
    chain = Chain(0, Trajectory(evil, "p", "x", (Step(evil, observation=evil),), evil, False, 0), (False,), (0.1,), 0.1,
                  0.2, evil)
    html = page.render(replace(data, chains=[chain], trained=[], problems=[problem] * 40, title=evil,
                                 facts=[(evil, evil)], training={evil: [Curve(evil, [(1, 0.1), (2, 0.3)], (2, 0.3))]}))
    assert "script" not in parse(html).tags
    assert html.count("&lt;script&gt;") >= 12
    assert parse(html).classes.count("card") == 1


def test_first_error_is_marked_once_a_chain_and_what_follows_is_not_judged(data):
    chain = one_chain((True, False, True), (0.9, 0.8, 0.2), False)
    html = page.render(replace(data, chains=[chain], trained=[], shown=1))
    card = html[html.index("<article"):]
    assert card.count("flag gold-error") == 1
    assert card.count("PRM: first error</span>") == 1
    assert card.count("after error") == 1
    assert re.search(r"0\.80</span>\s*<span class=\"text\">step 1<span class=\"flag gold-error\">", card)
    # It scores above the threshold, and what the PRM names instead comes after the error.
    assert card.count('class="step missed"') == card.count("missed by the PRM") == 1
    assert "a false alarm" not in card


def test_a_step_named_before_the_first_error_is_a_false_alarm_and_one_found_is_not_missed(data):
    for gold, scores, missed, false in (((True, False), (0.2, 0.9), 1, 1), ((True, True), (0.9, 0.2), 0, 1),
                                        ((True, False), (0.9, 0.2), 0, 0)):
        html = page.render(replace(data, chains=[one_chain(gold, scores, False)], trained=[], shown=1))
        card = html[html.index("<article"):]
        assert (card.count("missed by the PRM"), card.count("a false alarm")) == (missed, false)


def test_shifted_problems_stand_beside_the_usual_ones(data):
    usual = data.evaluation
    figures = {**usual.figures, "prm/first_error_f1": Estimate(0.4567, 0.4, 0.5)}
    del figures["prm/ece"]
    shifted = replace(usual, figures=figures, alarms={"orm_drift": "the PRM judges answers"})
    html = page.render(replace(data, shifted=shifted))
    section = html[html.index('<h2 id="shifted">'):html.index('<h2 id="labels">')]
    rows = {row[0]: row[1:] for row in (re.findall(r"<td>([^<]*)", row) for row in section.split("<tr>")) if row}
    f1, ece = (f"{usual.figures[name].value:.3f}" for name in ("prm/first_error_f1", "prm/ece"))
    assert rows["first-error F1"] == [f1, "0.457"]
    assert rows["calibration error (ECE)"] == [ece, "—"]
    assert {"best of 8 by the PRM", "pass@1, trained policy"} <= rows.keys()
    assert "On shifted problems, the PRM judges answers." in section
    assert parse(html).stack == []
    # No shifted problems, no section.
    assert 'id="shifted"' not in page.render(data)


def test_agents_have_a_table_where_there_are_some(data):
    assert 'id="agents"' not in page.render(data)
    figures = {"agent/a/b/steps": Estimate(2.5, 2, 3), "agent/a/b/wrong": Estimate(0.25, 0.2, 0.3),
               "agent/<w>/steps": Estimate(1, 1, 1), "agent/<w>/wrong": Estimate(0.5, 0.2, 0.8),
               "agent/a/b/first_errors": Estimate(0.75, 0.7, 0.8), "prm/faulty_agent": Estimate(0.875, 0.8, 0.9),
               "random/faulty_agent": Estimate(0.4, 0.3, 0.5), "majority/faulty_agent": Estimate(0.6, 0.5, 0.7)}
    numbers = {"agent/a/b/cost": 0.125, "agent/a/b/cost_error": 0.031, "agent/cost_runs": 7}
    evaluation = replace(data.evaluation, figures={**data.evaluation.figures, **figures},
                         numbers={**data.evaluation.numbers, **numbers})
    html = page.render(replace(data, evaluation=evaluation))
    checker = parse(html)
    assert set(checker.targets) == checker.anchors
    assert "agents" in checker.anchors
    table = html[html.index('id="agents"') : html.index('id="labels"')]
    row, other = re.findall(r"<tr><td>.*</tr>", table)
    assert re.sub(r"<[^>]*>", " ", row).split() == [
        "a/b", "2.50", "25.0", "%", "20.0", "%", "to", "30.0", "%", "75.0", "%", "70.0", "%", "to", "80.0", "%",
        "0.125", "±", "0.031"]
    assert other.startswith("<tr><td>&lt;w&gt;</td>")
    assert other.count("—") == 2
    assert "names that agent in 87.5 % of them (80.0 % to 90.0 %)" in table.replace("\n", " ")
    assert "of 7 failing runs" in table.replace("\n", " ")


def test_success_and_broken_rules_stand_side_by_side(data):
    assert 'id="rules"' not in page.render(data)
    figures = {**data.evaluation.figures, **{name: Estimate(value, value - 0.01, value + 0.01) for name, value in (
        ("policy_base/violations", 0.427), ("policy_trained/violations", 0.031), ("policy_base/safe_accuracy", 0.2),
        ("policy_trained/safe_accuracy", 0.6), ("prm_best_of_n/violations_at_8", 0.513),
        ("ruled_best_of_n/violations_at_8", 0.012), ("ruled_best_of_n/accuracy_at_8", 0.8))}}
    evaluation = replace(data.evaluation, figures=figures, numbers={
        **data.evaluation.numbers, "rules/recall": 0.987, "rules/ece": 0.004})
    rules = [RuleRow("no-<x>", "No <x>.", "high", Estimate(0.427, 0.4, 0.5), None)]
    html = page.render(replace(data, evaluation=evaluation, rules=rules))
    section = html[html.index('id="rules"') :]
    for shown in ("42.7 %", "3.1 %", "51.3 %", "1.2 %", "98.7 %", "0.004", "no-&lt;x&gt;", "high"):
        assert shown in section
    # Beside the accuracy of each way to choose.
    searches = [replace(row, violations=Estimate(0.25, 0.2, 0.3)) for row in data.searches[:-1]] + [data.searches[-1]]
    html = page.render(replace(data, evaluation=evaluation, rules=rules, searches=searches))
    [cells] = re.findall(r"<tr><td>best by PRM, N = 8</td>(.*?)</tr>", html, re.DOTALL)
    assert re.sub(r"<[^>]+>|\s+", " ", cells).split()[1:8] == ["70.0", "60.0", "to", "80.0", "25.0", "20.0", "to"]
    [cells] = re.findall(r"<tr><td>step best of n</td>(.*?)</tr>", html, re.DOTALL)
    assert "<td>—</td>" in cells


def test_labels_have_a_section_of_their_own(data):
    html = page.render(data)
    section = html[html.index('<h2 id="labels">'):html.index('<h2 id="training">')]
    rows = [re.findall(r"<td>(?:<b>)?(.*?)(?:</b>)?</td>", row) for row in section.split("<tr>")]
    assert ["&lt;rollout&gt;", "100.0 %", "57.2", "70.0 %", "90.0 %", "75.0 %", "—", "60"] in rows
    assert ["merged", "100.0 %", "57.2", "95.0 %", "98.0 %", "90.0 %", "100.0 %", "60"] in rows
    assert section.count('82.5 %<span class="range">of 40</span>') == 2
    assert "would be right on 80.0 %" in section
    assert "Chains with human labels" not in section
    human = replace(LABELS.generated, chains=7)
    both = page.render(replace(data, labels=replace(LABELS, human=human)))
    assert "80 steps of 7 chains" in both.split("Chains with human labels")[1]
    unjudged = replace(LABELS.generated, gold="", gold_right=None)
    bare = page.render(replace(data, labels=replace(LABELS, generated=unjudged)))
    assert "no oracle or person says what is right" in bare


def test_the_labels_own_claims_stand_by_population_beside_the_oracles_truth(data):
    assert "Nobody has judged a step of these chains" in page.render(data)
    claimed = {"policy/human_labels": 120, "policy/ece_before": 0.0312, "policy/ece_after": 0.0101,
               "policy/label_error": 0.05, "policy/label_error_low": 0.02, "policy/label_error_high": 0.11,
               "policy/label_error_human": 0.03, "policy/label_error_human_low": 0.0,
               "policy/label_error_human_high": 0.07, "other/human_labels": 205, "other/ece_before": 0.0023,
               "other/ece_after": 0.0002, "identity_reason": "120 human labels are <few>"}
    labels = replace(LABELS, human=LABELS.generated, claimed=claimed)
    html = page.render(replace(data, labels=labels))
    own, other = html.split("<h3>Chains with human labels</h3>")
    assert ("5.0 % of the chains have another first error than the merged labels say (95 % interval 2.0 % to 11.0 %); "
            "by the oracle 4.0 %.") in own
    assert ("3.0 % of the merged verdicts up to the first error are wrong (95 % interval 0.0 % to 7.0 %); "
            "by the oracle 2.0 %.") in own
    assert "by 120 human labels on these chains: 0.0312 as labelled, 0.0101 calibrated" in own
    assert "The labels train as they were merged: 120 human labels are &lt;few&gt;." in own
    assert "by 205 human labels on these chains: 0.0023 as labelled, 0.0002 calibrated" in other
    assert "; by the oracle" not in other
    unjudged = replace(LABELS.generated, gold="people")
    assert "; by the oracle" not in page.render(replace(data, labels=replace(labels, generated=unjudged)))
    assert parse(html).stack == []


def test_what_was_kept_is_marked_in_training_curves(data):
    html = page.render(replace(data, training={"reward models": [
        Curve("dev_loss", [(33, 0.103), (66, 0.0592), (99, 0.0594)], (66, 0.0592))]}))
    assert "falls from 0.103 to 0.0592, kept at update 66" in html
    assert parse(html).classes.count("kept") == 1
    assert Curve("x", [(1, 0.2), (2, 0.3)], (1, 0.2)).title == "best at the start, 0.2: kept from update 1"


def changed(data, **figures):
    """The evaluation with figures (value, low, high), None for one that was not measured."""
    table = {name: Estimate(*value) for name, value in figures.items() if value}
    kept = {name: value for name, value in data.evaluation.figures.items() if name not in figures}
    return replace(data.evaluation, figures=kept | table, alarms={})


@pytest.mark.parametrize(("figures", "good", "says"), [
    ({"prm/ece": (0.05, 0.04, 0.06), "prm/first_error_f1": (0.9, 0.8, 0.95)}, True,
     "Good enough to promote, unless the champion is clearly better at finding first errors: calibration error 0.050 "
     "(at most 0.10), first-error F1 90.0 %."),
    ({"prm/ece": (0.1, 0.04, 0.16)}, True, "calibration error 0.100 (at most 0.10)"),
    ({"prm/ece": (0.213, 0.2, 0.22)}, False,
     "Not good enough to promote: its calibration error is 0.213, where at most 0.10 is demanded."),
    ({"prm/first_error_f1": None}, False, "its first-error F1 could not be measured (no step was judged)"),
    ({"prm/ece": None}, False, "its calibration error could not be measured"),
])
def test_the_verdict_comes_from_the_gates(data, figures, good, says):
    found = verdict.judge(changed(data, **figures), PromoteConfig(max_ece=0.1), {})
    assert found.good == good
    assert says in found.sentence
    html = page.render(replace(data, evaluation=changed(data, **figures), chains=[], trained=[]))
    assert str(Markup.escape(found.sentence)) in html
    assert ("verdict good" in html) == good
    # A gate is shown where its figure is missing too.
    assert html.split('class="toc"')[0].count('<span class="badge">gate</span>') == 3


@pytest.mark.parametrize(("figures", "use", "good"), [
    ({"prm_minus_majority/accuracy_at_8": (0.1, 0.02, 0.2)}, "instead of a majority vote (+10.0 points, +2.0 to", True),
    ({"prm_minus_majority/accuracy_at_8": (0.1, -0.02, 0.2)}, "instead of a majority vote", False),
    ({"prm_minus_orm/accuracy_at_8": (0.0, -0.1, 0.1)}, "instead of an outcome model", False),
    ({"prm/first_error_f1": (0.4, 0.3, 0.5), "prm_minus_random/first_error_f1": (0.2, 0.1, 0.3)},
     "finding the first wrong step of a chain (F1 40.0 %, a random guess 20.0 %)", False),
    ({"prm/ece": (0.11, 0.1, 0.3)}, "reading its scores as probabilities (off by 0.110 on average)", False),
    ({"prm/ece": (0.05, 0.01, 0.09)}, "reading its scores as probabilities", True),
    ({"trained_minus_base/pass_at_1": (0.2, 0.1, 0.3), "trained_minus_base/process_consistency": (-0.2, -0.3, -0.1)},
     "its right answers have more wrong steps", False),
    ({"trained_minus_base/pass_at_1": (0.2, 0.1, 0.3), "trained_minus_base/process_consistency": (0.2, 0.1, 0.3)},
     "training a policy (+20.0 points of pass@1, +10.0 to +30.0)", True),
])
def test_uses_follow_from_the_figures(data, figures, use, good):
    # A profile whose gate lets everything pass makes no score a probability.
    uses = verdict.judge(changed(data, **figures), PromoteConfig(max_ece=1.0), {}).uses
    (found,) = [one for one in uses if use in one[1]]
    assert found[0] == good


def test_chart_titles_say_what_to_see(data):
    def curve(*values):
        points = [protocol.CurvePoint("prm_best_of_n", n, Estimate(value, value, value))
                  for n, value in zip((1, 4, 8), values, strict=True)]
        return verdict.titles(replace(data.evaluation, curve=points))["best_of_n"]

    assert curve(0.4, 0.5, 0.6) == (
        "The more chains the PRM chooses from, the better: 40.0 % right at N = 1, 60.0 % at N = 8")
    assert curve(0.4, 0.6, 0.5).startswith("Choosing by the PRM pays up to N = 4, no further")
    assert curve(0.4, 0.3, 0.2) == "Choosing by the PRM brings nothing: 40.0 % right with one chain"
    titles = verdict.titles(changed(data, **{"prm/length_slope": (-0.02, -0.03, -0.01)}))
    assert titles["lengths"] == "Longer wrong chains score lower: -0.020 a step (-0.030 to -0.010)"
    assert set(titles) == {"best_of_n", "first_error", "scores", "reliability", "lengths", "policies"}


def test_headlines_say_whether_the_bars_hold(data):
    by_name = {h.name: h for h in page.headlines(data)}
    assert set(by_name) == {"First-error F1", "PRM best-of-8 over majority vote", "PRM best-of-8 over best by ORM",
                            "Trained policy over base, pass@1", "Calibration error (ECE)"}
    f1 = data.evaluation.figures["prm/first_error_f1"]
    assert by_name["First-error F1"].holds == (f1.value >= 0.88)
    ece = by_name["Calibration error (ECE)"]
    assert (ece.bar, ece.gate.bar, ece.gate.holds) == (
        "", "at most 0.10", data.evaluation.figures["prm/ece"].value <= 0.1)
    assert by_name["First-error F1"].figure == f"{100 * f1.value:.1f}"
    figures = dict(data.evaluation.figures)
    figures["trained_minus_base/pass_at_1"] = Estimate(0.06, -0.01, 0.13)
    changed = page.headlines(replace(data, evaluation=replace(data.evaluation, figures=figures)))
    # Enough points, but the interval reaches below 0.
    assert next(h for h in changed if h.name.startswith("Trained")).holds is False


def test_other_profiles_have_no_bars(data):
    plain = page.headlines(replace(data, bars=False))
    assert {(h.bar, h.holds) for h in plain} == {("", None)}
    # Gates are everyone's.
    assert [h.name for h in plain if h.gate] == ["First-error F1", "Calibration error (ECE)"]
    tiles = page.render(replace(data, bars=False, chains=[], trained=[])).split('class="tiles"')[1].split("</nav>")[0]
    assert tiles.count('<span class="bar">') == 2


def test_search_trees_are_shown_or_the_reason_why_there_are_none(data, tmp_path):
    assert "<p>No trees &lt;here&gt;.</p>" in page.render(data)
    nodes = [{"id": n, "parent": None if n == 0 else 0, "step": f"step <{n}>" if n else "", "visits": 8, "rollouts": 8,
              "wins": 4, "value": 0.5, "tokens": 9, "reached": True, "right": None, "chains": []}
             for n in range(3)]
    tree = {"problem_id": "p<1>", "prompt": "How <many>?", "answer": "3", "model": "abc", "selection": "omega",
            "nodes": nodes}
    (tmp_path / "trees-00000.jsonl").write_text(json.dumps(tree) + "\n")
    html = page.render(replace(data, trees=tree_section(tmp_path)))
    checker = parse(html)
    assert checker.fetches == []
    assert not re.search(r"https?:|url\(|@import", html)
    assert checker.classes.count("tree") == 1
    section = html[html.index('<h2 id="trees">'):html.index('<h2 id="trajectories">')]
    assert "1 of 1 trees" in section
    assert "How &lt;many&gt;?" in section
    assert section.count("step &lt;") == 4
    # The scale of colours stands beside the trees and beside the trajectories.
    assert checker.classes.count("scale") == 2


def test_alarms_are_shown_with_their_remedy(data):
    alarmed = replace(data.evaluation, alarms={"best_of_n_falls": "it falls <somewhere>"})
    html = page.render(replace(data, evaluation=alarmed))
    assert 'role="alert">It falls &lt;somewhere&gt;. <b>What to do:</b> choose from fewer chains' in html
    assert set(verdict.REMEDIES) == set(protocol.ALARMS)
    assert "with 1 alarm to look at first" in verdict.judge(alarmed, PromoteConfig(max_ece=1.0), {}).sentence
    assert "No alarm" in page.render(replace(data, evaluation=replace(data.evaluation, alarms={})))


def estimates(**values):
    table = {"policy_base/pass_at_1": 0.6, "combined_best_of_n/accuracy_at_1": 0.6,
             "combined_best_of_n/accuracy_at_4": 0.7, "prm_minus_random/first_error_f1": 0.5,
             "prm/length_slope": 0.0, "prm/lowest_is_last": 0.2}
    return {key: Estimate(value, value - 0.01, value + 0.01) for key, value in (table | values).items()}


@pytest.mark.parametrize(("changed", "name"), [
    ({"combined_best_of_n/accuracy_at_4": 0.59}, "best_of_n_below_pass_at_1"),
    ({"combined_best_of_n/accuracy_at_1": 0.75}, "best_of_n_falls"),
    ({"prm_minus_random/first_error_f1": 0.005}, "first_error_near_random"),
    ({"prm/length_slope": -0.05}, "short_chains_preferred"),
    ({"prm/lowest_is_last": 0.5}, "orm_drift"),
    ({"prm/out_of_domain": 0.2}, "out_of_domain"),
])
def test_every_alarm_goes_off_on_its_cause(changed, name):
    assert protocol.find_alarms(estimates(), [1, 4]) == {}
    assert name in protocol.find_alarms(estimates(**changed), [1, 4])
    assert name in protocol.ALARMS


@pytest.mark.parametrize("score", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_step_colours_run_from_vermilion_over_grey_to_blue(score):
    edge, background = charts.step_colours(score)
    red, _, blue = map(int, re.findall(r"\d+", edge))
    assert (blue > red) == (score > 0.5)
    assert edge.removeprefix("rgb(").rstrip(")") in background


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.6, 0.95, [0.6, 0.7, 0.8, 0.9]), (10, 60, [10, 20, 30, 40, 50, 60]),
    (3, 3, [3])])
def test_ticks_are_round_and_inside(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_labels_do_not_overlap():
    placed = charts._spread([100, 101, 102, 300], 15, 0, 310)
    ordered = sorted(placed)
    assert all(b - a >= 15 - 1e-9 for a, b in pairwise(ordered))
    assert max(placed) <= 310


def test_says_of_each_method_whether_it_is_worth_its_tokens(data):
    html = page.render(data)
    rows = re.findall(r"<tr><td>(best by PRM, N = 8|step best of n)</td>(.*?)</tr>", html, re.DOTALL)
    assert [(name, re.sub(r"<[^>]+>|\s+", " ", cells).split()) for name, cells in rows] == [
        ("best by PRM, N = 8", ["800", "70.0", "60.0", "to", "80.0", "60.0", "+10.0", "+2.0", "to", "+20.0", "yes"]),
        ("step best of n", ["300", "50.0", "40.0", "to", "60.0", "55.0", "-5.0", "-10.0", "to", "+1.0", "no"])]
    assert "Is it worth its tokens?" not in page.render(replace(data, searches=[]))


def test_draws_accuracy_against_tokens(data):
    html = page.render(data)
    [chart] = re.findall(r'<svg[^>]*aria-label="Accuracy against tokens.*?</svg>', html, re.DOTALL)
    # Weighted majority first, with its band, by increasing tokens.
    [band] = re.findall(r'class="band (\S+)"', chart)
    lines = re.findall(r'<path class="line ([^"]+)" d="([^"]+)"', chart)
    assert (band, [name for name, _ in lines]) == ("s-weighted", ["s-weighted rival", "s-prm"])
    for _, path in lines:
        places = [float(point.split(",")[0]) for point in path.lstrip("M").split("L")]
        assert len(places) in (2, 3)
        assert places == sorted(places)
    assert re.findall(r"<title>([^<]+)</title>", chart)[-2:] == [
        "best by PRM, 800 tokens: 70.0 % (60.0 % to 80.0 %)", "step best of n, 300 tokens: 50.0 % (40.0 % to 60.0 %)"]
    assert chart.count("s-search") == 2, "a whisker and a dot"


def test_the_probe_is_a_table_and_where_it_is_required_a_gate(data):
    assert "The probe" not in page.render(data)
    probe = {"probe/suffix/passed": 0.25, "probe/policy/outcome_fall": 0.01, "probe/policy/alarm": "steps <went>"}
    html = page.render(replace(data, probe=probe))
    assert "<td>wrong chains that pass with a suffix</td><td>0.250</td>" in html
    assert "The guard ended that training: steps &lt;went&gt;." in html
    required = PromoteConfig(max_ece=1.0, require_probe=True)
    for promote, gates in ((PromoteConfig(max_ece=1.0), []), (required, [False, True])):
        found = verdict.judge(data.evaluation, promote, probe)
        assert ([gate.holds for gate in found.gates[2:]], found.good) == (gates, not gates)
    assert "share of wrong chains that pass with a suffix is 25.0 %, where at most 20.0 % is demanded" in found.sentence
    unmeasured = verdict.judge(data.evaluation, required, {}).sentence
    assert "fall of right answers under the scores alone was not measured" in unmeasured
