"""Training a verifier: checks that agree with the labels are kept, and of them the right tokens are learned."""

from __future__ import annotations

import math

import pytest

from prm_core.errors import InputError
from prm_core.scoring.calibration import Calibrator
from prm_core.scoring.generative.checks import execute, verdict_turn
from prm_core.scoring.generative.scorer import GenerativeScorer, Writing
from prm_core.training.examples import Example
from prm_core.training.generative import keep, train_verifier
from prm_core.types import Step
from tests.builders.training import CHAINS, changed, make_encoder, make_lm, save_lm, small_config, weights

NAN = math.nan
ENCODER = make_encoder()
PROMPT = "Mia has 3 apples. Mia buys 4 more. Mia loses 2. How many apples does Mia have?"
BUYS, LOSES, ANSWER = "Mia buys 4 more: 3 + 4 = 7.", "Mia loses 2: 7 - 2 = 5.", "The answer is 5."
WRONG = "Mia loses 2: 7 - 2 = 6."


class Writer(GenerativeScorer):
    """One whose checks are given: of each step, the texts."""

    def __init__(self, *texts: list[str]) -> None:
        super().__init__(make_lm(ENCODER), ENCODER, Calibrator("identity", 0), "", 8, Writing(2, 1.0, 8))
        self.texts = texts

    def checks_of(self, chains):
        return [[[execute(text, step.text) for text in texts] for texts, step in zip(self.texts, steps, strict=False)]
                for _, steps in chains]


def learned(text) -> list[str]:
    """What is learned of a text, run by run of tokens."""
    runs: list[list[int]] = []
    for before, place in zip((-2, *text.learned), text.learned, strict=False):
        if place != before + 1:
            runs.append([])
        runs[-1].append(text.ids[place])
    return [ENCODER.tokenizer.decode(run).strip() for run in runs]


def example(steps, *targets: float, problem: str = "p0") -> Example:
    return Example(problem, PROMPT, tuple(map(Step, steps)), targets)


def test_sound_steps_that_a_check_bears_out_are_learned_where_they_stand() -> None:
    # Of the first step both checks agree, of the second one, of the third none.
    kept = keep(Writer([BUYS, BUYS], ["Mia loses 3: 7 - 3 = 4.", LOSES], [LOSES, LOSES]),
                [example([BUYS, LOSES, ANSWER], 1.0, 0.9, 1.0)], seed=0)
    [text] = kept.writing
    assert ENCODER.decode(text.ids) == (PROMPT, (Step(BUYS), Step(LOSES)))
    assert learned(text) == [f"{BUYS}<|step|> {LOSES}<|step|>"]
    assert kept.counts == {"written": 6, "kept": 3, "silent": 0}
    assert kept.verdicts == []


def test_in_place_of_a_wrong_step_its_checks_are_learned_and_nothing_behind_it() -> None:
    kept = keep(Writer([BUYS, BUYS], [LOSES, "Mia loses 2: 7 - 2 = 9."], []),
                [example([BUYS, WRONG, ANSWER], 1.0, 0.2, NAN)], seed=0)
    assert sorted(learned(text) for text in kept.writing) == [[f"{BUYS}<|step|>"], [f"{LOSES}<|step|>"]]
    # Both checks come to 5, which the tool put into the second one too.
    assert kept.counts == {"written": 4, "kept": 4, "silent": 0}


def test_what_the_tool_cannot_execute_gets_the_labels_verdict() -> None:
    chains = [example([BUYS], 1.0), example([WRONG], 0.0)]
    kept = keep(Writer(["So we add.", "So we add."]), chains, seed=0)
    assert (kept.counts, kept.writing) == ({"written": 4, "kept": 0, "silent": 4}, [])
    assert [learned(text) for text in kept.verdicts] == [["+"], ["-"]]
    for text, step, right in zip(kept.verdicts, (BUYS, WRONG), (True, False), strict=True):
        check = execute("So we add.", step)
        assert ENCODER.decode(text.ids) == (PROMPT, (Step(step), check.turn, verdict_turn(right)))


def test_a_label_that_no_check_agrees_with_teaches_nothing() -> None:
    solved = "Mia loses 2: 8 - 2 = 6."
    kept = keep(Writer([solved, solved]), [example([BUYS], 1.0), example([WRONG], 0.0)], seed=0)
    assert kept.counts == {"written": 4, "kept": 0, "silent": 0}
    assert (kept.writing, kept.verdicts) == ([], [])


@pytest.fixture
def examples() -> list[Example]:
    """Each problem's worked solution, and one whose first step is wrong and states nothing."""
    found = []
    for number, (prompt, steps) in enumerate(CHAINS):
        bad = Step(steps[0].text.rpartition(":")[0])
        found += [Example(str(number), prompt, steps, (1.0,) * len(steps)),
                  Example(str(number), prompt, (bad, *steps[1:]), (0.0,) + (NAN,) * (len(steps) - 1))]
    return found


def test_a_verifier_learns_to_write_and_to_judge(tmp_path, monkeypatch, examples) -> None:
    save_lm(tmp_path / "lm", ENCODER)
    own = dict(CHAINS)

    def solved(self, chains):
        return [[[execute(mine.text, step.text)] for mine, step in zip(own[prompt], steps, strict=True)]
                for prompt, steps in chains]

    monkeypatch.setattr(GenerativeScorer, "checks_of", solved)
    before = weights(make_lm(ENCODER))
    reported = []
    config = small_config(train_prm={"generative": {"epochs": 12, "batch_size": 8, "learning_rate": 0.02, "votes": 2,
                                                    "samples": 1, "max_new_tokens": 6, "temperature": 0.5}})
    trained = train_verifier(str(tmp_path / "lm"), examples, config, report=lambda *said: reported.append(said))
    assert [record["epoch"] for record in trained.history] == list(range(1, 13))
    assert trained.history[-1]["verdict_loss"] < 0.2 < trained.history[0]["verdict_loss"]
    assert trained.history[-1]["writing_loss"] < trained.history[0]["writing_loss"]
    assert reported[-1][0]["verifier/verdict_loss"] == trained.history[-1]["verdict_loss"]
    assert trained.counts["chains"] + trained.counts["dev_chains"] == len(examples)
    # The tool has something to say of the sound chains alone.
    assert trained.counts["silent"] > 0
    assert trained.counts["written"] == trained.counts["kept"] + trained.counts["silent"]
    assert changed(before, weights(trained.scorer.model)) == set(before)
    assert trained.scorer.writing == Writing(2, 0.5, 6)
    assert not trained.scorer.model.training
    assert trained.scorer.calibrator.labels == len(trained.held_out)


def test_what_it_cannot_learn_from_is_refused(tmp_path, monkeypatch, examples) -> None:
    save_lm(tmp_path / "lm", ENCODER)
    with pytest.raises(InputError, match="chains of one problem"):
        train_verifier(str(tmp_path / "lm"), examples[:2], small_config(), report=lambda *_: None)
    monkeypatch.setattr(GenerativeScorer, "checks_of", lambda self, chains: [
        [[execute("1 + 100 = 2.", step.text)] for step in steps] for _, steps in chains])
    with pytest.raises(InputError, match=r"no check of the [0-9]+ chains agrees with a label"):
        train_verifier(str(tmp_path / "lm"), examples, small_config(), report=lambda *_: None)
