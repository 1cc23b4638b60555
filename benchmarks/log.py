"""A log of finished pieces of work: one JSON line each, so that a killed command goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_NO_RESULTS = ("seconds", "threads")


class Log:
    """Finished pieces, asked before any piece is begun."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        self.lines: list[dict[str, Any]] = [json.loads(row) for row in text.splitlines()]

    def find(self, **key: object) -> Iterator[dict[str, Any]]:
        """Lines that have all of ``key``."""
        return (line for line in self.lines if key.items() <= line.items())

    def take_over(
        self, key: Mapping[str, object], sources: str, made: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Write lines of ``key`` down once more as those of ``sources``; which these were.

        Those that other sources made last, where ``made``, a piece made again by the present ones,
        is one of them to the last digit: changes of the sources that change no figure.
        """
        others = [line for line in self.find(**key) if line["sources"] != sources]
        last = [line for line in others if line["sources"] == others[-1]["sources"]]
        again = json.loads(json.dumps(dict(made)))
        results = {name: value for name, value in again.items() if name not in _NO_RESULTS}
        if not any(results.items() <= line.items() for line in last):
            return []
        for line in last:
            self.add(**line | {"sources": sources})
        return last

    def add(self, **line: object) -> None:
        """Write a finished piece down."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
