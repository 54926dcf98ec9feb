"""prm_core/serving/promotion.py: the gate's decisions, and what moves in the registry when it holds or refuses."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prm_core import config as configuration
from prm_core.config import DriftConfig, PromoteConfig
from prm_core.errors import GateError, InputError
from prm_core.platform import store, tracking
from prm_core.serving import model_registry, promotion
from prm_core.serving.promotion import ECE, F1, decide, promote
from tests import ROOT

CONFIG = PromoteConfig(max_ece=0.10)


def tags(f1: float | str = 90.0, low: float | str = 88.0, ece: float | str = 0.05, data: str = "d") -> dict[str, str]:
    return {F1: str(f1), f"{F1}_low": str(low), f"{F1}_high": "95", ECE: str(ece), "data_hash": data}


def steady(f1: float, low: float, spread: float | str) -> dict[str, str]:
    """A champion with a committee."""
    return tags(f1, low) | {f"{F1}_spread": str(spread)}


@pytest.mark.parametrize(
    ("challenger", "champion", "passed", "reason"),
    [
        (tags(), None, True, "no champion yet"),
        (tags(ece=0.10), None, True, "no champion yet"),
        (tags(ece=0.1001), None, False, "above the limit promote.max_ece 0.1000"),
        (tags(f1=91), tags(f1=90), True, "not below"),
        (tags(f1=88.0), tags(low=88.0), True, "not below"),
        (tags(f1=87.9), tags(low=88.0), False, "87.9000 is below 88.0000"),
        (tags(f1=99, ece=0.2), tags(), False, "above the limit"),
        ({ECE: "0.05"}, None, False, f"no {F1}"),
        ({F1: "90"}, tags(), False, f"no {ECE}"),
        ({ECE: "0.05", f"{F1}_left_out": "no right chain"}, None, False,
         f"{F1} could not be measured on the test chains (no right chain)"),
        (tags(f1="nan"), None, False, f"no {F1}"),
        (tags(ece="nan"), None, False, f"no {ECE}"),
        (tags(f1="good"), None, False, f"no {F1}"),
        (tags(), {F1: "90", ECE: "0.05"}, False, f"champion has no {F1}_low"),
        (tags(), {f"{F1}_low": "88", ECE: "0.05"}, False, f"champion has no {F1} "),
        (tags(f1="inf"), tags(), False, f"no {F1}"),
        (tags(), tags(low="nan"), False, f"champion has no {F1}_low"),
        (tags(data="other"), tags(), True, "different data"),
        (tags(f1=1, data="other"), tags(), False, "different data"),
    ],
)
def test_gate(challenger, champion, passed, reason):
    decision = decide(challenger, champion, CONFIG)
    assert (decision.passed, reason in decision.reason) == (passed, True), decision


AUROC = "test/prm/outcome_auroc"


def told(value: float | str, low: float | str, **more: str) -> dict[str, str]:
    return {AUROC: str(value), f"{AUROC}_low": str(low), **more}


@pytest.mark.parametrize(
    ("challenger", "champion", "passed", "reason"),
    [
        (told(0.7, 0.6), None, True, "no champion yet; test/prm/outcome_auroc 0.7000 is no guess, from 0.6000"),
        (told(0.7, 0.5), None, False, "0.7000 may be a guess, which has 0.5: its 95 % interval over"),
        (told(0.7, 0.6), told(0.8, 0.7), True, "0.7000 is not below 0.7000"),
        (told(0.69, 0.6), told(0.8, 0.7), False, "0.6900 is below 0.7000"),
        (told(0.69, 0.6, data_hash="d"), told(0.8, 0.7, data_hash="e"), False, "different data"),
        (told(0.7, 0.6), tags(), False, "the champion has no test/prm/outcome_auroc_low to compare with"),
        (tags(), None, False, "was not measured (run the stages evaluate and register with promote.by outcomes)"),
        (told("nan", 0.6), None, False, "was not measured"),
        ({f"{AUROC}_left_out": "no right answer"}, None, False, "was not measured (no right answer)"),
    ],
)
def test_where_nobody_judges_steps_outcomes_decide(challenger, champion, passed, reason):
    decision = decide(challenger, champion, dataclasses.replace(CONFIG, by="outcomes"))
    assert (decision.passed, reason in decision.reason) == (passed, True), decision


def test_by_outcomes_a_probe_may_be_required_too():
    config = dataclasses.replace(CONFIG, by="outcomes", require_probe=True)
    decision = decide(told(0.7, 0.6), None, config)
    assert not decision.passed
    assert "promote.require_probe" in decision.reason


@pytest.mark.parametrize(("key", "config"), [(F1, CONFIG), (AUROC, dataclasses.replace(CONFIG, by="outcomes"))])
def test_a_difference_on_the_same_chains_decides_in_place_of_two_intervals(key, config):
    challenger, champion = tags(0.90) | told(0.9, 0.8), tags(0.99, 0.98) | told(0.99, 0.98)
    assert not decide(challenger, champion, config).passed
    for high, passed in ((0.001, True), (0.0, True), (-0.001, False)):
        gain = {f"{key}_gain": "-0.01", f"{key}_gain_low": "-0.02", f"{key}_gain_high": str(high)}
        decision = decide(challenger | gain, champion, config, paired=True)
        assert decision.passed == passed
        what = "is not lower" if passed else "is lower"
        assert f"its {key} {what} than the champion's on the same chains: -0.0100 (-0.0200 to" in decision.reason
        # To another champion it says nothing; nor does half of it.
        assert not decide(challenger | gain, champion, config).passed
        assert not decide(challenger | {f"{key}_gain": "0.1"}, champion, config, paired=True).passed


def probed(passes: float | str, fall: float | str) -> dict[str, str]:
    return tags() | {"probe/suffix/passed": str(passes), "probe/policy/outcome_fall": str(fall)}


@pytest.mark.parametrize(("challenger", "reason"), [
    (probed(0.2, 0.05), "no champion yet"),
    (probed(0.0, -0.3), "no champion yet"),
    (probed(0.21, 0), "its probe/suffix/passed 0.2100 is above the limit promote.max_suffix_passes 0.2000"),
    (probed(0, 0.051), "its probe/policy/outcome_fall 0.0510 is above the limit promote.max_outcome_fall 0.0500"),
    (tags(), "it has no probe/suffix/passed, which promote.require_probe demands; run the stages probe"),
    (probed(0, "nan"), "it has no probe/policy/outcome_fall, which"),
    (tags() | {"probe/suffix/passed_left_out": "no wrong chain"}, "has no probe/suffix/passed (no wrong chain), which"),
])
def test_a_required_probe_refuses_what_is_out_of_its_bounds_or_was_not_tried(challenger, reason):
    required = PromoteConfig(max_ece=0.10, require_probe=True)
    decision = decide(challenger, None, required)
    assert (decision.passed, reason in decision.reason) == (reason == "no champion yet", True), decision
    assert decide(challenger, None, CONFIG).passed


# 1.96 sqrt(2) x 0.0144309 = 0.04 beside 0.03 over problems: 0.05 in all.
@pytest.mark.parametrize(("f1", "low", "spread", "floor"), [
    (0.90, 0.87, 0.04 / (1.96 * 2**0.5), 0.85),
    (0.90, 0.87, 0.0, 0.87),
    (0.90, 0.90, 0.01, 0.90 - 0.0277186),
])
def test_the_spread_between_trainings_counts_beside_the_interval_over_problems(f1, low, spread, floor):
    champion = steady(f1, low, spread)
    for challenger, passed, said in ((floor + 1e-6, True, "is not below"), (floor - 1e-6, False, "is below")):
        decision = decide(tags(challenger), champion, CONFIG)
        assert decision.passed == passed
        assert decision.reason.startswith(f"{'' if passed else 'its '}{F1} {challenger:.4f} {said} {floor:.4f}, the "
                                          f"champion's {f1:.4f} less {f1 - floor:.4f} for chance (its 95 % interval "
                                          f"over problems begins at {low:.4f}; the standard deviation between its "
                                          f"committee members is {spread:.4f})")


@pytest.mark.parametrize("champion", [tags(0.9, 0.87), *(steady(0.9, 0.87, odd) for odd in ("nan", "inf", "-1", "?"))])
def test_a_champion_without_a_spread_is_judged_by_its_interval_over_problems_and_the_reason_says_so(champion):
    for challenger, passed in ((0.87, True), (0.8699, False)):
        decision = decide(tags(challenger), champion, CONFIG)
        assert decision.passed == passed
        assert (f"below 0.8700, the low end of the champion's 95 % interval over problems, which alone decides: it has "
                f"no {F1}_spread") in decision.reason


SHARES = st.floats(0, 1)


@given(f1=SHARES, champion=SHARES, below=SHARES, spreads=st.tuples(SHARES, SHARES), exact=st.booleans())
def test_more_spread_never_turns_a_pass_into_a_refusal(f1, champion, below, spreads, exact):
    low = champion * below
    if exact:  # At the very edge, where rounding decides.
        f1 = low
    passed = [decide(tags(f1), of, CONFIG).passed
              for of in (tags(champion, low), *(steady(champion, low, spread) for spread in sorted(spreads)))]
    assert passed == sorted(passed)


def test_a_challenger_s_own_spread_does_not_lower_the_bar():
    champion = steady(0.9, 0.87, 0.01)
    assert decide(steady(0.8, 0.5, 0.3), champion, CONFIG) == decide(tags(0.8), champion, CONFIG)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture
def registered(workspace, monkeypatch, request):
    """A function that registers a version in a model of this test's own, as the register stage does."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = tracking.connect(workspace)
    name = request.node.name

    def register(version_tags: dict[str, str]) -> str:
        run = client.create_run(tracking.experiment_id(client, workspace))
        logged = client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id)
        version = model_registry.add_version(workspace, name, logged.model_id, version_tags)
        record = {"name": name, "version": str(version.version), "run_id": run.info.run_id, "tags": version_tags}
        store.write_json(workspace / "artifacts" / "register" / "model_version.json", record)
        return record["version"]

    register.client, register.name = client, name
    return register


def champion(registered) -> str | None:
    found = model_registry.version_by_alias(registered.client, registered.name, "champion")
    return None if found is None else str(found.version)


def test_first_version_is_promoted_and_says_who_when_why(workspace, registered):
    assert champion(registered) is None
    version = registered(tags())
    done = promote(workspace, CONFIG)
    assert (done.version, done.moved, done.previous) == (version, True, None)
    assert champion(registered) == version
    found = registered.client.get_model_version(registered.name, version).tags
    assert found["promoted_by"] == tracking.user()
    assert found["promoted_at"].endswith("+00:00")
    assert "no champion yet" in found["promoted_because"]
    assert found["promoted_over"] == "none"


def test_again_says_it_is_the_champion_already(workspace, registered):
    version = registered(tags())
    promote(workspace, CONFIG)
    done = promote(workspace, CONFIG)
    assert (done.version, done.moved) == (version, False)
    assert champion(registered) == version


def test_a_calibration_that_is_too_old_is_not_promoted_and_a_champion_stays_one(workspace, registered):
    version = registered(tags())
    with pytest.raises(InputError, match=rf"version {version} is not promoted, its calibration is stale: calibrated on "
                                         r".*, more than 1e-09 days ago \(drift.max_age_days\); have people judge"):
        promote(workspace, CONFIG, DriftConfig(max_age_days=1e-9))
    assert champion(registered) is None
    promote(workspace, CONFIG)
    assert not promote(workspace, CONFIG, DriftConfig(max_age_days=1e-9)).moved


def test_refusal_leaves_the_champion_and_names_the_figures(workspace, registered):
    first = registered(tags(f1=90, low=88))
    promote(workspace, CONFIG)
    second = registered(tags(f1=80))
    with pytest.raises(GateError, match=rf"version {second} is not promoted: .*80\.0000 is below 88\.0000.* version "
                                        rf"{first} stays champion"):
        promote(workspace, CONFIG)
    assert champion(registered) == first
    assert "promoted_by" not in registered.client.get_model_version(registered.name, second).tags


def test_better_version_takes_over(workspace, registered):
    first = registered(tags(f1=90, low=88))
    promote(workspace, CONFIG)
    second = registered(tags(f1=89))
    done = promote(workspace, CONFIG)
    assert (done.version, done.previous) == (second, first)
    assert champion(registered) == second


def locks(registered) -> list[str]:
    return [model.name for model in registered.client.search_registered_models() if "-promotion" in model.name]


def test_of_two_at_once_the_later_one_is_measured_against_the_first(workspace, registered, monkeypatch):
    """The second promotion starts after the first one has looked at the champion and before it has moved the alias."""
    registered(tags(f1=90, low=88))
    promote(workspace, CONFIG)
    weaker = registered(tags(f1=91, low=89))
    other = workspace / "other"
    store.write_json(other / "artifacts/register/model_version.json",
                     store.read_json(workspace / "artifacts/register/model_version.json"))
    stronger = registered(tags(f1=97, low=95))
    outcome, decided = [], promotion.decide

    def second() -> None:
        try:
            outcome.append(promote(other, CONFIG).version)
        except GateError as refused:
            outcome.append(str(refused))

    thread = threading.Thread(target=second)

    def decide_slowly(challenger, champion, config, **how):
        if challenger[F1] == "97" and not thread.ident:
            thread.start()
            thread.join(3 * model_registry.POLL_SECONDS)
        return decided(challenger, champion, config, **how)

    monkeypatch.setattr(promotion, "decide", decide_slowly)
    monkeypatch.setattr(tracking, "tracking_uri", lambda _: f"sqlite:///{workspace / 'mlflow.db'}")
    promote(workspace, CONFIG)
    thread.join(60)
    assert outcome[0].startswith(f"{registered.name} version {weaker} is not promoted: its {F1} 91.0000 is below 95")
    assert champion(registered) == stronger
    assert locks(registered) == []


def test_a_difference_counts_while_the_champion_is_the_one_it_is_to(workspace, registered):
    def compared(uri: str) -> dict[str, str]:
        return tags(f1=87) | {"compared_with": uri, f"{F1}_gain": "-1", f"{F1}_gain_low": "-3", f"{F1}_gain_high": "1"}

    first = registered(tags(f1=90, low=88))
    promote(workspace, CONFIG)
    uri = f"models:/{registered.name}/{first}"
    for other in (f"{uri}0", "", "models:/other/1"):
        registered(compared(other))
        with pytest.raises(GateError, match="is below 88"):
            promote(workspace, CONFIG)
    same = registered(compared(uri))
    assert promote(workspace, CONFIG).version == same
    assert champion(registered) == same


@pytest.mark.parametrize(("low", "passes"), [(85, True), (95, False)])
def test_an_alias_moved_by_hand_meanwhile_is_what_the_challenger_is_compared_with(
    workspace, registered, monkeypatch, low, passes
):
    registered(tags(f1=90, low=88))
    promote(workspace, CONFIG)
    by_hand, challenger = registered(tags(low=low)), registered(tags(f1=91))
    decided, moved = promotion.decide, []

    def decide_and_move(*given, **how):
        if not moved:
            moved.append(registered.client.set_registered_model_alias(registered.name, "champion", by_hand))
        return decided(*given, **how)

    monkeypatch.setattr(promotion, "decide", decide_and_move)
    if passes:
        assert promote(workspace, CONFIG).previous == by_hand
    else:
        with pytest.raises(GateError, match="below 95"):
            promote(workspace, CONFIG)
    assert champion(registered) == (challenger if passes else by_hand)
    assert locks(registered) == []


@pytest.mark.parametrize(("host", "wait"), [(socket.gethostname(), 60.0), ("elsewhere", 0.0)])
def test_the_lock_of_a_killed_promotion_is_taken_over(workspace, registered, monkeypatch, host, wait):
    """At once where its process is known to be gone, else after a while."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(model_registry, "ABANDONED_SECONDS", wait)
    lock = json.dumps({"token": "t", "host": host, "pid": ended.pid})
    version = registered(tags())
    registered.client.create_registered_model(f"{registered.name}-promotion", description=lock)
    assert promote(workspace, CONFIG).version == version
    assert locks(registered) == []


def test_of_many_that_find_a_killed_promotion_one_at_a_time_goes_on(registered):
    registered(tags())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock = json.dumps({"token": "t", "host": socket.gethostname(), "pid": ended.pid})
    registered.client.create_registered_model(f"{registered.name}-promotion", description=lock)
    inside, most = [], []

    def hold() -> None:
        with model_registry.promotion_lock(registered.client, registered.name) as still_held:
            inside.append(1)
            time.sleep(0.02)
            most.append((len(inside), still_held()))
            inside.pop()

    threads = [threading.Thread(target=hold) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [(1, True)] * 6
    assert locks(registered) == []


def test_a_lock_taken_away_is_noticed(registered):
    """As by a machine that took this one for dead: then nothing is moved, and the other's lock stays."""
    registered(tags())
    with model_registry.promotion_lock(registered.client, registered.name) as still_held:
        assert still_held()
        registered.client.update_registered_model(f"{registered.name}-promotion", description="other")
        assert not still_held()
    assert locks(registered) == [f"{registered.name}-promotion"]
    registered.client.delete_registered_model(f"{registered.name}-promotion")


def test_version_this_store_does_not_know(workspace, registered):
    registered(tags())
    path = workspace / "artifacts" / "register" / "model_version.json"
    record = store.read_json(path)
    for wrong in ({"version": "99"}, {"name": "no_such_model"}, {"run_id": "0" * 32}):
        store.write_json(path, {**record, **wrong})
        with pytest.raises(InputError, match=r"is not in sqlite:.*MLFLOW_TRACKING_URI"):
            promote(workspace, CONFIG)
    assert champion(registered) is None


def test_nothing_registered_here(tmp_path):
    with pytest.raises(InputError, match=r"model_version\.json: no such file"):
        promote(tmp_path, CONFIG)


def test_command_says_what_happened(workspace, registered, capsys):
    from prm_core.cli.promote import promote as command

    root = ROOT
    store.write_text(workspace / configuration.PARAMS_FILE, (root / configuration.PARAMS_FILE).read_text())
    version = registered(tags())
    command(workspace)
    assert f"{registered.name} version {version} is now champion: there is no champion yet" in capsys.readouterr().out
    command(workspace)
    assert "it is the champion already" in capsys.readouterr().out
