"""Configuration: profiles over the defaults, and what a typo is told."""

from __future__ import annotations

import dataclasses
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prm_core import config
from prm_core.errors import InputError
from tests import ROOT

BASE = ROOT / "params.yaml"

VALUES = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


DEFAULTS = config.read_yaml(BASE)


def raw(**sections):
    return config.merge(DEFAULTS, sections)


@pytest.mark.parametrize("profile", config.profile_names())
def test_every_shipped_profile_is_valid(profile):
    values = config.resolve(BASE, profile)

    assert values["profile"] == profile
    assert config.parse(values, "resolved").profile == profile


def test_the_named_profiles_ship():
    assert set(config.profile_names()) >= {"default", "smoke", "hard", "gsm8k-smollm2", "qwen2.5-7b"}


def test_a_profile_can_be_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 7\nlabel: {strategies: [mcts]}\n")

    values = config.resolve(BASE, str(path))

    assert (values["profile"], values["seed"], values["label"]["strategies"]) == ("mine", 7, ["mcts"])
    # What it does not name stays.
    base = config.resolve(BASE, "default")
    assert config.merge(values, {"profile": "default", "seed": base["seed"], "label": base["label"]}) == base
    assert values["label"]["rollout"] == base["label"]["rollout"]


@pytest.mark.parametrize("profile", ["smok", "nowhere/mine.yaml"])
def test_an_unknown_profile_names_the_known_ones(profile):
    with pytest.raises(InputError, match=f"unknown profile '{profile}'; known: default, .*smoke"):
        config.resolve(BASE, profile)


def test_a_profile_with_a_typo_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("generate: {sampels: 3}\n")

    with pytest.raises(InputError, match=r"mine\.yaml: generate\.sampels: no such key"):
        config.resolve(BASE, str(path))


@pytest.mark.parametrize(("sections", "fault"), [
    ({"colour": "red"}, "colour: no such key"),
    ({"label": {"rollouts": 3}}, "label.rollouts: no such key"),
    ({"label": {"mcts": {"rule": "any"}}}, "label.mcts.rule: no such key"),
    ({"label": {"mcts": {"preference_confidence": 0.5}}}, "label.mcts.preference_confidence: Input should be greater"),
    ({"label": {"strategies": []}}, "label.strategies: List should have at least 1 item"),
    ({"label": {"mc_dropout": {"dropout": 0.0}}}, "label.mc_dropout.dropout: Input should be greater than 0"),
    ({"models": {"dtype": "int8"}}, "models.dtype"),
    ({"calibrate": {"method": "magic"}}, "calibrate.method: Input should be 'isotonic', 'platt' or 'temperature'"),
    ({"calibrate": {"review_share": 1.1}}, "calibrate.review_share: Input should be less than or equal to 1"),
    ({"calibrate": {"stack": "maybe"}}, "calibrate.stack: Input should be a valid boolean"),
    ({"generate": {"samples": "many"}}, "generate.samples: Input should be a valid integer"),
    ({"validate": {"correct_share": [0.1]}}, "validate.correct_share"),
    ({"encoder": None}, "encoder"),
])
def test_a_wrong_key_or_value_is_one_line_naming_it(sections, fault):
    with pytest.raises(InputError) as raised:
        config.parse(raw(**sections), "params.yaml")

    message = str(raised.value)
    assert message.startswith("params.yaml: ")
    assert fault in message
    assert "\n" not in message


def leaves(values, path=()):
    """(path, value) of every setting that is no section; a mapping by name (max_abstention) counts as one for each."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


SETTINGS = dict(leaves(DEFAULTS))


def faults_of(path, value):
    """What loading says of the default profile with one setting changed; empty where it is accepted."""
    changed = value
    for key in reversed(path):
        changed = {key: changed}
    try:
        config.parse(raw(**changed), "-")
    except InputError as error:
        return str(error)
    return ""


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf"), -1, True, "", None], ids=repr)
def test_no_number_of_the_configuration_takes_what_is_no_sensible_number(wrong):
    numbers = [path for path, value in SETTINGS.items() if is_number(value)]
    assert len(numbers) > 80
    told = {path: faults_of(path, wrong) for path in numbers}
    # Where a number or a mapping will do, pydantic names in between what it tried.
    assert [path for path in numbers if not (path[-1] in told[path] and ".".join(path[:2]) in told[path])] == []


def test_no_share_or_probability_takes_more_than_one():
    shares = [path for path, value in SETTINGS.items() if is_number(value) and any(
        word in path[-1] for word in ("share", "confidence", "accuracy", "harmless", "ece", "drift", "agreement",
                                      "coverage", "threshold", "decided", "dropout", "lone_vote", "clip"))]
    shares += [path for path in SETTINGS if "max_abstention" in path]
    assert len(shares) > 20
    assert [path for path in shares if "less than" not in faults_of(path, 1.01)] == []


# May be empty: without an endpoint the judge is a local model, and without a judge it has no model either; who samples
# in this process has no server.
MAY_BE_EMPTY = {("label", "judge", "model"), ("label", "judge", "endpoint"), ("sampling", "endpoint"),
                ("sampling", "model"), ("sampling", "trained_model"), ("sampling", "api_key_env"),
                ("rules", "file"), ("rules", "version")}


def test_no_text_of_the_configuration_may_be_empty():
    texts = {path for path, value in SETTINGS.items() if isinstance(value, str)} - MAY_BE_EMPTY
    assert len(texts) > 15
    assert [path for path in texts if ".".join(path) not in faults_of(path, "")] == []
    blank = texts - {("encoder", "separator")}
    assert [path for path in blank if ".".join(path) not in faults_of(path, "  ")] == []


def test_every_name_of_something_registered_is_looked_up():
    names = {("domain",), ("label", "merge"), ("label", "rollout", "rule"), ("label", "mc_dropout", "measure"),
             ("label", "mcts", "selection"), ("train_policy", "advantages", "form"),
             ("train_policy", "advantages", "baseline"), ("train_policy", "advantages", "chain_filter"),
             ("evaluate", "aggregate"), ("probe", "aggregate"),
             ("serve", "aggregate"), ("sampling", "backend"), ("sampling", "server")}
    for path in names:
        assert re.search(rf"{'.'.join(path)}: unknown .* 'nonesuch'; known: ", faults_of(path, "nonesuch")), path
    for path in (("label", "strategies"), ("validate", "critical")):
        assert re.search(rf"{'.'.join(path)}: unknown .* 'nonesuch'; known: ", faults_of(path, ["nonesuch"])), path
    assert "validate.max_abstention: unknown labelling strategy 'nonesuch'" in faults_of(("validate",), {
        "max_abstention": {"nonesuch": 0.5}})


def test_no_list_takes_a_thing_twice():
    lists = [path for path, value in SETTINGS.items() if isinstance(value, list) and path[0:2] not in {
        ("validate", "correct_share"), ("validate", "mean_confidence"), ("train_policy", "clip")}]
    assert len(lists) == 6
    for path in lists:
        value = SETTINGS[path]
        assert f"{'.'.join(path)}: {value[0]} is there twice" in faults_of(path, [*value, value[0]])


@pytest.mark.parametrize(("path", "value", "fault"), [
    (("promote", "alias"), "latest", "can be no alias"),
    (("promote", "alias"), "Latest", "can be no alias"),
    (("promote", "challenger_alias"), "v2", "can be no alias"),
    (("promote", "alias"), "a b", "can be no alias"),
    (("promote", "alias"), "challenger", "too: every new version"),
    (("register", "model_name"), "a/b", "pattern"),
    (("register", "model_name"), "..", "pattern"),
    (("models", "device"), "gpu", "pattern"),
    (("models", "device"), "cuda:", "pattern"),
    (("validate", "correct_share"), [0.9, 0.3], "from 0.9 to 0.3 there is nothing"),
    (("validate", "mean_confidence"), [0.5, 1.5], "less than or equal to 1"),
    (("validate", "correct_share"), [float("nan"), 0.5], "finite"),
    (("evaluate", "best_of"), [1, 32], "32 is more than evaluate.samples 16"),
    (("evaluate", "best_of"), [0, 1], "greater than 0"),
    (("http",), {"drain_timeout": 59}, "http.drain_timeout: is 59, and requests may take engine.deadline 60 s"),
    (("swap",), {"poll": 0.0}, "swap.poll: Input should be greater than 0"),
    (("evaluate", "best_of"), [True, 2], "expected a number"),
    (("warmup", "heads"), 5, "5 does not divide warmup.hidden_size 96"),
    (("train_policy", "advantages"), {"outcome_weight": 0, "process_weight": 0}, "nothing would be rewarded"),
    (("train_policy", "advantages", "late_weights"), [0, 0], "no step would be rewarded"),
    (("train_policy",), {"critic": {"gamma": 0.0}}, "train_policy.critic.gamma: Input should be greater than 0"),
    (("train_policy",), {"critic": {"over": "chains"}}, "over: Input should be 'tokens' or 'steps'"),
    (("train_policy",), {"critic": {"kind": "shared"}, "advantages": {"process_weight": 1.0, "credit": "step"}},
     "train_policy.advantages.credit: is step, and a critic credits each token with what is to come: set it to to_go"),
    (("train_policy",), {"reward_model": "implicit", "advantages": {"baseline": "leave_one_out", "form": "lowest"}},
     "advantages.form: lowest reads scores as probabilities, and an implicit reward model gives log-ratios: set it to"),
    (("train_policy",), {"reward_model": "implicit", "advantages": {"baseline": "prefix", "form": "sum"}},
     "advantages.baseline: prefix reads scores as probabilities"),
    (("train_policy",), {"reward_model": "implicit", "advantages": {"process_weight": 0.0}},
     "advantages.process_weight: is 0: nothing would ask the implicit reward model"),
    (("train_policy",), {"kl_coef": 0.0, "kl_target": 0.1}, "kl_target: adapts kl_coef, which stays at 0"),
    (("train_policy", "advantages"), {"chain_filter": "prof", "left_out": 8}, "leaves out at least 1 and fewer than"),
    (("train_policy", "clip"), [0.2], "Field required"),
    (("promote", "require_probe"), True, "demands figures that nothing measures: set probe.enabled"),
    (("train_policy", "guard"), {"require_probe": True}, "guard.require_probe: demands figures that nothing measures"),
    (("train_policy",), {"reward_model": "pav", "guard": {"require_probe": True}},
     "guard.require_probe: is about the run's own prm, which alone is probed, and train_policy.reward_model is pav"),
    (("probe", "suffix_tokens"), 0, "greater than 0"),
    (("promote", "max_suffix_passes"), 1.5, "less than or equal to 1"),
    (("seed",), 2**32, "less than 4294967296"),
])
def test_a_value_that_cannot_work_is_refused(path, value, fault):
    assert fault in faults_of(path, value)


@pytest.mark.parametrize(("path", "value"), [
    (("promote", "alias"), "prod-2"), (("models", "device"), "cuda:1"), (("models", "device"), "cpu"),
    (("label", "judge", "endpoint"), "http://127.0.0.1:8000/v1"), (("label", "merge"), "rollout"),
    (("register", "model_name"), "prm gsm8k-2"), (("serve", "cache_size"), 0), (("train_prm", "learning_rate"), "1e-5"),
])
def test_what_works_is_accepted(path, value):
    assert faults_of(path, value) == ""


def profiles(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_profile_is_laid_over_the_one_it_extends(tmp_path):
    (tmp_path / "deep").mkdir()
    profiles(tmp_path, top="extends: deep/middle.yaml\nlabel: {mcts: {problems: 7}}\nvalidate: {critical: [schema]}\n")
    profiles(tmp_path / "deep", middle="extends: smoke\nseed: 5\nlabel: {mcts: {problems: 6, simulations: 1}}\n")
    values = config.resolve(BASE, str(tmp_path / "top.yaml"))
    smoke = config.resolve(BASE, "smoke")
    assert (values["profile"], values["seed"]) == ("top", 5)
    assert values["label"]["mcts"] == {**smoke["label"]["mcts"], "problems": 7, "simulations": 1}
    # A list is replaced, not joined; what nobody names is the lowest base's.
    assert values["validate"] == {**smoke["validate"], "critical": ["schema"]}
    assert values["data"] == smoke["data"]
    assert "extends" not in values


def test_extends_default_is_what_a_profile_does_anyway(tmp_path):
    profiles(tmp_path, one="extends: default\nseed: 3\n", two="seed: 3\n")
    one, two = (config.resolve(BASE, str(tmp_path / f"{name}.yaml")) for name in ("one", "two"))
    assert one == {**two, "profile": "one"}


@pytest.mark.parametrize(("files", "fault"), [
    ({"a": "extends: a.yaml\n"}, r"a\.yaml: extends goes in a circle: a → a"),
    ({"a": "extends: b.yaml\n", "b": "extends: c.yaml\n", "c": "extends: b.yaml\n"},
     r"c\.yaml: extends goes in a circle: a → b → c → b"),
    ({"a": "extends: nonesuch\n"}, r"a\.yaml: extends: unknown profile 'nonesuch'; known: default, .*smoke"),
    ({"a": "extends: b.yaml\n"}, r"a\.yaml: extends: unknown profile 'b\.yaml'"),
    ({"a": "extends: [smoke]\n"}, r"a\.yaml: extends is \['smoke'\], expected the name"),
    ({"a": "extends: ''\n"}, r"a\.yaml: extends is '', expected the name"),
    ({"a": "extends: b.yaml\n", "b": "seed: -1\n"}, r"a\.yaml: seed: Input should be greater"),
])
def test_a_base_that_cannot_be_used_is_named(tmp_path, files, fault):
    profiles(tmp_path, **files)
    with pytest.raises(InputError, match=fault):
        config.resolve(BASE, str(tmp_path / "a.yaml"))


def test_all_faults_are_told_at_once():
    with pytest.raises(InputError, match=r"seed: .*; generate\.samples: "):
        config.parse(raw(generate={"samples": 0}, seed="x"), "params.yaml")


def test_a_missing_section_is_named():
    values = raw()
    del values["promote"]

    with pytest.raises(InputError, match="promote: Field required"):
        config.parse(values, "params.yaml")


def test_a_workspace_is_loaded_and_survives_a_round_trip(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(config.resolve(BASE, "smoke")))

    loaded = config.load(tmp_path)

    assert loaded.profile == "smoke"
    assert config.parse(dataclasses.asdict(loaded), "again") == loaded


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.parse(raw(), "params.yaml").seed = 1


@pytest.mark.parametrize(("content", "reason"), [
    (None, "no such file; run from a workspace"),
    ("a: [1\n", "not valid YAML"),
    ("- 1\n", "expected a mapping of sections, found list"),
    ("", "expected a mapping of sections, found NoneType"),
])
def test_a_bad_params_file_is_named(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "params.yaml").write_text(content)

    with pytest.raises(InputError, match=rf"params\.yaml: {reason}"):
        config.load(tmp_path)


def test_merge_goes_into_mappings_and_replaces_the_rest():
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 2}

    assert config.merge(base, {"a": {"y": [3]}, "c": {"z": 4}}) == {"a": {"x": 1, "y": [3]}, "b": 2, "c": {"z": 4}}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 2}


@given(MAPPINGS, MAPPINGS)
def test_merge_laws(base, over):
    merged = config.merge(base, over)

    assert set(merged) == set(base) | set(over)
    assert config.merge(merged, over) == merged
    assert config.merge(base, {}) == base
    assert config.merge({}, over) == over
