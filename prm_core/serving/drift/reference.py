"""What a model's traffic is compared with: the trajectories it was calibrated on, as samples in its own folder.

They go with the model, so that its digest binds weights, calibrator and traffic; what reads turns is named beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prm_core.errors import InputError
from prm_core.platform import store, sums
from prm_core.serving.drift import samples as files
from prm_core.serving.drift.samples import Sample, first_of_each, sample
from prm_core.types import Problem, Trajectory

FILE = "reference.parquet"


@dataclass(frozen=True, slots=True)
class Reference:
    """Attributes:
        traffic: whose trajectories these are, in words.
        renderer: version of how turns became text.
        samples: of them.
    """

    traffic: str
    renderer: int
    samples: Sequence[Sample]

    def save(self, folder: Path) -> None:
        """Writes the file beside a model's weights, and the folder's digests again. Raises InputError where its files
        are not as those record them."""
        sums.check_sums(folder, "copy the model's folder whole or make it again")
        files.write(folder / FILE, self.samples, {"traffic": self.traffic, "renderer": str(self.renderer)})
        sums.write_sums(folder)

    @staticmethod
    def load(folder: Path) -> Reference:
        """What `save` wrote. Raises InputError where a model has none."""
        path = folder / FILE
        if not path.is_file():
            raise InputError(f"{folder}: the model has no {FILE}, so there is nothing to compare its traffic with; "
                             "register it again (`dvc repro --force --single-item register`)")
        found, about = files.read(path)
        try:
            return Reference(about["traffic"], int(about["renderer"]), found)
        except (KeyError, ValueError):
            raise InputError(f"{path}: does not say whose trajectories these are; copy the model's folder whole, or "
                             "register it again") from None


def of_evaluation(
    trajectories: Path, scores: Path, problems: Mapping[str, Sequence[Problem]], *, threshold: float, renderer: int
) -> Reference:
    """The base policy's first trajectories of problems held out of training: what the calibration error that
    promotion goes by was measured on.

    Args:
        trajectories, scores: folder and file that the stage evaluate wrote.
        problems: split → its problems.
        threshold: a step that scores lower is called wrong.
    """
    found = evaluated(trajectories, scores, {f"{split}-base": given for split, given in problems.items()},
                      threshold=threshold, renderer=renderer)
    return Reference(f"the base policy's on {' and '.join(problems)} problems", renderer, first_of_each(found))


def evaluated(
    trajectories: Path, scores: Path, problems: Mapping[str, Sequence[Problem]], *, threshold: float, renderer: int
) -> list[Sample]:
    """Samples of all trajectories of an evaluation that the model saw whole.

    Args:
        problems: what they were sampled under, as `dev-base` → its problems; others are left out.
    """
    said = {record["trajectory_id"]: record for _, record in store.read_json_lines(scores)}
    prompts = {tag: {problem.id: problem.prompt for problem in given} for tag, given in problems.items()}
    found = []
    for one in store.read_shards(Trajectory, trajectories):
        asked, record = prompts.get(one.id.split("/", 1)[0]), said.get(one.id, {})
        if asked and one.steps and len(record.get("step_scores") or ()) == len(one.steps):
            doubt = record["out_of_domain"]
            found.append(sample(asked[one.problem_id], one.steps, record["step_scores"], time=0.0, threshold=threshold,
                                renderer=renderer, in_domain=None if doubt is None else not doubt))
    return found
