#!/bin/sh
# grimp 3.19 (PyPI; the import graph under import-linter): what a module imports "upstream" leaves out the __init__ of the
# module's own packages, and all that those import, although Python runs them before the module.
#
# One would guess that find_upstream_modules names every module of the package that `import app.plugins.one` executes: it
# is used to decide what must be rebuilt or tested after a change. Here app.plugins registers app.rules in its __init__,
# so that a change in app.rules changes what app.plugins.one sees; grimp does not name it. Who derives build dependencies
# from the graph has to add the parents' __init__, and what they import, himself.
#
# Seen:
#   executed by `import app.plugins.one`: app app.plugins app.plugins.one app.rules
#   upstream of app.plugins.one by grimp: (none)
set -e
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv env
env/bin/python -m pip install -q --disable-pip-version-check grimp==3.19
mkdir -p app/plugins
: > app/__init__.py
echo 'RULES = ["a rule"]' > app/rules.py
echo 'from app import rules' > app/plugins/__init__.py
echo 'NAME = "one"' > app/plugins/one.py
cat > look.py <<'PY'
import sys

import grimp

import app.plugins.one

executed = sorted(name for name in sys.modules if name.split(".")[0] == "app")
upstream = sorted(grimp.build_graph("app", cache_dir=None).find_upstream_modules("app.plugins.one"))
print("executed by `import app.plugins.one`:", *executed)
print("upstream of app.plugins.one by grimp:", *(upstream or ["(none)"]))
assert executed == ["app", "app.plugins", "app.plugins.one", "app.rules"], executed
assert upstream == [], upstream
PY
env/bin/python look.py
