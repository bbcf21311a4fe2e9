"""Whatever a server keeps, and whatever it seals, is searched for what each hospital gave, byte by byte.

Test code within the agents' processes writes down what each gives to its sum; test code within the server's writes down
what it is about to seal. So a thief is looked at who has the disk, a backup, the logs and the keys.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from os import environ
from pathlib import Path

import numpy as np
import pytest

from hansa.testing.hospitals import finished, hospitals, small_plan, submit

SECURE = {"maximum_cohort": 4, "max_weight": 300.0}
HOOKS = """
import os, uuid
from pathlib import Path

import numpy as np

import hansa.store.sealing as sealing
import hansa.client.learner as learner

folder = Path(os.environ["HANSA_TEST_DUMP"])
seal, answer = sealing.seal, learner.Learner._answer

def sealed(key, binding, chunks):
    content = b"".join(chunks)
    (folder / f"sealed-{uuid.uuid4().hex}").write_bytes(content)
    return seal(key, binding, [content])

def answered(self, request, batch, *rest):
    given = answer(self, request, batch, *rest)
    arrays = {"values": batch.values[0], "lanes": batch.lanes[0]}
    if given.ring is not None:
        vector = given.ring.unpack(given.content)
        arrays |= {f"ring{place}": each for place, each in enumerate(vector)}
        arrays["packed"] = np.frombuffer(given.content, np.uint8)
    np.savez(folder / f"given-{uuid.uuid4().hex}.npz", kind=request.kind, **arrays)
    return given

sealing.seal, learner.Learner._answer = sealed, answered
"""
RUN = 8
"""Consecutive entries by which an array is known again."""
DISTINCT = 5
LEAST = 4
"""So many of them differ, or of a shorter array's, or they could be anything: counts of one, zeros."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run the same plan with a secure sum and without: name -> what was given, kept and sealed."""
    found = {}
    for name, tables in {"secure": {"secure_aggregation": SECURE}, "clear": {}}.items():
        folder = tmp_path_factory.mktemp(name)
        hooks, dump = folder / "hooks", folder / "dump"
        for each in (hooks, dump):
            each.mkdir()
        (hooks / "sitecustomize.py").write_text(HOOKS)
        path = ":".join(filter(None, [str(hooks), environ.get("PYTHONPATH", "")]))
        environment = {"PYTHONPATH": path, "HANSA_TEST_DUMP": str(dump)}
        plan = small_plan(
            name="bytes", rounds=2, evaluation={"every": 2, "metrics": ["auc"], "baselines": []}, **tables
        )
        with hospitals(folder / "federation") as federation:
            federation.local.start_server(environment=environment)
            federation.invite()
            for site in federation.sites:
                federation.start_agent(site, environment=environment)
            with federation.calls() as calls:
                finished(calls, submit(calls, plan), seconds=60)
            backup(federation.local.folder / "server", folder / "kept-backup")
            kept = files(federation.local.folder / "server")  # with its write-ahead log, while it runs
        kept |= files(federation.local.folder / "server") | files(folder / "kept-backup")
        kept["log"] = federation.local.log("server").encode()
        found[name] = given(dump), kept, {each.name: each.read_bytes() for each in dump.glob("sealed-*")}
    return found


def backup(server: Path, into: Path) -> None:
    command = [sys.executable, "-c", "from hansa.cli.main import main; main()", "server", "backup", str(into)]
    subprocess.run(command, env={**environ, "HANSA_SERVER_FOLDER": str(server)}, check=True, timeout=60)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def given(dump: Path) -> list[dict]:
    arrays = []
    for path in sorted(dump.glob("given-*.npz")):
        with closing(np.load(path)) as read:
            arrays.append({name: read[name] for name in read.files})
    return arrays


def needles(one: dict) -> dict[bytes, str]:
    """Return what would tell one client's contribution: bytes -> what they are."""
    looked_for = {}
    forms = {"values": ("<f4", "<f8", ">f4", ">f8"), "lanes": ("<i8", "<i4", ">i8", "<f8")}
    for name, array in one.items():
        if name == "packed":
            looked_for |= runs_of(array, 24, 12, name) | {array.tobytes(): name}
        elif name != "kind":
            for form in forms.get(name, ("<u4", "<u8", ">u4", ">u8")):
                what, kinds = f"{name} as {form}", len(set(array.tolist()))
                looked_for |= runs_of(array.astype(form), RUN, DISTINCT, what)
                if kinds >= LEAST or (kinds > 1 and len(array) > 100):
                    looked_for[array.astype(form).tobytes()] = what
    if str(one["kind"]) == "training":
        loss = int(one["lanes"][2]) / 2**16
        looked_for |= {np.float64(loss).tobytes(): "loss as float64", f"{loss:.6f}".encode(): "loss as text"}
    return looked_for


def runs_of(array: np.ndarray, length: int, distinct: int, what: str) -> dict[bytes, str]:
    """Return every run of so many entries of which enough differ."""
    windows = (array[start : start + length] for start in range(len(array) - length + 1))
    return {window.tobytes(): what for window in windows if len(set(window.tolist())) >= distinct}


def hits(contributions: list[dict], corpus: dict[str, bytes]) -> list[tuple[str, str]]:
    """Return (what, where) of everything that is found."""
    return [
        (what, where)
        for one in contributions
        for needle, what in needles(one).items()
        for where, content in corpus.items()
        if needle in content
    ]


def test_with_a_secure_sum_nothing_of_a_hospital_is_kept_logged_backed_up_or_sealed(runs):
    contributions, kept, sealed = runs["secure"]
    kinds = [str(each["kind"]) for each in contributions]
    assert (kinds.count("training"), kinds.count("evaluation") % 4, len(kinds) % 4) == (8, 0, 0)
    assert all(needles(each) for each in contributions)
    assert sum("sqlite" in name for name in kept) >= 2, "the database, and its backup"
    assert len(sealed) > 8, "masked vectors, and the machines' records"
    assert sorted({what for each in contributions for what in needles(each).values() if what[0] in "vl"}) == [
        "lanes as <f8", "lanes as <i4", "lanes as <i8", "lanes as >i8", "loss as float64", "loss as text",
        "values as <f4", "values as <f8", "values as >f4", "values as >f8",
    ]  # fmt: skip
    assert set(hits(contributions, kept | sealed)) == set()


def test_the_search_finds_each_update_where_there_is_no_secure_sum_and_a_thief_has_the_keys(runs):
    contributions, kept, sealed = runs["clear"]
    for each in contributions:
        if str(each["kind"]) == "training":
            assert {what for what, _ in hits([each], sealed)} >= {"values as <f4", "lanes as <i8"}
    training = [each for each in contributions if str(each["kind"]) == "training"]
    assert [what for what, _ in hits(training, kept) if "values" in what] == [], "sealed at rest all the same"


def test_the_search_finds_whatever_is_planted_in_a_file_of_the_server(runs):
    contributions, kept, _ = runs["secure"]
    for one in contributions:
        for needle, what in needles(one).items():
            assert (what, "planted") in hits([one], {"planted": b"x" + needle + b"y"})
            break
    name, content = next((name, content) for name, content in kept.items() if name.endswith("sqlite"))
    needle, what = next(iter(needles(contributions[0]).items()))
    planted = content[: len(content) // 2] + needle + content[len(content) // 2 :]
    assert hits(contributions[:1], {name: planted})[0] == (what, name)
