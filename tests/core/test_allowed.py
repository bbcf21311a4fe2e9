from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

import hansa
from hansa.algorithms.plan import plan_from_mapping
from hansa.core.allowed import DEFAULT, Allowance, allowing, record, refuse_named
from hansa.core.errors import HansaError, RefusedError
from hansa.core.registry import import_named, resolve
from hansa.evaluation.metrics import choose

PLAN = {
    "name": "attack",
    "rounds": 1,
    "model": {"factory": "hansa.training.linear:logistic"},
    "trainer": {"kind": "linear", "epochs": 1, "optimizer": {"kind": "sgd", "learning_rate": 0.1}},
}


def code(error) -> str:
    return error.value.code


@pytest.mark.parametrize(
    "target",
    [
        "os:system",
        "subprocess:run",
        "builtins:eval",
        "builtins:exec",
        "os:path.join",
        "hansa.training.linear:np.load",
        "hansa.training.linear:_linear_model",
        "hansa.training.linear:import_named",
        "hansa.core.registry:import_named",
        "importlib:import_module",
        "__main__:anything",
        "hansa.training.linear:*",
        "hansa.training.linear: logistic",
        "hansa.training.linear.logistic",
        ":system",
        "os:",
        "",
    ],
)
def test_what_is_not_allowed_is_refused(target):
    with allowing(DEFAULT), pytest.raises(RefusedError) as error:
        import_named(target)
    assert code(error) == "HANSA-CODE-FORBIDDEN"


def test_own_linear_models_and_registered_pieces_are_allowed():
    with allowing(DEFAULT):
        assert import_named("hansa.training.linear:logistic")().loss == "binary-cross-entropy"
        assert resolve("trainer", "linear").__name__ == "LinearTrainer"
        refuse_named(PLAN)
        plan_from_mapping(PLAN)


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    """A module that tells when it is imported, in a folder on the path."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "poisoned_site_models.py").write_text("raise SystemError('it was imported')\n")
    monkeypatch.syspath_prepend(str(folder))
    return "poisoned_site_models:net"


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {"factory": "{}"}},
        {"model": {"factory": "hansa.training.linear:logistic", "arguments": {"deep": [{"net": "{}"}]}}},
        {"trainer": {"kind": "{}"}},
        {"trainer": {"kind": "linear", "optimizer": {"kind": "{}"}}},
        {"trainer": {"kind": "linear", "hooks": [{"kind": "{}"}]}},
        {"transforms": [{"kind": "{}"}]},
        {"transforms": ["{}"]},
        {"cohort": "{}"},
        {"aggregator": {"kind": "{}"}},
        {"server_optimizer": {"kind": "sgd", "branches": {"control": {"kind": "{}"}}}},
        {"evaluation": {"metrics": ["{}"]}},
        {"recipe": "{}"},
        {"recipe": {"kind": "{}"}},
        {"data": {"source": "{}"}},
        {"data": {"source": "heart", "partition": {"kind": "{}"}}},
        {"unknown": {"{}": 1}},
    ],
)
@pytest.mark.parametrize("target", ["poisoned", "os:system", "builtins:eval", "subprocess:run"])
def test_code_named_anywhere_in_a_plan_is_refused_before_it_is_imported(changed, target, poisoned):
    tables = {**PLAN, **filled(changed, poisoned if target == "poisoned" else target)}
    with allowing(DEFAULT), pytest.raises(RefusedError) as error:
        refuse_named(tables)
    assert code(error) == "HANSA-CODE-FORBIDDEN"
    with allowing(DEFAULT), suppress(HansaError, AttributeError):  # and where it is not looked for first
        plan = plan_from_mapping(tables)
        plan.trainer.initial(plan.model, None, None)
        choose(plan.evaluation.metrics, None)
    assert "poisoned_site_models" not in sys.modules


def filled(value, target):
    """Return tables with a target in the place of every "{}"."""
    if isinstance(value, dict):
        return {filled(key, target): filled(item, target) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, target) for item in value]
    return value.format(target) if isinstance(value, str) else value


def test_columns_and_titles_are_no_code():
    with allowing(DEFAULT):
        refuse_named({**PLAN, "name": "os:system", "features": {"label": "lab:ph", "columns": [{"name": "a:b"}]}})


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A module and a package that a site has installed."""
    folder = tmp_path / "installed"
    (folder / "allowed_package").mkdir(parents=True)
    (folder / "allowed_module.py").write_text("from os import system\n\ndef net():\n    return 1\n")
    (folder / "allowed_package" / "__init__.py").write_text("")
    (folder / "allowed_package" / "nets.py").write_text("def net():\n    return 2\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [each for each in sys.modules if each.startswith("allowed_")]:
        del sys.modules[name]


def test_what_a_site_has_recorded_is_allowed(site):
    with allowing([record("allowed_module:*"), record("allowed_package.nets:net")]):
        assert import_named("allowed_module:net")() == 1
        assert import_named("allowed_package.nets:net")() == 2
        with pytest.raises(RefusedError, match="not defined in"):
            import_named("allowed_module:system")


@pytest.mark.parametrize("loaded", [False, True])
def test_a_changed_file_is_refused_without_importing_it(site, loaded):
    allowances = [record("allowed_module:net"), record("allowed_package.nets:net")]
    if loaded:
        with allowing(allowances):
            import_named("allowed_module:net")
            import_named("allowed_package.nets:net")
    (site / "allowed_module.py").write_text("raise SystemError\n")
    (site / "allowed_package" / "other.py").write_text("x = 1\n")
    for target in ("allowed_module:net", "allowed_package.nets:net"):
        with allowing(allowances), pytest.raises(RefusedError) as error:
            import_named(target)
        assert code(error) == "HANSA-CODE-CHANGED"


def test_an_allowance_without_a_record_allows_nothing(site):
    with allowing([Allowance("allowed_module:net")]), pytest.raises(RefusedError, match="without a record"):
        import_named("allowed_module:net")


def test_another_version_of_the_distribution_is_refused(site):
    import dataclasses

    recorded = dataclasses.replace(record("allowed_module:net"), distribution="numpy", version="0.1")
    with allowing([recorded]), pytest.raises(RefusedError, match=r"no longer of version 0\.1"):
        import_named("allowed_module:net")


def test_a_shadowing_module_is_refused(site, tmp_path, monkeypatch):
    allowances = [record("allowed_module:net")]
    data = tmp_path / "data"
    data.mkdir()
    (data / "allowed_module.py").write_text("raise SystemError('it was imported')\n")
    monkeypatch.syspath_prepend(str(data))
    with allowing(allowances), pytest.raises(RefusedError) as error:
        import_named("allowed_module:net")
    assert code(error) == "HANSA-CODE-CHANGED"


def test_nothing_comes_from_the_working_directory(tmp_path):
    (tmp_path / "here.py").write_text("print('it was imported')\ndef net(): return 1\n")
    program = textwrap.dedent(
        """
        import sys
        from hansa.core.allowed import Allowance, allowing, record
        from hansa.core.errors import RefusedError
        from hansa.core.registry import import_named
        before = list(sys.path)
        for path in ([], [""], ["."]):
            sys.path[:] = path + before
            try:
                record("here:net")
            except RefusedError as error:
                print(error.code)
            with allowing([Allowance("here:net", sha256="0" * 64)]):
                try:
                    import_named("here:net")
                except RefusedError as error:
                    print(error.code)
        """
    )
    home = {**os.environ, "PYTHONPATH": str(Path(hansa.__file__).parents[1])}
    command = [sys.executable, "-P", "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, env=home, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["HANSA-CODE-FORBIDDEN"] * 6


def test_a_guard_ends_with_its_block():
    with allowing(DEFAULT):
        pass
    assert import_named("os:getcwd")
