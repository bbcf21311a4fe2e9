"""Settings of the server: one table that feeds hansa.toml, the environment, the help and the reference.

A key of hansa.toml and a field of ``ServerSettings`` have one name; ``HANSA_SERVER_`` and that name in capitals is
its environment variable, which wins over the file. Without both, the server keeps a SQLite database and its blobs in
``./hansa-server`` and serves TLS on this machine only.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_origin
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Le, MinLen

from hansa.core import schema
from hansa.core.certificate_files import unusable_authorities, unusable_pair
from hansa.core.errors import HansaError, Problem, SettingsError
from hansa.core.registry import nearest
from hansa.core.schema import Doc
from hansa.core.settings import Setting

PREFIX: Final = "HANSA_SERVER_"
"""What the name of every environment variable of the server begins with."""
MIB: Final = 2**20
_SHOWN: Final = 60
"""Characters of what should be a URL, and is none, that are shown; nothing of what could be a password before an @."""

_REPLICA: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CODE: Final = re.compile(r"[A-Za-z_][\w.]*:(\*|[A-Za-z_]\w*)")
_DATABASES: Final = ("sqlite:///", "sqlite+aiosqlite:///", "postgresql://", "postgresql+psycopg://")
_BLOBS: Final = ("file", "s3", "gs", "az", "memory")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Everything that can be set about a server. Raises SettingsError for values that do not fit each other."""

    folder: Annotated[str, MinLen(1), Doc("where the server keeps what is its own; made with mode 0700")] = (
        "hansa-server"
    )
    database: Annotated[
        str, Doc("sqlite+aiosqlite:///PATH or postgresql+psycopg://...; empty: hansa.sqlite in the folder")
    ] = field(default="", repr=False)
    blobs: Annotated[
        str, Doc("models and sealed updates: a folder, or s3://, gs://, az://; empty: blobs in the folder")
    ] = ""
    keys: Annotated[
        str, Doc("keys that seal updates: a folder, or vault:URL; belongs on another disk and in another backup")
    ] = ""
    host: Annotated[str, MinLen(1), Doc("address to listen on; 0.0.0.0 for all")] = "127.0.0.1"
    port: Annotated[int, Ge(1), Le(65535), Doc("port to listen on")] = 8443
    tls: Annotated[
        Literal["development", "files", "off"],
        Doc("a CA of the server's own, made at first start; certificate files; or none, behind a proxy that has it"),
    ] = "development"
    tls_certificate: Annotated[str, Doc('tls = "files": the certificate and its chain, PEM')] = ""
    tls_key: Annotated[str, Doc('tls = "files": the private key, PEM')] = ""
    host_names: Annotated[
        tuple[str, ...], Doc("names and addresses beside localhost that the development certificate is for")
    ] = ()
    client_certificates: Annotated[
        Literal["none", "optional", "required"],
        Doc("mTLS: connections show a certificate of client_ca (required), may show one, but no other (optional)"),
    ] = "none"
    client_ca: Annotated[str, Doc("the CAs of client certificates for connections, PEM")] = ""
    http2: Annotated[
        bool, Doc("speak HTTP/2 beside HTTP/1.1; then connections that ask nothing are never ended, see decision 45")
    ] = True
    enrolment_ca: Annotated[str, Doc("the CAs whose certificates let clients enrol without an invitation, PEM")] = ""
    enrolment_populations: Annotated[
        tuple[str, ...],
        Doc("TENANT/POPULATION that certificates of enrolment_ca enrol in; empty: all of the tenant default"),
    ] = ()
    decryptor_urls: Annotated[
        tuple[str, ...], Doc("decryptors that plans may name, by their URLs; the server calls no other place")
    ] = ()
    decryptor_ca: Annotated[
        str, Doc("the certificates by which decryptors are trusted, PEM; empty: those of the system")
    ] = ""
    authority_urls: Annotated[
        tuple[str, ...], Doc("authorities that plans may name, by their URLs; the server calls no other place")
    ] = ()
    authority_ca: Annotated[
        str, Doc("the certificates by which authorities are trusted, PEM; empty: those of the system")
    ] = ""
    public_url: Annotated[str, Doc("what clients call the server; empty: from tls, host and port")] = ""
    replica: Annotated[
        str, Doc("this replica's name in leases and logs; empty: one of its own, kept in the folder")
    ] = ""
    tick_seconds: Annotated[float, Gt(0), Le(60), Doc("how often runs are looked after")] = 0.1
    lease_seconds: Annotated[
        float, Ge(1), Le(3600), Doc("how long a replica keeps a run without renewing: others wait so long if it dies")
    ] = 10.0
    round_deadline: Annotated[
        float, Ge(0), Doc("seconds that a round waits for reports where the plan sets none; 0: for ever")
    ] = 3600.0
    fold_every: Annotated[
        int,
        Ge(1),
        Doc("updates of an open round that are kept until they are added to its sum, where that is of integers"),
    ] = 32
    max_attempts: Annotated[int, Ge(1), Doc("attempts of a round before its run is paused")] = 10
    minimum_poll_seconds: Annotated[float, Gt(0), Le(3600), Doc("clients are never told to come back sooner")] = 1.0
    long_poll_seconds: Annotated[
        float, Ge(0), Le(300), Doc("how long a check-in may wait for an assignment; 0: it is answered at once")
    ] = 25.0
    checkins_per_second: Annotated[float, Gt(0), Doc("check-ins that pace steering aims at, at most")] = 500.0
    calls_per_second: Annotated[
        float, Ge(0), Doc("calls that one client may make in a second, and twice as many at once; 0: no limit")
    ] = 200.0
    upload_part_bytes: Annotated[int, Ge(64 * 1024), Le(64 * MIB), Doc("the largest part of an upload")] = 8 * MIB
    uploads_in_memory_bytes: Annotated[
        int,
        Ge(1),
        Doc(
            "parts of updates, and calls of more than 128 KiB, that are held in memory at once, and as much of masked "
            "vectors that came in parts; what comes beyond waits for its turn"
        ),
    ] = 256 * MIB
    largest_update_bytes: Annotated[int, Ge(1), Doc("the largest update that a client may send")] = 2048 * MIB
    largest_update_norm: Annotated[
        float,
        Gt(0),
        Le(1e18),
        Doc("the largest L2 norm of an update, a unit of weight, where the plan's transforms bound none"),
    ] = 1e9
    largest_update_weight: Annotated[
        int,
        Ge(1),
        Le(2**24),
        Doc(
            "the largest weight of an update, where weigh-by-size has no maximum, and the most examples in statistics "
            "of features: what one client may say that it has"
        ),
    ] = 2**24
    largest_model_bytes: Annotated[int, Ge(1), Doc("the largest initial model that may be submitted")] = 2048 * MIB
    largest_request_bytes: Annotated[int, Ge(4096), Doc("the largest body of any other call")] = 4 * MIB
    quota_bytes: Annotated[
        int,
        Ge(0),
        Doc("bytes of models, slots and open updates that a tenant may have when it submits a model; 0: no limit"),
    ] = 0
    shared_caches: Annotated[
        bool,
        Doc(
            "let caches between server and clients (a CDN, a proxy) keep models and job descriptors; then whoever "
            "knows the SHA-256 of one can fetch it there without a signature"
        ),
    ] = False
    retention_days: Annotated[
        float,
        Gt(0),
        Doc("days that models of ended runs are kept, but for the last, and those in production or canary"),
    ] = 30.0
    token_days: Annotated[float, Gt(0), Doc("days that an operator token holds where none are asked for")] = 90.0
    code_allow: Annotated[
        tuple[str, ...],
        Doc('pieces outside Hansa that plans may name on the server: "package.module:name" or "package.module:*"'),
    ] = ()
    metrics_token: Annotated[
        str, Doc("the bearer token for /metrics; empty: an operator token that may read usage")
    ] = field(default="", repr=False)
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Doc("what is logged, at least")] = "info"
    log_format: Annotated[
        Literal["auto", "console", "json"], Doc("lines for people or for programs; auto: by whether it is a terminal")
    ] = "auto"

    def __post_init__(self) -> None:
        problems = list(_unfit(self))
        if problems:
            raise unfit(problems)

    @property
    def place(self) -> Path:
        """Return the server's own folder, absolute. It may not exist yet."""
        return Path(self.folder).absolute()

    @property
    def database_url(self) -> str:
        """Return where the database is."""
        return self.database or f"sqlite+aiosqlite:///{self.place / 'hansa.sqlite'}"

    @property
    def blobs_url(self) -> str:
        """Return where the blobs are: a folder or a URL."""
        return self.blobs or str(self.place / "blobs")

    @property
    def keys_url(self) -> str:
        """Return where the keys are: a folder or vault:URL."""
        return self.keys or str(self.place / "keys")

    @property
    def url(self) -> str:
        """Return what clients call the server."""
        if self.public_url:
            return self.public_url.rstrip("/")
        scheme = "http" if self.tls == "off" else "https"
        host = "localhost" if self.host in ("0.0.0.0", "::", "127.0.0.1", "::1") else self.host  # noqa: S104
        return f"{scheme}://{host}:{self.port}"

    @property
    def replica_name(self) -> str:
        """Return this replica's name; by default another for every process."""
        return self.replica or f"{socket.gethostname()}-{os.getpid()}"

    def make_folder(self) -> Path:
        """Make the server's folder, for its owner only; return it. Raises HansaError where that fails."""
        try:
            self.place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise HansaError(
                "HANSA-SERVER-STORAGE",
                rule="The server keeps its files in a folder of its own.",
                found=f"{self.place} cannot be made: {error.strerror or error}.",
                action="Set folder, or HANSA_SERVER_FOLDER, to a place that can be written.",
            ) from error
        return self.place


def read_settings(path: Path | str | None = None, environment: Mapping[str, str] | None = None) -> ServerSettings:
    """Return the settings of a file, if there is one, with those of the environment laid over it.

    Raises SettingsError with every problem: each at its key, or at its variable.
    """
    environment = os.environ if environment is None else environment
    tables = {} if path is None else _tables(Path(path))
    given, problems = _from_environment(environment)
    values, found = schema.from_mapping(ServerSettings, {**tables, **given})
    problems += [Problem(_where(problem.path, given), problem.message) for problem in found]
    problems += [problem for problem in _fit_of(values) if problem not in problems]
    if problems:
        raise unfit([Problem(_where(problem.path, given), problem.message) for problem in problems])
    return ServerSettings(**values)


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + name.upper()


def settings_table() -> tuple[Setting, ...]:
    """Return every setting of the server by its environment variable, for help and reference."""
    return tuple(
        Setting(variable(name), _in_words(declared.default), declared.help)
        for name, declared in schema.fields_of(ServerSettings).items()
    )


def unfit(problems: list[Problem]) -> SettingsError:
    """Return what to say of settings with problems."""
    return SettingsError(problems, code="HANSA-SERVER-SETTINGS", subject="the server's configuration")


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = f"cannot be read: {error.strerror or error}."
    except UnicodeDecodeError as error:
        found = f"is not UTF-8: {error.reason} at byte {error.start}."
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = f"is no TOML: {str(error).rstrip('.')}."
    raise unfit([Problem(str(path), found)]) from None


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """Return what the environment sets, read as its field's type, and every variable that cannot be."""
    declared = schema.fields_of(ServerSettings)
    known = {variable(name): name for name in declared}
    given: dict[str, Any] = {}
    problems = []
    for name, text in environment.items():
        if not name.startswith(PREFIX):
            continue
        if name not in known:
            problems.append(Problem(name, f"unknown variable; {nearest(name, known)}"))
        elif text:
            given[known[name]] = _typed(declared[known[name]].inner, text)
    return given, problems


def _typed(inner: Any, text: str) -> Any:
    """Return a variable's text as a number, a list (as in TOML, or with commas) or a text, as the field wants."""
    if inner is str or get_origin(inner) is Literal:
        return text
    if get_origin(inner) is tuple and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _where(path: str, given: Mapping[str, Any]) -> str:
    """Return a problem's key, or its variable where the environment gave the value."""
    head, dot, rest = path.partition(".")
    return f"{variable(head)}{dot}{rest}" if head in given else path


def _in_words(default: Any) -> str:
    if isinstance(default, tuple | list):
        return ", ".join(default) or "none"
    return "empty" if default == "" else f"{default:g}" if isinstance(default, float) else str(default)


def _fit_of(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what does not fit among the values that could be read; those that could not are as their defaults."""
    try:
        ServerSettings(**values)
    except SettingsError as error:
        yield from error.problems


def _unfit(of: ServerSettings) -> Iterator[Problem]:
    """Yield what is wrong with values by themselves or beside others."""
    yield from _unfit_places(of)
    yield from _unfit_certificates(of)
    if of.replica and not _REPLICA.fullmatch(of.replica):
        yield Problem("replica", "must be 1 to 64 letters, digits, dots, hyphens or underscores.")
    if of.lease_seconds < 3 * of.tick_seconds:
        yield Problem("lease_seconds", "must be at least three times tick_seconds, or leases end between ticks.")
    for position, each in enumerate(of.code_allow):
        if not _CODE.fullmatch(each):
            yield Problem(f"code_allow.{position}", 'must be "package.module:name" or "package.module:*".')


def _unfit_places(of: ServerSettings) -> Iterator[Problem]:
    if of.database and not of.database.startswith(_DATABASES):
        yield Problem("database", "must begin with sqlite+aiosqlite:/// or postgresql+psycopg://.")
    scheme, separator, _ = of.blobs.partition("://")
    if separator and scheme not in _BLOBS:
        yield Problem("blobs", f"has the unknown scheme {scheme!r}; {nearest(scheme, _BLOBS)}")
    if of.public_url and not (urlsplit(of.public_url).scheme in ("http", "https") and urlsplit(of.public_url).netloc):
        yield Problem("public_url", "must be a URL such as https://hansa.example.org.")
    for noun, port in (("decryptor", 8444), ("authority", 8445)):
        for position, url in enumerate(getattr(of, f"{noun}_urls")):
            if not (urlsplit(url).scheme in ("http", "https") and urlsplit(url).netloc):
                found = f"is {url.rpartition('@')[2][:_SHOWN]!r}; it must be a URL such as https://{noun}.example.org:{port}."
                yield Problem(f"{noun}_urls.{position}", found)


def _unfit_certificates(of: ServerSettings) -> Iterator[Problem]:
    for name in ("tls_certificate", "tls_key"):
        value = getattr(of, name)
        if of.tls == "files" and not value:
            yield Problem(name, 'is needed with tls = "files": the path of a PEM file.')
        if of.tls != "files" and value:
            yield Problem(name, f'has no use with tls = "{of.tls}"; set tls = "files".')
    if of.client_certificates != "none" and not of.client_ca:
        yield Problem("client_ca", "is needed to check client certificates: the path of their CAs, PEM.")
    if of.client_certificates == "none" and of.client_ca:
        yield Problem("client_ca", 'has no use with client_certificates = "none"; set "optional" or "required".')
    if of.client_certificates != "none" and of.tls == "off":
        yield Problem("client_certificates", 'need TLS; with tls = "off" the proxy in front checks them.')
    yield from _unfit_files(of)


_FIRST_STARTED: Final = {
    f"{noun}_ca": f" The {noun}'s first start makes it, which needs what `hansa server key` prints: leave {noun}_ca and"
    f" {noun}_urls out until then."
    for noun in ("decryptor", "authority")
}


def _unfit_files(of: ServerSettings) -> Iterator[Problem]:
    """Yield which files of certificates cannot be used: a server that began with them would break off."""
    for name in ("tls_certificate", "tls_key", "client_ca", "enrolment_ca", "decryptor_ca", "authority_ca"):
        value = getattr(of, name)
        if value and not Path(value).is_file():
            first = _FIRST_STARTED.get(name, "")
            yield Problem(name, f"there is no file {value}.{first}")
        elif value and name.endswith("_ca") and (found := unusable_authorities(value)):
            yield Problem(name, found)
    if pair := unusable_pair(of.tls_certificate, of.tls_key):
        yield Problem(f"tls_{pair.of}", pair.why)
