"""Configuration: profiles over the defaults, and what a typo is told."""

from __future__ import annotations

import dataclasses

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


def raw(**sections):
    return config.merge(config.read_yaml(BASE), sections)


@pytest.mark.parametrize("profile", config.profile_names())
def test_every_shipped_profile_is_valid(profile):
    values = config.resolve(BASE, profile)

    assert values["profile"] == profile
    assert config.parse(values, "resolved").profile == profile


def test_the_named_profiles_ship():
    assert set(config.profile_names()) >= {"default", "smoke", "gsm8k-smollm2", "qwen2.5-7b"}


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
