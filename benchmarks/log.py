"""A log of finished pieces of work, a JSON line each, so that a killed command can continue."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_NO_RESULTS = ("seconds", "threads", "sources")


class Log:
    """Finished pieces of work, which are looked up before a piece is started."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        self.lines: list[dict[str, Any]] = [json.loads(row) for row in text.splitlines()]

    def find(self, **key: object) -> Iterator[dict[str, Any]]:
        """Lines that have all of ``key``."""
        return (line for line in self.lines if key.items() <= line.items())

    def take_over(
        self, key: Mapping[str, object], sources: str, probes: Log, *more: Mapping[str, object]
    ) -> int:
        """Copy lines of ``key`` and ``more`` of other sources, as lines of ``sources``; returns how
        many.

        Lines are copied if their sources' probe of ``key``, a small piece made on the same machine,
        is equal to that of ``sources`` to the last digit: such a change of the sources changes no
        figure.
        """
        made = [line for line in probes.find(**key) if line["sources"] == sources]
        for probe in probes.find(**key):
            if made and probe["sources"] != sources and _results(probe) == _results(made[0]):
                others = {"sources": probe["sources"]}
                lines = [line for each in (key, *more) for line in self.find(**each, **others)]
                for line in lines:
                    self.add(**line | {"sources": sources})
                return len(lines)
        return 0

    def add(self, **line: object) -> None:
        """Write a line for a finished piece of work."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _results(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in _NO_RESULTS}
