"""Round keys with OpenBao or HashiCorp Vault: a key of the transit engine for each, which never leaves it.

The database keeps a data key as the engine wrapped it; to destroy it is to delete the transit key. The policy that the
server's token needs is in docs/how-to (create, read, update, list and delete below transit/keys, update below
transit/datakey and transit/decrypt).
"""

from __future__ import annotations

import base64
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import hvac
import requests
from hvac.exceptions import InvalidPath, InvalidRequest, VaultError

from hansa.core.errors import StoreError
from hansa.core.killpoints import reached
from hansa.store.keys import HeldKey, checked, key_missing

_REMEMBERED: Final = 256
_SECONDS: Final = 10.0


class VaultKeys:
    """Keys of a transit engine, all with names that begin with ``prefix``.

    Unwrapped keys are remembered in memory until they are destroyed here, so that not every report costs a call.
    """

    def __init__(
        self, address: str, token: str, *, mount: str = "transit", prefix: str = "hansa-", ca: str | bool = True
    ) -> None:
        self._client = hvac.Client(url=address, token=token, verify=ca, timeout=_SECONDS)
        self._mount = mount
        self._prefix = prefix
        self._remembered: OrderedDict[tuple[str, bytes], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def create(self, key_id: str) -> tuple[bytes, bytes]:
        """Make a key; where there is a transit key of that id already, it wraps the new one."""
        name = self._name(key_id)
        self._ask(key_id, self._transit.create_key, name=name, key_type="aes256-gcm96")
        self._ask(key_id, self._transit.update_key_configuration, name=name, deletion_allowed=True)
        answer = self._ask(key_id, self._transit.generate_data_key, name=name, key_type="plaintext", bits=256)
        key, wrapped = base64.b64decode(answer["data"]["plaintext"]), answer["data"]["ciphertext"].encode()
        reached("storage.key-created")
        return key, wrapped

    def unwrap(self, key_id: str, wrapped: bytes) -> bytes:
        """Return a key from its wrapped form."""
        name = self._name(key_id)
        with self._lock:
            known = self._remembered.get((key_id, wrapped))
        if known is not None:
            return known
        try:
            ciphertext = wrapped.decode("ascii")
        except UnicodeDecodeError:
            raise key_missing(key_id) from None
        answer = self._ask(key_id, self._transit.decrypt_data, name=name, ciphertext=ciphertext)
        key = base64.b64decode(answer["data"]["plaintext"])
        with self._lock:
            self._remembered[key_id, wrapped] = key
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return key

    def destroy(self, key_id: str) -> None:
        """Delete the transit key of an id; all that it wrapped is worthless then."""
        name = self._name(key_id)
        with self._lock:
            for each in [each for each in self._remembered if each[0] == key_id]:
                del self._remembered[each]
        try:
            self._ask(key_id, self._transit.update_key_configuration, name=name, deletion_allowed=True)
            self._ask(key_id, self._transit.delete_key, name=name)
        except StoreError as error:
            if error.code != "HANSA-KEY-MISSING":
                raise
        reached("storage.key-destroyed")

    def held(self) -> list[HeldKey]:
        """Return the keys that are not destroyed."""
        try:
            names = self._ask("any", self._transit.list_keys)["data"]["keys"]
        except StoreError as error:
            if error.code != "HANSA-KEY-MISSING":
                raise
            return []
        ids = [name.removeprefix(self._prefix) for name in names if name.startswith(self._prefix)]
        return [HeldKey(key_id, self._made_at(key_id)) for key_id in ids]

    @property
    def _transit(self) -> Any:
        return self._client.secrets.transit

    def _made_at(self, key_id: str) -> float:
        versions = self._ask(key_id, self._transit.read_key, name=self._name(key_id))["data"]["keys"]
        made = versions[min(versions, key=int)]
        return datetime.fromisoformat(made).timestamp() if isinstance(made, str) else float(made)

    def _name(self, key_id: str) -> str:
        return self._prefix + checked(key_id)

    def _ask(self, key_id: str, call: Callable[..., Any], **arguments: Any) -> Any:
        """Call the engine. Raises StoreError where there is no such key, or nobody answers."""
        try:
            return call(mount_point=self._mount, **arguments)
        except (InvalidPath, InvalidRequest):
            raise key_missing(key_id) from None
        except (VaultError, requests.RequestException) as error:
            raise StoreError(
                "HANSA-SERVER-BUSY",
                rule="The server works while its key provider answers and lets it in.",
                found=f"The transit engine said {type(error).__name__}.",
                action="Check its address, token and policy; nothing that was acknowledged is lost.",
            ) from None
