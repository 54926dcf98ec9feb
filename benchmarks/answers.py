r"""The bars of reading and comparing answers, on the reference answers of GSM8K and MATH.

    python -m benchmarks.answers --gsm8k train.jsonl --math math_train_problems_answers.json \
        --out benchmarks/results/answers.json

Every reference answer, stated in eight forms that people and models write, must be read and equal itself; random pairs
of different ones must not; and equality must be an equivalence. `--list FILE` writes every miss, to be read by hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from benchmarks.report import Bar, parsed, write
from prm_core.maths.answers import answer_classes, read_stated_answer, same_value
from prm_core.maths.canonical import canonical

PAIRS = 20_000
TRIPLES = 100_000
SEED = 7
Pair = tuple[str, str]


def _plain(gold: str) -> str:
    """A LaTeX answer as one writes it without LaTeX; numbers get blanks between thousands."""
    if re.fullmatch(r"-?\d{4,}", gold):
        return f"{int(gold):,}".replace(",", " ")
    text = gold.replace(r"\left", "").replace(r"\right", "").replace(r"\!", "").replace(r"\,", " ")
    text = re.sub(r"\\(?:text|mbox|textnormal)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"(?<=\d)\\[dt]?frac\{(\d+)\}\{(\d+)\}", r" \1/\2", text)
    for _ in range(3):
        text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
        text = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", text)
    for latex, plain in ((r"\^\{?\\circ\}?", " degrees"), (r"\\pi", "π"), (r"\\infty", "∞"),
                         (r"\\cup", "∪"), (r"\\leq?", "≤"), (r"\\theta", "θ"), (r"\\([$%])", r"\1")):
        text = re.sub(latex, plain, text)
    return text


def _respelled(gold: str) -> str:
    """The same LaTeX in other habits: other fractions, brackets, blanks, marks of thousands."""
    if re.fullmatch(r"-?\d{4,}", gold):
        return f"{int(gold):,}".replace(",", "{,}")
    text = re.sub(r"\\[dt]?frac(?=\{)", r"\\dfrac", gold).replace(r"\left", "").replace(r"\right", "")
    text = re.sub(r"(?<=\d)\s*([+-])\s*(?=\d|\\)", r" \1 ", text)
    return text.replace(r"\text{", r"\mbox{").replace(", ", ",").replace(r"^\circ", r"^{\circ}")


FORMS: dict[str, Callable[[str], str]] = {
    "The answer is …": lambda gold: f"So the answer is {gold}.",
    "$\\boxed{…}$": lambda gold: rf"Therefore we get $\boxed{{{gold}}}$.",
    "**Answer:** …": lambda gold: f"**Answer:** {gold}",
    "#### …": lambda gold: f"That is all of them.\n#### {gold}",
    "Minerva": lambda gold: f"Final Answer: The final answer is ${gold}$. I hope it is correct.",
    "bold, with a reason": lambda gold: f"The answer is **{gold}**, because nothing else is left.",
    "respelled LaTeX": lambda gold: rf"Hence the final answer is \({_respelled(gold)}\).",
    "without LaTeX": lambda gold: f"Answer: {_plain(gold)}",
}


def read_gsm8k(path: Path) -> list[str]:
    """The reference answers of GSM8K's lines."""
    return [json.loads(line)["answer"].rpartition("####")[2].strip() for line in path.read_text().splitlines()]


def read_math(path: Path) -> list[str]:
    """The reference answers of MATH as OpenR ships them."""
    return [row["final_answer"] for row in json.loads(path.read_text())]


def lost(golds: Iterable[str]) -> dict[str, list[tuple[str, str, str | None]]]:
    """Per form the reference answers that are not read back as themselves, with the text and what was read."""
    missed: dict[str, list[tuple[str, str, str | None]]] = {name: [] for name in FORMS}
    for gold in golds:
        for name, form in FORMS.items():
            said = read_stated_answer(form(gold))
            if said is None or not same_value(said, gold):
                missed[name].append((gold, form(gold), said))
    return missed


def falsely_equal(golds: Sequence[str], generator: random.Random) -> tuple[list[Pair], list[Pair]]:
    """Of random pairs that differ as texts: those called equal, and of these the ones that leave nothing out."""
    called = []
    while_different = 0
    while while_different < PAIRS:
        left, right = generator.choice(golds), generator.choice(golds)
        if left.strip() == right.strip():
            continue
        while_different += 1
        if same_value(left, right):
            called.append((left, right))
    full = [(a, b) for a, b in called if canonical(a)._replace(relation="") == canonical(b)._replace(relation="")]
    return called, full


def violations(golds: Sequence[str], generator: random.Random) -> dict[str, int]:
    """Faults of the equivalence among triples of near relatives: a gold, its forms, units added, names, its neighbours.

    Pairwise a unit or a name may be left out (7 agrees with 7 cm and 7 m); `left_out` counts those triples, and only
    `answer_classes` decides about several answers.
    """
    counts = {"symmetry": 0, "transitivity": 0, "left_out": 0, "classes_by_order": 0, "classes_split": 0, "linked": 0}
    for _ in track(range(TRIPLES), "triples"):
        triple = [_relative(generator.choice(golds), generator) if generator.random() < 0.2 else "" for _ in range(3)]
        base = generator.choice(golds)
        triple = [text or _relative(base, generator) for text in triple]
        equal = {(i, j): same_value(triple[i], triple[j]) for i, j in itertools.permutations(range(3), 2)}
        counts["symmetry"] += any(equal[i, j] != equal[j, i] for i, j in equal)
        chains = [(i, j, k) for i, j, k in itertools.permutations(range(3)) if equal[i, j] and equal[j, k]]
        counts["linked"] += bool(chains)
        broken = [(i, j, k) for i, j, k in chains if not equal[i, k]]
        if broken:
            first, least, last = (canonical(triple[index]) for index in broken[0])
            silent = (first.unit != last.unit and not least.unit) or (first.name != last.name and not least.name) or (
                first.relation != last.relation and not least.relation)
            counts["left_out" if silent else "transitivity"] += 1
        partitions = set()
        for order in itertools.permutations(range(3)):
            classes = answer_classes([triple[index] for index in order])
            partitions.add(frozenset(frozenset(order[place] for place in range(3) if classes[place] == number)
                                     for number in classes))
        counts["classes_by_order"] += len(partitions) > 1
        # Nobody is put with a stranger: members of one class agree with the one that says most.
        for group in next(iter(partitions)):
            most = max(group, key=lambda index: (canonical(triple[index]).said, repr(canonical(triple[index]))))
            counts["classes_split"] += any(not same_value(triple[most], triple[index]) for index in group)
    return counts


def _relative(gold: str, generator: random.Random) -> str:
    kinds: tuple[Callable[[str], str], ...] = (
        str, str, _plain, _respelled, lambda g: f"${g}$", lambda g: f"**{g}**", lambda g: f"{g} cm",
        lambda g: f"{g} boys", lambda g: f"x = {g}", lambda g: f"y = {g}", lambda g: f"{g}%", lambda g: f"-{g}",
        lambda g: f"{g}, {g}", lambda g: f"({g})", lambda g: f"{g} and 3", lambda g: f"{g}0", lambda g: f"2({g})")
    return generator.choice(kinds)(gold)


def main() -> None:
    """Measures, writes the JSON file and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers")
    parser.add_argument("--gsm8k", type=Path, required=True, help="train.jsonl of GSM8K")
    parser.add_argument("--math", type=Path, required=True, help="MATH train as a JSON list with `final_answer`")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--list", type=Path, help="writes every miss here, one JSON object a line")
    given = parsed(parser)
    sets = {"GSM8K": read_gsm8k(given.gsm8k), "MATH": read_math(given.math)}
    bars: list[Bar] = []
    rates: dict[str, dict[str, float]] = {}
    listed: list[dict[str, Any]] = []
    left_out: dict[str, int] = {}
    start = time.process_time()
    for name, golds in sets.items():
        missed = lost(track(golds, name))
        rates[name] = {form: round(100 - 100 * len(rows) / len(golds), 3) for form, rows in missed.items()}
        listed += [{"set": name, "form": form, "gold": gold, "text": text, "read": said}
                   for form, rows in missed.items() for gold, text, said in rows]
        worst = min(rates[name].values())
        total = sum(rates[name].values()) / len(FORMS)
        bars.append(Bar(f"{name}: equal to itself, mean of 8 forms, %", total, worst, max(rates[name].values()),
                        ">= 99.5", total >= 99.5))
    seconds = time.process_time() - start
    generator = random.Random(SEED)
    for name, golds in sets.items():
        called, full = falsely_equal(golds, generator)
        listed += [{"set": name, "pair": pair, "leaves_out": pair not in full} for pair in called]
        share = 100 * len(full) / PAIRS
        bars.append(Bar(f"{name}: random pairs called equal in full, %", share, None, None, "<= 0.02", share <= 0.02))
        # 4 and x = 4, 18 and 18°: what a grader wants called equal, unless one reads the list and finds otherwise.
        left_out[name] = len(called) - len(full)
    counts = violations([*sets["GSM8K"], *sets["MATH"]], generator)
    for fault in ("symmetry", "transitivity", "classes_by_order", "classes_split"):
        bars.append(Bar(f"{fault} of {TRIPLES:,} triples", counts[fault], None, None, "0", counts[fault] == 0))
    if given.list:
        given.list.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed))
    write(given, bars, rates=rates, triples=counts, equal_but_for_a_unit_or_name=left_out,
          milliseconds_per_statement=round(1000 * seconds / sum(map(len, sets.values())) / len(FORMS), 3))


if __name__ == "__main__":
    main()
