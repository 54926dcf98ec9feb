"""dvc.yaml from the code: each stage's files and params as it declares them, and the modules its result depends on.

    python -m prm_core.stages.graph            writes the section `stages` of dvc.yaml anew
    python -m prm_core.stages.graph --check    says what it would change, and exits with 1 if it would

A stage depends on every module that its own imports, directly or through others, wherever the import stands, and on
what lies in folders beside those. Modules that carry values without making them are left out. Needs grimp, which the
tests bring.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prm_core.platform import store
from prm_core.platform.environment import project_root
from prm_core.stages.base import CHAIN, Stage, load_stage, sums_path

if TYPE_CHECKING:
    from grimp import ImportGraph

# A change in one of these, or in a module below them, is no reason to run a stage again.
PLUMBING = ("prm_core.types", "prm_core.errors", "prm_core.registry", "prm_core.config", "prm_core.platform",
            "prm_core.stages.base", "prm_core.stages.graph")
# The output that `dvc metrics show` lists. All outputs are in DVC's cache, figures too: kept out of it, they would be
# lost to whoever clones and pulls.
HEADLINE = "headline"
START, END = "\nstages:\n", "\n\n\n"


def build_imports() -> ImportGraph:
    """Who imports whom in prm_core, also inside functions, but not for type checking alone."""
    import grimp

    return grimp.build_graph("prm_core", exclude_type_checking_imports=True, cache_dir=None)


def code_of(stage: str, imports: ImportGraph) -> list[str]:
    """Paths, from the project's root, of the modules that a stage's result depends on."""
    found: set[str] = set()
    todo = [f"prm_core.stages.{stage}"]
    while todo:
        module = todo.pop()
        if module in found or any(module == one or module.startswith(f"{one}.") for one in PLUMBING):
            continue
        found.add(module)
        todo += imports.find_modules_directly_imported_by(module)
        # Importing a module runs its packages' __init__ first; one that imports nothing only describes.
        parents = [module.rsplit(".", n)[0] for n in range(1, module.count("."))]
        todo += [one for one in parents if imports.find_modules_directly_imported_by(one)
                 and one != "prm_core.stages"]
    root = Path(__file__).parents[2]
    files: set[Path] = set()
    for module in found:
        path = root.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        # What lies beside the outermost modules are profiles, of which a stage's params say what it takes.
        files |= {file, *(_beside(file.parent) if module.count(".") > 1 or path.is_dir() else ())}
    return sorted(file.relative_to(root).as_posix() for file in files)


def _beside(package: Path) -> Iterator[Path]:
    """What a package holds that is no module, such as templates."""
    for path in package.iterdir():
        if path.is_dir() and not (path / "__init__.py").exists() and path.name != "__pycache__":
            yield from (file for file in path.rglob("*") if file.is_file())


def _entry(name: str, stage: Stage, code: list[str]) -> Iterator[str]:
    """The lines of a stage."""
    yield f"  {name}:"
    yield f"    cmd: prm stage {name}"
    outputs = [*(path for key, path in stage.outputs.items() if key != HEADLINE), sums_path(name)]
    for title, items in (("deps", [*stage.inputs.values(), *code]), ("params", stage.params), ("outs", outputs)):
        if items:
            yield f"    {title}:"
            yield from (f"      - {item}" for item in items)
    if HEADLINE in stage.outputs:
        yield "    metrics:"
        yield f"      - {stage.outputs[HEADLINE]}"


def render(text: str) -> str:
    """A dvc.yaml with its section `stages` made anew; the comment above it and what follows it stay.

    Args:
        text: the file as it is.
    """
    head, rest = text.split(START, 1)
    tail = rest.split(END, 1)[1]
    imports = build_imports()
    stages = "\n\n".join("\n".join(_entry(name, load_stage(name), code_of(name, imports))) for name in CHAIN)
    return f"{head}{START}{stages}{END}{tail}"


def main() -> int:
    """Writes dvc.yaml, or with --check only compares."""
    parser = argparse.ArgumentParser(prog="python -m prm_core.stages.graph", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if dvc.yaml would change")
    given = parser.parse_args()
    path = project_root() / "dvc.yaml"
    before = path.read_text(encoding="utf-8")
    after = render(before)
    changes = list(difflib.unified_diff(before.splitlines(True), after.splitlines(True), "dvc.yaml", "from the code"))
    sys.stdout.writelines(changes)
    if changes and not given.check:
        store.write_text(path, after)
    return int(bool(changes) and given.check)


if __name__ == "__main__":
    sys.exit(main())
