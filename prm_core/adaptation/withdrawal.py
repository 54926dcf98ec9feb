"""Data withdrawn: a trajectory, a person's labels or a tenant's data leaves all that is kept of it, and the versions
that it went into are named.

What is gone is noted first (`serving/drift/withdrawn.py`), so that the server and every later round leave it out even
where this is killed; doing it again goes on.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from prm_core.adaptation import lineage
from prm_core.adaptation.feedback import drop_traces
from prm_core.adaptation.loop import REFUSED, Done
from prm_core.adaptation.rounds import REVIEW, Round, home, rounds
from prm_core.config import Config
from prm_core.labeling.human.labels import FILES, HUMAN_PREFIX, HumanData
from prm_core.platform import store, tracking
from prm_core.platform import workspace as workspaces
from prm_core.review.importing import rewrite
from prm_core.review.session import CHAINS, HUMAN, PROBLEMS, QUEUE
from prm_core.serving.drift import recalibrate
from prm_core.serving.drift import samples as files
from prm_core.serving.drift.outcomes import keep_only, trajectory_id
from prm_core.serving.drift.samples import PREFIX
from prm_core.serving.drift.watch import SAMPLES
from prm_core.serving.drift.withdrawn import Withdrawn, read_withdrawn, withdraw, without
from prm_core.types import Problem, Trajectory


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was taken out.

    Attributes:
        removed: what → how many.
        versions: that it went into, themselves or by what they were trained from.
        chain: those of them that the chain trained, and no round.
    """

    removed: dict[str, int]
    versions: list[str]
    chain: list[str]

    def __str__(self) -> str:
        counts = "; ".join(f"{what}: {count}" for what, count in self.removed.items() if count)
        made = ", ".join(self.versions)
        how = "run the chain again (`prm run`)" if self.chain else "`prm adapt retrain` trains one without"
        trained = f"it went into {made}; {how}" if made else "no version was trained on it"
        return f"removed: {counts or 'nothing was kept of it'}. {trained}"


def forget(workspace: Path, config: Config, what: Withdrawn) -> Forgotten:
    """Takes data out of samples, outcomes, rounds, review queues and people's labels, and of what DVC's cache keeps of
    them. Nothing it names is ever taken in again.

    Of a trajectory what it began with and what went on with it go too.
    """
    folder = workspace / config.drift.folder
    kept = [one for path in _sample_files(workspace, config) for one in files.read(path)[0]]
    mine = [one for one in kept if what.holds(one)]
    parts = {PREFIX + prefix for one in mine for prefix in one.prefixes[:-1]
             if PREFIX + one.prefixes[-1] in what.trajectories}
    # Whoever shares only the beginning with it stays; who is all of a beginning goes.
    what = dataclasses.replace(what, parts=what.parts | parts)
    own = {PREFIX + one.prefixes[-1] for one in kept if what.holds(one)}
    versions = lineage.trained_on(workspace, config, dataclasses.replace(
        what, trajectories=what.trajectories | own))
    chain, known = _of_chain(workspace, config, what), lineage.versions(workspace, config)
    versions = [*chain, *(uri for uri in known if uri in versions or {*lineage.ancestors(uri, known)} & {*chain})]
    withdraw(folder, what)
    return Forgotten(dict(purge(workspace, config)), versions, chain)


def purge(workspace: Path, config: Config) -> Counter[str]:
    """Takes what was ever withdrawn out of everything that is kept; counts what it removes."""
    folder = workspace / config.drift.folder
    gone, counts = read_withdrawn(folder), Counter[str]()
    names = {PREFIX + one.prefixes[-1] for path in _sample_files(workspace, config)
             for one in files.read(path)[0] if gone.holds(one)} | gone.trajectories | gone.parts
    counts["outcomes"] += keep_only(folder, lambda one: one.trajectory not in names)
    for one in rounds(workspace, config):
        counts.update(_purge_round(workspace, config, one, gone, names))
    for review in (home(workspace, config) / REVIEW, folder / recalibrate.REVIEW):
        counts.update(_purge_review(review, gone, names))
    counts["verdicts"] += _purge_human(workspace, gone, names)
    counts["traces"] += drop_traces(workspace, folder, names)
    # Last, since the names above are read from them.
    for path in _sample_files(workspace, config):
        counts["trajectories"] += _purge_samples(path, gone)
    return counts


def _sample_files(workspace: Path, config: Config) -> list[Path]:
    served = [path for _, path in files.files(workspace / config.drift.folder / SAMPLES)]
    return served + [one.window for one in rounds(workspace, config) if one.window.exists()]


def _purge_samples(path: Path, gone: Withdrawn) -> int:
    found, about = files.read(path)
    left = without(found, gone)
    if len(left) < len(found):
        files.write(path, left, about)
    return len(found) - len(left)


def _purge_round(
    workspace: Path, config: Config, one: Round, gone: Withdrawn, names: set[str]
) -> Counter[str]:
    """A round that is over loses texts and verdicts; one that is at work begins anew with what is left, unless its
    version is registered, which is then refused."""
    counts = Counter[str]()
    touched = one.lineage.exists() and lineage.read(one.lineage).made_of(
        dataclasses.replace(gone, trajectories=gone.trajectories | names))
    if not one.over and one.version.exists() and touched:
        uri = store.read_json(one.version)["uri"]
        done = Done(REFUSED, "data that it was made of was withdrawn", one.number, uri)
        store.write_json(one.decision, dataclasses.asdict(done))
    if not one.over and not (touched or _begun_with(one, gone)):
        return counts
    if not one.over:
        for path in (one.queue, one.known, one.lineage, one.figures):
            path.unlink(missing_ok=True)
        for path in (one.model, one.folder / "work"):
            shutil.rmtree(path, ignore_errors=True)
        return counts
    if one.queue.exists() and one.queue.stat().st_size:
        counts["queued steps"] += _keep_rows(one.queue, lambda row: row["trajectory_id"] not in names)
    if one.known.exists():
        labels, outcomes = one.evidence()
        kept = [row for row in labels if row.trajectory_id not in names and not _by(row.strategy, gone)]
        counts["verdicts"] += len(labels) - len(kept)
        one.freeze(kept, [row for row in outcomes if row.trajectory not in names])
    return counts


def _begun_with(one: Round, gone: Withdrawn) -> bool:
    """Whether a round that trains has something withdrawn in its window, its queue or its evidence."""
    known = one.evidence()[0] if one.known.exists() else []
    return any(map(gone.holds, files.read(one.window)[0])) or any(_by(row.strategy, gone) for row in known)


def _by(strategy: str, gone: Withdrawn) -> bool:
    return strategy.removeprefix(HUMAN_PREFIX) in gone.people and strategy.startswith(HUMAN_PREFIX)


def _keep_rows(path: Path, keep: Callable[[dict], bool]) -> int:
    rows = [row for _, row in store.read_json_lines(path)]
    left = [row for row in rows if keep(row)]
    if len(left) < len(rows):
        store.write_jsonl(path, left)
    return len(rows) - len(left)


def _goes(one: Trajectory, prompt: str, gone: Withdrawn, names: set[str]) -> bool:
    """Whether a served trajectory, as people were asked about it, is of what was withdrawn."""
    if one.id.split("@")[0] in names or one.meta.get("tenant") in gone.tenants - {""}:
        return True
    return any(trajectory_id(prompt, one.steps[:count]) in gone.trajectories for count in range(1, len(one.steps) + 1))


def _purge_review(review: Path, gone: Withdrawn, names: set[str]) -> Counter[str]:
    """The queue, the chains and problems beside it, and the verdicts of a review workspace."""
    counts = Counter[str]()
    if (review / CHAINS).is_dir():
        chains = store.read_shards(Trajectory, review / CHAINS)
        path = review / PROBLEMS
        problems = {p.id: p for p in store.read_jsonl(Problem, path)} if path.exists() and path.stat().st_size else {}
        left = [one for one in chains if not _goes(one, problems[one.problem_id].prompt, gone, names)]
        if len(left) < len(chains):
            ids, asked = {one.id for one in left}, {one.problem_id for one in left}
            if (review / QUEUE).stat().st_size:
                counts["queued steps"] += _keep_rows(review / QUEUE, lambda row: row["trajectory_id"] in ids)
            store.write_shard(review / CHAINS, 0, Trajectory, left)
            store.write_jsonl(review / PROBLEMS, [one for one in problems.values() if one.id in asked])
    counts["verdicts"] += _rewrite(review / HUMAN, gone, names)
    return counts


def _rewrite(human: Path, gone: Withdrawn, names: set[str]) -> int:
    removed = 0

    def change(data: HumanData) -> HumanData:
        nonlocal removed
        prompts = {one.id: one.prompt for one in data.problems}
        left = {one.id for one in data.trajectories if not _goes(one, prompts[one.problem_id], gone, names)}
        labels = [row for row in data.labels if row.trajectory_id in left and not _by(row.strategy, gone)]
        removed = len(data.labels) - len(labels)
        return HumanData(data.problems, data.trajectories, labels)

    rewrite(human, change)
    return removed


def _purge_human(workspace: Path, gone: Withdrawn, names: set[str]) -> int:
    """The chain's own human labels, and what DVC's cache has of them."""
    human = workspace / HUMAN
    there = [human / file for file in FILES.values() if (human / file).is_file()]
    before = {path: store.file_digest(path) for path in there}
    copies = dict(zip(there, ([*workspaces.cached(workspace, [path])] for path in there), strict=True)) if (
        gone.people or gone.trajectories or gone.tenants) and there else {}
    removed = _rewrite(human, gone, names)
    changed = [path for path in there if store.file_digest(path) != before[path]]
    for path in changed:
        for copy in copies[path]:
            copy.unlink(missing_ok=True)
    if changed:
        workspaces.record_data(workspace)
    return removed


def _of_chain(workspace: Path, config: Config, what: Withdrawn) -> list[str]:
    """The versions whose chain ran on the data as they are, where a person's labels are among them."""
    from prm_core.labeling.human.labels import read_human
    from prm_core.stages.register import data_hash

    people: Iterable[str] = lineage.people_of(read_human(workspace / HUMAN).labels) if what.people else ()
    if not what.people & set(people) or not tracking.store_exists(workspace):
        return []
    name, now = config.register.model_name, data_hash(workspace)
    found = tracking.connect(workspace).search_model_versions(f"name = '{name}'")
    return [f"models:/{name}/{one.version}" for one in sorted(found, key=lambda one: int(one.version))
            if one.tags.get("data_hash") == now]
