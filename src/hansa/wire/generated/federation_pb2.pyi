from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_STATISTICS: _ClassVar[Kind]
    KIND_TRAINING: _ClassVar[Kind]
    KIND_EVALUATION: _ClassVar[Kind]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_OPEN: _ClassVar[Outcome]
    OUTCOME_INCLUDED: _ClassVar[Outcome]
    OUTCOME_NOT_INCLUDED: _ClassVar[Outcome]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_ACCEPTED: _ClassVar[Verdict]
    VERDICT_LATE: _ClassVar[Verdict]
KIND_UNSPECIFIED: Kind
KIND_STATISTICS: Kind
KIND_TRAINING: Kind
KIND_EVALUATION: Kind
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_OPEN: Outcome
OUTCOME_INCLUDED: Outcome
OUTCOME_NOT_INCLUDED: Outcome
VERDICT_UNSPECIFIED: Verdict
VERDICT_ACCEPTED: Verdict
VERDICT_LATE: Verdict

class AssignmentId(_message.Message):
    __slots__ = ("run", "kind", "round", "attempt")
    RUN_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    run: str
    kind: Kind
    round: int
    attempt: int
    def __init__(self, run: _Optional[str] = ..., kind: _Optional[_Union[Kind, str]] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("id", "job_sha256", "plan_sha256", "model_sha256", "model_size", "client", "number", "cohort_size", "population", "deadline_ms", "secure_sum")
    ID_FIELD_NUMBER: _ClassVar[int]
    JOB_SHA256_FIELD_NUMBER: _ClassVar[int]
    PLAN_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODEL_SIZE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    COHORT_SIZE_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    SECURE_SUM_FIELD_NUMBER: _ClassVar[int]
    id: AssignmentId
    job_sha256: str
    plan_sha256: str
    model_sha256: str
    model_size: int
    client: str
    number: int
    cohort_size: int
    population: int
    deadline_ms: int
    secure_sum: bytes
    def __init__(self, id: _Optional[_Union[AssignmentId, _Mapping]] = ..., job_sha256: _Optional[str] = ..., plan_sha256: _Optional[str] = ..., model_sha256: _Optional[str] = ..., model_size: _Optional[int] = ..., client: _Optional[str] = ..., number: _Optional[int] = ..., cohort_size: _Optional[int] = ..., population: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., secure_sum: _Optional[bytes] = ...) -> None: ...

class SignedAssignment(_message.Message):
    __slots__ = ("assignment", "signature", "key_id")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    assignment: bytes
    signature: bytes
    key_id: str
    def __init__(self, assignment: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., key_id: _Optional[str] = ...) -> None: ...

class ServerKey(_message.Message):
    __slots__ = ("key_id", "public_key", "endorsed_by", "endorsement")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    ENDORSED_BY_FIELD_NUMBER: _ClassVar[int]
    ENDORSEMENT_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    public_key: bytes
    endorsed_by: str
    endorsement: bytes
    def __init__(self, key_id: _Optional[str] = ..., public_key: _Optional[bytes] = ..., endorsed_by: _Optional[str] = ..., endorsement: _Optional[bytes] = ...) -> None: ...

class EnrolRequest(_message.Message):
    __slots__ = ("token", "certificates", "public_key", "key_proof", "certificate_proof", "client_version", "attributes", "consent", "population")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATES_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_PROOF_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_PROOF_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    token: str
    certificates: _containers.RepeatedScalarFieldContainer[bytes]
    public_key: bytes
    key_proof: bytes
    certificate_proof: bytes
    client_version: str
    attributes: _containers.ScalarMap[str, str]
    consent: bool
    population: str
    def __init__(self, token: _Optional[str] = ..., certificates: _Optional[_Iterable[bytes]] = ..., public_key: _Optional[bytes] = ..., key_proof: _Optional[bytes] = ..., certificate_proof: _Optional[bytes] = ..., client_version: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., consent: _Optional[bool] = ..., population: _Optional[str] = ...) -> None: ...

class EnrolResponse(_message.Message):
    __slots__ = ("client", "number", "name", "population", "server_keys")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    SERVER_KEYS_FIELD_NUMBER: _ClassVar[int]
    client: str
    number: int
    name: str
    population: str
    server_keys: _containers.RepeatedCompositeFieldContainer[ServerKey]
    def __init__(self, client: _Optional[str] = ..., number: _Optional[int] = ..., name: _Optional[str] = ..., population: _Optional[str] = ..., server_keys: _Optional[_Iterable[_Union[ServerKey, _Mapping]]] = ...) -> None: ...

class CheckInRequest(_message.Message):
    __slots__ = ("client_version", "attributes", "consent", "wait_seconds", "reported", "declined", "looks")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    DECLINED_FIELD_NUMBER: _ClassVar[int]
    LOOKS_FIELD_NUMBER: _ClassVar[int]
    client_version: str
    attributes: _containers.ScalarMap[str, str]
    consent: bool
    wait_seconds: float
    reported: AssignmentId
    declined: AssignmentId
    looks: bool
    def __init__(self, client_version: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., consent: _Optional[bool] = ..., wait_seconds: _Optional[float] = ..., reported: _Optional[_Union[AssignmentId, _Mapping]] = ..., declined: _Optional[_Union[AssignmentId, _Mapping]] = ..., looks: _Optional[bool] = ...) -> None: ...

class CheckInResponse(_message.Message):
    __slots__ = ("come_back_seconds", "assignment", "outcome", "server_keys")
    COME_BACK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    SERVER_KEYS_FIELD_NUMBER: _ClassVar[int]
    come_back_seconds: float
    assignment: SignedAssignment
    outcome: Outcome
    server_keys: _containers.RepeatedCompositeFieldContainer[ServerKey]
    def __init__(self, come_back_seconds: _Optional[float] = ..., assignment: _Optional[_Union[SignedAssignment, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., server_keys: _Optional[_Iterable[_Union[ServerKey, _Mapping]]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("verdict", "sha256", "offset")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    sha256: str
    offset: int
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("id", "message", "seen", "wait_seconds")
    ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    id: AssignmentId
    message: bytes
    seen: int
    wait_seconds: float
    def __init__(self, id: _Optional[_Union[AssignmentId, _Mapping]] = ..., message: _Optional[bytes] = ..., seen: _Optional[int] = ..., wait_seconds: _Optional[float] = ...) -> None: ...

class ExchangeResponse(_message.Message):
    __slots__ = ("message", "come_back_seconds")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    COME_BACK_SECONDS_FIELD_NUMBER: _ClassVar[int]
    message: bytes
    come_back_seconds: float
    def __init__(self, message: _Optional[bytes] = ..., come_back_seconds: _Optional[float] = ...) -> None: ...

class RotateKeyRequest(_message.Message):
    __slots__ = ("public_key", "key_proof")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    KEY_PROOF_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    key_proof: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., key_proof: _Optional[bytes] = ...) -> None: ...

class RotateKeyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GoodbyeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GoodbyeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Problem(_message.Message):
    __slots__ = ("code", "rule", "found", "action")
    CODE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    code: str
    rule: str
    found: str
    action: str
    def __init__(self, code: _Optional[str] = ..., rule: _Optional[str] = ..., found: _Optional[str] = ..., action: _Optional[str] = ...) -> None: ...
