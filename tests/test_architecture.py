"""The import rule: never upward, no cycles; read off the imports of every module."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

PACKAGE = "cogen_fast"

# From top to bottom; a part may import those of its own row and below.
ROWS: tuple[frozenset[str], ...] = tuple(
    frozenset(row.split())
    for row in (
        "cli",
        "__init__",
        "experiments",
        "training baselines ends bounds tasks",
        "fits inferred_noise",
        "adaptive",
        "paper",
        "loop prior_draws assembly",
        "problem",
        "sampler result presets checkpoint",
        "result_layout",
        "precision compiled",
        "density adapter",
        "graphs",
        "observation",
        "ops",
        "_native",
    )
)
RANK = {part: rank for rank, row in enumerate(ROWS) for part in row}
# What every part may import.
SUPPORT = (
    *("archives", "arguments", "digests", "files", "layout", "memory", "pictures"),
    *("tensor_files", "warn"),
)
# Beside the rows: all that each of these may import, and all that may import it.
IMPORTS = {
    "generators": {"generators", "ops"},
    "optimise": {"density", "observation", "ops"},
    "plots": set(),
    "diagnostics": {"agreement"},
    "agreement": set(),
    "metrics": set(),
    **{part: set[str]() for part in SUPPORT},
}
FROM_RESULT_UP = {part for part, rank in RANK.items() if rank <= RANK["result"]} - {"sampler"}
IMPORTED_BY = {
    "generators": {"cli", "__init__", "experiments", "training", "tasks", "generators"},
    "optimise": {"baselines", "ends", "fits", "inferred_noise"},
    "plots": FROM_RESULT_UP,
    "diagnostics": FROM_RESULT_UP,
    "metrics": FROM_RESULT_UP,
    "_native": {"ops"},
}

Imports = Mapping[str, set[str]]


def part_of(module: str) -> str:
    """The part of the house that a module belongs to: `cogen_fast.sampler.hmc` to `sampler`."""
    names = module.split(".")[1:]
    if not names:
        return "__init__"
    return "cli" if names[0] == "__main__" or names[0].startswith("cli") else names[0]


def allowed(importer: str, imported: str) -> bool:
    """Whether one part may import another."""
    if importer == imported or imported in SUPPORT:
        return True
    if importer in IMPORTS:
        return imported in IMPORTS[importer]
    if imported in IMPORTED_BY:
        return importer in IMPORTED_BY[imported]
    return RANK[importer] <= RANK[imported]


def violations(imports: Imports) -> list[str]:
    """Imports that break the rule, and parts that the rule does not know."""
    parts = {part_of(m) for m in (*imports, *(i for found in imports.values() for i in found))}
    unknown = sorted(parts - set(RANK) - set(IMPORTS))
    if unknown:
        return [f"{part} has no place in the rule" for part in unknown]
    return [
        f"{module} imports {found}"
        for module in sorted(imports)
        for found in sorted(imports[module])
        if not allowed(part_of(module), part_of(found))
    ]


def cycle(imports: Imports) -> list[str]:
    """Modules that import each other in a ring; empty where there are none."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        for found in sorted(imports.get(module, ())):
            ring = visit(found, [*path, module])
            if ring:
                return ring
        finished.add(module)
        return []

    for module in sorted(imports):
        ring = visit(module, [])
        if ring:
            return ring
    return []


def imported_modules(name: str, source: str, modules: Iterable[str], package: bool) -> set[str]:
    """Our own modules that a source imports, wherever it does: in functions and for types too."""
    known, found = set(modules), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == PACKAGE}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                depth = node.level - 1 if package else node.level
                parents = name.split(".")[: len(name.split(".")) - depth]
                base = ".".join([*parents, base] if base else parents)
            if base.split(".")[0] != PACKAGE:
                continue
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in known else base)
    return found - {name}


def sources() -> dict[str, tuple[str, bool]]:
    """Every module of the installed package: its source and whether it is an `__init__`."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        names = path.relative_to(root.parent).with_suffix("").parts
        package = names[-1] == "__init__"
        found[".".join(names[:-1] if package else names)] = (path.read_text(), package)
    return found


def graph(files: Mapping[str, tuple[str, bool]]) -> dict[str, set[str]]:
    known = {*files, f"{PACKAGE}._native"}
    return {
        name: imported_modules(name, source, known, package)
        for name, (source, package) in files.items()
    }


@pytest.fixture(scope="module")
def house() -> dict[str, set[str]]:
    return graph(sources())


def test_every_module_is_read(house: dict[str, set[str]]) -> None:
    expected = {"", ".tasks", ".sampler.ais", ".ops.reference", ".generators.mlp", ".files"}
    assert {PACKAGE + name for name in expected} <= set(house)
    assert f"{PACKAGE}.sampler.hmc" in house[f"{PACKAGE}.sampler.ais"]
    assert f"{PACKAGE}._native" in house[f"{PACKAGE}.ops.native"]


def test_imports_never_go_upward(house: dict[str, set[str]]) -> None:
    assert violations(house) == []


def test_imports_run_in_no_ring(house: dict[str, set[str]]) -> None:
    assert cycle(house) == []


PLANTED = {
    "upward": ("density", "from cogen_fast.sampler import hmc"),
    "upward-plain": ("observation", "import cogen_fast.tasks"),
    "upward-as": ("sampler.leapfrog", "import cogen_fast.tasks as front"),
    "for-types": (
        "density",
        "if TYPE_CHECKING:\n    from cogen_fast.tasks import Plan",
    ),
    "in-a-function": ("result", "def f():\n    from cogen_fast.problem import Problem"),
    "relative": ("ops.reference", "from ..density import Potential"),
    "relative-name": ("density", "from . import tasks"),
    "the-facade": ("sampler.ais", "from cogen_fast import cogenerate"),
    "ops-above": ("ops.dispatch", "from cogen_fast.observation import Mask"),
    "extension": ("density", "from cogen_fast import _native"),
    "generators-above": ("generators.mlp", "from cogen_fast.density import Potential"),
    "density-generators": ("density", "from cogen_fast.generators import MLPGenerator"),
    "plots-ours": ("plots", "from cogen_fast.result import Result"),
    "diagnostics-ours": ("diagnostics", "from cogen_fast.ops import reference"),
    "files-ours": ("files", "from cogen_fast.plots import Tile"),
    "sampler-optimise": ("sampler.hmc", "from cogen_fast import optimise"),
    "density-plots": ("density", "from cogen_fast import plots"),
    "tasks-experiments": ("tasks", "from cogen_fast.experiments import demo"),
    "experiments-cli": ("experiments.demo", "from cogen_fast.cli import main"),
    "no-place": ("attic", "import torch"),
}


@pytest.mark.parametrize(("module", "source"), PLANTED.values(), ids=PLANTED)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    files = sources() | {
        f"{PACKAGE}.cli": ("", False),
        f"{PACKAGE}.{module}": (source, False),
    }
    assert len(violations(graph(files))) >= 1
    assert any(module in line for line in violations(graph(files)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("density", "from cogen_fast.observation import Observation"),
        ("density", "from .ops import dispatch"),
        ("ops.native", "from cogen_fast import _native"),
        ("generators.mlp", "from cogen_fast.files import write_atomically"),
        ("ops.spec", "from cogen_fast.files import write_atomically"),
        ("baselines", "from cogen_fast import optimise"),
        ("cli_images", "from cogen_fast import cogenerate"),
        ("presets", "from cogen_fast.sampler.schedule import Sigmoid"),
    ],
    ids=lambda v: v.split()[-1],
)
def test_what_the_rule_allows_is_allowed(module: str, source: str) -> None:
    files = sources() | {f"{PACKAGE}.{module}": (source, False)}
    assert not [line for line in violations(graph(files)) if f".{module} " in line]


@pytest.mark.parametrize(
    "imports",
    [
        {"a": {"b"}, "b": {"a"}},
        {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}},
    ],
    ids=["two", "three-behind-one"],
)
def test_a_planted_ring_is_found(imports: dict[str, set[str]]) -> None:
    ring = cycle(imports)
    assert ring[0] == ring[-1]
    assert len(ring) >= 3


def test_no_ring_where_two_ways_meet() -> None:
    assert cycle({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []
