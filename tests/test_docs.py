"""README.md and docs/ say what is: links, paths, functions, settings and commands exist, and the recipes of
docs/extending.md work as they stand. Commands are run for real by `make docs` (tests/run_docs.py)."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer

from prm_core.cli.app import app
from prm_core.config import Config
from tests import ROOT
from tests.builders import warm_python
from tests.run_docs import Block, blocks, pages

PAGES = {page.relative_to(ROOT).as_posix(): page for page in pages()}
TEXTS = {name: re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8")) for name, page in PAGES.items()}
BLOCKS = [block for page in PAGES.values() for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
# Programs whose own command lines are theirs; only that they are called is checked.
OTHERS = {"accelerate", "cat", "cd", "curl", "docker", "dvc", "echo", "export", "git", "head", "mlflow", "pip",
          "prefect", "ray", "transformers"}
LANGUAGES = {"sh", "text", "python", "diff", "json", "yaml"}
SEPARATORS = {";", "&&", "||", "|", "&"}
CLI: Any = typer.main.get_command(app)


def code(name: str) -> list[str]:
    """What stands in backticks on a page, fenced blocks aside."""
    return re.findall(r"`([^`\n]+)`", TEXTS[name])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block as words: here-documents, comments and redirections left out."""
    lines, pending = iter(text.splitlines()), ""
    for line in lines:
        pending += line + "\n"
        try:
            words = list(_lexer(pending.replace("\\\n", " ")))
        except ValueError:
            # A quotation that goes on in the next line.
            continue
        if pending.endswith("\\\n"):
            continue
        pending = ""
        if "<<" in words:
            end = words[words.index("<<") + 1]
            while next(lines) != end:
                pass
        yield from _split(words)
    assert not pending, f"unfinished: {pending}"


def _lexer(text: str) -> shlex.shlex:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    return lexer


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    command: list[str] = []
    redirected = False
    for word in [*words, ";"]:
        if word in SEPARATORS:
            if command:
                yield command
            command = []
        elif redirected or word in (">", ">>", "<", "<<"):
            redirected = not redirected
        elif command or not re.fullmatch(r"[A-Z_]+=\S*", word):
            command.append(word)


def parse_prm(arguments: Sequence[str]) -> None:
    """Parses a command line of `prm` without running it. Raises what the parser raises."""
    command, rest = CLI, list(arguments)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    assert not (hasattr(command, "commands") and rest and not rest[0].startswith("-")), f"no such command: {rest[0]}"
    if rest != ["--help"]:
        command.make_context("prm", rest)


def check(command: Sequence[str]) -> None:
    """Asserts that a command could be typed: the program, its target, module, options and arguments exist."""
    program, *rest = command
    if program == "prm":
        parse_prm(rest)
    elif program == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS, command
    elif program == "python":
        if rest != ["-"]:
            assert rest[0] == "-m", command
            assert importlib.util.find_spec(rest[1]) is not None, command
    else:
        assert program in OTHERS, command
        if "prm_core.cli" in rest:
            parse_prm(rest[rest.index("prm_core.cli") + 1 :])


def test_every_page_is_named_by_the_readme_and_says_what_it_is_for() -> None:
    assert {page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md")} == set(PAGES) - {"README.md"}
    for name in set(PAGES) - {"README.md"}:
        title, _, first, *_ = TEXTS[name].splitlines()
        assert title.startswith("# "), name
        assert first.startswith("This page is for "), name


def test_the_readme_begins_with_the_two_commands() -> None:
    first = blocks(PAGES["README.md"])[0]
    assert (first.line, first.text) == (1, "make run\nmake test\n")


@pytest.mark.parametrize("name", PAGES)
def test_links_and_anchors_resolve(name: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        page = (PAGES[name].parent / path).resolve() if path else PAGES[name]
        assert page.exists(), f"{name}: {target}"
        assert not anchor or anchor in anchors(page), f"{name}: {target}"


def defined(path: Path, name: str) -> bool:
    """Whether a module defines a function or class, or `Class.method`."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        node = next((one for one in body if isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == part), None)
        if node is None:
            return False
        body = node.body
    return True


@pytest.mark.parametrize("name", PAGES)
def test_paths_functions_and_modules_exist(name: str) -> None:
    for said in code(name):
        place = re.fullmatch(r"((?:prm_core|flows|tests|benchmarks|docs)/[\w./*-]*)(?::([\w.]+))?", said)
        if place:
            path, function = place.groups()
            assert list(ROOT.glob(path.rstrip("/"))), f"{name}: {said}"
            assert function is None or defined(ROOT / path, function), f"{name}: {said}"
        if re.fullmatch(r"(prm_core|flows|benchmarks)(\.\w+)+", said):
            assert importlib.util.find_spec(said) is not None, f"{name}: {said}"


@pytest.mark.parametrize("name", PAGES)
def test_settings_exist(name: str) -> None:
    sections = {field.name for field in dataclasses.fields(Config)}
    for said in code(name):
        first, *rest = said.split(".")
        if first not in sections or not rest or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", said) or rest == ["dvc"]:
            continue
        kind: Any = Config
        for part in (first, *rest):
            assert dataclasses.is_dataclass(kind), f"{name}: {said}"
            assert part in get_type_hints(kind), f"{name}: {said}"
            kind = get_type_hints(kind)[part]


@pytest.mark.parametrize("name", PAGES)
def test_commands_named_in_the_text_exist(name: str) -> None:
    for said in code(name):
        program, *words = said.split()
        if program == "make" and words:
            assert words[0] in TARGETS, f"{name}: {said}"
        if program == "prm" and words:
            command = CLI
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= options | {"--help"}, f"{name}: {said}"
            assert command is not CLI, f"{name}: {said}"


@pytest.mark.parametrize("block", SHELL, ids=lambda block: f"{block.page}:{block.line}")
def test_commands_of_a_block_could_be_typed(block: Block) -> None:
    assert not block.info or re.match(r"(skip: \S|server$|server: http)", block.info), block.info
    found = list(commands(block.text))
    assert found
    for command in found:
        check(command)


def test_blocks_say_what_they_are() -> None:
    assert {block.language for block in BLOCKS} <= LANGUAGES
    assert [block for block in BLOCKS if block.info and block.language != "sh"] == []


@pytest.mark.parametrize("wrong", [
    "prm serve --prot 1", "prm nope", "prm stage", "make nothing", "python -m prm_core.no", "pmr run",
    "prm run --review-hours soon", "cat x | prm score", "A=1 prm data nope",
])
def test_a_command_that_is_none_is_found(wrong: str) -> None:
    *_, last = commands(wrong)
    # The parser's errors are of typer's own click.
    with pytest.raises(Exception, match=r"."):
        check(last)


def apply(block: Block, root: Path) -> Path | None:
    """Writes the file a block names, or changes it; returns a test it wrote."""
    first, _, rest = block.text.partition("\n")
    if block.language == "python":
        path = root / first.removeprefix("# ")
        assert not path.exists(), f"{block.page}:{block.line}: {path.name} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rest, encoding="utf-8")
        return path if path.name.startswith("test_") else None
    path = root / first.removeprefix("--- ")
    text = path.read_text(encoding="utf-8")
    for hunk in rest.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(before) == 1, f"{block.page}:{block.line}: {path.name} does not hold this once:\n{before}"
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")
    return None


def test_the_recipes_work_as_they_stand(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "prm_core", tmp_path / "prm_core", ignore=without)
    shutil.copytree(ROOT / "tests" / "builders", tmp_path / "tests" / "builders", ignore=without)
    for name in ("__init__.py", "test_structure.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path / "tests")
    recipes = [block for block in blocks(PAGES["docs/extending.md"]) if block.language in ("python", "diff")]
    brought = [path for block in recipes if (path := apply(block, tmp_path)) is not None]
    assert len(brought) == 5
    for path in brought:
        assert (ROOT / path.relative_to(tmp_path)).parent.is_dir(), "a test lies where its module does"
    (tmp_path / "changed.py").write_text(
        "import sys, pytest\n"
        "# The copy's modules instead of those that this process's parent has imported.\n"
        "for name in [name for name in sys.modules if name.partition('.')[0] in ('prm_core', 'tests')]:\n"
        "    del sys.modules[name]\n"
        "from prm_core.stages import graph\n"
        "tests = sys.argv[1:]\n"
        "del sys.argv[1:]\n"
        "graph.main()\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *tests]))\n")
    # That a config can still be checked at once is what a recipe breaks first.
    light = "tests/test_structure.py::test_a_config_is_checked_without_heavy_imports"
    done = warm_python.run("changed", *map(str, brought), light, cwd=tmp_path,
                           env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "prm_core/stages/label_figure.py" in (tmp_path / "dvc.yaml").read_text(encoding="utf-8")
