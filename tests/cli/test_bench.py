"""``hansa bench``: sums that are exact, parts that are named, bytes within what is promised."""

from __future__ import annotations

import json

import pytest

from hansa.cli.main import main


def measured(capsys, *options):
    main_ended = None
    try:
        main(["bench", "secagg", *options, "--json"])
    except SystemExit as end:
        main_ended = end.code
    assert not main_ended
    return json.loads(capsys.readouterr().out.splitlines()[-1])


SPARSE = ("--protocol", "secagg-plus", "--clients", "10")


@pytest.mark.parametrize(
    ("options", "around"),
    [
        (("--protocol", "secagg-full"), 11),
        (("--protocol", "secagg-plus", "--neighbours", "6", "--threshold", "4", "--threads", "2"), 6),
        (("--protocol", "secagg-full", "--dropout", "0", "--bits", "20"), 11),
    ],
)
def test_a_secure_sum_is_measured_by_phase_and_part(capsys, options, around):
    found = measured(capsys, "--clients", "12", "--parameters", "500", *options)
    assert found["exact"]
    assert found["survivors"] == (12 if "0" in options else 11)
    assert set(found["client_ms"]) == {"advertise", "share", "mask", "consist", "unmask", "total"}
    server = found["server_seconds"]
    assert {"take mask", "close unmask"} <= set(server)
    assert server["total"] == pytest.approx(server["after arrival"] + server["arrive mask"])
    up = dict(found["bytes_up"])
    assert up.pop("masked") <= -(-500 * found["bits"] // 8) + 200
    assert sum(up.values()) <= 250 * around + 1000


def test_one_report_is_all_that_a_client_sends(capsys):
    found = measured(capsys, "--protocol", "oneshot-seeds", "--clients", "10", "--parameters", "500")
    assert found["exact"]
    assert set(found["client_ms"]) == {"report", "total"}
    assert set(found["decryptor_seconds"]) == {"check", "decrypt", "total"}
    assert found["bytes_up"] == {"report": 2000 + 280}


def test_in_large_cohorts_some_clients_mask_for_real_and_the_note_says_so(capsys):
    found = measured(
        capsys, "--protocol", "secagg-plus", "--clients", "110", "--parameters", "10", "--neighbours", "6",
        "--threshold", "3", "--dropout", "0.02",
    )  # fmt: skip
    assert found["exact"]
    assert found["clients_timed"] == 8
    assert "8 mask for real" in found["note"]


def test_another_protocol_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "secagg", "--protocol", "rot13"])
    assert end.value.code == 2
    assert "rot13 is none of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--clients", "10", "--dropout", "0.4"), "no sum"),
        (("--clients", "10", "--dropout", "0.8"), "at least 3 survivors"),
        (("--clients", "10", "--threshold", "4"), "Only secagg-plus"),
        ((*SPARSE, "--neighbours", "20"), "--neighbours: it must be an even number from 2 on, below --clients"),
        ((*SPARSE, "--neighbours", "x"), "'--neighbours': it must be a valid integer"),
        ((*SPARSE, "--neighbours", "3"), "--neighbours: it must be an even number from 2 on, below --clients"),
        ((*SPARSE, "--neighbours", "0"), "--neighbours: it must be an even number from 2 on, below --clients"),
        ((*SPARSE, "--neighbours", "4", "--threshold", "9"), "--threshold: it must be from 2 to --neighbours + 1"),
        ((*SPARSE, "--neighbours", "4", "--threshold", "0"), "--threshold: it must be from 2 to --neighbours + 1"),
    ],
)
def test_what_gives_no_sum_is_refused(capsys, options, said):
    with pytest.raises(SystemExit) as end:
        main(["bench", "secagg", "--parameters", "10", *options])
    assert end.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", "").split())
