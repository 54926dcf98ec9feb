"""prm_core/review/drawn.py: drawn chains as a workspace that review works in."""

from __future__ import annotations

import json

from prm_core.labeling.human.labels import read_human
from prm_core.review.drawn import Drawn, write_drawn
from prm_core.review.files import read_queue
from prm_core.review.session import HUMAN, QUEUE, Board, Session
from prm_core.types import Problem, Step, Trajectory


def drawn(name: str, *steps: str) -> Drawn:
    return Drawn(Problem(f"served-{name}", "arithmetic", f"What is {name}?", ""),
                 Trajectory(f"served-{name}-chain", f"served-{name}", "served", tuple(map(Step, steps)), None, None, 0,
                            meta={"chance": 0.25}), [0.9] * len(steps), 0.25)


def test_every_step_of_a_chain_is_asked_in_order_and_answers_outlive_the_queue(tmp_path) -> None:
    assert write_drawn(tmp_path, [drawn(f"{number}", "first", "second") for number in range(6)], seed=0) == 12
    rows = read_queue(tmp_path / QUEUE)
    assert [row["step_index"] for row in rows] == [0, 1] * 6
    order = [row["trajectory_id"] for row in rows[::2]]
    assert order != sorted(order)
    assert (rows[1]["steps_before"], rows[1]["step"], rows[1]["chance"]) == (["first"], "second", 0.25)
    session = Session(Board(tmp_path, 0), "eve")
    session.answer(session.current.key, True)
    session.answer(session.current.key, False)
    write_drawn(tmp_path, [drawn("new", "only")], seed=0)
    assert len(read_queue(tmp_path / QUEUE)) == Board(tmp_path).unanswered() == 1
    human = read_human(tmp_path / HUMAN)
    assert [(label.step_index, label.is_correct, json.loads(label.lineage)) for label in human.labels] == [
        (0, True, {"chance": 0.25}), (1, False, {"chance": 0.25})]
    assert human.trajectories[0].meta == {"chance": 0.25}
