"""`python -m dvc` while tests.builders.warm_dvc runs: hands the command over, or runs it here if nobody listens."""

import importlib.util
import runpy
import sys
from pathlib import Path

# By its path: the package around it imports the whole command line.
path = Path(__file__).parents[4] / "prm_core/platform/command_server.py"
spec = importlib.util.spec_from_file_location("command_server", path)
command_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(command_server)
command_server.SOCKET = "PRM_TESTS_DVC"
code = command_server.forward()
if code is None:
    here = str(Path(__file__).parents[1])
    sys.path[:] = [entry for entry in sys.path if entry != here]
    for name in [name for name in sys.modules if name.partition(".")[0] == "dvc"]:
        del sys.modules[name]
    runpy.run_module("dvc", run_name="__main__", alter_sys=True)
sys.exit(code)
