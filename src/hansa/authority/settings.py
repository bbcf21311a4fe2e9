"""Settings of an authority: in which its operator says whom it answers, and from how many clients on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from annotated_types import Ge, Le, MinLen

from hansa.core.schema import Doc
from hansa.serving.settings import ServiceSettings

FOLDER: Final = "hansa-authority"


@dataclass(frozen=True, kw_only=True)
class AuthoritySettings(ServiceSettings):
    """Everything that can be set about an authority. Raises SettingsError for values that do not fit each other."""

    noun: ClassVar[str] = "authority"

    minimum_cohort: Annotated[
        int, Ge(3), Doc("fewest clients of a sum whose keys it vouches for, whatever a plan says")
    ] = 3
    attempts_per_round: Annotated[
        int,
        Ge(1),
        Doc("how often it draws for one client in a round: a server that gives an attempt up gets another graph"),
    ] = 32
    folder: Annotated[
        str,
        MinLen(1),
        Doc("where it keeps its key, its list and what it drew; made with mode 0700, for one process that serves"),
    ] = FOLDER
    port: Annotated[int, Ge(1), Le(65535), Doc("port to listen on")] = 8445
    largest_request_bytes: Annotated[
        int,
        Ge(4096),
        Doc("the largest body of a call: 32 bytes a client, 192 with a beacon, and a few kilobytes of a task"),
    ] = 2**20
