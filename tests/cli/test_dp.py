"""`hansa dp`: costs and calibrations, with the guarantee named in full."""

from __future__ import annotations

import pytest


def test_epsilon_prints_both_numbers_and_names_the_guarantee(hansa):
    found = hansa("dp", "epsilon", "--noise-multiplier", 1, "--rounds", 1000, "--delta", "1e-5",
                  "--sampling", "poisson", "--q", 0.01, "--json")  # fmt: skip
    assert found.status == 0, found.err
    assert found.json["epsilon_charged"] == pytest.approx(2.10137, abs=5e-6)
    assert found.json["epsilon_reference"] == pytest.approx(1.82824, abs=5e-6)
    assert found.json["epsilon_charged_without_sampling"] > 600
    assert {found.json["adjacency"], found.json["unit"]} == {"add-or-remove-one", "client"}
    for said in ("2.10137", "1.82824", "privacy unit client", "adjacency add-or-remove-one", "amplified by sampling"):
        assert said in found.said


def test_nothing_is_gained_without_sampling(hansa):
    found = hansa("dp", "epsilon", "--noise-multiplier", 100, "--rounds", 1000, "--delta", "1e-5", "--json")
    assert found.json["epsilon_reference"] == pytest.approx(1.19936957)
    assert found.json["epsilon_charged"] == pytest.approx(1.3085, abs=5e-5)
    assert found.json["amplified"] is False
    assert "Nothing is gained by sampling." in found.said


def test_participations_are_what_a_run_costs(hansa):
    found = hansa("dp", "epsilon", "--noise-multiplier", 8.35, "--rounds", 2000, "--delta", "1e-10",
                  "--max-participations", 2, "--unit", "device", "--json")  # fmt: skip
    assert found.json["epsilon_reference"] == pytest.approx(0.994, abs=5e-4)
    assert found.json["rho"] == pytest.approx(0.01434, abs=1e-5)
    assert "privacy unit device" in found.said


def test_a_fixed_size_is_for_replacing_one(hansa):
    words = ("dp", "epsilon", "--noise-multiplier", 4, "--rounds", 20, "--delta", "1e-5",
             "--sampling", "fixed-size", "--q", 0.05, "--json")  # fmt: skip
    assert hansa(*words).json["adjacency"] == "replace-one"
    refused = hansa(*words, "--adjacency", "zero-out")
    assert refused.status == 2
    assert refused.json["error"]["code"] == "HANSA-PRIVACY-INVALID"


def test_calibrate_finds_noise_whose_cost_is_within_the_budget(hansa):
    found = hansa("dp", "calibrate", "--epsilon", 8, "--delta", "1e-5", "--rounds", 40, "--max-participations", 5,
                  "--adjacency", "zero-out", "--json").json  # fmt: skip
    again = hansa("dp", "epsilon", "--noise-multiplier", found["noise_multiplier"], "--rounds", 40, "--delta", "1e-5",
                  "--max-participations", 5, "--adjacency", "zero-out", "--json").json  # fmt: skip
    assert found["epsilon_charged"] == again["epsilon_charged"] <= 8 < again["epsilon_charged"] + 0.001


def test_calibrate_finds_rounds(hansa):
    found = hansa("dp", "calibrate", "--epsilon", 2, "--delta", "1e-6", "--noise-multiplier", 30, "--json")
    assert found.json["rounds"] == 158
    more = hansa("dp", "epsilon", "--noise-multiplier", 30, "--rounds", 159, "--delta", "1e-6", "--json")
    assert found.json["epsilon_charged"] <= 2 < more.json["epsilon_charged"]


@pytest.mark.parametrize("sampling", [(), ("--sampling", "poisson", "--population", 2000)])
def test_calibrate_finds_a_cohort(hansa, sampling):
    found = hansa("dp", "calibrate", "--epsilon", 2, "--delta", "1e-6", "--deviation", 0.01, "--clip-norm", 0.5,
                  "--rounds", 50, *sampling, "--json").json  # fmt: skip
    assert found["noise_multiplier"] * 0.5 / found["cohort_size"] == pytest.approx(0.01)
    assert found["epsilon_charged"] <= 2


@pytest.mark.parametrize(
    "words",
    [
        ("epsilon", "--delta", "1e-5", "--rounds", 3),
        ("epsilon", "--delta", "1e-5", "--rounds", 3, "--noise-multiplier", 1, "--sampling", "poisson"),
        ("epsilon", "--delta", "1e-5", "--rounds", 3, "--noise-multiplier", 1, "--q", 0.1),
        ("epsilon", "--delta", "1e-5", "--rounds", 3, "--noise-multiplier", 1, "--sampling", "poisson", "--q", 0.1,
         "--max-participations", 2),
        ("calibrate", "--delta", "1e-5", "--epsilon", 1),
        ("calibrate", "--delta", "1e-5", "--epsilon", 1, "--rounds", 3, "--noise-multiplier", 1),
        ("calibrate", "--delta", "1e-5", "--epsilon", 1, "--noise-multiplier", 1, "--max-participations", 2),
        ("calibrate", "--delta", "1e-5", "--epsilon", 1, "--rounds", 3, "--deviation", 0.1),
        ("calibrate", "--delta", "1e-5", "--epsilon", 1, "--rounds", 3, "--deviation", 0.1, "--clip-norm", 1,
         "--sampling", "poisson"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(hansa, words):
    found = hansa("dp", *words, "--json")
    assert found.status == 2
    assert found.json["error"]["code"] == "HANSA-USAGE"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("epsilon", "--delta", "1e-5", "--rounds", 3, "--noise-multiplier", 0), "HANSA-PRIVACY-INVALID"),
        (("epsilon", "--delta", 2, "--rounds", 3, "--noise-multiplier", 1), "HANSA-PRIVACY-INVALID"),
        (("calibrate", "--delta", "1e-5", "--epsilon", 0.1, "--noise-multiplier", 1), "HANSA-PRIVACY-UNREACHABLE"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(hansa, words, code):
    found = hansa("dp", *words, "--json")
    assert (found.status, found.json["error"]["code"]) == (2, code)
