"""The verifier on published steps: what it calls wrong that is right, and how much of what is wrong it finds.

    python -m benchmarks.verifier --gsm8k train.jsonl --prm800k phase1_train.parquet --out FILE

Three parts, each on the files as they are published (GSM8K: `question`, `answer`; PRM800K: `next_response`, `rating`):
steps of right solutions called wrong; steps with "=" called wrong by what people said of them; and solutions' last
results changed, in every fourth step that marks its calculation, with the mark and without it. What remains of the
first two was read by hand and is listed below; a step that is not listed fails the bar. The result holds places and
the equations' verdicts, no text of the data.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.report import Bar, arguments, write
from prm_core.config import VerifierConfig
from prm_core.labeling.strategies.base import LabelingTools
from prm_core.labeling.strategies.verifier import VerifierLabeler

# Read by hand: (solution, line) of GSM8K's train set, and what is false there.
READ_GSM8K = {
    (167, 4): "cents and dollars taken wrongly: 19,200 cents are $192",
    (198, 5): "divides the wrong way round",
    (224, 0): "4000 for 4080",
    (3002, 0): "8 for 80",
    (3334, 7): "4200 + 3000 is 7200",
    (4691, 0): "2 * 8 is not 24",
    (4973, 0): "200 * 0.55 is 110",
    (5350, 2): "13 + 4 + 16 is 33",
    (6157, 4): "70 + 40 is 110",
    (6760, 3): "4 + 4 + 6 is 14",
    (6812, 0): "50 for 52",
    (7444, 3): "14 * 20 is 280",
}
# Read by hand: rows of PRM800K's phase 1 that people rated right, and the right value of what is false there.
READ_PRM800K = {
    1563: "the left side is half the right one", 2091: "as 1563",
    6669: "the root of 85", 8967: "5/6", 9287: "136", 9300: "358", 9749: "13,572", 10736: "-5",
    12644: "3,328 is 2^8 * 13", 17070: "636.25", 17144: "143.36", 17148: "576 for 1024", 17256: "578.6 against 1331.2",
    17373: "as 17070", 17447: "as 17144", 17451: "as 17148", 17559: "as 17256",
    22246: "3,240", 22269: "1,953", 27969: "46,080", 29147: "0.69", 34116: "1/24", 35743: "20", 36467: "0",
    41846: "4 * 7^2 for 4^2 * 7^2", 49309: "2", 49527: "the root of 147", 49529: "the root of 147",
    49722: "the right side is negative",
}
RESULT_CHANGES: dict[str, Callable[[int], int]] = {
    "+1": lambda n: n + 1, "-1": lambda n: n - 1, "+10": lambda n: n + 10, "x2": lambda n: n * 2,
    "x10": lambda n: n * 10, "digits turned round": lambda n: int(str(n)[::-1]),
}
# Of the steps with a marked calculation one in so many has its result changed.
EVERY = 4
_MARK = re.compile(r"<<[^<>=]*=(\d+)>>(?=\1(?!\d))")

Check = Callable[[str], bool | None]


def make_check(timeout: float = 10.0) -> Check:
    """The verdict of the verifier on a step's text."""
    settings = SimpleNamespace(label=SimpleNamespace(verifier=VerifierConfig(timeout=timeout)))
    labeler = VerifierLabeler(cast(LabelingTools, SimpleNamespace(config=settings)))
    return lambda text: labeler.check(text).is_correct


def gsm8k_steps(path: Path) -> Iterator[tuple[int, int, str]]:
    """(solution, line, text) of every line of the worked solutions but the answers'."""
    for number, record in enumerate(path.read_text(encoding="utf-8").splitlines()):
        for line, text in enumerate(json.loads(record)["answer"].split("\n")):
            if text.strip() and not text.startswith("####"):
                yield number, line, text


def right_solutions(path: Path, check: Check) -> dict[str, Any]:
    """Verdicts on the steps of right solutions: their number, how many get none, and where the wrong ones are."""
    verdicts = [((number, line), check(text)) for number, line, text in gsm8k_steps(path)]
    wrong = [place for place, verdict in verdicts if verdict is False]
    return {"steps": len(verdicts), "right": sum(verdict is True for _, verdict in verdicts), "wrong": len(wrong),
            "wrong_steps": [[*place, READ_GSM8K.get(place, "not read")] for place in wrong]}


def rated_steps(path: Path, check: Check) -> dict[str, Any]:
    """Verdicts on PRM800K's steps with "=" by their rating, and the rows called wrong that people rated right."""
    import pandas as pd

    frame = pd.read_parquet(path, columns=["next_response", "rating"])
    counts: Counter[tuple[str, str]] = Counter()
    wrong = []
    for row, (text, rating) in enumerate(zip(frame.next_response, frame.rating, strict=True)):
        if not isinstance(text, str) or "=" not in text:
            continue
        verdict = check(text)
        counts[str(rating), str(verdict)] += 1
        if verdict is False and rating == 1:
            wrong.append(row)
    return {"counts": {" ".join(key): count for key, count in sorted(counts.items())},
            "wrong_rated_right": [[row, READ_PRM800K.get(row, "not read")] for row in wrong]}


def changed_results(path: Path, check: Check) -> dict[str, dict[str, float]]:
    """Shares of steps called wrong (and right) after their result was changed, by change, with and without mark."""
    found: dict[str, Counter[bool | None]] = {}
    marked = [(text, matches[0]) for _, _, text in gsm8k_steps(path)
              if len(matches := list(_MARK.finditer(text))) == 1]
    for text, match in marked[::EVERY]:
        for name, change in RESULT_CHANGES.items():
            value = change(int(match[1]))
            if value < 0 or value == int(match[1]):
                continue
            after = f"{value}{text[match.end() + len(match[1]):]}"
            mark = f"{text[match.start() : match.start(1)]}{value}>>"
            for form, between in (("marked", mark), ("plain", "")):
                verdict = check(text[: match.start()] + between + after)
                found.setdefault(f"{form} {name}", Counter())[verdict] += 1
    return {name: {"steps": total, "called wrong": counts[False] / total, "called right": counts[True] / total}
            for name, counts in sorted(found.items()) if (total := counts.total())}


def main() -> None:
    """Measures all three parts and writes the result."""
    def files(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--gsm8k", type=Path, required=True, help="GSM8K's train.jsonl")
        parser.add_argument("--prm800k", type=Path, required=True, help="PRM800K's phase 1 as Parquet")

    given = arguments("verifier", files)
    check = make_check()
    solutions = right_solutions(given.gsm8k, check)
    rated = rated_steps(given.prm800k, check)
    changed = changed_results(given.gsm8k, check)
    unread = [sum(place[-1] == "not read" for place in places)
              for places in (solutions["wrong_steps"], rated["wrong_rated_right"])]
    found = {form: [part["called wrong"] for name, part in changed.items() if name.startswith(form)]
             for form in ("marked", "plain")}
    bars = [Bar(f"{data} called wrong that are true", count, None, None, "0", count == 0) for data, count in zip(
        ("GSM8K: steps of right solutions", "PRM800K: steps rated right"), unread, strict=True)]
    bars += [Bar(f"changed results called wrong, {form}, least of the changes", min(shares), None, None, f">= {least}",
                 min(shares) >= least) for (form, shares), least in zip(found.items(), (0.95, 0.6), strict=True)]
    write(given, bars, gsm8k=solutions, prm800k=rated, changed_results=changed)


if __name__ == "__main__":
    main()
