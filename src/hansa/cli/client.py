"""``hansa client``: the agent of one site, until it is told to stop."""

from __future__ import annotations

import base64
import getpass
import json
import logging
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from hansa.cli.console import print_json, printable, screen, sentence
from hansa.cli.options import AsJson
from hansa.client.agent import Agent
from hansa.client.policy import Policy, allow, read_policy
from hansa.client.site_data import Own
from hansa.client.state import StateFolder
from hansa.core.allowed import allowing
from hansa.core.registry import import_named
from hansa.core.settings import CA, CERTIFICATE, CERTIFICATE_KEY, SERVER, TOKEN, path_of, value_of

_CODE: Final = re.compile(r"[\w.]+:\w+")


def command(  # noqa: PLR0913 - a command's options
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[allow PACKAGE.MODULE:NAME ... | key | rotate-key]",
            help="With allow: let plans name this code, and write down its files in --policy. With key: print this "
            "client's public key, which other sites take among the peers of their [secure_sums], and end. With "
            "rotate-key: take another key, and end.",
            show_default=False,
        ),
    ] = None,
    *,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="The federation's server. Default: HANSA_SERVER.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A folder with train.csv and test.csv (or .parquet, .npz), one such file, or a module:function "
            "that the policy allows.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the one-time token to enrol with; or set HANSA_TOKEN, or be asked."),
    ] = None,
    policy: Annotated[Path | None, typer.Option(metavar="FILE", help="What this site accepts: policy.toml.")] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The client's own folder. Default: where the system keeps state."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust servers of this authority only (PEM). Default: HANSA_CA.")
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="This client's certificate with its chain (PEM), shown to the server. Default: HANSA_CERTIFICATE.",
        ),
    ] = None,
    certificate_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The certificate's private key (PEM, no password). Default: HANSA_CERTIFICATE_KEY."
        ),
    ] = None,
    population: Annotated[
        str | None,
        typer.Option(metavar="TENANT/NAME", help="Enrol by the certificate in this population, without a token."),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Declare an attribute of the population's schema. May be repeated."),
    ] = None,
    consent: Annotated[bool, typer.Option(help="Whether this client consents to take part, from now on.")] = True,
    test_fraction: Annotated[
        float, typer.Option(help="Share of a single file that is held out for testing.", min=0.0, max=0.99)
    ] = 0.2,
    plain: Annotated[bool, typer.Option(help="Allow http without TLS to other machines.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option(help="Say what is asked and what would leave this machine. The federation does not count on it."),
    ] = False,
    token: Annotated[str | None, typer.Option(hidden=True, help="Refused: others can see arguments.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take part in a federation with a site's own data, which stay where they are."""
    if token is not None:
        raise typer.BadParameter(
            "a secret is no argument, for others on this machine can see those; use --token-file or HANSA_TOKEN.",
            param_hint="--token",
        )
    if words == ["key"]:
        _print_key(state or _default_state(), as_json=as_json)
        return
    rotates = words == ["rotate-key"]
    if words and not rotates:
        _allow(words, policy)
        return
    server = server or value_of(SERVER)
    ca = ca or path_of(CA)
    pair = _pair(certificate or path_of(CERTIFICATE), certificate_key or path_of(CERTIFICATE_KEY))
    if server is None or (data is None and not rotates):
        raise typer.BadParameter("a client needs --server URL (or HANSA_SERVER) and --data PATH.")
    accepted = Policy() if policy is None else read_policy(policy)
    agent = Agent(
        server,
        _source(data or ".", accepted),
        state or _default_state(),
        accepted,
        ca=ca,
        certificate=pair,
        attributes=_attributes(attribute or []),
        consent=consent,
        test_fraction=test_fraction,
        plain=plain,
    )
    _log_to_standard_error()
    with closing(agent), _until_told():
        if rotates:
            agent.insist(agent.rotate_key, threading.Event())
            return
        _enrol(agent, token_file, pair, population)
        if dry_run:
            _show(agent.rehearse(), as_json=as_json)
            return
        agent.run(threading.Event())


def _enrol(agent: Agent, token_file: Path | None, pair: tuple[Path, Path] | None, population: str | None) -> None:
    """Enrol where that is to be done, by a certificate or by a token that is no argument."""
    if agent.identity is not None:
        return
    if population is not None:
        if pair is None:
            raise typer.BadParameter("enrolling by a certificate needs one and its key.", param_hint="--certificate")
        from hansa.client.certificates import certified  # noqa: PLC0415 - few clients enrol so

        request = certified(*pair, population, agent.state.key())
        agent.insist(lambda: agent.enrol_with(request), threading.Event())
        return
    given = value_of(TOKEN)
    if token_file is not None:
        try:
            given = token_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise typer.BadParameter(f"{token_file} cannot be read: {why}.", param_hint="--token-file") from None
    if not given and sys.stdin.isatty():
        given = getpass.getpass("one-time token: ")
    if not (given or "").strip():
        raise typer.BadParameter("a client that is not enrolled needs --token-file FILE or HANSA_TOKEN.")
    token = (given or "").strip()
    agent.insist(lambda: agent.enrol(token), threading.Event())


def _allow(words: list[str], policy: Path | None) -> None:
    if words[0] != "allow" or len(words) < 2:
        raise typer.BadParameter("the only words are: allow PACKAGE.MODULE:NAME ..., key, and rotate-key")
    if policy is None:
        raise typer.BadParameter("name the file that the allowance is written to.", param_hint="--policy")
    for pattern in words[1:]:
        written = allow(policy, pattern)
        sentence(screen(), f"{pattern} is allowed ({written.distribution or 'no distribution'} {written.version})")


def _print_key(folder: Path, *, as_json: bool) -> None:
    """Print a client's public key, of a key that is made where there is none."""
    with closing(StateFolder(folder)) as state:
        key = base64.b64encode(state.key().public_key().public_bytes_raw()).decode()
    if as_json:
        print_json({"public_key": key})
    else:
        sys.stdout.write(f"{key}\n")


def _source(data: str, policy: Policy) -> str | Own:
    """Return where examples come from; a function is imported only if the policy allows it.

    Raises DataError for a path where nothing is: a token is not used up, and a site does not wait, for a mistyped one.
    """
    if Path(data).exists():
        return data
    if not _CODE.fullmatch(data):
        from hansa.data.refusals import unreadable  # noqa: PLC0415 - a client at rest is small

        raise unreadable(Path(data), "there is nothing", action="Correct --data.")
    with allowing(policy.code.allowances()):
        found: Own = import_named(data)
    return found


def _pair(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if (certificate is None) != (key is None):
        raise typer.BadParameter("a certificate and its key go together.", param_hint="--certificate")
    return None if certificate is None or key is None else (certificate, key)


def _attributes(given: list[str]) -> dict[str, Any]:
    """Return attributes by name; values as in JSON, and as texts where they are none."""
    read: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise typer.BadParameter("write NAME=VALUE.", param_hint="--attribute")
        try:
            read[name] = json.loads(value)
        except ValueError:
            read[name] = value
    return read


def _default_state() -> Path:
    import platformdirs  # noqa: PLC0415 - needed where no folder is named

    return Path(platformdirs.user_state_dir("hansa")) / "client"


def _show(told: Mapping[str, Any], *, as_json: bool) -> None:
    for name, value in told.items():
        sentence(screen(), f"{name.replace('_', ' ')}: {printable(_in_words(value))}")
    if as_json:
        print_json(dict(told))


def _in_words(value: Any) -> str:
    """Return a value as people read it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} ({_in_words(each)})" for name, each in value.items()) or "nothing"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "nothing"
    return "none is open now" if value is None else str(value)


class _Lines(logging.Formatter):
    """Plain lines: the time (UTC), the level, an event and what belongs to it; never a control character."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record).replace("\n", " "))


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    log = logging.getLogger("hansa.client")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    set_on_retry_hooks([_tried_again])


def _tried_again(details: RetryDetails) -> None:
    code = getattr(details.caused_by, "code", type(details.caused_by).__name__)
    logging.getLogger("hansa.client").info("again code=%s seconds=%.1f", code, details.wait_for)


@contextmanager
def _until_told() -> Iterator[None]:
    """End at once, and in order, at Ctrl-C or SIGTERM: what is on disk is whole at any instant."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        logging.getLogger("hansa.client").info("stopped")
    finally:
        signal.signal(signal.SIGTERM, before)
