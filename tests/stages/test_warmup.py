"""Stage warmup from a pretrained model, on the user's own solutions: what later stages load is that model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from prm_core import config as configuration
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.problems import own, prepare
from prm_core.stages.base import execute
from prm_core.types import Problem, Trajectory
from tests.builders.training import PROBLEMS, changed, make_encoder, save_lm, small_values

RECORDS = [{"id": str(number), "question": f"{number}. {problem.prompt}",
            "answer": "\n".join([*problem.meta["solution"][:-1], f"#### {problem.answer}"])}
           for number, problem in enumerate(PROBLEMS * 4)]


def workspace(root: Path, records, **over) -> Path:
    """Of a user's questions in GSM8K's form, whose base lies in it."""
    root.mkdir()
    save_lm(root / "base", make_encoder())
    values = small_values(domain="general", warmup={
        "base": "base", "learning_rate": 0.001, "policy_accuracy": 0.0, "backbone_accuracy": 0.0, "max_updates": 4,
        "eval_every": 4, **over})
    (root / "params.yaml").write_text(json.dumps(values))
    (root / "file.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare.write_user_data(own.read_problems(root / "file.jsonl"), root / "data", configuration.load(root))
    return root


def test_a_pretrained_model_learns_the_user_s_solutions_and_later_stages_sample_from_it(tmp_path) -> None:
    root = workspace(tmp_path / "work", RECORDS)
    problems = store.read_jsonl(Problem, root / "data/warmup.jsonl")
    assert problems == store.read_jsonl(Problem, root / "data/train.jsonl")
    assert problems[0].meta["solution"][-1] == f"The answer is {problems[0].answer}."
    execute("warmup", root)
    models = root / "artifacts/warmup/models"
    base, policy, backbone = (load_file(folder / "model.safetensors")
                              for folder in (root / "base", models / "policy", models / "backbone"))
    assert changed(base, policy) == set(base)
    assert changed(policy, backbone) == set()
    figures = store.read_json(root / "artifacts/warmup/metrics.json")
    assert figures["warmup/policy_update"] == figures["warmup/updates"] == 4
    assert figures["dev/policy_base/pass_at_1"] == 0.0
    execute("generate", root)
    chains = store.read_shards(Trajectory, root / "artifacts/generate/trajectories")
    assert len(chains) > 0


def test_without_worked_solutions_it_says_so(tmp_path) -> None:
    bare = [{**record, "answer": record["answer"].rpartition("####")[2]} for record in RECORDS]
    root = workspace(tmp_path / "work", bare)
    with pytest.raises(InputError, match=r"data/warmup\.jsonl holds no problem; give worked solutions"):
        execute("warmup", root)
