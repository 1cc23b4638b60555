"""A log of finished pieces of work: one JSON line each, so that a killed command goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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

    def add(self, **line: object) -> None:
        """Write a finished piece down."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
