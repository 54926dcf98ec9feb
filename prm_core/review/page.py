"""The review page: NiceGUI elements over a `Session`, served on this machine only. All state is in session.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

from nicegui import app, events, ui

from prm_core.errors import InputError
from prm_core.labeling.human.agreement import agreement, describe
from prm_core.labeling.human.labels import StepKey
from prm_core.platform.guard import OnlyOwn
from prm_core.review import pause
from prm_core.review.files import reviewer_name
from prm_core.review.session import Board, Progress, Session

HOST = "127.0.0.1"
# An answer that comes sooner after the step than this was meant for the step before it (a key pressed twice).
LOOK_SECONDS = 0.3
# A browser that does not answer for longer, as on a machine that is busy, is given up: its page loads anew, and keys
# pressed meanwhile are lost.
RECONNECT_SECONDS = 60.0
# How often a page looks for what other windows, reviewers and runs have done.
REFRESH_SECONDS = 3.0
KEYS = {
    "y  →": "the step is right",
    "n  ←": "the step is wrong",
    "s": "skip: it comes back at the end",
    "u": "undo, as often as you like",
    "v": "show or hide what the strategies say",
    "m": "write a note (Esc ends it)",
    "?": "this help",
}
GUIDE = (
    "Judge this step alone: is it right, given the question and the steps before it? Where an earlier step is wrong, "
    "one that goes on from it correctly is right all the same. Skip what you cannot tell."
)
CSS = """
.nicegui-content { padding: 0; height: 100vh; }
.review { height: 100vh; width: 100%; display: flex; flex-direction: column; }
.review .text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05rem; line-height: 1.5; }
.review .step { font-size: 1.3rem; line-height: 1.45; font-weight: 500; }
.review .caption { font-size: .75rem; letter-spacing: .06em; text-transform: uppercase; opacity: .65; }
.review .scroll { overflow-y: auto; }
.review .steps .q-scrollarea__content { padding: 0; gap: 0; }
.review .caption { flex-shrink: 0; }
"""


# Browser and server are never at the same step for sure. So the browser says with a key which drawing of a step was
# before the reader and for how long; and it alone moves the focus, else letters of a note would be taken for answers.
DRAWN = "() => { if (window.review?.drawing !== NUMBER) window.review = {drawing: NUMBER, at: performance.now()}; }"
SEEN = "{drawing: window.review?.drawing, seconds: (performance.now() - window.review?.at) / 1000}"
ON_KEY = """(e) => {
    if (e.action !== "keydown" || e.ctrlKey || e.altKey || e.metaKey) return;
    const note = document.querySelector("footer textarea");
    if (e.key === "m" && note && !document.querySelector(".q-dialog")) {
        // Else the letter would be the first one of the note.
        e.event.preventDefault();
        note.focus();
        return;
    }
    emit({key: e.key, ...SEEN});
}""".replace("SEEN", SEEN)


class ReviewPage:
    """One browser window of a reviewer.

    Args:
        session: shared by all windows of the reviewer.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._always = self._revealed = False
        # The step that is drawn, as which drawing; what else is drawn.
        self._key: StepKey | None = None
        self._drawing = 0
        self._progress: Progress | None = None
        self._note: ui.textarea | None = None
        ui.add_css(CSS)
        with ui.dialog() as self._help, ui.card():
            self._fill_help()
        with ui.element("div").classes("review"):
            self._header()
            self._body()
        ui.keyboard(repeating=False, ignore=["input", "textarea"]).on("key", self._on_key, js_handler=ON_KEY)
        ui.timer(REFRESH_SECONDS, self._look_again)

    # --- what a reviewer does -----------------------------------------------------------------------------------------

    def _on_key(self, event: events.GenericEventArguments) -> None:
        actions: dict[str, Callable[[], None]] = {
            "y": partial(self._answer, True, event), "ArrowRight": partial(self._answer, True, event),
            "n": partial(self._answer, False, event), "ArrowLeft": partial(self._answer, False, event),
            "s": partial(self._skip, event), "u": self._undo, "v": partial(self._reveal, event), "?": self._help.open,
        }
        action = actions.get(event.args["key"])
        # The dialog closes itself with Esc; a key that is meant for it is no answer.
        if action and not self._help.value:
            action()

    def _do(self, change: Callable[[], object]) -> None:
        """Makes a change and shows what came of it, refusals included."""
        try:
            change()
        except InputError as error:
            ui.notify(str(error), type="warning", position="top", multi_line=True, close_button="OK")
        self._show()

    def _was_before_the_reader(self, event: events.GenericEventArguments, seconds: float = 0.0) -> bool:
        """Whether the current step was drawn, for so long, when the key or button was pressed; tells if not."""
        item = self.session.current
        if (item is not None and item.key == self._key and event.args.get("drawing") == self._drawing
                and event.args["seconds"] >= seconds):
            return True
        ui.notify("That was too fast for the new step: nothing recorded", type="info", position="top")
        self._show()
        return False

    def _answer(self, verdict: bool, event: events.GenericEventArguments) -> None:
        item = self.session.current
        if item is not None and self._was_before_the_reader(event, LOOK_SECONDS):
            self._do(lambda: self.session.answer(item.key, verdict, self._draft))

    def _skip(self, event: events.GenericEventArguments) -> None:
        item = self.session.current
        if item is not None and self._was_before_the_reader(event):
            self._do(lambda: self.session.skip(item.key))

    def _undo(self) -> None:
        def undo() -> None:
            if not self.session.undo():
                ui.notify("Nothing to undo", type="info", position="top")
        self._do(undo)

    def _reveal(self, event: events.GenericEventArguments) -> None:
        if self.session.current is not None and self._was_before_the_reader(event):
            self._revealed = not self._revealed
            self._show(anew=True)

    def _set_always(self, event: events.ValueChangeEventArguments) -> None:
        self._always = event.value
        self._show(anew=True)

    def _look_again(self) -> None:
        self._do(self.session.refresh)

    # --- what a reviewer sees -----------------------------------------------------------------------------------------

    def _show(self, anew: bool = False) -> None:
        """Draws again what has changed. What others do changes the header only: a reader is not disturbed."""
        progress_changed = self.session.progress() != self._progress
        if progress_changed:
            self._header.refresh()
        key = self.session.current.key if self.session.current else None
        if anew or key != self._key or (key is None and progress_changed):
            self._body.refresh()

    @property
    def _draft(self) -> str:
        """The note as typed so far."""
        return self._note.value or "" if self._note else ""

    @ui.refreshable_method
    def _body(self) -> None:
        item = self.session.current
        key = item.key if item else None
        draft = self._draft if key == self._key else None
        if key != self._key:
            self._key, self._drawing, self._revealed = key, self._drawing + 1, False
        if item is None:
            self._note = None
            self._finished()
            return
        with ui.element("main").classes("grow min-h-0 w-full max-w-6xl mx-auto px-6 py-4 flex flex-row gap-6"):
            with ui.column().classes("h-full min-w-0 no-wrap gap-4").style("flex: 2 1 0"):
                self._context(item.row)
            if self._always or self._revealed:
                with ui.column().classes("scroll h-full min-w-0 no-wrap gap-2").style("flex: 1 1 0"):
                    self._verdicts(item.row)
        before = self.session.before
        self._judgement(item.row, draft if draft is not None else before.reasoning if before else "")

    @ui.refreshable_method
    def _header(self) -> None:
        progress = self._progress = self.session.progress()
        with ui.row().classes("w-full max-w-6xl mx-auto px-6 pt-3 items-center gap-4"):
            ui.label("Step review").classes("text-lg font-semibold")
            with ui.column().classes("grow gap-1"):
                ui.label(f"{progress.mine} of {progress.asked} answered by {self.session.reviewer}, {progress.now} now"
                         + (f", {progress.skipped} skipped" if progress.skipped else ""))
                share = progress.mine / max(1, progress.asked)
                ui.linear_progress(share, show_value=False, size="6px").props("rounded")
            others = ", ".join(f"{name} {count}" for name, count in progress.by_reviewer.items())
            ui.label(f"{progress.covered} of {progress.queue} steps covered ({others or 'nobody yet'})").classes(
                "text-sm opacity-70")
            ui.switch("Always show verdicts", value=self._always, on_change=self._set_always).props("dense").tooltip(
                "Off, so that you judge before you read what the strategies say")
            ui.button(icon="help_outline", on_click=self._help.open).props("flat round dense").tooltip("Help (?)")
            ui.link("Change reviewer", "/?reviewer=").classes("text-sm")

    def _context(self, row: Any) -> None:
        ui.label("Question").classes("caption")
        ui.label(row["prompt"]).classes("text scroll w-full shrink-0").style("max-height: 30vh")
        ui.label("Steps so far").classes("caption")
        if not row["steps_before"]:
            ui.label("None: this is the first step.").classes("text opacity-70")
            return
        with ui.scroll_area().classes("w-full grow min-h-0 steps") as area:
            for number, step in enumerate(row["steps_before"], 1):
                with ui.row().classes("w-full no-wrap gap-3 pb-1"):
                    ui.label(str(number)).classes("text opacity-50 w-7 text-right shrink-0")
                    ui.label(step).classes("text grow min-w-0")
        # The last steps are the ones the step in question goes on from.
        area.scroll_to(percent=1.0)

    def _judgement(self, row: Any, note: str) -> None:
        last, before = self.session.last, self.session.before
        frame = "w-full border-t border-gray-400/40 bg-gray-500/10"
        footer = ui.element("footer").classes(frame).on(
            "vnodeMounted", js_handler=DRAWN.replace("NUMBER", str(self._drawing)))
        with footer, ui.column().classes("w-full max-w-6xl mx-auto px-6 py-4 gap-3"):
            ui.label(f"Step {row['step_index'] + 1}: is it right?").classes("caption")
            ui.label(row["step"]).classes("text step scroll w-full").style("max-height: 32vh")
            with ui.row().classes("w-full items-center gap-3"):
                for text, verdict in (("← Wrong (n)", False), ("Right (y) →", True)):
                    _on_click(ui.button(text, color=_COLORS[verdict]), partial(self._answer, verdict)).props(
                        "no-caps unelevated")
                _on_click(ui.button("Skip (s)"), self._skip).props("no-caps outline")
                ui.button("Undo (u)", on_click=self._undo).props("no-caps outline").set_enabled(self.session.can_undo)
                hidden = not (self._always or self._revealed)
                _on_click(ui.button("Show verdicts (v)" if hidden else "Hide verdicts (v)"), self._reveal).props(
                    "no-caps flat").set_visibility(not self._always)
                self._note = ui.textarea(placeholder="Note (m)", value=note).props(
                    "dense outlined autogrow rows=1").classes("grow")
                self._note.on("keydown.esc", js_handler="(e) => e.target.blur()")
            if before is not None:
                ui.label(f"You had answered: {_word(before.is_correct)}").classes("text-sm opacity-70")
            elif last is not None:
                ui.label(f"Your last answer: {_word(last.is_correct)}").classes("text-sm opacity-70")

    def _verdicts(self, row: Any) -> None:
        ui.label("What the strategies say").classes("caption")
        probability = row.get("probability")
        if probability is not None:
            ui.label(f"All together: {probability:.0%} right").classes("text-sm")
        for strategy in row["strategies"]:
            with ui.card().classes("w-full gap-1 p-3").props("flat bordered"):
                with ui.row().classes("items-center gap-2"):
                    ui.label(strategy["strategy"]).classes("font-medium")
                    ui.badge(_word(strategy["is_correct"]), color=_COLORS[strategy["is_correct"]])
                ui.label(_figures(strategy)).classes("text-sm opacity-70")
                if strategy["reasoning"]:
                    ui.label(strategy["reasoning"]).classes("text-sm").style(
                        "white-space: pre-wrap; overflow-wrap: anywhere; max-height: 14rem; overflow-y: auto")
        if not row["strategies"]:
            ui.label("Nothing.").classes("text-sm opacity-70")

    def _finished(self) -> None:
        progress = self.session.progress()
        with ui.column().classes("grow w-full max-w-3xl mx-auto px-6 py-12 gap-4 scroll no-wrap"):
            if not progress.queue:
                ui.label("The queue is empty").classes("text-2xl font-semibold")
                ui.label("The last run left no step to review.").classes("text")
                return
            ui.label("Done" if not progress.skipped else "All but the skipped ones").classes(
                "text-2xl font-semibold")
            ui.label(f"{progress.covered} of {progress.queue} steps have an answer. Everything is saved in "
                     f"{self.session.board.workspace / 'data/human'}.").classes("text")
            ui.label(pause.next_step(self.session.board.workspace)).classes("text font-medium")
            pairs = agreement([label for given in self.session.board.answers.values() for label in given.values()])
            for pair in pairs:
                ui.label(describe(pair)).classes("text")
            if not pairs:
                ui.label("One reviewer so far; with a second one, their agreement shows up here.").classes("opacity-70")
            with ui.row():
                if progress.skipped:
                    ui.button(f"Go through the {progress.skipped} skipped ones",
                              on_click=lambda: self._do(self.session.revisit)).props("no-caps unelevated")
                ui.button("Undo (u)", on_click=self._undo).props("no-caps outline").set_enabled(self.session.can_undo)

    def _fill_help(self) -> None:
        ui.label("How to judge").classes("text-lg font-semibold")
        ui.label(GUIDE).classes("max-w-md")
        ui.label("Keys").classes("text-lg font-semibold")
        with ui.grid(columns="auto 1fr").classes("gap-x-6 gap-y-1"):
            for keys, meaning in KEYS.items():
                ui.label(keys).classes("font-mono")
                ui.label(meaning)
        ui.label("Every answer is saved at once; close the page whenever you like.").classes("opacity-70")
        ui.button("Close", on_click=self._help.close).props("no-caps flat")


def _on_click(button: ui.button, action: Callable[[events.GenericEventArguments], None]) -> ui.button:
    """A button that says, as keys do, what was before the reader."""
    return button.on("click", action, js_handler=f"() => emit({SEEN})")


_COLORS = {True: "positive", False: "negative", None: "grey"}


def _word(verdict: bool | None) -> str:
    return {True: "right", False: "wrong", None: "undecided"}[verdict]


def _figures(strategy: dict[str, Any]) -> str:
    value = "" if strategy["value"] is None else f"value {strategy['value']:.2f}, "
    return f"{value}confidence {strategy['confidence']:.2f}"


def _ask_name(known: list[str]) -> None:
    """The page of a visitor who has not said who they are."""
    def start() -> None:
        try:
            ui.navigate.to(f"/?reviewer={quote(reviewer_name(field.value))}")
        except InputError as error:
            ui.notify(str(error), type="warning")

    with ui.column().classes("w-full max-w-md mx-auto px-6 py-16 gap-4"):
        ui.label("Step review").classes("text-2xl font-semibold")
        ui.label("Who is judging? Answers are kept under this name, and you go on where it stopped.")
        field = ui.input("Your name", autocomplete=known).props("autofocus outlined").classes("w-full").on(
            "keydown.enter", start)
        ui.button("Start", on_click=start).props("no-caps unelevated")


def serve(board: Board, *, reviewer: str | None, port: int, show: bool) -> None:
    """Serves the page on 127.0.0.1 until the process is interrupted.

    Args:
        reviewer: who opens the page without naming themselves; None: they are asked.
        show: open a browser.

    Raises InputError where the name cannot be one.
    """
    sessions: dict[str, Session] = {}

    def session(name: str) -> Session:
        if name not in sessions:
            sessions[name] = Session(board, name)
        sessions[name].refresh()
        return sessions[name]

    if reviewer is not None:
        session(reviewer)
    # Else the first answer would take as long as reading all chains does.
    board.generated.load()

    default = reviewer

    @ui.page("/")
    def index(reviewer: str | None = None) -> None:
        name = default if reviewer is None else reviewer.strip()
        if not name:
            _ask_name(list(board.tally()))
            return
        try:
            ReviewPage(session(name))
        except InputError as error:
            ui.label(str(error)).classes("m-8 text-lg")

    app.add_middleware(OnlyOwn, host=HOST, port=port)
    ui.run(host=HOST, port=port, show=show, reload=False, title="Step review", dark=None, favicon="⚖️",
           show_welcome_message=False, reconnect_timeout=RECONNECT_SECONDS)
