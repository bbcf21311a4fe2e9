"""`hansa check`: promises in exact words, costs in numbers, or every reason why not."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest


def test_a_plan_without_privacy_says_that_it_claims_none(hansa, plan):
    found = hansa("check", plan, "--json")
    assert found.status == 0, found.err
    assert found.json["promises"] == {
        "privacy_unit": "none",
        "epsilon": "none: this plan makes no differential privacy claim",
        "server_sees": "every update in the clear",
    }
    for said in found.json["promises"].values():
        assert said in found.said
    assert "all clients' data are on this machine" in found.said
    assert "nothing is pooled to train the model, but the baselines" in found.said


def test_costs_follow_from_the_model_and_the_cohort(hansa, plan):
    costs = hansa("check", plan, "--set", "cohort.kind=uniform", "--set", "cohort.size=3", "--json").json["costs"]
    assert costs["parameters"] == 33
    assert costs["bytes_down_per_client"] == 33 * 4
    assert costs["client_updates"] == 18
    assert costs["bytes_down_total"] == 18 * 33 * 4
    assert costs["seconds_without_baselines"] > 0


def test_the_hash_is_that_of_the_run_and_nothing_is_left_behind(hansa, plan):
    checked = hansa("check", plan, "--json").json
    before = set(Path().iterdir())
    assert hansa("check", plan).status == 0
    assert set(Path().iterdir()) == before
    assert hansa("run", plan, "--json").json["plan_sha256"] == checked["plan_sha256"]


def test_a_second_vector_is_counted(hansa, plan):
    found = hansa("check", plan, "--set", "recipe=scaffold", "--json")
    assert found.json["costs"]["branches"] == {"params": 33, "control": 33}
    assert "and what a client keeps between rounds" in found.said


def test_a_clip_alone_is_no_privacy(hansa, plan):
    found = hansa("check", plan, "--set", 'transforms=[{kind="clip", clip_norm=1.0}]')
    assert "without noise it protects no one" in found.said


def test_clients_that_are_made_up_are_said_to_be_so(hansa, plan):
    found = hansa("check", plan, "--set", "data.partition={kind='iid',clients=10}")
    assert "the clients are made up: their examples are dealt from one pool" in found.said


def test_a_claim_that_says_nothing_is_refused(hansa, plan):
    found = hansa("check", plan, "--set", "privacy.x=1", "--json")
    assert found.status == 2
    assert [problem["path"] for problem in found.json["error"]["problems"]] == [
        "privacy.x",
        "privacy.clip_norm",
        "privacy.delta",
    ]


def test_the_clients_of_a_source_without_its_own_are_made_up_too(hansa, plan):
    found = hansa("check", plan, "--set", "data={source='fashion-mnist-small'}", "--set", "evaluation={}",
                  "--set", "model.factory=hansa.training.linear:softmax", "--set", "rounds=1")  # fmt: skip
    assert found.status == 0, found.err
    assert "the clients are made up: their examples are dealt from one pool" in found.said


@pytest.mark.parametrize(
    ("settings", "sums", "histograms"),
    [
        ([], "counts and sums (accuracy, loss)", True),
        (["evaluation.metrics=['accuracy']"], "counts and sums (accuracy)", False),
        (["data.test_fraction=0", "evaluation.baselines=[]"], "", False),
        (["evaluation.federated=false"], "", False),
    ],
)
def test_what_is_sent_for_evaluation_is_what_is_measured(hansa, plan, settings, sums, histograms):
    found = hansa("check", plan, *(word for setting in settings for word in ("--set", setting)))
    assert found.status == 0, found.err
    assert ("each client's counts and sums" in found.said) == bool(sums)
    assert sums in found.said
    assert ("score histograms" in found.said) == histograms
    assert "who took part, when, from where and with which attributes" in found.said


REMEDY = "nothing is held out: add --set data.test_fraction=0.25"


@pytest.mark.parametrize("verb", ["check", "run"])
def test_a_plan_that_holds_nothing_out_is_told_how_to(hansa, plan, verb):
    found = hansa(verb, plan, "--set", "data.test_fraction=0", "--set", "evaluation.baselines=[]", "--set", "rounds=1")
    assert found.status == 0, found.err
    assert f"note: this plan evaluates nothing: {REMEDY}" in found.said
    assert found.said.count(REMEDY) == (2 if verb == "run" else 1), "the last words of a run repeat it"


def test_clients_with_too_few_examples_to_hold_out_are_said_to_be_so(hansa, plan, tmp_path):
    (tmp_path / "few.csv").write_text("who,x,y\n" + "".join(f"{i},{i},{'ab'[i % 2]}\n" for i in range(12)))
    settings = ["data={source='csv',path='few.csv',client='who',test_fraction=0.25}", "features={label='y'}"]
    settings += ["evaluation.baselines=[]", "rounds=1"]
    for verb in ("check", "run"):
        found = hansa(verb, plan, *(word for setting in settings for word in ("--set", setting)))
        assert found.status == 0, found.err
        assert "no client has enough examples to hold any out at data.test_fraction = 0.25" in found.said


def test_a_plan_that_turns_evaluation_off_is_told_how_to_turn_it_on(hansa, plan):
    found = hansa("check", plan, "--set", "evaluation.federated=false", "--set", "evaluation.baselines=[]")
    assert "add --set evaluation.federated=true" in found.said


SECURE = ["--set", "secure_aggregation.maximum_cohort=4", "--set", "secure_aggregation.max_weight=300"]


def test_a_plan_with_secure_sums_says_who_sees_what_and_on_which_assumptions(hansa, plan):
    found = hansa("check", plan, *SECURE, "--json")
    assert found.status == 0, found.err
    assert found.json["promises"]["server_sees"] == "of the updates the sum of a cohort only"
    told = found.json["promises"]["secure_aggregation"]
    assert set(told) == {"a_decryptor_sees", "another_client_sees", "a_network_observer_sees", "may_collude",
                         "may_drop_out", "it_assumes", "it_does_not_hide", "integers"}  # fmt: skip
    assert "the server with up to 1 of 4 clients" in told["may_collude"][0]
    assert "t = floor(2n/3) + 1 = 3, and t > (n + c)/2 holds for c up to 1" in told["may_collude"][0]
    assert told["may_drop_out"][0].startswith("1 of 4 clients, at any moment")
    assert told["a_network_observer_sees"][0].endswith(
        "sees what the server sees, and so the sum, but no single update"
    )
    assert "each site's own list holds the keys of its peers" in told["it_assumes"][1]
    assert "one of as few as 2 that nobody else knows" in told["it_does_not_hide"][0]
    assert "in the clear" not in found.said
    for sentences in told.values():
        assert all(sentence in found.said for sentence in sentences)


def test_decryptors_are_who_must_pin_where_clients_are_not_told_each_others_keys(hansa, plan):
    named = ", ".join(f'{{name="{each}", operator="{each}", url="https://{each}"}}' for each in ("north", "south"))
    decryptors = (
        f'secure_aggregation={{protocol="oneshot-seeds", maximum_cohort=4, max_weight=300.0, decryptors=[{named}]}}'
    )
    found = hansa("check", plan, "--set", decryptors, "--json")
    assert found.status == 0, found.err
    told = found.json["promises"]["secure_aggregation"]
    assert told["it_assumes"][1].startswith("each decryptor's own list holds the keys of the clients")
    assert told["it_assumes"][2].startswith("one of north and south does not work with the server")
    assert "one sum of the masks of its seeds in which a client's of a round is" in told["a_decryptor_sees"][0]


def test_an_authority_is_told_with_its_operator_with_what_it_sees_and_with_who_must_not_work_together(hansa, plan):
    settings = [*SECURE, "--set", "secure_aggregation.registrar=authority"]
    told = hansa("check", plan, *settings, "--json").json["promises"]["secure_aggregation"]
    assert told["it_assumes"][1].startswith("an authority, whose key the server does not hold, vouches for the keys")
    assert told["the_authority_sees"] == ["whose keys each sum is of, and its task; no seed, no share, no vector"]
    named = "secure_aggregation.authority={url='https://a', operator='Notary', key='k'}"
    told = hansa("check", plan, *settings, "--set", named, "--json").json["promises"]["secure_aggregation"]
    assert told["it_assumes"][1].startswith("Notary, whose key the server does not hold, vouches for")
    assert told["it_assumes"][1].endswith("is what the plan says, and a site's policy where it sets authority_operator")
    refused = hansa("check", plan, *SECURE, "--set", named)
    assert refused.status == 2
    assert 'registrar = "pinned" asks no authority' in refused.said


def test_the_split_of_the_integers_is_printed_with_its_errors_and_bytes(hansa, plan):
    found = hansa("check", plan, *SECURE, "--json")
    said = found.json["promises"]["secure_aggregation"]["integers"]
    assert said[0] == "no sum overflows, for up to 4 clients in a cohort and the largest weights"
    params = "params: entries of up to 1 in steps of 3.05e-05 (16 bits with the sign), 26 bits in the sum, for up to"
    assert said[1] == f"{params} 4 clients x 150 units of weight x 32,767 steps"
    assert "up to 300 in units of 2; one of at least 30 is off by at most 3.3%" in said[2]
    assert found.json["costs"]["bytes_up_per_client"] == 124
    assert said[-1].startswith("124 B for each client's vector, whatever is in it: 33 x 26 + ")
    rotated = hansa("check", plan, *SECURE, "--set", "secure_aggregation.rotation=true", "--json")
    params = rotated.json["promises"]["secure_aggregation"]["integers"][1]
    assert params.endswith("; its 33 entries are padded to 64, for blocks of 64 that are rotated together")
    assert "the keys and shares of the secure sums come on top" in found.said


CLIPPED = (
    "--set", "evaluation={every=3,federated=false,baselines=[]}", "--set", "transforms=[]",
    "--set", "features={label='disease',scaling='declared'}", "--set", "aggregator={kind='fixed-mean',divisor=4}",
)  # fmt: skip


def test_what_a_private_plan_sends_is_what_its_integers_take(hansa, plan):
    privacy = "privacy={clip_norm=0.5,delta=1e-5,epsilon=40.0}"
    found = hansa("check", plan, *CLIPPED, "--set", privacy, "--json")
    assert found.status == 0, found.err
    said = found.json["promises"]["said"]
    assert "params: entries of up to 0.5, the clip norm, in steps of 1.53e-05 (16 bits with the sign)" in "\n".join(
        said
    )
    assert said[-1].startswith("272 B for each client's update: 33 entries of 64 bits, the whole type")
    assert found.json["costs"]["bytes_up_per_client"] == 33 * 8 + 8
    assert "272 B per client and round" in found.said


def test_with_noise_by_clients_the_bits_of_a_sum_have_room_for_its_largest_noise(hansa, plan):
    privacy = "privacy={clip_norm=0.5,delta=1e-5,epsilon=40.0,noise_by='clients'}"
    secure = "secure_aggregation={maximum_cohort=4}"
    found = hansa("check", plan, *CLIPPED, "--set", privacy, "--set", secure, "--json")
    assert found.status == 0, found.err
    [params] = [text for text in found.json["promises"]["secure_aggregation"]["integers"] if text.startswith("params")]
    assert "for up to 4 clients x 32,767 steps, with noise of up to " in params


def test_another_registrar_server_and_protocol_are_told_as_such(hansa, plan):
    found = hansa("check", plan, *SECURE, "--set", "secure_aggregation.registrar=server")
    assert "a server that lies could invent all other clients" in found.said
    found = hansa("check", plan, *SECURE, "--set", "secure_aggregation.server=malicious")
    assert "the server may lie in any message" in found.said
    settings = [*SECURE, "--set", "secure_aggregation.protocol=secagg-plus"]
    found = hansa("check", plan, *settings)
    assert "so that this holds but for a chance of 2^-40" in found.said
    assert "draws the graph" not in found.said
    settings += ["--set", "secure_aggregation.registrar=authority", "--set", "secure_aggregation.beacon=authority"]
    found = hansa("check", plan, *settings, "--set", "secure_aggregation.server=malicious")
    assert "so few that every pair of them masks" in found.said
    assert "There is no graph to draw then, and the authority is not asked for one" in found.said
    assert "draws the graph" not in found.said
    assert "who was ready for it" not in found.said
    two = "[{name='a',url='https://a',operator='Clinic'},{name='b',url='https://b',operator='Ministry'}]"
    settings = [*SECURE, "--set", "secure_aggregation.protocol=oneshot-seeds"]
    found = hansa("check", plan, *settings, "--set", f"secure_aggregation.decryptors={two}")
    assert "one of Clinic and Ministry does not work with the server" in found.said
    assert "one sealed seed of 32 bytes of each; no vector" in found.said
    assert hansa("check", plan, *settings).status == 2


def test_groups_are_told_with_the_limits_of_the_smallest(hansa, plan):
    settings = ["data.partition={kind='iid',clients=11}", "secure_aggregation.maximum_cohort=11",
                "secure_aggregation.max_weight=300", "secure_aggregation.group_size=3"]  # fmt: skip
    found = hansa("check", plan, *(word for setting in settings for word in ("--set", setting)), "--json")
    assert found.status == 0, found.err
    told = found.json["promises"]["secure_aggregation"]
    assert "that sum for each group of a cohort" in found.said
    assert told["may_drop_out"][0].startswith("0 of 3 clients")
    assert told["integers"][0] == "no sum overflows, for up to 5 clients in a group and the largest weights"


def test_every_branch_has_its_integers(hansa, plan):
    own = "secure_aggregation.branches=[{name='control',max_value=20.0}]"
    found = hansa("check", plan, "--set", "recipe=scaffold", *SECURE, "--set", own, "--json")
    assert found.status == 0, found.err
    integers = found.json["promises"]["secure_aggregation"]["integers"]
    assert integers[1].startswith("params: entries of up to 1 ")
    assert integers[2].startswith("control: entries of up to 20 ")


def test_a_sum_that_could_overflow_is_refused_with_the_numbers(hansa, plan):
    settings = ["--set", "secure_aggregation.bits=20", "--set", "secure_aggregation.value_bits=16"]
    found = hansa("check", plan, *SECURE, *settings, "--json")
    assert found.status == 2
    assert [problem["path"] for problem in found.json["error"]["problems"]] == ["secure_aggregation.bits"]
    assert "need 26 bits, and there are 20; use value_bits = 10" in found.err.replace("\n", " ")


FEDERATION = """
name = "illness at two clinics"
rounds = 20

[features]
label = "ill"
task = "classification"
classes = ["well", "ill"]
columns = [
    { name = "age", low = 0, high = 110 },
    { name = "smoker", kind = "category", categories = ["no", "yes"] },
]

[model]
factory = "hansa.training.linear:logistic"

[trainer]
kind = "linear"
epochs = 1
batch_size = 16
optimizer = { kind = "sgd", learning_rate = 0.1 }
"""


def test_a_plan_without_data_is_checked_as_one_for_a_federation(hansa, tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(FEDERATION)
    found = hansa("check", path, "--json")
    assert found.status == 0, found.err
    assert "it is for a federation" in found.said
    assert found.json["promises"]["the_server_sees"][0].startswith("every update in the clear")
    assert found.json["costs"]["parameters"] == 5
    assert found.json["plan_sha256"] in found.said
    secure = hansa("check", path, "--set", "secure_aggregation={maximum_cohort=4, max_weight=300.0}", "--json")
    assert secure.status == 0, secure.err
    assert "every update in the clear" not in secure.said
    assert secure.json["costs"]["bytes_up_per_client"] > 0


PRIVATE = (
    "cohort={kind='uniform', size=100}", "aggregator={kind='fixed-mean', divisor=100}", "evaluation={federated=false}",
    "features.scaling='declared'", "privacy={clip_norm=1.0, delta=1e-5, noise_multiplier=1.0}",
)  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((), "what each client of the cohort sends is kept sealed until the round is closed"),
        (("cohort={kind='uniform', size=100}",), "in an open round at a server: 100 updates of"),
        (PRIVATE, "in an open round at a server: 32 updates of"),
        (("schedule={kind='buffered', buffer_size=4, concurrency=8}",), "as long as anybody may train from its model"),
    ],
)
def test_what_a_server_stores_of_an_open_round_is_told(hansa, tmp_path, settings, said):
    path = tmp_path / "federation.toml"
    path.write_text(FEDERATION)
    found = hansa("check", path, *(word for setting in settings for word in ("--set", setting)))
    assert found.status == 0, found.err
    assert said in found.said
    assert ("of those before: the one that counts" in found.said) == (settings is PRIVATE)


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ("features.task=null", "features"),
        ("features.columns=[{name='age'}]", "features.columns"),
        ("stopping={metric='central.auc', patience=2}", "stopping.metric"),
    ],
)
def test_what_a_submission_would_be_refused_for_is_said_without_a_server(hansa, tmp_path, setting, where):
    path = tmp_path / "federation.toml"
    path.write_text(FEDERATION)
    if setting == "features.task=null":
        path.write_text(FEDERATION.replace('task = "classification"\n', ""))
        setting = "rounds=2"
    found = hansa("check", path, "--set", setting, "--json")
    assert found.status == 2
    assert where in found.json["error"]["problems"][0]["path"]


SPARSE = """
name = "secure"
recipe = "fedavg"
rounds = 3
data = { source = "synthetic", arguments = { clients = 300, features = 6, classes = 3 } }
model = { factory = "hansa.training.linear:softmax" }
trainer = { kind = "linear", epochs = 2, batch_size = 8, optimizer = { kind = "sgd", learning_rate = 0.1 } }
cohort = { kind = "uniform", size = 100 }
secure_aggregation = { max_weight = 100.0, protocol = "secagg-plus", server = "malicious", registrar = "authority" }
"""


def test_a_beacon_is_told_with_its_graph_its_assumption_and_what_trying_again_gives(hansa, tmp_path):
    path = tmp_path / "sparse.toml"
    path.write_text(SPARSE)
    refused = hansa("check", path)
    assert refused.status == 2
    assert 'use protocol = "secagg-full", or name a beacon' in refused.err
    found = hansa("check", path, "--set", "secure_aggregation.beacon=authority", "--json")
    told = found.json["promises"]["secure_aggregation"]
    assert "each is paired with k = 48 others, and t = 38 shares give a secret back" in told["may_collude"][0]
    assert "for a beacon that is drawn once but for a chance of 2^-40" in told["may_collude"][0]
    assert "gives rounds up until the graph suits it has that chance with each beacon" in told["may_collude"][0]
    assert told["may_drop_out"][1].startswith(
        "a sum of fewer than 38 of 100 clients is not shown where the server tells all of them the same"
    )
    assert "an authority draws the graph of pairs at random, once for each sum" in found.said
    assert "nobody who runs it works with the server" in found.said
    assert "and who was ready for it" in found.said
    assert "one of as few as 26 that nobody else knows" in found.said
    more = ("beacon=authority", "assumed_colluding=40", "minimum_survivors=60", "minimum_cohort=60")
    many = [word for setting in more for word in ("--set", f"secure_aggregation.{setting}")]
    refused = hansa("check", path, *many)
    assert refused.status != 0
    assert "No sparse graph of 100 clients withstands so many" in refused.err


@pytest.mark.parametrize(
    ("size", "settings", "said", "limits"),
    [
        (100, ("expected_dropout=0.25",), "stands an expected_dropout of 25%", (33, 67, 3, 3)),
        (6, ("minimum_cohort=4", "minimum_survivors=4"), "so few that every pair of them masks", (1, 5, 4, 4)),
        (
            100, ("assumed_colluding=33", "minimum_cohort=100", "minimum_survivors=80"),
            "no sparse graph of so many stands an expected_dropout of 10%", (20, 80, 80, 100),
        ),
    ],
)  # fmt: skip
def test_what_leaves_a_cohort_without_a_sparse_graph_is_told_with_the_limits_of_a_full_one(
    hansa, tmp_path, size, settings, said, limits
):
    path = tmp_path / "sparse.toml"
    plan = SPARSE.replace("size = 100", f"size = {size}")
    path.write_text(plan)
    words = [word for setting in ("beacon=authority", *settings) for word in ("--set", f"secure_aggregation.{setting}")]
    sparse = hansa("check", path, *words, "--json").json["promises"]["secure_aggregation"]
    assert said in sparse["may_collude"][1]
    path.write_text(plan.replace("secagg-plus", "secagg-full"))
    words = [word for setting in settings for word in ("--set", f"secure_aggregation.{setting}")]
    full = hansa("check", path, *words, "--json").json["promises"]["secure_aggregation"]
    lost, least, fewest, cohort = limits
    assert sparse["may_drop_out"][0].startswith(f"{lost} of {size} clients, at any moment")
    few = f" (than {fewest}, where only {cohort} begin)" if fewest < least else ""
    assert sparse["may_drop_out"][1].startswith(
        f"a sum of fewer than {least} of {size} clients is never shown{few}, and"
    )
    assert sparse["may_drop_out"][1].endswith(f"none begins with fewer than {cohort}")
    assert {key: full[key] for key in full if key != "may_collude"} == {
        key: sparse[key] for key in sparse if key != "may_collude"
    }


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        (("cohort={kind='uniform', size=100}",), "33 of 100 clients, at any moment"),
        (("cohort={kind='uniform', size=80}", "schedule.over_selection=0.25"), "33 of 100 clients, at any moment"),
        (("cohort={kind='uniform', size=100}", "secure_aggregation.maximum_cohort=300"), "33 of 100 clients, at any"),
        (("secure_aggregation.maximum_cohort=100",), "33 of 100 clients, at any moment"),
        (("cohort={kind='uniform', size=100}", "secure_aggregation.group_size=50"), "16 of 50 clients, at any moment"),
        (("cohort={kind='uniform', size=100}", "secure_aggregation.expected_dropout=0.1"), "10% of 100 clients, for"),
    ],
)
def test_the_limits_of_a_plan_for_a_federation_are_those_of_the_graph_of_its_cohort(hansa, tmp_path, settings, limits):
    path = tmp_path / "federation.toml"
    key = base64.b64encode(bytes(32)).decode()
    authority = f'{{ operator = "notary", key = "{key}", url = "https://notary.test" }}'
    more = f'beacon = "authority", expected_dropout = 0.25, authority = {authority}'
    sums = SPARSE.splitlines()[-1].replace(" }", f", {more} }}")
    path.write_text(f"{sums}\n{FEDERATION}")
    told = hansa("check", path, *(word for each in settings for word in ("--set", each)), "--json")
    assert told.status == 0, told.err
    assert told.json["promises"]["may_drop_out"][0].startswith(limits)


@pytest.mark.parametrize(
    ("minimum", "fewest", "few"),
    [
        (3, 1, " where all begin, and up to 1 where only 3 do"),
        (40, 13, " where all begin, and up to 13 where only 40 do"),
        (100, 33, ""),
    ],
)
def test_who_may_collude_is_counted_for_the_fewest_with_which_a_server_may_begin(hansa, tmp_path, minimum, fewest, few):
    path = tmp_path / "full.toml"
    path.write_text(SPARSE.replace("secagg-plus", "secagg-full"))
    found = hansa("check", path, "--set", f"secure_aggregation.minimum_cohort={minimum}", "--json")
    told = found.json["promises"]["secure_aggregation"]["may_collude"][0]
    assert told.startswith(f"the server with up to {fewest} of 100 clients, and they learn the sum of the others only")
    assert f"holds for c up to 33{few});" in told


def test_what_a_full_graph_of_many_costs_is_told(hansa, tmp_path):
    path = tmp_path / "many.toml"
    path.write_text(SPARSE)
    beacon = ("--set", "secure_aggregation.beacon=authority", "--set", "secure_aggregation.expected_dropout=0.25")
    assert "each client has 99 neighbours" not in hansa("check", path, *beacon).said
    assert "each client has 119 neighbours" in hansa("check", path, *beacon, "--set", "cohort.size=120").said
