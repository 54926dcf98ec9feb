"""Do two sets of trajectories come from one distribution? Distances of each feature, and one test over all of them.

Pure functions over arrays. The test permutes which trajectory is whose: it is exact where trajectories are exchangeable
(one a question, `samples.independent`) and their chances do not depend on what they are, whatever the sizes, ties and
dependences between features. Its statistic is the largest of all distances, each in standard deviations of its own
permutations, so that the share of quiet windows with an alarm is `alpha` however many features there are.

Source: Westfall & Young 1993, "Resampling-Based Multiple Testing" (the maximum over permutations).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prm_core.serving.drift.features import Table, table
from prm_core.serving.drift.samples import Sample

Floats = NDArray[np.float64]
BINS = 10
PERMUTATIONS = 999
# Cells of an array of weights at a time.
CELLS = 2_000_000
# Certainty of a change in the stream of scores, at each look; river's own default.
ADWIN_DELTA = 0.002


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a window lies from the reference in one feature.

    Attributes:
        feature: its name.
        psi: population stability index over the reference's bins, or over names.
        ks: largest difference of the distribution functions, in [0, 1]; None for names.
        wasserstein: area between them, in units of the feature; None for names.
        chi2: sum over names of (q - p)^2 / (q + p); None for numbers.
        p: probability that any feature of a window without drift lies so far out: adjusted for all of them.
        shares: names: (share in the reference, in the window); numbers: of each bin, named by its edges.
    """

    feature: str
    psi: float
    ks: float | None
    wasserstein: float | None
    chi2: float | None
    p: float
    shares: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Attributes:
        distances: the farthest first.
        p: the smallest of theirs.
        reference, window: trajectories compared.
        effective: of the window, as many of equal chance as say as much (Kish).
    """

    distances: Sequence[Distance]
    p: float
    reference: int
    window: int
    effective: float


def compare(reference: Sequence[Sample], window: Sequence[Sample], seed: int,
            permutations: int = PERMUTATIONS) -> Comparison:
    """The distances of a window from a reference, and how likely they are without drift.

    Args:
        reference, window: trajectories, one a question; at least one each.
    """
    both = table([*reference, *window])
    first = len(reference)
    mine, theirs = both.weights.copy(), both.weights.copy()
    mine[first:], theirs[:first] = 0, 0
    slots = np.stack([mine / mine.sum(), theirs / theirs.sum()])
    sizes = 1 / (slots**2).sum(axis=1)
    measures = {name: _number(values, slots, sizes) for name, values in both.numbers.items()}
    measures |= {name: _Names(counts, sizes) for name, counts in both.names.items()}
    observed = {name: measure.distances(slots[:, None, :]) for name, measure in measures.items()}
    drawn = [{name: measure.distances(weights) for name, measure in measures.items()}
             for weights in _permuted(slots, permutations, seed)]
    keys = [(name, kind) for name, found in observed.items() for kind in found]
    rows = np.stack([np.concatenate([observed[name][kind], *(one[name][kind] for one in drawn)])
                     for name, kind in keys])
    spread = rows.std(axis=1, keepdims=True)
    # A feature that never varies says nothing.
    scaled = np.where(spread > 1e-12, (rows - rows.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-12), -np.inf)
    largest = scaled.max(axis=0)
    found = []
    for name, measure in measures.items():
        farthest = max(scaled[index, 0] for index, key in enumerate(keys) if key[0] == name)
        # Rounding must not make a permutation of equals larger than itself.
        p = float((largest >= farthest - 1e-9).mean())
        found.append(measure.told(name, both, slots, {kind: float(value[0]) for kind, value in observed[name].items()},
                                  p))
    found.sort(key=lambda one: (one.p, -one.psi))
    return Comparison(found, found[0].p, first, len(window), float(sizes[1]))


def _permuted(slots: Floats, permutations: int, seed: int) -> Iterator[Floats]:
    """Weights with the trajectories dealt anew, (2, some, trajectories)."""
    rng, count = np.random.default_rng(seed), slots.shape[1]
    at_once = max(1, CELLS // count)
    for start in range(0, permutations, at_once):
        rows = min(at_once, permutations - start)
        order = rng.permuted(np.tile(np.arange(count), (rows, 1)), axis=1)
        yield slots[:, order]


def psi(p: Floats, q: Floats, sizes: Floats) -> Floats:
    """Population stability index of shares, sum of (q - p) ln(q / p) over the last axis, with half a trajectory added
    to each share: an empty one would make it infinite.

    Args:
        p, q: shares, (..., names).
        sizes: trajectories behind p and behind q.
    """
    names = p.shape[-1]
    p, q = ((shares * size + 0.5) / (size + 0.5 * names) for shares, size in zip((p, q), sizes, strict=True))
    return ((q - p) * np.log(q / p)).sum(axis=-1)


class _Number:
    """Distances of a number.

    Args:
        values: (trajectories,).
        edges: of the bins, between the lowest and the highest.
        sizes: as for `psi`.
    """

    def __init__(self, values: Floats, edges: Floats, sizes: Floats) -> None:
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        # Where a run of equal values ends; the last is where both functions are 1.
        self._ends = np.flatnonzero(np.diff(ordered))
        self._gaps = np.diff(ordered)[self._ends]
        self._edges, self._sizes = edges, sizes
        self._bins = np.eye(len(edges) + 1)[np.searchsorted(edges, values, side="left")]

    def distances(self, weights: Floats) -> dict[str, Floats]:
        """Distances by kind, for each row of weights, (2, rows, trajectories)."""
        apart = np.abs(np.cumsum((weights[1] - weights[0])[:, self._order], axis=1)[:, self._ends])
        shares = weights @ self._bins
        # Roots are nearly normal, as the others are: no kind of distance has tails that hide the rest.
        return {"psi": np.sqrt(psi(shares[0], shares[1], self._sizes)), "ks": apart.max(axis=1, initial=0.0),
                "wasserstein": apart @ self._gaps}

    def told(self, name: str, both: Table, slots: Floats, found: Mapping[str, float], p: float) -> Distance:
        edges = [f"{edge:.4g}" for edge in self._edges]
        labels = [f"to {edges[0]}", *(f"to {edge}" for edge in edges[1:]), f"above {edges[-1]}"] if edges else ["all"]
        shares = (slots @ self._bins).T.tolist()
        return Distance(name, found["psi"]**2, found["ks"], found["wasserstein"], None, p,
                        {label: (a, b) for label, (a, b) in zip(labels, shares, strict=True)})


def _number(values: Floats, slots: Floats, sizes: Floats) -> _Number:
    of_reference = values[slots[0] > 0]
    edges = np.unique(np.quantile(of_reference, np.arange(1, BINS) / BINS, method="inverted_cdf"))
    return _Number(values, edges, sizes)


class _Names:
    """Distances of names, which occur so often in each trajectory: `counts`, (trajectories, names)."""

    def __init__(self, counts: Floats, sizes: Floats) -> None:
        self._counts, self._sizes = counts, sizes

    def _shares(self, weights: Floats) -> Floats:
        totals = weights @ self._counts
        return totals / totals.sum(axis=-1, keepdims=True)

    def distances(self, weights: Floats) -> dict[str, Floats]:
        """As of numbers."""
        p, q = self._shares(weights)
        return {"psi": np.sqrt(psi(p, q, self._sizes)), "chi2": np.sqrt(_chi2(p, q))}

    def told(self, name: str, both: Table, slots: Floats, found: Mapping[str, float], p: float) -> Distance:
        shares = zip(*self._shares(slots).tolist(), strict=True)
        return Distance(name, found["psi"]**2, None, None, found["chi2"]**2, p,
                        dict(zip(both.labels[name], shares, strict=True)))


def _chi2(p: Floats, q: Floats) -> Floats:
    both = p + q
    return ((q - p)**2 / np.where(both > 0, both, 1)).sum(axis=-1)


def change_in_stream(reference: Sequence[Sample], window: Sequence[Sample], seed: int) -> int | None:
    """Index of the trajectory of a window at which ADWIN sees that mean scores have changed, since the reference or
    within the window; None where they have not.

    Source: Bifet & Gavaldà 2007, "Learning from Time-Changing Data with Adaptive Windowing".
    """
    from river.drift import ADWIN

    detector = ADWIN(delta=ADWIN_DELTA)
    before = np.array([np.mean(one.scores) for one in reference])
    for score in np.random.default_rng(seed).permutation(before):
        detector.update(float(score))
    for index, one in enumerate(window):
        detector.update(float(np.mean(one.scores)))
        if detector.drift_detected:
            return index
    return None
