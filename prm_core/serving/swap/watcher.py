"""The thread that goes with an alias of the registry: what it points to now is loaded beside what answers, tried, and
takes over."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from prm_core.config import SwapConfig
from prm_core.errors import InputError
from prm_core.platform import store
from prm_core.serving.metrics import Metrics
from prm_core.serving.swap.bell import Bell
from prm_core.serving.swap.current import Current, Served
from prm_core.serving.swap.recent import Recent
from prm_core.serving.swap.trial import compare, try_example

log = logging.getLogger(__name__)

# For a swap that is under way when the server ends.
STOP_SECONDS = 5.0


class Watcher:
    """Looks where the alias points, every `poll` seconds and whenever the bell rings.

    A version that does not load or does not pass is not tried again until the alias has pointed elsewhere or the bell
    rings. One version at a time is tried, and the next only after the last one's requests are answered, so that at most
    two are in memory.

    Args:
        current: who answers.
        recent: what was asked of late.
        find: the URI of the version that the alias points to. Raises anything where that cannot be said.
        load: a version from its URI. Raises anything.
        config: how often, and what a version must keep within.
        metrics: where it is counted.
        bell: see there.
        taken: a file that names the version that took over last, for processes that start later; None without.

    Attributes:
        alert: why the version that the alias points to is not served, None where it is.
    """

    def __init__(
        self, current: Current, recent: Recent, find: Callable[[], str], load: Callable[[str], Served],
        config: SwapConfig, metrics: Metrics, bell: Bell, taken: Path | None = None,
    ) -> None:
        self._current, self._recent = current, recent
        self._find, self._load = find, load
        self._config, self._metrics, self._bell, self._taken = config, metrics, bell, taken
        self._refused = self._lost = ""
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="prm-watcher", daemon=True)
        self.alert: str | None = None

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Looks no more."""
        self._stopping = True
        self._bell.wake()
        self._thread.join(STOP_SECONDS)

    def ring(self) -> None:
        """Has it look now, and try a version again that it has refused."""
        self._bell.ring()

    def _work(self) -> None:
        rung = False
        while not self._stopping:
            try:
                self.look(again=rung)
            except Exception:
                # A fault here must not end the thread: who answers goes on, and so must the look-out.
                log.exception("looking for a new version failed")
            rung = self._bell.wait(self._config.poll)

    def look(self, *, again: bool = False) -> None:
        """Looks once, and has the version that the alias points to take over where it is another one.

        Args:
            again: try it also where it was refused before.
        """
        wanted = self._where()
        if wanted is None:
            return
        if wanted == self._current.served.source:
            self._say(None)
            self._refused = ""
        elif again or wanted != self._refused:
            self._swap(wanted)
            _free()

    def _where(self) -> str | None:
        """The URI that the alias points to, None where the registry does not say."""
        try:
            wanted = self._find()
        except Exception as error:
            self._metrics.registry_failed()
            said = f"{type(error).__name__}: {error}"
            if said != self._lost:
                log.warning("the registry does not say which version to serve (%s); %s goes on answering, and it is "
                            "asked again every %g s", said[:500], self._current.served.source, self._config.poll)
            self._lost = said
            return None
        if self._lost:
            log.info("the registry answers again")
            self._lost = ""
        return wanted

    def _swap(self, wanted: str) -> None:
        before = self._current.served
        log.info("%s is to take over from %s", wanted, before.source)
        try:
            served = self._load(wanted)
        except Exception as error:
            # Whose fault was it? Where the registry has gone, or says another version now, it is asked again.
            if self._where() == wanted:
                self._refuse(wanted, "not_loaded", "does not load", error)
            return
        try:
            try_example(served)
            found = compare(served, self._recent.answered_by(before.source))
            self._metrics.compared(found.mean, found.verdicts_changed)
            log.info("%s beside %s: %s", wanted, before.source, found)
            found.check(self._config.max_difference)
        except Exception as error:
            served.service.close()
            self._refuse(wanted, "not_passed", "does not pass", error)
            return
        served.service.report_to(self._metrics)
        self._metrics.serves(served.calibrated)
        self._current.take_over(served)
        self._metrics.swapped("done")
        self._say(None)
        self._refused = ""
        log.info("%s has taken over from %s", wanted, before.source)
        if self._taken is not None:
            try:
                store.write_text(self._taken, wanted)
            except OSError as error:
                log.warning("a process that starts later begins with an earlier version (%s)", error.strerror)
        self._current.retire(before)

    def _refuse(self, wanted: str, outcome: str, what: str, error: Exception) -> None:
        self._refused = wanted
        self._metrics.swapped(outcome)
        self._say(f"{wanted} is not served: it {what}")
        why = str(error) if isinstance(error, InputError) else type(error).__name__
        log.error("%s %s (%s); %s goes on answering. It is tried again when the alias moves, or on POST /reload",
                  wanted, what, why[:500], self._current.served.source, exc_info=error)

    def _say(self, alert: str | None) -> None:
        self.alert = alert
        self._metrics.alerted(alert is not None)


def _free() -> None:
    """Gives back what a version that has gone had allocated."""
    from prm_core.models.batching import free_memory

    free_memory()
