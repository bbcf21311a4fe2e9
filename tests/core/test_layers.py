"""What an import costs, and what is public."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hansa
import hansa.testing

HEAVY = ("torch", "pyarrow", "sklearn", "scipy", "pandas", "matplotlib", "ray", "dp_accounting")
LATE = ("pydantic", "typer", "rich", "jinja2", "rfc8785", "safetensors", "tomli_w")


def loaded_by(module, names):
    code = f"import sys, {module}; print(*sorted(set({names!r}) & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return finished.stdout.split()


@pytest.mark.parametrize(
    "module",
    ["hansa", "hansa.core.schema", "hansa.algorithms.rounds", "hansa.training.linear", "hansa.evaluation.federated",
     "hansa.wire.plans", "hansa.simulation.engine", "hansa.testing", "hansa.privacy.accounting", "hansa.privacy.noise",
     "hansa.privacy.matrices", "hansa.privacy.calibration", "hansa.privacy.auditing", "hansa.privacy.planned",
     "hansa.secagg.client", "hansa.secagg.decryptor", "hansa.governance.account", "hansa.governance.exports"],
)  # fmt: skip
def test_importing_a_room_imports_no_heavy_library(module):
    assert loaded_by(module, HEAVY) == []


@pytest.mark.parametrize("module", ["hansa.core.pieces", "hansa.core.streams", "hansa.core.layout", "hansa.core.nouns"])
def test_importing_core_alone_would_cost_numpy_only(module):
    """The package's own __init__ imports the run; without it core stands on numpy alone."""
    code = (
        "import sys, types, importlib.util as u; spec = u.find_spec('hansa');"
        "package = types.ModuleType('hansa'); package.__path__ = spec.submodule_search_locations;"
        f"sys.modules['hansa'] = package; import {module}; print(*sorted(set({LATE + HEAVY!r}) & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert finished.stdout.split() == []


def test_using_every_public_name_imports_no_heavy_library():
    assert loaded_by("hansa; [getattr(hansa, name) for name in hansa.__all__]", HEAVY) == []


def test_cryptography_waits_until_something_is_signed_or_summed():
    assert loaded_by("hansa, hansa.testing; [getattr(hansa, name) for name in hansa.__all__]", ("cryptography",)) == []


def test_only_a_run_that_is_charged_needs_a_database():
    assert loaded_by("hansa, hansa.cli.run; [getattr(hansa, name) for name in hansa.__all__]", ("sqlalchemy",)) == []


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'plan_sha265'"):
        _ = hansa.plan_sha265


def test_the_public_exports_are_these():
    assert hansa.__all__ == [
        "HansaError", "LedgerFile", "Plan", "RunResult", "read_plan", "recipe", "replay", "resume", "run"
    ]  # fmt: skip
    assert hansa.testing.__all__ == [
        "FixedPoint",
        "MemoryClients",
        "MemoryView",
        "Proxy",
        "QuadraticTrainer",
        "Rehearsal",
        "RingNoise",
        "StumpTrainer",
        "TopK",
        "ValueNoise",
        "quadratic_clients",
        "quadratic_signature",
    ]
    for module in (hansa, hansa.testing):
        for name in module.__all__:
            assert getattr(module, name).__doc__
