"""Search trees as figures: a tidy layout in which no text meets another, drawn by matplotlib, as SVG for the report."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from prm_core.evaluation.report.charts import step_colours
from prm_core.evaluation.report.search_trees import Node, Tree, choose, drawn_nodes, read_trees

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 3
# In SVG user units, which are CSS pixels. A row holds a line of text above the edge and one below.
FONT, SMALL, ROW, MARGIN = 10.5, 9.0, 34, 12
MAX_RADIUS, MIN_RADIUS, CURVE, GAP = 11.0, 4.5, 26, 5
LABEL_CHARACTERS = 26
# The page's light palette; in the page they become its variables, so that a dark page has its own.
COLOURS = {"ink": "#1d2025", "muted": "#626873", "good": "#0b6b4f", "bad": "#b34a00", "panel": "#ffffff"}


@dataclass(frozen=True, slots=True)
class Drawing:
    """A tree as shown: the question, a line about what is and is not drawn, and inline SVG that fetches nothing."""

    tree: Tree
    note: str
    svg: Markup
    width: int


@dataclass(frozen=True, slots=True)
class TreeSection:
    """What the report shows of the trees; `note` says how they were chosen, or why there are none."""

    drawings: Sequence[Drawing]
    note: str


def tree_section(folder: Path, shown: int = SHOWN) -> TreeSection:
    """The most instructive trees of a folder of evidence, drawn.

    Args:
        folder: artifacts/label/evidence, may be absent or without trees.
        shown: how many at most.

    Raises InputError on a broken tree file.
    """
    chosen, seen = choose(read_trees(folder), shown)
    if not chosen:
        return TreeSection([], "The label stage left no search tree: mcts is not among label.strategies, or "
                               "label.mcts.problems is 0.")
    drawings = []
    for tree in chosen:
        kept = drawn_nodes(tree)
        chains = {chain for node in tree.nodes.values() for chain in node.chains}
        hidden = len(tree.nodes) - len(kept)
        note = (f"{len(tree.nodes)} prefixes, {sum(node.tokens for node in tree.nodes.values())} tokens generated; "
                f"{len(chains)} given chains; selection {tree.selection}. "
                + (f"{hidden} prefixes with few rollouts are not drawn." if hidden else "All are drawn."))
        svg, width = _svg(tree, kept)
        drawings.append(Drawing(tree, note, svg, width))
    chosen_by = f"{len(chosen)} of {seen} trees, those first whose given chains part at a first error."
    return TreeSection(drawings, chosen_by)


@dataclass(slots=True)
class _Place:
    """Where a node and its texts go."""

    x: float = 0.0
    y: float = 0.0
    # Where the edge that enters it starts to turn towards its row.
    turn: float = 0.0
    radius: float = 0.0
    depth: int = 0
    label: Sequence[str] = ()
    # (text, colour, bold), the line beside the node's centre line and the one below.
    note: Sequence[tuple[str, str, bool]] = ()


def _clean(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _label(text: str) -> list[str]:
    """A step in two lines at most, broken after a colon or in two of about the same length."""
    text = _clean(text)
    head, colon, tail = text.partition(": ")
    if colon and len(head) < LABEL_CHARACTERS and len(tail) <= LABEL_CHARACTERS:
        return [f"{head}:", tail]
    for width in range(max(18, len(text) // 2), LABEL_CHARACTERS):
        if len(lines := textwrap.wrap(text, width)) <= 2:
            return lines or [""]
    first, second, *_ = textwrap.wrap(text, LABEL_CHARACTERS)
    return [first, f"{second if len(second) < LABEL_CHARACTERS else second[:-1]}…"]


def _note(tree: Tree, node: Node, kept: set[int], is_error: bool) -> list[tuple[str, str, bool]]:
    """What stands beside a node: its outcome or value, then what else is to say."""
    hidden = sum(1 for child in tree.children[node.id] if child not in kept for _ in tree.preorder(child))
    more = f" +{hidden}" if hidden else ""
    ends = [chain.rsplit("/", 1)[-1] for chain in node.chains] if node.right is not None else []
    if node.right is not None:
        first = ("✓ right", "good", True) if node.right else ("✗ wrong", "bad", True)
    else:
        first = ("" if node.value is None else f"{node.value:.2f}", "ink", False)
    if is_error:
        second = (f"first error{more}", "bad", True)
    elif ends:
        second = (f"chain {', '.join(ends)}", "muted", False)
    else:
        second = (((f"{node.wins}/{node.rollouts}" if node.rollouts else "") + more).strip(), "muted", False)
    return [line for line in (first, second) if line[0]]


# A tree says the same things again and again, and outlines take milliseconds.
@cache
def _width(text: str, size: float, bold: bool = False) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    font = FontProperties(weight="bold" if bold else "normal")
    # Outlines, where a screen rounds each letter's width, and a reader's font may be wider.
    return 1.06 * float(TextPath((0, 0), text, size, prop=font, usetex=False).vertices[:, 0].max())


def _layout(tree: Tree, kept: set[int]) -> tuple[dict[int, _Place], float, float]:
    """A tidy layered layout: a column for each depth, leaves one to a row, parents in the middle of their children.

    Subtrees take disjoint rows, so nodes of one column are at least a row apart. From left to right a column has the
    curves of the edges that enter it, its labels, its nodes, its notes, each zone as wide as its widest: no text meets
    another text, a node or a curve.

    Returns id → place, the figure's width and its height.
    """
    errors = tree.first_errors()
    most = max(max(node.rollouts for node in tree.nodes.values()), 1)
    places: dict[int, _Place] = {}
    order = [node for node in tree.preorder() if node in kept]
    for number in order:
        node = tree.nodes[number]
        depth = 0 if node.parent is None else places[node.parent].depth + 1
        radius = max(MIN_RADIUS, MAX_RADIUS * (node.rollouts / most) ** 0.5)
        label = ["question"] if node.parent is None else _label(node.step)
        note = _note(tree, node, kept, number in errors)
        places[number] = _Place(radius=radius, depth=depth, label=label, note=note)
    row = 0
    for number in reversed(order):
        below = [places[child].y for child in tree.children[number] if child in kept]
        if not below:
            places[number].y = -ROW * row
            row += 1
        else:
            places[number].y = (min(below) + max(below)) / 2
    height = 2 * MARGIN + ROW * row
    columns: dict[int, list[_Place]] = {}
    for place in places.values():
        # Rows were counted from the last leaf.
        place.y += height - MARGIN - ROW / 2
        columns.setdefault(place.depth, []).append(place)
    x = float(MARGIN)
    for depth in sorted(columns):
        turn = x
        x += (CURVE if depth else 0) + max(_width(line, FONT) for place in columns[depth] for line in place.label)
        x += GAP + MAX_RADIUS
        for place in columns[depth]:
            place.x, place.turn = x, turn
        x += MAX_RADIUS + GAP + max(_note_width(place) for place in columns[depth]) + GAP
    return places, x + MARGIN, height


def _note_width(place: _Place) -> float:
    return max((_width(text, SMALL if n else FONT, bold) for n, (text, _, bold) in enumerate(place.note)), default=0.0)


def _edge(axes: Axes, parent: _Place, child: _Place, on_chain: bool) -> None:
    """From beside the parent's note, through the column's curve zone, between the lines of the label, to the child."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    start = parent.x + (MAX_RADIUS + GAP + _note_width(parent) + GAP / 2 if parent.note else parent.radius)
    middle, end = child.turn + CURVE / 2, child.turn + CURVE - GAP
    points = [(start, parent.y), (child.turn, parent.y), (middle, parent.y), (middle, child.y), (end, child.y),
              (child.x - child.radius, child.y)]
    codes = [Outline.MOVETO, Outline.LINETO, *[Outline.CURVE4] * 3, Outline.LINETO]
    axes.add_patch(PathPatch(Outline(points, codes), fill=False, capstyle="round", clip_on=False,
                             edgecolor=COLOURS["ink" if on_chain else "muted"], linewidth=2.4 if on_chain else 0.9))


def draw(tree: Tree, kept: set[int]) -> Figure:
    """The tree as a figure, one unit a pixel at 72 dpi: colour is value, area rollouts, thick lines are given chains.

    Args:
        tree: any tree.
        kept: ids to draw, from `drawn_nodes`.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    places, width, height = _layout(tree, kept)
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    errors = tree.first_errors()

    def text(x: float, y: float, line: str, colour: str, anchor: str, *, small: bool = False, bold: bool = False):
        # A dollar sign is money here, not mathematics.
        axes.text(x, y, line, color=COLOURS[colour], ha=anchor, va="baseline", fontsize=SMALL if small else FONT,
                  fontweight="bold" if bold else "normal", parse_math=False)

    for number, place in places.items():
        node = tree.nodes[number]
        if node.parent is not None:
            _edge(axes, places[node.parent], place, bool(node.chains))
        rgb = [int(part) / 255 for part in re.findall(r"\d+", step_colours(node.worth)[0])] if (
            node.worth is not None) else COLOURS["panel"]
        if number in errors:
            axes.add_patch(Circle((place.x, place.y), place.radius + 3, fill=False, edgecolor=COLOURS["bad"],
                                  linewidth=1.6, clip_on=False))
        axes.add_patch(Circle((place.x, place.y), place.radius, facecolor=rgb, edgecolor=COLOURS["muted"],
                              linewidth=0.8, linestyle="-" if node.worth is not None else (0, (2, 2)),
                              gid=f"node-{number}", clip_on=False))
        left, colour = place.x - MAX_RADIUS - GAP, "ink" if node.chains or node.parent is None else "muted"
        lone = node.parent is None
        for line, at in zip(place.label, (place.y + 4 if lone else place.y - 4, place.y + 12), strict=False):
            text(left, at, line, colour, "right")
        beside = place.x + MAX_RADIUS + GAP
        for n, (line, colour, bold) in enumerate(place.note):
            at = place.y + (10 if n else -1 if len(place.note) == 2 else 4)
            text(beside, at, line, colour, "left", small=bool(n), bold=bold)
    return figure


def _svg(tree: Tree, kept: set[int]) -> tuple[Markup, int]:
    """The drawing as inline SVG in the page's colours, each node with its whole step to hover over; and its width."""
    import matplotlib

    target = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.fonttype": "none"}):
        # The reader's own fonts write the text.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = draw(tree, kept)
        figure.patch.set_visible(False)
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    picture = target.getvalue()
    picture = picture[picture.index("<svg"):]
    picture = re.sub(r"<(metadata|defs)\b.*?</\1>", "", picture, flags=re.DOTALL)
    picture = re.sub(r'<g id="node-(\d+)">', lambda found: _hover(tree.nodes[int(found[1])]), picture)
    # Several drawings stand in one page.
    picture = re.sub(r' (?:id|xmlns(?::xlink)?|version|width|height)="[^"]*"(?=[^<]*>)', "", picture)
    picture = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", picture)
    for name, colour in COLOURS.items():
        picture = picture.replace(colour, f"var(--{name})")
    width = round(figure.get_figwidth() * 72)
    return Markup(picture), width


def _hover(node: Node) -> str:
    what = _clean(node.step) or "the question"
    value = "no rollout through here" if node.value is None else f"{node.wins} of {node.rollouts} rollouts end right"
    return str(Markup("<g><title>{}: {}; chosen {} times</title>").format(what, value, node.visits))
