"""How far a run has come: a bar on a terminal or in a notebook, and otherwise lines of a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping

from tqdm import auto
from tqdm import tqdm as text_bar

_bar = getattr(auto, "notebook_tqdm", text_bar)  # that of a terminal, unless this is a notebook
LOGGER = logging.getLogger("cogen_fast")
"""Everything that the package logs."""
SECONDS_BETWEEN_LINES = 30.0


class Report:
    """A progress bar on stderr where that is a terminal, the notebook's in a notebook.

    Elsewhere a line is logged every 30 seconds, at level INFO. ``total`` is None where it is not
    known.
    """

    def __init__(self, shown: bool, unit: str, total: int | None, done: int) -> None:
        self.in_lines = shown and _bar is text_bar and not sys.stderr.isatty()
        self.bar = _bar(
            total=total,
            initial=done,
            disable=not shown or self.in_lines,
            unit=f" {unit}s",
            dynamic_ncols=True,
        )
        self.unit, self.total = unit, total
        self.logged_at = time.monotonic()

    def update(self, done: int, facts: Callable[[], Mapping[str, str]]) -> None:
        """Show that ``done`` units are done; ``facts`` is called where something is shown."""
        if self.in_lines:
            self._log(done, facts)
        elif self.bar.update(done - self.bar.n):  # True when redrawn
            self.bar.set_postfix(facts(), refresh=False)

    def close(self) -> None:
        """End the bar."""
        self.bar.close()

    def _log(self, done: int, facts: Callable[[], Mapping[str, str]]) -> None:
        now = time.monotonic()
        if now - self.logged_at < SECONDS_BETWEEN_LINES:
            return
        self.logged_at = now
        of_all = "" if self.total is None else f" of {self.total:,}"
        numbers = ", ".join(f"{name} {value}" for name, value in facts().items())
        LOGGER.info("%s%s %ss: %s", f"{done:,}", of_all, self.unit, numbers)
