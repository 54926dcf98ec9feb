"""Trees of chains: what they hold, how they are cut and packed, and the exact tensors of a small one."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prm_core.training.examples import Encoded, EncodedPair
from prm_core.training.trees import Node, Piece, Tree, collate_trees, cut, grow, pack
from tests.builders.trees import STEPS, chain, examples_of_kind, least_width, pair, preference_pairs

PROMPT, OTHER = [1, 9], [6, 9]
NAN = math.nan
# Two chains that part after their first step, one that ends there, and the second once more.
A, B, C, D = ([[2], [3, 4]], [[2], [5]], [[2]], [[2], [5]])


def small_tree() -> Tree:
    """prompt 0 → step 1 → steps 2 and 3."""
    rows = [(A, (1.0, 0.0)), (B, (1.0, 1.0)), (C, (0.5,)), (D, (NAN, 0.0))]
    tree, = grow([Encoded(chain(PROMPT, steps), targets) for steps, targets in rows], [], share=True)
    return tree


# What a tree holds


def test_chains_share_the_steps_they_have_in_common() -> None:
    tree = small_tree()
    assert [(node.parent, node.ids) for node in tree.nodes] == [
        (-1, (1, 9)), (0, (2, 9)), (1, (3, 4, 9)), (1, (5, 9))]
    assert [node.weight for node in tree.nodes] == [0, 3, 1, 2]
    assert [node.target for node in tree.nodes] == [0, pytest.approx(2.5 / 3), 0, 0.5]
    assert tree.path(3) == [0, 1, 3]


def test_targets_of_one_step_are_averaged_and_counted() -> None:
    node = Node(0, (2, 9), (True, True))
    for target in (0.9, 0.5, 1.0):
        node.add_target(target)
    assert (node.target, node.weight) == (pytest.approx(0.8), 3)
    node.add_target(0.0, 1.5)
    assert (node.target, node.weight) == (pytest.approx(2.4 / 4.5), 4.5)


def test_a_chains_weight_is_that_of_its_targets() -> None:
    tree, = grow([Encoded(chain(PROMPT, A), (1.0, 0.0), 4.0), Encoded(chain(PROMPT, C), (0.0,))], [], share=True)
    assert [(node.target, node.weight) for node in tree.nodes] == [(0, 0), (pytest.approx(0.8), 5), (0, 4)]


def test_the_last_target_is_that_of_the_last_step() -> None:
    for targets, expected in (((0.25,), [0, 0, 1]), ((1.0, 0.25), [0, 1, 1]), ((0.5, 1.0, 0.25), [1, 1, 1])):
        tree, = grow([Encoded(chain(PROMPT, B), targets)], [], share=True)
        assert [node.weight for node in tree.nodes] == expected
        assert [node.target for node in tree.nodes if node.weight] == list(targets)


def test_a_text_a_tool_answered_is_not_the_step_that_says_the_same() -> None:
    one, other = chain(PROMPT, [[2, 8]]), chain(PROMPT, [[2, 8]])
    other.scored[3] = True
    tree, = grow([Encoded(one, (1.0,)), Encoded(other, (0.0,))], [], share=True)
    assert [(node.ids, node.written, node.target) for node in tree.nodes[1:]] == [
        ((2, 8, 9), (True, False, True), 1.0), ((2, 8, 9), (True, True, True), 0.0)]


def test_trees_stand_in_the_order_of_their_prompts_and_pairs_join_them() -> None:
    examples = [Encoded(chain(prompt, B), (1.0, 1.0)) for prompt in (PROMPT, OTHER, PROMPT)]
    shared = grow(examples, [pair(OTHER, [[2]], [5], [7])], share=True)
    assert [(tree.nodes[0].ids, len(tree.nodes), tree.pairs) for tree in shared] == [
        ((1, 9), 3, []), ((6, 9), 4, [(2, 3)])]
    apart = grow(examples, [pair(OTHER, [[2]], [5], [7])], share=False)
    assert [(tree.nodes[0].ids, len(tree.nodes), tree.pairs) for tree in apart] == [
        ((1, 9), 3, []), ((6, 9), 3, []), ((1, 9), 3, []), ((6, 9), 4, [(2, 3)])]
    assert [tree.apart for tree in (*shared, *apart)] == [False] * 2 + [True] * 4


# Cutting and packing


def test_a_tree_that_is_too_large_is_cut_and_the_path_repeated() -> None:
    tree = small_tree()
    assert cut(tree, 9) == [Piece(tree, (0, 1, 2, 3), frozenset({1, 2, 3}), (), 9)]
    assert cut(tree, 7) == cut(tree, 8) == [
        Piece(tree, (0, 1, 2), frozenset({1, 2}), (), 7), Piece(tree, (0, 1, 3), frozenset({3}), (), 6)]
    with pytest.raises(ValueError, match="a chain of 7 tokens does not fit rows of 6"):
        cut(tree, 6)


def test_steps_without_a_target_are_there_only_as_prefixes() -> None:
    tree, = grow([Encoded(chain(PROMPT, [[2], [5], [7]]), (NAN, 1.0, NAN))], [], share=True)
    assert cut(tree, 99) == [Piece(tree, (0, 1, 2), frozenset({2}), (), 6)]


def test_the_two_steps_of_a_pair_stay_together() -> None:
    tree, = grow([Encoded(chain(PROMPT, A), (1.0, 1.0))], [pair(PROMPT, [[2]], [5], [3, 4])], share=True)
    assert tree.pairs == [(3, 2)]
    assert cut(tree, 9) == [Piece(tree, (0, 1, 2, 3), frozenset({1, 2}), ((3, 2),), 9)]
    with pytest.raises(ValueError, match="of 9 tokens"):
        cut(tree, 8)


def single(tokens: int) -> Piece:
    return Piece(Tree([]), (), frozenset(), (), tokens)


def test_rows_are_filled_by_best_fit() -> None:
    pieces = [single(tokens) for tokens in (5, 4, 3, 2, 2)]
    assert sorted(sorted(piece.tokens for piece in row) for row in pack(pieces, 8, 0)) == [[2, 2, 4], [3, 5]]
    assert len(pack(pieces, 7, 0)) == 3
    assert pack([], 8, 0) == []


def test_trees_kept_apart_stand_with_others_of_their_length() -> None:
    sizes = [3, 9, 4, 10, 2, 3]
    trees = [Tree([Node(-1, tuple(range(size)), (False,) * size)], apart=True) for size in sizes]
    pieces = [Piece(tree, (0,), frozenset(), (), size) for tree, size in zip(trees, sizes, strict=True)]
    rows = pack(pieces, 20, seed=0)
    # Padded to the longest: 2 x 10, 4 x 4.
    assert sorted(sorted(piece.tokens for piece in row) for row in rows) == [[2, 3, 3, 4], [9, 10]]


def test_the_seed_decides_what_is_packed_together() -> None:
    pieces = [single(tokens) for tokens in (1, 2, 3, 4) * 20]
    rows = [[[id(piece) for piece in row] for row in pack(pieces, 8, seed)] for seed in (0, 0, 1)]
    assert rows[0] == rows[1]
    assert {frozenset(row) for row in rows[0]} != {frozenset(row) for row in rows[2]}


def by_path(tree: Tree, node: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tree.nodes[index].ids for index in tree.path(node))


def expected_targets(examples: list[Encoded]) -> dict[tuple, list[float]]:
    """Targets of each prefix, chain by chain."""
    found: dict[tuple, list[float]] = {}
    for example in examples:
        one, = grow([example], [], share=False)
        for node in one.nodes:
            if node.weight:
                found.setdefault(by_path(one, one.nodes.index(node)), []).append(node.target)
    return found


@given(examples=examples_of_kind("process") | examples_of_kind("outcome") | examples_of_kind("advantage"),
       pairs=preference_pairs(), room=st.integers(0, 40), seed=st.integers(0, 9), share=st.booleans())
def test_every_target_and_pair_trains_once_at_any_width(
    examples: list[Encoded], pairs: list[EncodedPair], room: int, seed: int, share: bool
) -> None:
    width = least_width(examples, pairs) + room
    pieces = [piece for tree in grow(examples, pairs, share=share) for piece in cut(tree, width)]
    rows = pack(pieces, width, seed)
    assert sorted(map(id, pieces)) == sorted(id(piece) for row in rows for piece in row)
    assert all(sum(piece.tokens for piece in row) <= width for row in rows)
    sums: dict[tuple, list[float]] = {}
    found_pairs: Counter = Counter()
    for piece in pieces:
        nodes = [piece.tree.nodes[index] for index in piece.nodes]
        assert piece.tokens == sum(len(node.ids) for node in nodes)
        # Parents before children, and the whole path there.
        assert all(node.parent in piece.nodes[:number] for number, node in enumerate(nodes) if node.parent >= 0)
        assert piece.weight == sum(piece.tree.nodes[index].weight for index in piece.scored)
        for index in piece.scored:
            node = piece.tree.nodes[index]
            sums.setdefault(by_path(piece.tree, index), []).append((node.weight, node.weight * node.target))
        found_pairs.update((by_path(piece.tree, one), by_path(piece.tree, other)) for one, other in piece.pairs)
    expected = expected_targets(examples)
    assert sums.keys() == expected.keys()
    for path, values in expected.items():
        assert sum(weight for weight, _ in sums[path]) == len(values)
        assert sum(total for _, total in sums[path]) == pytest.approx(sum(values))
        if share:
            assert len(sums[path]) == 1, "a step that chains share is computed once where it trains"
    trees = [grow([], [one], share=True)[0] for one in pairs]
    assert found_pairs == Counter((by_path(tree, tree.pairs[0][0]), by_path(tree, tree.pairs[0][1])) for tree in trees)


# Tensors


def rows_of(text: str) -> list[list[bool]]:
    return [[cell == "x" for cell in line] for line in text.split()]


def test_the_tensors_of_a_small_tree_beside_a_shorter_row() -> None:
    lone, = grow([Encoded(chain(OTHER, [[7]]), (1.0,))], [], share=True)
    tree = small_tree()
    batch = collate_trees([cut(tree, 9), cut(lone, 9)], 0)
    chains = batch.chains
    assert chains.ids.tolist() == [[1, 9, 2, 9, 3, 4, 9, 5, 9], [6, 9, 7, 9, 0, 0, 0, 0, 0]]
    assert chains.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 4, 5], [0, 1, 2, 3, 0, 0, 0, 0, 0]]
    assert chains.previous.tolist() == [[-1, 0, 1, 2, 3, 4, 5, 3, 7], [-1, 0, 1, 2, -1, -1, -1, -1, -1]]
    assert chains.steps.tolist() == [[-1, -1, 1, 1, 2, 2, 2, 3, 3], [-1, -1, 1, 1, -1, -1, -1, -1, -1]]
    assert chains.ends.tolist() == [[1, 3, 6, 8], [1, 3, -1, -1]]
    assert chains.mask[0, 0].tolist() == rows_of("""
        x........ xx....... xxx...... xxxx..... xxxxx.... xxxxxx... xxxxxxx.. xxxx...x. xxxx...xx""")
    assert chains.mask[1, 0].tolist() == rows_of("""
        x........ xx....... xxx...... xxxx..... ....x.... .....x... ......x.. .......x. ........x""")
    assert chains.lineage.tolist() == [rows_of("x... xx.. xxx. xx.x"), rows_of("x... xx.. .... ....")]
    assert batch.targets.tolist() == [[0.0, pytest.approx(2.5 / 3), 0.0, 0.5], [0.0, 1.0, 0.0, 0.0]]
    assert batch.weights.tolist() == [[0.0, 3.0, 1.0, 2.0], [0.0, 1.0, 0.0, 0.0]]
    assert batch.pairs.shape == (0, 4)


def test_two_trees_in_a_row_do_not_see_each_other() -> None:
    one, = grow([Encoded(chain(OTHER, [[7]]), (1.0,))], [], share=True)
    other, = grow([], [pair(PROMPT, [], [5], [2])], share=True)
    batch = collate_trees([[*cut(one, 99), *cut(other, 99)]], 0)
    chains = batch.chains
    assert chains.ids.tolist() == [[6, 9, 7, 9, 1, 9, 5, 9, 2, 9]]
    assert chains.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 2, 3]]
    assert chains.previous.tolist() == [[-1, 0, 1, 2, -1, 4, 5, 6, 5, 8]]
    assert chains.ends.tolist() == [[1, 3, 5, 7, 9]]
    assert chains.mask[0, 0].tolist() == rows_of("""
        x......... xx........ xxx....... xxxx......
        ....x..... ....xx.... ....xxx... ....xxxx.. ....xx..x. ....xx..xx""")
    assert chains.lineage[0].tolist() == rows_of("x.... xx... ..x.. ..xx. ..x.x")
    assert batch.weights.tolist() == [[0.0, 1.0, 0.0, 0.0, 0.0]]
    # Row and slot of the chosen step, row and slot of the rejected one.
    assert batch.pairs.tolist() == [[0, 3, 0, 4]]


def test_wider_rows_hold_padding_that_nobody_sees() -> None:
    rows = [cut(small_tree(), 99)]
    batch, wide = collate_trees(rows, 0), collate_trees(rows, 0, width=20)
    size = batch.chains.ids.shape[1]
    assert size < 20
    for name in ("ids", "steps", "positions", "previous"):
        one, other = getattr(batch.chains, name), getattr(wide.chains, name)
        assert other.shape == (1, 20)
        assert torch.equal(other[:, :size], one)
    assert torch.equal(wide.chains.mask[..., :size, :size], batch.chains.mask)
    assert torch.equal(wide.chains.mask[0, 0, size:], torch.eye(20, dtype=torch.bool)[size:])
    assert not wide.chains.mask[0, 0, :size, size:].any()
    assert torch.equal(wide.chains.lineage, batch.chains.lineage)
    assert wide.chains.steps[0, size:].tolist() == [-1] * (20 - size)


def test_a_repeated_path_trains_in_one_piece_only() -> None:
    tree = small_tree()
    batch = collate_trees([[piece] for piece in cut(tree, 7)], 0)
    assert batch.chains.ids.tolist() == [[1, 9, 2, 9, 3, 4, 9], [1, 9, 2, 9, 5, 9, 0]]
    assert batch.weights.tolist() == [[0.0, 3.0, 1.0], [0.0, 0.0, 2.0]]


def test_trees_kept_apart_are_one_chain_a_row_without_a_mask() -> None:
    examples = [Encoded(chain(PROMPT, A), (1.0, 0.0)), Encoded(chain(OTHER, [[7]]), (0.5,))]
    trees = grow(examples, [pair(PROMPT, [[2]], [5], [7, 7])], share=False)
    batch = collate_trees([[piece for tree in trees for piece in cut(tree, 99)]], 0)
    chains = batch.chains
    assert chains.ids.tolist() == [
        [1, 9, 2, 9, 3, 4, 9], [6, 9, 7, 9, 0, 0, 0], [1, 9, 2, 9, 5, 9, 0], [1, 9, 2, 9, 7, 7, 9]]
    assert chains.steps.tolist()[2] == [-1, -1, 1, 1, 2, 2, -1]
    assert chains.ends.tolist() == [[1, 3, 6], [1, 3, -1], [1, 3, 5], [1, 3, 6]]
    assert (chains.positions, chains.previous, chains.mask, chains.lineage) == (None,) * 4
    assert batch.weights.tolist() == [[0.0, 1.0, 1.0], [0.0, 1.0, 0.0], [0.0] * 3, [0.0] * 3]
    assert batch.targets.tolist()[:2] == [[0.0, 1.0, 0.0], [0.0, 0.5, 0.0]]
    assert batch.pairs.tolist() == [[2, 2, 3, 2]]


def test_a_step_that_chains_kept_apart_share_is_a_target_in_the_first_of_them() -> None:
    tree = small_tree()
    tree.apart = True
    batch = collate_trees([cut(tree, 99)], 0)
    assert batch.chains.ids.tolist() == [[1, 9, 2, 9, 3, 4, 9], [1, 9, 2, 9, 5, 9, 0]]
    assert batch.weights.tolist() == [[0.0, 3.0, 1.0], [0.0, 0.0, 2.0]]


@given(examples=examples_of_kind("process"), pairs=preference_pairs())
def test_apart_and_shared_hold_the_same_targets(examples: list[Encoded], pairs: list[EncodedPair]) -> None:
    width = least_width(examples, pairs)
    found = []
    for share in (True, False):
        rows = pack([piece for tree in grow(examples, pairs, share=share) for piece in cut(tree, width)], width, 0)
        batch = collate_trees(rows, 0)
        found.append((batch.weights.sum().item(), pytest.approx((batch.weights * batch.targets).sum().item(), abs=1e-4),
                      len(batch.pairs)))
    assert found[0] == found[1]
    assert found[0][2] == len(pairs)


def test_the_random_chains_of_these_tests_share_steps() -> None:
    """Were they all unlike, the properties above would say little."""
    assert len(STEPS) < 5
    tree, = grow([Encoded(chain(PROMPT, [STEPS[0], step]), (1.0, 1.0)) for step in STEPS], [], share=True)
    assert len(tree.nodes) == 2 + len(STEPS)
