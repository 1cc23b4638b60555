"""`cogen-fast doctor`: a line for each finding, as soon as it is made."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter

from cogen_fast.experiments import doctor

_WIDTH, _INDENT = 100, 9
_CLEAR = "\r\033[K"  # the line of a terminal


def run() -> bool:
    """Print the findings; whether none of them is a fault."""
    found: Counter[str] = Counter()
    shown = sys.stderr.isatty()
    for finding in doctor.examine(_begun if shown else lambda name: None):
        if shown:
            print(_CLEAR, end="", file=sys.stderr, flush=True)
        print(textwrap.fill(str(finding), _WIDTH, subsequent_indent=" " * _INDENT), flush=True)
        found[finding.level] += 1
    faults, warnings = found[doctor.FAULT], found[doctor.WARNING]
    print(f"{_counted(faults, 'fault')}, {_counted(warnings, 'warning')}")
    return not faults


def _begun(name: str) -> None:
    """Show on a terminal what is being checked."""
    print(f"{_CLEAR}checking: {name} ...", end="", file=sys.stderr, flush=True)


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
