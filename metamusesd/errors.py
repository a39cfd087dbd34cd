"""The one tree of errors, raised anywhere and drawn here.

    MetamusesdError
    ├── ConfigError              bad_config            exit 78; carries one line a mistake
    ├── RequestError             the caller must change something; a retry cannot help
    │   │                        each names field, problem and remedy
    │   ├── InvalidRequest       invalid_request       one field is wrong
    │   │   └── UnknownTier      unknown_tier          no enabled tier has this name or this model
    │   ├── ContextOverflow      context_overflow      prompt longer than the model's context
    │   ├── InvalidGrammar       invalid_grammar       grammar or schema refused, or it led to a dead end
    │   ├── TemplateFailed       template_failed       the model's chat template raised
    │   └── IdConflict           id_conflict           same id or idempotency key, another body
    ├── QueueError
    │   ├── QueueFull            queue_full            retry after `retry_after_s`
    │   ├── QueueUnavailable     queue_unavailable     Redis is down, loading, read-only, full: `trouble` says which
    │   ├── QueueFault           queue_fault           a script stumbled over a key of a wrong type
    │   └── QueueRefused         queue_refused         Redis must be configured differently
    ├── JobError                 how a job ended, seen by whoever waits for it
    │   ├── JobFailed            (its own code)        carries the code of what failed it
    │   ├── JobCancelled         cancelled
    │   ├── JobExpired           expired
    │   ├── DeadlineUnmeetable   deadline_unmeetable   it would have been too late; retry after `retry_after_s`
    │   ├── QueueTimeout         queue_timeout         it waited longer than its class may; retry after the same
    │   ├── JobDead              dead                  quarantined after crashes
    │   ├── JobGone              gone                  no such job, or its record has expired
    │   └── WaitTimeout          wait_timeout          still running when the caller's patience ended
    ├── EngineError
    │   ├── ModelNotFound        model_not_found       exit 78 of a worker: never retried
    │   ├── ModelLoadFailed      model_load_failed     exit 78 of a worker: never retried
    │   ├── GpuFull              gpu_full              no room on the GPU, and nobody frees any
    │   ├── CanaryFailed         canary_failed         a new model is refused; the reload goes back
    │   ├── NoCapacity           no_capacity           no KV cells or slots now; the job goes back unburnt
    │   ├── EngineFailed         engine_failed         a decode failed; another try can help
    │   └── WorkerLost           worker_lost           its worker died, and the job asked not to be restarted
    ├── CacheError
    │   ├── StoreFailed          store_failed          the vector store could not do it now: a miss
    │   ├── StoreRefused         store_refused         what is there cannot be used: exit 78 of the vectors process
    │   │   └── StoreBroken      store_broken          its files are damaged: they are set aside, and a new one begun
    │   └── EmbedderFailed       embedder_failed       no embedder: the exact cache alone goes on
    ├── OperatorError            seen by whoever runs a command
    │   ├── DaemonAway           daemon_away           no daemon answers on the health socket
    │   └── FetchFailed          fetch_failed          a model could not be fetched, or is not what it should be
    └── WireError                wire_error            a frame between two of our processes is broken

A class' docstring is its default message. `retryable` says whether the same call may succeed later.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MetamusesdError(Exception):
    """Something in metamusesd went wrong."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str | None = None, **fields: Any) -> None:
        self.message = message or (type(self).__doc__ or "").strip().split("\n")[0]
        self.fields = {name: value for name, value in fields.items() if value is not None}
        super().__init__(self.message)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that travels in results and events: code, message, retryable, then the fields."""
        return {"code": self.code, "message": self.message, "retryable": self.retryable, **self.fields}


class ConfigError(MetamusesdError):
    """The configuration is not valid."""

    code = "bad_config"

    def __init__(self, mistakes: list[str] | str) -> None:
        self.mistakes = [mistakes] if isinstance(mistakes, str) else mistakes
        super().__init__("; ".join(self.mistakes))


class RequestError(MetamusesdError):
    """The request cannot be served as it is."""

    code = "request_error"
    field: str = "request"
    remedy: str = "change the request"

    def __init__(
        self, message: str | None = None, *, field: str | None = None, remedy: str | None = None, **fields: Any
    ) -> None:
        super().__init__(message, **fields)
        self.field, self.remedy = field or self.field, remedy or self.remedy

    @property
    def problem(self) -> str:
        """What is wrong with the field."""
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, with the field, what is wrong with it, and what would be right."""
        return super().to_dict() | {"field": self.field, "problem": self.problem, "remedy": self.remedy}


class InvalidRequest(RequestError):
    """The request is not valid."""

    code = "invalid_request"

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        self._problem = problem
        super().__init__(f"{field}: {problem}; {remedy}", field=field, remedy=remedy)
        self.fields = {"field": field, "problem": problem, "remedy": remedy}

    @property
    def problem(self) -> str:
        """What is wrong with the field."""
        return self._problem


class UnknownTier(InvalidRequest):
    """No enabled tier can serve this request."""

    code = "unknown_tier"


class ContextOverflow(RequestError):
    """The prompt does not fit into the model's context."""

    code = "context_overflow"
    field = "user_query"
    remedy = "shorten the prompt, drop turns of context, or set truncate to oldest"


class InvalidGrammar(RequestError):
    """The grammar or JSON schema is not accepted."""

    code = "invalid_grammar"
    field = "params.grammar"
    remedy = "correct or simplify the grammar"


class TemplateFailed(RequestError):
    """The model's chat template does not accept these messages."""

    code = "template_failed"
    field = "messages"
    remedy = "use roles in an order that the model's chat template accepts, or another model"


class IdConflict(RequestError):
    """This id or idempotency key already names another request."""

    code = "id_conflict"
    field = "id"
    remedy = "use a new id or idempotency key for another request, or repeat the same one unchanged"

    def __init__(self, message: str | None = None, **fields: Any) -> None:
        super().__init__(message, **fields)
        self.field = str(fields.get("by", self.field))


class QueueError(MetamusesdError):
    """The job queue did not do what was asked."""

    code = "queue_error"
    retryable = True


class QueueFull(QueueError):
    """The queue is full."""

    code = "queue_full"

    def __init__(self, message: str | None = None, *, retry_after_s: float = 1.0, **fields: Any) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, retry_after_s=retry_after_s, **fields)


class QueueUnavailable(QueueError):
    """The job queue cannot be reached."""

    code = "queue_unavailable"

    def __init__(self, message: str | None = None, *, trouble: str = "unreachable", **fields: Any) -> None:
        self.trouble = trouble  # a name of board.RedisTrouble, in lower case
        super().__init__(message, trouble=trouble, **fields)


class QueueFault(QueueError):
    """A queue script failed on a key that somebody else wrote."""

    code = "queue_fault"
    retryable = False


class QueueRefused(QueueError):
    """The Redis server is configured in a way that would lose jobs."""

    code = "queue_refused"
    retryable = False


class JobError(MetamusesdError):
    """The job ended without a result."""

    code = "job_error"


class JobFailed(JobError):
    """The job failed."""

    code = "failed"

    @property
    def error(self) -> dict[str, Any]:
        """The error dict that the job was settled with: code, message and more."""
        return dict(self.fields.get("error", {}))


class JobCancelled(JobError):
    """The job was cancelled."""

    code = "cancelled"


class JobExpired(JobError):
    """The job's deadline passed."""

    code = "expired"


class DeadlineUnmeetable(JobError):
    """The job could not have been finished before its deadline."""

    code = "deadline_unmeetable"
    retryable = True


class QueueTimeout(JobError):
    """The job waited longer than its class may."""

    code = "queue_timeout"
    retryable = True


class JobDead(JobError):
    """The job was quarantined, because processes crashed under it."""

    code = "dead"


class JobGone(JobError):
    """There is no such job, or its record has expired."""

    code = "gone"


class WaitTimeout(JobError):
    """The job was still not finished when the wait timed out."""

    code = "wait_timeout"
    retryable = True


class EngineError(MetamusesdError):
    """The engine failed."""

    code = "engine_error"
    retryable = True


class ModelNotFound(EngineError):
    """The model file does not exist."""

    code = "model_not_found"
    retryable = False


class ModelLoadFailed(EngineError):
    """The model file cannot be loaded."""

    code = "model_load_failed"
    retryable = False


class CanaryFailed(EngineError):
    """The model did not pass its canary."""

    code = "canary_failed"
    retryable = False


class GpuFull(EngineError):
    """The GPU has no room for the model."""

    code = "gpu_full"


class NoCapacity(EngineError):
    """The engine has no room for this job at present."""

    code = "no_capacity"


class EngineFailed(EngineError):
    """The engine failed while it was computing."""

    code = "engine_failed"


class CacheError(MetamusesdError):
    """The semantic cache failed."""

    code = "cache_error"


class StoreFailed(CacheError):
    """The vector store could not do it."""

    code = "store_failed"
    retryable = True


class StoreRefused(CacheError):
    """The vector store cannot be used as it is."""

    code = "store_refused"


class StoreBroken(StoreRefused):
    """The vector store's files are damaged."""

    code = "store_broken"


class EmbedderFailed(CacheError):
    """The embedder cannot be used."""

    code = "embedder_failed"


class OperatorError(MetamusesdError):
    """The command cannot do what was asked."""

    code = "operator_error"


class DaemonAway(OperatorError):
    """The daemon is not running."""

    code = "daemon_away"
    retryable = True


class FetchFailed(OperatorError):
    """The model could not be fetched."""

    code = "fetch_failed"
    retryable = True


class WorkerLost(EngineError):
    """The worker died while it was generating the answer."""

    code = "worker_lost"


class WireError(MetamusesdError):
    """A frame between two processes is broken."""

    code = "wire_error"
