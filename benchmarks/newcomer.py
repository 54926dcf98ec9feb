"""Does someone new to the code find the right file from the map and the packages' first lines alone?

    python -m benchmarks.newcomer sheet [--root CHECKOUT] > sheet.txt      all that the newcomer gets to see
    python -m benchmarks.newcomer score --answers answers.json --out FILE

The sheet holds the README, each package's docstring, the names of its modules, and twelve questions; no text of any
module. `answers.json` is a list of paths, one a question, as someone gave it who saw nothing else; the place of a new
file is named by its folder. An answer counts where it is one of the accepted paths, or lies in an accepted folder.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

from benchmarks.report import Bar, parsed, write
from prm_core.platform import store

# (question, where that is in this tree, where it was before the rooms, commit 4a52fd2)
QUESTIONS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("Where is the threshold chosen, below which a step of the held-out chains counts as wrong?",
     ("prm_core/evaluation/protocol.py", "prm_core/evaluation/metrics.py"),
     ("prm_core/evaluation/protocol.py", "prm_core/evaluation/metrics.py")),
    ("Where would a reader of a new trace format (agents' runs, with labels) go?",
     ("prm_core/formats/",), ("prm_core/formats/",)),
    ("Two answers, 1/2 and 0.5: where is it decided that they are equal?",
     ("prm_core/maths/answers.py",), ("prm_core/domains/answers.py",)),
    ("Where are the demands on labels listed whose failure stops the chain?",
     ("prm_core/labeling/validation/expectations.py",), ("prm_core/labeling/expectations.py",)),
    ("Where is it decided whether the challenger becomes champion?",
     ("prm_core/serving/promotion.py",), ("prm_core/serving/promotion.py",)),
    ("Where would another baseline for the policy's advantages go?",
     ("prm_core/training/policy/advantages/",), ("prm_core/training/",)),
    ("A reviewer's answers come in from a file: where do they become human labels on disk?",
     ("prm_core/review/importing.py",), ("prm_core/labeling/review_import.py",)),
    ("Where is a user's own file of problems read and checked?",
     ("prm_core/problems/own.py",), ("prm_core/user_problems.py",)),
    ("Where would sampling from a vLLM server go?", ("prm_core/sampling/",), ("prm_core/models/",)),
    ("Where does it say which of a language model's tokens surprise it, as part of a step's score?",
     ("prm_core/scoring/surprisal.py",), ("prm_core/models/surprisal.py",)),
    ("A stage was killed in the middle of training: where is what it goes on from saved and restored?",
     ("prm_core/training/checkpoint.py",), ("prm_core/training/checkpoint.py",)),
    ("Where would a further HTTP interface, such as vLLM's /classify, go?",
     ("prm_core/serving/",), ("prm_core/serving/",)),
)


def sheet(root: Path) -> str:
    """What a newcomer gets to see of a checkout."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    parts = ["# README.md", readme]
    for package in sorted({path.parent for path in root.glob("prm_core/**/*.py")} | {root / "flows"}):
        init = package / "__init__.py"
        said = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) if init.exists() else None
        names = sorted(path.name for path in package.glob("*.py") if path.name != "__init__.py")
        parts += [f"# {package.relative_to(root)}/", said or "(says nothing of itself)", "Modules: " + " ".join(names)]
    asked = [f"{number}. {question}" for number, question in enumerate((one for one, *_ in QUESTIONS), 1)]
    return "\n\n".join([*parts, "# Questions", "\n".join(asked)]) + "\n"


def found(answer: str, accepted: tuple[str, ...]) -> bool:
    """Whether an answer names an accepted file, or a place in an accepted folder."""
    answer = answer.strip().removeprefix("./")
    return any(f"{answer}/".startswith(place) if place.endswith("/") else answer == place for place in accepted)


def main() -> None:
    """Prints the sheet, or scores answers to it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.newcomer", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sheet", "score"))
    parser.add_argument("--root", type=Path, default=Path("."), help="the checkout to describe")
    parser.add_argument("--answers", type=Path, help="a JSON list of paths")
    parser.add_argument("--before", type=Path, help="the same for the tree before the rooms, to stand beside")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parsed(parser)
    if given.what == "sheet":
        sys.stdout.write(sheet(given.root))
        return
    bars, answers = [], {}
    sides = (("after", given.answers, "= 12"), ("before", given.before, "reported"))
    for column, (name, path, bar) in enumerate(sides):
        if path is not None:
            answers[name] = store.read_json(path)
            right = sum(found(one, places[column]) for one, (_, *places) in zip(answers[name], QUESTIONS, strict=True))
            bars.append(Bar(f"questions of {len(QUESTIONS)} whose file was found, {name}", right, None, None, bar,
                            right == len(QUESTIONS) or column == 1))
    write(given, bars, questions=[question for question, *_ in QUESTIONS], answers=answers)


if __name__ == "__main__":
    main()
