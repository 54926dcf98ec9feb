"""What a broken rule means to those who ask: in answers over HTTP, and as feedback on the spans of traces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core import config as configuration
from prm_core.errors import InputError, OverloadError
from prm_core.labeling.rule_judge import overseer_of
from prm_core.rules.constitution import SEVERITIES
from prm_core.rules.verdicts import Overseer, Verdict
from prm_core.serving.analysis import TrajectoryAnalysis, Violation

if TYPE_CHECKING:
    from mlflow.entities import Assessment

    from prm_core.types import Step

# After which it is worth asking a judge again.
JUDGE_SECONDS = 5.0
# Of feedback: its name's beginning, and the metadata by which ours is known.
FEEDBACK, RULE, VERSION = "rule/", "rule", "rules_version"


def rules_of(workspace: Path) -> Overseer | None:
    """The rules of a workspace, by the section `rules` of its params.yaml; None where it has neither."""
    if not (workspace / configuration.PARAMS_FILE).is_file():
        return None
    return overseer_of(configuration.load(workspace), workspace)


@dataclass(frozen=True, slots=True)
class Guard:
    """Rules, and from which severity on a broken one blocks.

    Attributes:
        overseer: judges.
        block: `none` or a severity.
    """

    overseer: Overseer
    block: str = "none"

    def broken(self, chains: Sequence[tuple[str, Sequence[Step]]]) -> list[list[list[Verdict]]]:
        """Of each chain, of each step the verdicts of the rules that it breaks. Raises OverloadError where a judge that
        a rule asks does not answer, which is no fault of who asked us."""
        try:
            return self.overseer.breaks(chains)
        except InputError as error:
            raise OverloadError(str(error), JUDGE_SECONDS, "deadline") from None

    def tell(self, analysis: TrajectoryAnalysis, broken: Sequence[Sequence[Verdict]]) -> None:
        """Puts the violations into an answer. One that blocks takes the overall score, by which chains are chosen, to
        0; the steps' scores stay what they are, probabilities that the steps are right."""
        analysis.violations = [
            Violation(step_index=index, rule=one.rule.id, severity=one.rule.severity, probability=one.probability,
                      reason=one.reason or one.rule.text, **one.told())
            for index, step in enumerate(broken) for one in step]
        if self.block != "none":
            least = SEVERITIES.index(self.block)
            analysis.blocked = any(one.rule.rank >= least for step in broken for one in step)
            if analysis.blocked:
                analysis.overall_score = 0.0


def write_feedback(
    trace_id: str, refs: Sequence[str], broken: Sequence[Sequence[Verdict]], assessments: Sequence[Assessment],
    version: str,
) -> Counter[str]:
    """Has a trace hold a feedback `rule/ID` on each span that breaks a rule, once: the probability, and why. Counts
    what it does: `broken` logged, `removed` of other rules or there twice; what somebody corrected stays.

    Args:
        refs: the spans of the steps.
        broken: of each step.
        assessments: that the trace has.
        version: of the rules.
    """
    import mlflow
    from mlflow.entities import AssessmentSource

    wanted = {(ref, one.rule.id): one for ref, step in zip(refs, broken, strict=True) for one in step}
    overridden = {one.overrides for one in assessments if one.overrides}
    kept: set[tuple[str, str]] = set()
    counts: Counter[str] = Counter()
    for one in assessments:
        about: Mapping[str, str] = one.metadata or {}
        if one.source.source_type != "CODE" or not {RULE, VERSION} <= set(about):
            continue
        place = (one.span_id or "", about[RULE])
        corrected = one.assessment_id in overridden or one.last_update_time_ms != one.create_time_ms
        if corrected or (place in wanted and place not in kept and about[VERSION] == version):
            kept.add(place)
        else:
            mlflow.delete_assessment(trace_id, one.assessment_id)
            counts["removed"] += 1
    for (ref, rule), verdict in wanted.items():
        if (ref, rule) not in kept:
            mlflow.log_feedback(
                trace_id=trace_id, span_id=ref, name=f"{FEEDBACK}{rule}", value=verdict.probability,
                source=AssessmentSource("CODE", f"rules@{version}"), rationale=verdict.reason or verdict.rule.text,
                metadata={RULE: rule, VERSION: version, "severity": verdict.rule.severity})
            counts["broken"] += 1
    return counts
