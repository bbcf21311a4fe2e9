"""Client certificates on connections: a real server, a real authority, and whoever may come."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.server.authority import Authority

import hansa
from hansa.cli.local_federation import LocalFederation
from hansa.client.transport import Reach, Transport
from hansa.core.errors import RefusedError
from hansa.wire.generated import federation_pb2 as messages

MODES = ("none", "optional", "required")
ENTERS = {
    "none": {"nobody", "stranger", "forger", "expired", "right"},
    "optional": {"nobody", "right"},
    "required": {"right"},
}
REFUSALS = {
    "nobody": "The server wants a client certificate",
    "stranger": "does not accept this caller's certificate",
    "forger": "does not accept this caller's certificate",
    "expired": "does not accept this caller's certificate",
}


@dataclass
class Place:
    """A server that runs, and the certificates of those who call it."""

    mode: str
    server: LocalFederation
    certificates: dict[str, tuple[Path, Path] | None]

    def context(self, who: str) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(self.server.ca))
        if (pair := self.certificates[who]) is not None:
            made.load_cert_chain(*pair)
        return made

    def variables(self, who: str) -> dict[str, str]:
        pair = self.certificates[who]
        named = {} if pair is None else {"HANSA_CERTIFICATE": str(pair[0]), "HANSA_CERTIFICATE_KEY": str(pair[1])}
        own = {"HANSA_SERVER": self.server.url, "HANSA_CA": str(self.server.ca), **named}
        return {**os.environ, "PYTHONPATH": str(Path(hansa.__file__).parents[1]), **own}

    def run(self, *words: str, by: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", "from hansa.cli.main import main; main()", *words]
        return subprocess.run(command, env=self.variables(by), capture_output=True, text=True, check=False, timeout=60)

    def told(self, *words: str) -> dict:
        ended = self.run(*words, "--token-file", str(self.server.token_file), "--json", by="right")
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])


def until_ready(place: Place) -> None:
    """Wait until who has the right certificate is answered."""
    for _ in range(600):
        try:
            if httpx.get(f"{place.server.url}/readyz", verify=place.context("right")).status_code == 200:
                return
        except (OSError, httpx.HTTPError):
            assert place.server.is_running("server"), place.server.log("server")
        time.sleep(0.05)
    pytest.fail(place.server.log("server"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("authorities")
    authority, other = Authority(folder / "ca"), Authority(folder / "other", "another authority")
    forged = Authority(folder / "forged")
    return authority.ca, {
        "nobody": None,
        "stranger": other.issue("stranger"),
        "forger": forged.issue("forger"),
        "expired": authority.issue("expired", days=-1),
        "right": authority.issue("right"),
    }


@pytest.fixture(scope="module", params=MODES)
def place(request, certificates, tmp_path_factory):
    ca, issued = certificates
    settings = {"client_certificates": request.param, "enrolment_ca": ca}
    settings |= {} if request.param == "none" else {"client_ca": ca}
    with LocalFederation(tmp_path_factory.mktemp(request.param), settings) as server:
        found = Place(request.param, server, issued)
        server.launch_server()
        until_ready(found)
        yield found


@pytest.mark.parametrize("who", ["nobody", "stranger", "forger", "expired", "right"])
def test_who_enters_is_who_the_setting_says(place, who):
    """A plain caller reaches the operator page, and a client the protocol, or the connection fails for both."""
    with httpx.Client(base_url=place.server.url, verify=place.context(who)) as browser:
        if who in ENTERS[place.mode]:
            page = browser.get("/sign-in")
            assert page.status_code == 200
            assert "Sign in" in page.text
        else:
            with pytest.raises((httpx.HTTPError, ssl.SSLError)):
                browser.get("/sign-in")
    reach = Reach(place.server.url, ca=place.server.ca, certificate=place.certificates[who], tries=1)
    with closing(Transport(reach)) as transport, pytest.raises(RefusedError) as caught:
        transport.check_in(messages.CheckInRequest())
    if who in ENTERS[place.mode]:
        assert caught.value.code == "HANSA-AUTH-MISSING"
    else:
        assert caught.value.code == "HANSA-SERVER-UNREACHABLE"
        assert REFUSALS[who] in caught.value.action
        assert "--certificate-key" in caught.value.action


def test_the_server_says_what_it_asks_of_connections(place):
    told = f"certificate {place.mode}, of {place.server.settings.get('client_ca')}"
    assert (told in place.server.log("server")) == (place.mode != "none")


def test_a_client_enrols_by_its_certificate_and_shows_it_on_its_connection(place, tmp_path):
    place.told("populations", "create", "hospitals")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("a,y\n1,0\n2,1\n")
    words = ["--data", str(tmp_path / "data"), "--state", str(tmp_path / "state"), "--dry-run"]
    ended = place.run("client", *words, "--population", "default/hospitals", by="right")
    assert ended.returncode == 0, ended.stderr
    listed = place.told("clients", "list", "hospitals")["clients"]
    assert [each["name"] for each in listed] == ["right"]


@pytest.mark.parametrize("who", ["nobody", "stranger"])
def test_an_operator_is_told_what_the_server_wants(place, who):
    ended = place.run("runs", "--token-file", str(place.server.token_file), by=who)
    if who in ENTERS[place.mode]:
        assert ended.returncode == 0, ended.stderr
    else:
        assert ended.returncode != 0
        assert "HANSA-SERVER-UNREACHABLE" in ended.stderr
        assert REFUSALS[who] in " ".join(ended.stderr.split())
