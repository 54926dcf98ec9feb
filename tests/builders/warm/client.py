"""`python client.py -m MODULE ARGUMENTS…` is `python -m MODULE ARGUMENTS…` in a fork of tests.builders.warm_python."""

import importlib.util
import sys
from pathlib import Path

# By its path: the package around it imports the whole command line.
path = Path(__file__).parents[3] / "prm_core/platform/command_server.py"
spec = importlib.util.spec_from_file_location("command_server", path)
command_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(command_server)
command_server.SOCKET = "PRM_TESTS_PYTHON"
del sys.argv[0]
sys.exit(command_server.forward())
