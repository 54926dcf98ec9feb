"""The review page in a real browser: keys, progress, undo, the note, verdicts, two reviewers, a server that is killed.

Needs Chromium (Debian: apt-get install chromium), which Playwright drives; skipped where there is none.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, WebSocketRoute, expect, sync_playwright

from prm_core.labeling.human.labels import read_human
from prm_core.platform import command_server
from prm_core.review.page import LOOK_SECONDS
from prm_core.review.session import HUMAN, Board
from tests.builders import warm_python
from tests.builders.review import write_queue

SIZE = 5
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# What is waited for comes, late on a busy machine; Playwright gives up after 5 s.
expect.set_options(timeout=60_000)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root, which is what containers run as.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if not os.getuid() else [])
        yield started
        started.close()


@pytest.fixture(scope="module")
def quick_review(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a process that imports NiceGUI once and forks itself for each `prm review`. No fork of this one:
    NiceGUI is another inside pytest."""
    path = tmp_path_factory.mktemp("review") / "commands"
    script = ("import sys; from prm_core.cli.app import run_command_line; "
              "from prm_core.platform import command_server; command_server.MODULES = ('prm_core.review.page',); "
              "command_server.serve(sys.argv[1], run_command_line)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], env=environment, stdin=subprocess.PIPE)
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.05)
    yield path
    process.stdin.close()
    process.wait()


class Server:
    """`prm review` as a process."""

    def __init__(self, socket_of_forks: Path, root: Path, *arguments: str) -> None:
        self.root, self.arguments = root, arguments
        # Without what tells NiceGUI that it runs inside pytest.
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        self.environment[command_server.SOCKET] = str(socket_of_forks)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "prm_core.cli", "review", "--no-browser", "--port", str(self.port),
                   "--workspace", str(self.root), *self.arguments]
        self.process = subprocess.Popen(command, env=self.environment, start_new_session=True)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        pytest.fail(f"prm review did not start (exit code {self.process.poll()})")

    def kill(self) -> None:
        warm_python.signal_listener(self.port, signal.SIGKILL)
        self.process.wait(60)


@pytest.fixture
def serve(tmp_path: Path, quick_review: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server on a workspace with a queue of five steps."""
    started: list[Server] = []
    root = write_queue(tmp_path, SIZE)

    def start(*arguments: str) -> Server:
        started.append(Server(quick_review, root, *arguments))
        started[-1].start()
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = new_page(browser)
    yield page
    page.context.close()


def new_page(browser: Browser) -> Page:
    """A page whose stopwatch `press` sets forward and a test may stop; timers and connection are as ever."""
    page = browser.new_context().new_page()
    page.add_init_script("""
        const real = performance.now.bind(performance);
        window.stopwatch = {ahead: 0, stoppedAt: null};
        performance.now = () => (stopwatch.stoppedAt ?? real()) + stopwatch.ahead;
    """)
    return page


def let_pass(page: Page, seconds: float) -> None:
    page.evaluate("seconds => { stopwatch.ahead += 1000 * seconds; }", seconds)


def labels(root: Path, reviewer: str) -> list[tuple[str, int, bool | None, str]]:
    return [(r.trajectory_id, r.step_index, r.is_correct, r.reasoning) for r in read_human(root / HUMAN).labels
            if r.strategy == f"human:{reviewer}"]


def press(page: Page, key: str) -> None:
    """A key, once the step has been before the reader long enough to be judged."""
    let_pass(page, LOOK_SECONDS + 0.01)
    page.keyboard.press(key)


def expect_progress(page: Page, mine: int, asked: int, reviewer: str) -> None:
    expect(page.get_by_text(re.compile(rf"^{mine} of {asked} answered by {reviewer}"))).to_be_visible()


def test_a_review_from_the_name_to_the_end_across_a_killed_server(
    serve: Callable[..., Server], page: Page
) -> None:
    server = serve("--overlap", "1")
    keys = list(Board(server.root, 1.0).items)
    asked_elsewhere = []
    page.on("request", lambda r: asked_elsewhere.append(r.url) if not r.url.startswith(server.url) else None)

    page.goto(server.url)
    page.get_by_label("Your name").fill("bob")
    page.keyboard.press("Enter")
    expect_progress(page, 0, SIZE, "bob")

    press(page, "y")
    expect_progress(page, 1, SIZE, "bob")
    press(page, "ArrowLeft")
    expect_progress(page, 2, SIZE, "bob")
    assert labels(server.root, "bob") == [(*keys[0], True, ""), (*keys[1], False, "")]

    # Undo, then another answer with a note; letters typed into the note are no answers.
    press(page, "u")
    expect_progress(page, 1, SIZE, "bob")
    expect(page.get_by_text("You had answered: wrong")).to_be_visible()
    assert labels(server.root, "bob") == [(*keys[0], True, "")]
    page.keyboard.press("m")
    expect(page.get_by_placeholder("Note (m)")).to_be_focused()
    page.keyboard.type("yes, only why")
    page.keyboard.press("Escape")
    expect(page.get_by_placeholder("Note (m)")).not_to_be_focused()
    press(page, "y")
    expect_progress(page, 2, SIZE, "bob")
    assert labels(server.root, "bob")[1] == (*keys[1], True, "yes, only why")

    # Killed and started again: nothing is lost, the open page finds its way back, and undo reaches further back.
    server.kill()
    server.start()
    expect(page.get_by_text(f"2 of {SIZE} answered by bob, 0 now")).to_be_visible()
    press(page, "u")
    expect_progress(page, 1, SIZE, "bob")
    press(page, "n")
    expect_progress(page, 2, SIZE, "bob")
    press(page, "s")
    expect(page.get_by_text("1 skipped")).to_be_visible()
    for answered in (3, 4):
        press(page, "n")
        expect_progress(page, answered, SIZE, "bob")
    page.get_by_role("button", name="Go through the 1 skipped ones").click()
    expect(page.get_by_text("is it right?")).to_be_visible()
    # A button has the focus now: keys go on working.
    press(page, "y")
    expect(page.get_by_text("Done", exact=True)).to_be_visible()
    expect(page.get_by_text("dvc add data")).to_be_visible()
    given = {(t, i): ok for t, i, ok, _ in labels(server.root, "bob")}
    assert given == dict(zip(keys, (True, False, True, False, False), strict=True))
    assert asked_elsewhere == []


def test_verdicts_stay_hidden_until_asked_for(serve: Callable[..., Server], page: Page) -> None:
    server = serve("--reviewer", "bob")
    page.goto(server.url)
    expect_progress(page, 0, SIZE, "bob")
    said = page.get_by_text("verifier says so")
    expect(said).to_have_count(0)
    page.get_by_placeholder("Note (m)").fill("a draft")
    page.keyboard.press("Escape")
    press(page, "v")
    expect(said).to_be_visible()
    expect(page.get_by_placeholder("Note (m)")).to_have_value("a draft")
    # For one step only …
    press(page, "y")
    expect_progress(page, 1, SIZE, "bob")
    expect(said).to_have_count(0)
    # … unless always asked for.
    page.get_by_role("switch").click()
    expect(said).to_be_visible()
    press(page, "y")
    expect_progress(page, 2, SIZE, "bob")
    expect(said).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_text("How to judge")).to_be_visible()
    press(page, "n")
    expect_progress(page, 2, SIZE, "bob")


def test_a_key_pressed_twice_answers_once(serve: Callable[..., Server], page: Page) -> None:
    server = serve("--reviewer", "bob")
    page.goto(server.url)
    expect_progress(page, 0, SIZE, "bob")
    page.evaluate("stopwatch.stoppedAt = performance.now()")
    press(page, "y")
    page.keyboard.press("y")
    expect(page.get_by_text("too fast")).to_be_visible()
    expect_progress(page, 1, SIZE, "bob")
    # The new step is there, but not for long enough.
    let_pass(page, LOOK_SECONDS - 0.05)
    page.keyboard.press("y")
    # The same notice again is counted, not shown twice.
    expect(page.locator(".q-notification__badge")).to_have_text("2")
    assert len(labels(server.root, "bob")) == 1
    press(page, "y")
    expect_progress(page, 2, SIZE, "bob")


class SlowUpdates:
    """A page to which the server's messages come only when they are let through; its own go out at once."""

    def __init__(self, page: Page) -> None:
        self.page, self.held = page, None
        page.route_web_socket("**/*", self._connect)

    def _connect(self, socket: WebSocketRoute) -> None:
        server = socket.connect_to_server()
        self.socket = socket
        socket.on_message(server.send)
        server.on_message(lambda message: socket.send(message) if self.held is None else self.held.append(message))

    def hold(self) -> None:
        self.page.wait_for_function("window.did_handshake")
        self.held = []

    def release(self) -> None:
        held, self.held = self.held, None
        for message in held:
            self.socket.send(message)


def wait_until(page: Page, holds: Callable[[], bool]) -> None:
    """Waits for what the page does not show."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        page.wait_for_timeout(20)


def test_a_key_is_for_the_step_that_is_shown_however_late_the_next_one_comes(
    serve: Callable[..., Server], page: Page
) -> None:
    server, updates = serve("--reviewer", "bob"), SlowUpdates(page)
    page.goto(server.url)
    expect_progress(page, 0, SIZE, "bob")
    first = page.locator(".step").inner_text()
    updates.hold()
    press(page, "y")
    wait_until(page, lambda: len(labels(server.root, "bob")) == 1)
    for key in ("y", "n", "s", "ArrowLeft"):
        press(page, key)
    assert page.locator(".step").inner_text() == first
    updates.release()
    # An answer to the second step is the next one that counts; none of the keys before was taken for one.
    expect(page.get_by_text("too fast").first).to_be_visible()
    expect_progress(page, 1, SIZE, "bob")
    press(page, "n")
    expect_progress(page, 2, SIZE, "bob")
    keys = list(Board(server.root, 1.0).items)
    assert labels(server.root, "bob") == [(*keys[0], True, ""), (*keys[1], False, "")]


def test_no_key_is_lost_while_the_page_is_busy(serve: Callable[..., Server], page: Page) -> None:
    """A key on each step as soon as it may be judged, while the page draws at a crawl and looks for news all along."""
    server = serve("--reviewer", "bob")
    page.goto(server.url)
    page.context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": 6})
    for n in range(SIZE):
        expect_progress(page, n, SIZE, "bob")
        press(page, "yn"[n % 2])
    wait_until(page, lambda: len(labels(server.root, "bob")) == SIZE)
    assert [ok for _, _, ok, _ in labels(server.root, "bob")] == [n % 2 == 0 for n in range(SIZE)]


def test_letters_of_a_note_are_no_answers_however_late_the_server(serve: Callable[..., Server], page: Page) -> None:
    server, updates = serve("--reviewer", "bob"), SlowUpdates(page)
    page.goto(server.url)
    expect_progress(page, 0, SIZE, "bob")
    updates.hold()
    press(page, "m")
    page.keyboard.type("nay, so")
    page.keyboard.press("Escape")
    press(page, "y")
    wait_until(page, lambda: bool(labels(server.root, "bob")))
    updates.release()
    expect_progress(page, 1, SIZE, "bob")
    assert [row[2:] for row in labels(server.root, "bob")] == [(True, "nay, so")]


def test_two_reviewers_at_once_and_their_agreement(serve: Callable[..., Server], browser: Browser) -> None:
    servers = [serve("--overlap", "1"), serve("--overlap", "1")]
    pages = [new_page(browser) for _ in servers]
    for name, server, page in zip(("bob", "cem"), servers, pages, strict=True):
        page.goto(f"{server.url}/?reviewer={name}")
    verdicts = (("y", "y", "n", "y", "n"), ("y", "n", "n", "y", "n"))
    for n in range(SIZE):
        for name, page, keys in zip(("bob", "cem"), pages, verdicts, strict=True):
            expect_progress(page, n, SIZE, name)
            press(page, keys[n])
            expect_progress(page, n + 1, SIZE, name)
    root = servers[0].root
    assert [len(labels(root, name)) for name in ("bob", "cem")] == [SIZE, SIZE]
    # observed 4/5; chance 3/5 · 2/5 + 2/5 · 3/5 = 0.48; (0.8 - 0.48) / 0.52
    expect(pages[1].get_by_text("bob and cem: 5 steps judged by both, 80% alike, Cohen's kappa 0.62")).to_be_visible()
    for page in pages:
        page.context.close()


def test_a_port_in_use_is_told(serve: Callable[..., Server]) -> None:
    server = serve()
    command = [sys.executable, "-m", "prm_core.cli", "review", "--port", str(server.port), "--workspace",
               str(server.root)]
    done = subprocess.run(command, env=server.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{server.port}" in done.stderr
