"""Search trees in the report: reading, choosing, pruning, and a drawing in which nothing lies on anything else."""

from __future__ import annotations

import itertools
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_core.errors import InputError
from prm_core.evaluation.report import search_trees
from prm_core.evaluation.report import tree_drawing as drawing
from prm_core.evaluation.report.search_trees import choose, drawn_nodes, interest, read_trees
from prm_core.evaluation.report.tree_drawing import draw, tree_section

STEPS = ("Ida loses 7: 10 - 7 = 3.", "Ida finds 8 more: 1 + 8 = 9.", "The answer is 12.",
         "She pays $4 for each of the apples that she had bought before, and $5 in all: 8 - 4 = 4.", "4" * 60, "也许")


def node(number, parent, value=0.5, *, step="step", right=None, chains=(), rollouts=8, visits=1):
    return {"id": number, "parent": parent, "step": "" if parent is None else step, "visits": visits,
            "rollouts": 0 if value is None else rollouts, "wins": round((value or 0) * rollouts), "value": value,
            "tokens": 30, "reached": bool(value) or bool(right), "right": right, "chains": list(chains)}


def record(nodes, problem="p"):
    return {"problem_id": problem, "prompt": "How many <apples> & pears?", "answer": "12", "model": "abc",
            "selection": "omega", "nodes": nodes}


def write(folder, *records, name="trees-00000.jsonl"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def read(tmp_path, *records):
    return list(read_trees(write(tmp_path / "evidence", *records)))


PARTING = [
    node(0, None), node(1, 0, 0.6, chains=["c/0", "c/1"]),
    node(2, 1, 0.9, step="on", chains=["c/0"]), node(3, 2, None, step="ends well", right=True, chains=["c/0"]),
    node(4, 1, 0.0, step="errs", chains=["c/1"]), node(5, 4, None, step="ends badly", right=False, chains=["c/1"]),
    node(6, 0, None, step="unasked", right=False),
]


def random_tree(seed, count=40):
    """A tree of that many nodes with steps of all lengths, two of its paths given chains."""
    rng = random.Random(seed)
    nodes = [node(0, None, rollouts=100)]
    while len(nodes) < count:
        above = rng.choice([n for n in nodes if n["right"] is None])
        value = rng.choice([None, 0.0, 0.125, 0.5, 1.0])
        right = rng.choice([True, False]) if rng.random() < 0.3 else None
        nodes.append(node(len(nodes), above["id"], None if right is not None else value, step=rng.choice(STEPS),
                          right=right, rollouts=rng.randint(1, 100)))
    for chain in ("gen/p/0", "gen/p/1"):
        at = rng.choice(nodes)
        while at is not None:
            at["chains"].append(chain)
            at = None if at["parent"] is None else nodes[at["parent"]]
    return nodes


def test_reads_every_file_and_sorts_ways_by_worth(tmp_path):
    write(tmp_path / "e", record(PARTING, "a"), record(PARTING[:1], "b"))
    write(tmp_path / "e", name="trees-00001.jsonl")
    write(tmp_path / "e", record(PARTING[:2], "c"), name="trees-00002.jsonl")
    found = list(read_trees(tmp_path / "e"))
    assert [tree.problem_id for tree in found] == ["a", "b", "c"]
    tree = found[0]
    assert (tree.root, tree.children[0], tree.children[1]) == (0, [1, 6], [2, 4])
    assert [tree.nodes[n].worth for n in (1, 3, 5)] == [0.6, 1.0, 0.0]
    assert list(tree.preorder()) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("turn", "shown"), [
    ({"text": "", "calls": [{"name": "look", "arguments": '{"item": "cup"}', "result": "price 4"}]},
     'look {"item": "cup"} → price 4'),
    ({"text": "I look.", "agent": "worker", "calls": [{"name": "ask", "arguments": "{}", "result": "asked"}],
      "context": [{"role": "user", "text": "red"}]}, "[worker]\nI look.\nask {} → asked\nuser: red"),
    ({"text": "Done.", "observation": "over"}, "Done. → over"),
])
def test_a_turn_is_shown_with_its_calls_and_what_came_back(tmp_path, turn, shown):
    (tree,) = read(tmp_path, record([node(0, None), node(1, 0, step=turn)]))
    assert [one.step for one in tree.nodes.values()] == ["", shown]


@pytest.mark.parametrize(("nodes", "fault"), [
    ([node(0, None), node(1, 0, step={"text": "", "calls": [{}]})], r"nodes\.1\.step: .*not a step \(.*'name'"),
    ([node(0, None), node(1, 0, step={"text": 7})], r"nodes\.1\.step: .*not a step \(.*int"),
    ([node(0, None), node(1, 0, step=7)], r"nodes\.1\.step: .*string"),
    ([], "do not form one tree"),
    ([node(0, None), node(1, 7)], "do not form one tree"),
    ([node(0, None), node(1, None)], "do not form one tree"),
    ([node(0, None), node(1, 2), node(2, 1)], "do not form one tree"),
    ([node(0, None), node(1, 0), node(1, 0)], "do not form one tree"),
    ([{k: v for k, v in node(0, None).items() if k != "visits"}], r"nodes\.0\.visits"),
    ([node(0, None) | {"chains": "gen/0"}], r"nodes\.0\.chains"),
    ("many", r"nodes: .*list"),
])
def test_a_broken_tree_names_file_line_and_fault(tmp_path, nodes, fault):
    with pytest.raises(InputError, match=rf"trees-00000\.jsonl:2: .*{fault}.*run the label stage again"):
        read(tmp_path, record(PARTING), record(nodes))


def test_a_first_error_loses_what_its_parent_had(tmp_path):
    lost_before = [node(0, None, 0.0), node(1, 0, 0.0, chains=["c/0"])]
    answers = [node(0, None), node(1, 0, None, right=False), node(2, 0, None, right=False, chains=["c/0"])]
    few = [node(0, None), node(1, 0, 0.0, rollouts=search_trees.SURE - 1), node(2, 0, 0.0, rollouts=search_trees.SURE)]
    found = read(tmp_path, record(PARTING), record(lost_before), record(answers), record(few))
    # An answer that only a rollout gave is no first error; a given chain's is.
    assert [tree.first_errors() for tree in found] == [{4}, set(), {2}, {2}]


def test_chooses_chains_that_part_at_a_first_error(tmp_path):
    beside = [node(0, None), node(1, 0, 0.0, chains=["c/0"]), node(2, 0, 0.7)]
    outcomes = [node(0, None), node(1, 0, None, right=True, chains=["c/0"]),
                node(2, 0, 0.0, rollouts=1, chains=["c/1"]), node(3, 2, None, right=False, chains=["c/1"])]
    plain = [node(0, None), node(1, 0, 0.5)]
    records = [record(plain, "plain"), record(outcomes, "outcomes"), record(beside, "beside"),
               record(PARTING, "parting"), record(plain, "plain too")]
    found, seen = choose(iter(read(tmp_path, *records)), 4)
    assert ([tree.problem_id for tree in found], seen) == (["parting", "beside", "outcomes", "plain"], 5)
    assert interest(found[0])[:4] == (True, True, 2, True)
    assert interest(found[3])[:4] == (False, False, 0, False)


def test_prunes_what_few_rollouts_support_and_says_how_many(tmp_path):
    extra = [node(7 + n, 0, 0.5, rollouts=n + 1, step=f"other {n}") for n in range(60)]
    deep = [node(67, 6, 0.5, rollouts=99)]
    (tree,) = read(tmp_path, record([*PARTING, *extra, *deep]))
    tree_6 = tree.nodes[6]
    kept = drawn_nodes(tree, 20)
    assert len(kept) == 20
    # Given chains; the best supported with its ancestor, which has no rollouts of its own; then by rollouts.
    assert kept == {0, 1, 2, 3, 4, 5, 67, 6, *range(55, 67)}
    assert tree_6.rollouts == 0
    section = tree_section(tmp_path / "evidence")
    hidden = len(tree.nodes) - search_trees.MAX_NODES
    assert f"{hidden} prefixes with few rollouts are not drawn" in section.drawings[0].note
    assert f">4/8 +{hidden}<" in section.drawings[0].svg


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60))
def test_what_is_drawn_is_a_tree_with_every_given_chain(seed, limit):
    raw = random_tree(seed)
    tree = search_trees._tree(record(raw), "here")
    kept = drawn_nodes(tree, limit)
    assert all(tree.nodes[n].parent in kept for n in kept - {tree.root})
    assert {n["id"] for n in raw if n["chains"]} <= kept
    must = drawn_nodes(tree, 0)
    assert must <= kept
    assert len(kept) == max(len(must), min(limit, len(raw)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.filterwarnings("ignore:Glyph")
def test_no_text_lies_on_a_text_or_a_node_at_forty_nodes(seed):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.patches import Circle, PathPatch

    tree = search_trees._tree(record(random_tree(seed)), "here")
    figure = draw(tree, set(tree.nodes))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    texts = [text.get_window_extent(canvas.get_renderer()) for text in axes.texts]
    circles = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, Circle)]
    frame = figure.bbox
    assert len(texts) > 60
    for a, b in itertools.chain(itertools.combinations(texts, 2), itertools.product(texts, circles)):
        # A line's box has room for descenders above and below its letters; half a pixel is theirs.
        assert min(a.x1, b.x1) - max(a.x0, b.x0) <= 0.5 or min(a.y1, b.y1) - max(a.y0, b.y0) <= 0.5
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
               for box in (*texts, *circles))
    # Where an edge curves, there is no text.
    curves = [patch.get_path().vertices[1:5] for patch in axes.patches if isinstance(patch, PathPatch)]
    boxes = [box.transformed(axes.transData.inverted()) for box in texts]
    for curve, box in itertools.product(curves, boxes):
        assert box.x1 <= curve[:, 0].min() + 0.5 or box.x0 >= curve[:, 0].max() - 0.5


def test_colour_is_value_area_is_rollouts_and_thick_lines_are_chains(tmp_path):
    from matplotlib.patches import Circle, PathPatch

    nodes = [dict(n) for n in PARTING]
    nodes[1]["rollouts"], nodes[0]["rollouts"] = 25, 100
    (tree,) = read(tmp_path, record(nodes))
    (axes,) = draw(tree, set(tree.nodes)).axes
    circles = {patch.get_gid(): patch for patch in axes.patches if isinstance(patch, Circle)}
    assert circles["node-0"].radius == 2 * circles["node-1"].radius
    assert [round(255 * c) for c in circles["node-4"].get_facecolor()[:3]] == [213, 94, 0]
    assert [round(255 * c) for c in circles["node-3"].get_facecolor()[:3]] == [0, 114, 178]
    widths = [patch.get_linewidth() for patch in axes.patches if isinstance(patch, PathPatch)]
    assert sorted(widths) == [0.9, *[2.4] * 5]
    assert circles[None].radius > circles["node-4"].radius
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("first error") == 1
    assert {"✓ right", "✗ wrong", "chain 0", "0.60", "5/25", "0.90"} <= set(texts)


@pytest.mark.parametrize(("step", "lines"), [
    ("The answer is 12.", ["The answer is 12."]),
    ("Ida finds 8 more: 1 + 8 = 9.", ["Ida finds 8 more:", "1 + 8 = 9."]),
    ("a\nb\t c\x00", ["a b c"]),
    ("half of the eggs are left for me", ["half of the eggs", "are left for me"]),
    ("half of all the eggs that Ida and Tom had are left for me",
     ["half of all the eggs that", "Ida and Tom had are left…"]),
    ("x" * 70, ["x" * 26, "x" * 25 + "…"]),
    ("", [""]),
])
def test_labels_are_two_lines_at_most(step, lines):
    assert drawing._label(step) == lines


def test_svg_can_stand_in_the_page(tmp_path):
    evil = [node(0, None), node(1, 0, step='<script>alert("1")</script> & $x$', chains=["<b>/<i>"])]
    evil.append(node(2, 1, None, right=True, chains=["<b>/<i>"]))
    write(tmp_path / "e", record(evil), record(PARTING))
    section = tree_section(tmp_path / "e", 2)
    assert section.note.startswith("2 of 2 trees")
    for shown in section.drawings:
        assert shown.svg.startswith("<svg viewBox=")
        assert not re.search(r"script>|<[bi]>|https?:|url\(|href|\bid=|<style|<metadata", shown.svg)
        assert not any(colour in shown.svg for colour in drawing.COLOURS.values())
        assert "var(--ink)" in shown.svg
        assert str(shown.width) in str(round(float(re.search(r'viewBox="0 0 ([\d.]+)', shown.svg)[1])))
    evil_svg = next(d.svg for d in section.drawings if len(d.tree.nodes) == 3)
    assert "&lt;script&gt;" in evil_svg
    assert ("<title>&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; $x$: 4 of 8 rollouts end right; chosen 1 "
            "times</title>") in evil_svg
    assert tree_section(tmp_path / "e", 2) == section


def test_without_trees_the_section_says_why(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "absent", tmp_path / "empty"):
        section = tree_section(folder)
        assert section.drawings == []
        assert "mcts is not among label.strategies" in section.note
