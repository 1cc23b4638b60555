"""`cogen-fast doctor`: a line for each finding, as soon as it is made."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter

from cogen_fast.experiments import doctor

_WIDTH, _NARROWEST, _INDENT = 100, 30, 9
_CLEAR = "\r\033[K"  # the line of a terminal


def run() -> bool:
    """Print the findings; whether none of them is a fault."""
    found: Counter[str] = Counter()
    shown = sys.stderr.isatty()
    for finding in doctor.examine(_begun if shown else lambda name: None):
        if shown:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
        print(_lines(str(finding)), flush=True)
        found[finding.level] += 1
    faults, warnings = found[doctor.FAULT], found[doctor.WARNING]
    print(f"{_counted(faults, 'fault')}, {_counted(warnings, 'warning')}")
    return not faults


def _lines(text: str) -> str:
    """``text`` in lines that suit the terminal; words are whole, as many are paths and names."""
    width = max(_NARROWEST, min(_WIDTH, shutil.get_terminal_size((_WIDTH, 0)).columns))
    after = " " * _INDENT
    return textwrap.fill(
        text, width, subsequent_indent=after, break_on_hyphens=False, break_long_words=False
    )


def _begun(name: str) -> None:
    """Show on a terminal what is being checked."""
    print(f"{_CLEAR}checking: {name} ...", end="", file=sys.stderr, flush=True)


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
