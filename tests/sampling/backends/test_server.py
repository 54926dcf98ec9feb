"""A policy at a completions server: what is asked, what is made of answers, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest

from prm_core.config import Config
from prm_core.domains import DOMAINS, arithmetic
from prm_core.errors import InputError
from prm_core.models.saving import save_showing_marks
from prm_core.platform import endpoint
from prm_core.sampling.backends import policy_for
from prm_core.sampling.policy import Policy, load_policy
from prm_core.sampling.rollouts import sample_trajectories
from prm_core.sampling.sampler import Prefix
from tests.builders import taught, tiny
from tests.builders.completions_server import NAME, Server, serving
from tests.builders.quality import make_config

PROBLEMS = arithmetic.make_problems("test", 4, 5)
HOW = {"samples": 3, "max_new_tokens": 40, "batch_size": 8, "seed": 3, "prefix": "gen"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that was taught for a second."""
    return taught.save_policy(tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(str(folder), make_config())


def config(at: Server, **sampling: object) -> Config:
    return make_config(sampling={"backend": "server", "endpoint": at.url, "model": NAME, "server": "vllm",
                                 "timeout": 20, "retries": 0, **sampling})


def rows(policy: Policy, temperature: float = 0.0, **how: int) -> list[tuple[object, ...]]:
    found = sample_trajectories(policy, PROBLEMS, DOMAINS, temperature=temperature, **{**HOW, **how})
    return [(one.id, one.policy, one.steps, one.answer, one.outcome, one.seed) for one in found]


@pytest.mark.parametrize(("shape", "kind"), [("vllm", "vllm"), ("vllm", "sglang"), ("named", "vllm"),
                                            ("listed", "llama.cpp"), ("listed", "openai"),
                                            ("transformers", "transformers")])
def test_greedy_rows_are_those_of_this_process(policy: Policy, folder: Path, shape: str, kind: str) -> None:
    with serving(policy, shape) as server:
        found = rows(policy_for("generate", str(folder), config(server, server=kind)))

    assert found == rows(policy)
    assert len(found) == 12


def test_token_ids_and_log_probabilities_come_as_they_are(policy: Policy, folder: Path) -> None:
    ids = policy.encoder.encode_prompt(PROBLEMS[0].prompt)
    how = {"temperature": 0.0, "max_new_tokens": 30, "batch_size": 8, "seed": 1}
    with serving(policy) as server:
        served = policy_for("generate", str(folder), config(server))
        [one] = served.continue_chains([ids], [Prefix(0, len(ids))], **how)
        [here] = policy.continue_chains([ids], [Prefix(0, len(ids))], **how)
        stop = here.ids[4]
        [step] = served.continue_chains([ids], [Prefix(0, len(ids))], stop_ids=(stop,), **how)

    assert (one.ids, one.finished) == (here.ids, here.finished)
    assert one.logprobs == pytest.approx(here.logprobs)
    assert (step.ids, step.finished) == (here.ids[: here.ids.index(stop) + 1], True)


def test_a_plain_sample_is_asked_for(policy: Policy, folder: Path) -> None:
    with serving(policy) as server:
        rows(policy_for("generate", str(folder), config(server, server="vllm")), temperature=1.0)
        asked = server.bodies[-1]
    assert {name: asked[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty", "skip_special_tokens",
                                           "return_token_ids")} == {
        "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1, "skip_special_tokens": False,
        "return_token_ids": True}
    with serving(policy, "transformers") as server:
        rows(policy_for("generate", str(folder), config(server, server="transformers")), temperature=1.0)
        asked = server.bodies[-1]
    # One token more: at its limit the server calls a continuation cut off that has just ended.
    assert asked["max_tokens"] == HOW["max_new_tokens"] + 1
    assert json.loads(asked["generation_config"]) == {
        "do_sample": True, "top_k": 0, "top_p": 1.0, "eos_token_id": [policy.encoder.eos_id],
        "pad_token_id": policy.encoder.eos_id, "max_new_tokens": HOW["max_new_tokens"] + 1}
    assert isinstance(asked["prompt"], str)


def test_one_prefix_is_one_request_and_neighbours_follow_each_other(policy: Policy, folder: Path) -> None:
    encoder = policy.encoder
    chains = [encoder.encode(problem.prompt, problem.meta["solution"]) for problem in PROBLEMS[:2]]
    prefixes = [Prefix(number % 2, length) for number in range(6)
                for length in (chains[number % 2].prompt_length, chains[number % 2].step_ends[0] + 1)]
    with serving(policy) as server:
        served = policy_for("generate", str(folder), config(server, concurrency=2, verify=False))
        for first in (True, False):
            # The first call looks at the server; the second one asks at once.
            served.continue_chains([one.ids for one in chains], prefixes, temperature=1.0, max_new_tokens=5,
                                   batch_size=8, seed=0)
            if first:
                server.bodies.clear()
        asked = [(tuple(body["prompt"]), body["n"]) for body in server.bodies]
        busiest = server.busiest

    # Three continuations of each of four prefixes, two at once.
    assert sorted(n for _, n in asked) == [1, 1, 1, 1, 2, 2, 2, 2]
    assert [prompt for prompt, _ in sorted(asked)] == sorted(prompt for prompt, _ in asked)
    assert len({body["seed"] for body in server.bodies}) == 8
    assert busiest == 2


def test_usage_is_counted_and_priced(policy: Policy, folder: Path) -> None:
    with serving(policy) as server:
        served = policy_for("generate", str(folder), config(server, verify=False, input_price=1e6, output_price=2e6))
        ids = policy.encoder.encode_prompt(PROBLEMS[0].prompt)
        found = served.continue_chains([ids], [Prefix(0, len(ids))] * 3, temperature=1.0, max_new_tokens=9,
                                       batch_size=8, seed=0)
        requests = len(server.bodies)
    # The start has it write a boundary and four plain tokens.
    written = sum(len(one.ids) for one in found) + 5
    assert requests == 6
    assert served.figures() == {
        "requests": 6, "retries": 0, "prompt_tokens": 6 * len(ids), "cached_tokens": 12, "completion_tokens": written,
        "inexact": 0, "cost": 6.0 * len(ids) + 2.0 * written}


def test_a_server_in_trouble_is_asked_again(policy: Policy, folder: Path) -> None:
    def busy(answer, body, before):
        return answer if before % 2 else (429, {"error": {"message": "busy"}}, [("Retry-After", "0")])

    with serving(policy, "transformers", busy) as server:
        served = policy_for("generate", str(folder), config(server, server="transformers", retries=1, concurrency=1))
        assert rows(served, samples=1) == rows(policy, samples=1)
    assert (served.usage.requests, served.usage.retries) == (8, 4)


def first(change):
    """Spoils every answer's first choice."""

    def spoil(answer, body, before):
        answer["choices"][0] |= change
        return answer

    return spoil


def without(name):
    def spoil(answer, body, before):
        del answer["choices"][0][name]
        return answer

    return spoil


@pytest.mark.parametrize(("spoil", "told"), [
    (lambda answer, body, before: (500, {"error": "the worker is dead"}), "answers 500: .*the worker is dead"),
    (lambda answer, body, before: (404, {}), "answers 404"),
    (lambda answer, body, before: b"<html>", "is no JSON"),
    (lambda answer, body, before: [], "has no choices instead of 1"),
    (lambda answer, body, before: {"choices": []}, "has 0 choices instead of 1"),
    (lambda answer, body, before: {"choices": "x"}, "has no choices"),
    (lambda answer, body, before: {"choices": [None]}, "has finish_reason None"),
    (first({"finish_reason": "abort"}), "has finish_reason 'abort'"),
    (first({"logprobs": {"token_logprobs": [-1.0] * 3}}), "has 3 log-probabilities for"),
    (first({"logprobs": {"token_logprobs": [3.0]}}), "log-probabilities that are none"),
    (first({"token_ids": [10**6], "logprobs": None}), "token 1000000, which the tokenizer here does not know"),
    (lambda answer, body, before: answer | {"usage": {"prompt_tokens": 3}}, "reads 3 tokens in a prefix of"),
    (first({"prompt_token_ids": [1, 2]}), "reads other tokens in a prefix than are sent"),
    (first({"token_ids": [40], "logprobs": None}), r"does not show <\|step\|>"),
    (lambda answer, body, before: first({"token_ids": [40], "logprobs": None})(answer, body, before) if before
     else answer, r"told to write .* \(token \d+\), it gives .*: its tokenizer is another one"),
])
def test_nonsense_is_refused_at_the_start(policy: Policy, folder: Path, spoil, told: str) -> None:
    with serving(policy, spoil=spoil) as server:
        served = policy_for("generate", str(folder), config(server))
        with pytest.raises(InputError, match=told) as error:
            rows(served)
    assert str(error.value).startswith(f"sampling.endpoint {server.url} (vllm, model 'served') ")


def late(change):
    """Spoils samples, not what the server is told to write at the start."""
    return lambda answer, body, before: answer if "logit_bias" in body else change(answer, body, before)


def cut(answer, body, before):
    answer["choices"][0] |= {"token_ids": [40] * 3, "logprobs": None, "finish_reason": "length"}
    return answer


def other_end(answer, body, before):
    answer["choices"][0] |= {"token_ids": [40] * 3, "logprobs": None, "finish_reason": "stop", "stop_reason": 40}
    return answer


@pytest.mark.parametrize(("change", "told"), [
    (cut, "cut off at 3 of 40 tokens; the server's own limit"),
    (other_end, "ended with 40, which ends no chain of this policy: the server has other end tokens"),
    (lambda answer, body, before: answer | {"choices": answer["choices"][:-1]}, "has 2 choices instead of 3"),
])
def test_partial_answers_are_refused(policy: Policy, folder: Path, change, told: str) -> None:
    with (serving(policy, spoil=late(change)) as server, pytest.raises(InputError, match=told)):
        rows(policy_for("generate", str(folder), config(server)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_another_model_is_found_out(policy: Policy, folder: Path, temperature: float) -> None:
    import torch

    other = Policy(copy.deepcopy(policy.model), policy.encoder, "other")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight += 0.3 * weight.std() * torch.randn_like(weight) if weight.dim() > 1 else 0
    with serving(other) as server:
        served = policy_for("generate", str(folder), config(server))
        with pytest.raises(InputError, match=r"does not sample from the policy .* It serves another model"):
            rows(served, temperature, samples=8)
        # Told not to look, it takes what comes.
        assert len(rows(policy_for("generate", str(folder), config(server, verify=False)), temperature)) == 12


@pytest.mark.parametrize(("asked", "obeyed"), [(0.0, 1.0), (1.0, 0.0), (1.0, 0.5), (0.5, 1.0)])
def test_another_temperature_is_found_out(policy: Policy, folder: Path, asked: float, obeyed: float) -> None:
    with serving(policy, temperature=obeyed) as server:
        served = policy_for("generate", str(folder), config(server))
        with pytest.raises(InputError, match=r"does not sample from the policy"):
            rows(served, asked, samples=8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_samples_at_the_right_temperature_pass(policy: Policy, folder: Path, temperature: float) -> None:
    with serving(policy) as server:
        assert len(rows(policy_for("generate", str(folder), config(server)), temperature, samples=8)) >= 28


def test_log_probabilities_without_the_temperature_are_not_passed_on(policy: Policy, folder: Path) -> None:
    import torch

    def raw(answer, body, before):
        for choice in answer["choices"]:
            ids = torch.tensor([[*body["prompt"], *choice["token_ids"]]])
            with torch.inference_mode():
                logits = policy.model(input_ids=ids).logits[0, len(body["prompt"]) - 1 : -1]
            plain = torch.log_softmax(logits, -1).gather(1, ids[0, len(body["prompt"]) :, None])[:, 0]
            choice["logprobs"]["token_logprobs"] = plain.tolist()
        return answer

    ids = policy.encoder.encode_prompt(PROBLEMS[0].prompt)
    how = {"max_new_tokens": 20, "batch_size": 8, "seed": 1}
    with serving(policy, spoil=late(raw)) as server:
        served = policy_for("generate", str(folder), config(server))
        hot = served.continue_chains([ids], [Prefix(0, len(ids))] * 4, temperature=2.0, **how)
        plain = served.continue_chains([ids], [Prefix(0, len(ids))] * 4, temperature=1.0, **how)
    assert {len(one.logprobs) for one in hot} == {0}
    assert all(len(one.logprobs) == len(one.ids) for one in plain)


def test_a_boundary_that_is_not_shown_is_refused_and_the_copy_shows_it(
    policy: Policy, folder: Path, tmp_path: Path
) -> None:
    for stop in ((), (policy.encoder.separator_id,)):
        with serving(policy, "transformers", shows=False) as server:
            served = policy_for("generate", str(folder), config(server, server="transformers"))
            ids = policy.encoder.encode_prompt(PROBLEMS[0].prompt)
            with pytest.raises(InputError, match=r"does not show <\|step\|>.*prm export"):
                served.continue_chains([ids], [Prefix(0, len(ids))], temperature=0.0, max_new_tokens=60, batch_size=1,
                                       seed=0, stop_ids=stop)

    from transformers import AutoTokenizer

    save_showing_marks(str(folder), "<|step|>", tmp_path / "copy")
    copy, own = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "copy", folder))
    text = f"{PROBLEMS[0].prompt}<|step|>3 + 4 = 7.<|step|>"
    assert copy(text)["input_ids"] == own(text)["input_ids"]
    assert copy.decode(own(text)["input_ids"], skip_special_tokens=True).count("<|step|>") == 2
    with pytest.raises(InputError, match=r"something there already"):
        save_showing_marks(str(folder), "<|step|>", tmp_path / "copy")


def test_what_no_text_reads_as_is_refused(policy: Policy, folder: Path) -> None:
    # A word behind a boundary begins with a blank where text is read.
    split = [*policy.encoder.encode_prompt("x"), policy.encoder.tokenizer.convert_tokens_to_ids("a")]
    with serving(policy, "transformers") as server:
        served = policy_for("generate", str(folder), config(server, server="transformers"))
        with pytest.raises(InputError, match=r"takes text alone, and no text reads as the tokens of"):
            served.continue_chains([split], [Prefix(0, len(split))], temperature=0.0, max_new_tokens=5, batch_size=1,
                                   seed=0)
        assert server.bodies == []


def adding(policy: Policy, *after: str) -> Policy:
    """The policy with a tokenizer that puts a beginning before a text, and these tokens after it."""
    from tokenizers.processors import TemplateProcessing

    encoder = copy.copy(policy.encoder)
    encoder.tokenizer = tokenizer = copy.deepcopy(encoder.tokenizer)
    tokens = [tokenizer.bos_token, *after]
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=" ".join([tokenizer.bos_token, "$A", *after]),
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys(tokens)])
    return Policy(policy.model, encoder, policy.version)


def test_a_server_whose_tokenizer_adds_tokens_is_refused(policy: Policy, folder: Path) -> None:
    for verify in (True, False):
        with serving(adding(policy, policy.encoder.tokenizer.eos_token), "transformers") as server:
            served = policy_for("generate", str(folder), config(server, server="transformers", verify=verify))
            with pytest.raises(InputError, match=r"reads \d+ tokens in a prefix of \d+: its tokenizer is another"):
                rows(served)
            assert len(server.bodies) <= 16


def test_a_tokenizer_here_that_adds_tokens_is_used_where_ids_are_taken_and_else_refused(
    policy: Policy, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "own")
    adding(policy, policy.encoder.tokenizer.eos_token).encoder.tokenizer.save_pretrained(tmp_path / "own")
    (tmp_path / "own/SHA256SUMS").unlink()
    with serving(policy) as server:
        assert rows(policy_for("generate", str(tmp_path / "own"), config(server)))[0][2:] == rows(policy)[0][2:]
    with serving(policy, "transformers") as server:
        served = policy_for("generate", str(tmp_path / "own"), config(server, server="transformers"))
        with pytest.raises(InputError, match=r"takes text alone, and no text reads as the tokens of"):
            rows(served)
        assert server.bodies == []


def test_a_server_of_text_must_say_how_much_it_read(policy: Policy, folder: Path) -> None:
    def silent(answer, body, before):
        return {name: value for name, value in answer.items() if name != "usage"}

    with (serving(policy, "transformers", silent) as server,
          pytest.raises(InputError, match=r"does not say how many tokens it reads in a prefix")):
        rows(policy_for("generate", str(folder), config(server, server="transformers")))
    # Where it takes ids, there is nothing to read.
    with serving(policy, spoil=silent) as server:
        assert rows(policy_for("generate", str(folder), config(server))) == rows(policy)


def test_a_tokenizer_without_the_boundary_is_refused(tmp_path: Path) -> None:
    from prm_core.models.tokenizer import train_tokenizer

    tiny.make_policy().model.save_pretrained(tmp_path)
    train_tokenizer([PROBLEMS[0].prompt], special=()).save_pretrained(tmp_path)
    with (serving(tiny.make_policy()) as server,
          pytest.raises(InputError, match=r"its tokenizer has no token <\|step\|>.*set encoder.policy_steps")):
        policy_for("generate", str(tmp_path), config(server))


def test_a_model_without_a_chat_template_is_refused(policy: Policy, folder: Path) -> None:
    with serving(policy) as server:
        given = config(server)
        given = dataclasses.replace(given, encoder=dataclasses.replace(given.encoder, chat_template=True))
        with pytest.raises(InputError, match=r"encoder.chat_template is true, and the tokenizer has no chat template"):
            policy_for("generate", str(folder), given)


def test_a_name_that_is_not_served_is_refused(policy: Policy, folder: Path) -> None:
    with (serving(policy) as server,
          pytest.raises(InputError, match=r"serves served, and not 'nonesuch'; name one of them at sampling.model")):
        policy_for("generate", str(folder), config(server, model="nonesuch"))


def test_silence_ends(policy: Policy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(answer, body, before):
        time.sleep(0.6)
        return answer

    monkeypatch.setattr(endpoint, "BACKOFF_SECONDS", 0.1)
    with serving(policy, spoil=sleep) as server:
        served = policy_for("generate", str(folder), config(server, timeout=0.2))
        with pytest.raises(InputError, match=r"gave no answer: (SocketTimeoutError|no answer within)"):
            rows(served)
    served = policy_for("generate", str(folder), config(server, timeout=0.2))
    with pytest.raises(InputError, match=r"gave no answer: .*Cannot connect to host"):
        rows(served)


def test_only_the_named_stages_sample_there(policy: Policy, folder: Path) -> None:
    with serving(policy) as server:
        given = config(server, stages=["label"])
        assert type(policy_for("generate", str(folder), given)) is Policy
        served = policy_for("label", str(folder), given)
        assert served.version == policy.version
        assert not served.forks
        # The server has the trained policy under another name, or not at all.
        assert type(policy_for("label", str(folder), given, trained=True)) is Policy
        named = config(server, stages=["label"], trained_model=NAME)
        assert not policy_for("label", str(folder), named, trained=True).forks
        with pytest.raises(InputError, match=r"the weights of the policy are at sampling.backend server"):
            _ = served.model
    with pytest.raises(InputError, match=r"sampling.endpoint: is empty"):
        make_config(sampling={"backend": "server"})
    with pytest.raises(InputError, match=r"sampling.stages: names train_policy, which learns from samples of its own"):
        make_config(sampling={"stages": ["train_policy"]})


def test_vllm_is_asked_for_by_name_where_it_is_not_installed(folder: Path) -> None:
    if shutil.which("vllm"):
        pytest.skip("vllm is installed")
    with pytest.raises(InputError, match=r"sampling.backend is vllm, which does not import here"):
        policy_for("generate", str(folder), make_config(sampling={"backend": "vllm"}))
