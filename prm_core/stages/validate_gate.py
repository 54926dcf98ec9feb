"""Stage `validate_gate`: stops the chain when a critical expectation failed.

A stage of its own because DVC keeps no output of a stage that fails: the quarantine and the data docs are `validate`'s
outputs and stay.
"""

from __future__ import annotations

from prm_core.config import Config
from prm_core.errors import GateError
from prm_core.platform import store
from prm_core.stages.base import Stage, StageIO


def run(config: Config, io: StageIO) -> None:
    """Writes that the labels passed. Raises GateError naming each failed critical expectation, the figure, the bound
    and the quarantine file."""
    result = store.read_json(io.inputs["result"])
    critical = [check for check in result["expectations"] if check["critical"]]
    failed = [check for check in critical if not check["success"]]
    if failed:
        faults = "; ".join(
            f"{check['name']} on {check['table']}.{check['column']}: observed {_shown(check['observed'])}, "
            f"demanded {check['bound']}" for check in failed
        )
        raise GateError(f"labels may not pass: {faults}. Failing rows: {result['quarantine']}; all expectations: "
                        f"{result['docs']}; bounds: section validate of params.yaml")
    # Nothing of the comparison with an earlier run: the same labels must give the same file, or what is made of it
    # would be made again.
    own = sum(check["name"] != "drift" for check in critical)
    figures = {name: value for name, value in result["figures"].items() if not name.startswith("failed_")}
    store.write_json(io.outputs["passed"], {"critical_expectations": own, "figures": figures})


def _shown(observed: float | str | None) -> str:
    return f"{observed:.4g}" if isinstance(observed, float) else str(observed)


STAGE = Stage(
    inputs={"result": "artifacts/validate/result.json"},
    outputs={"passed": "artifacts/validate_gate/passed.json"},
    params=(),
    run=run,
)
