"""Stage 8 · worker · what every engine offers to the worker's step loop.

One engine object lives in one worker process and holds one model. The worker calls everything but `prepare` from its
only step thread; `prepare` may run on another thread while a step computes, so it must not touch what steps touch.

    prepare(task) ──► Prepared ──► admit(prepared) ──► step() … step() ──► Finished
    (validate, template, tokenize)     │   ▲             └ cancel(handle) at any time between steps
                                       ▼   │
                                   interrupted(handle)?  a long step may ask whether that sequence is still wanted,
                                   urgent(priority)?     and whether a job of a higher class waits for its end

Nothing that a request carries may crash the process: every refusal is a RequestError raised by `prepare`, or NoCapacity
raised by `admit`, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from metamusesd.job import InferenceRequest, Priority
from metamusesd.wire import Finished, Token

__all__ = [
    "Engine",
    "EngineSpec",
    "EngineStatistics",
    "Event",
    "Finished",
    "ModelInfo",
    "Prepared",
    "Progress",
    "Task",
    "Token",
]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a worker is told to load. Plain data: it comes from the configuration through the supervisor."""

    engine: str  # llamacpp | mistralrs | echo
    model_name: str
    model_path: str = ""  # the GGUF file or the directory; empty for echo
    model_digest: str = ""  # sha256:… of the file or the directory; names the model everywhere
    slots: int = 8  # sequences that generate at a time
    reserve_slots: int = 4  # more sequences that are held while a higher class pre-empts them
    context: int = 4096  # tokens a sequence may hold, prompt and answer
    kv_cells: int = 0  # tokens of all sequences and cached prefixes together; 0: the engine decides
    threads: int = 1
    gpu_layers: int = 0
    tensor_split: tuple[float, ...] = ()
    flash_attention: bool = True
    kv_cache_type: str = "f16"  # f16 | q8_0: how K and V are kept
    mlock: bool = False  # weights stay in memory
    hugepages: str = "system"  # system | thp | off
    prefill_ratio: float = 1.2  # time that prefill may add to a step, as a multiple of the step's decode time
    yield_limit_s: float = 0.5  # a pre-empted sequence runs again after so long
    default_max_tokens: int = 512
    default_temperature: float = 0.7
    default_top_p: float = 0.9
    options: dict[str, Any] = field(default_factory=dict)  # of one engine alone; echo's programme, for instance
    chosen: str = ""  # why this engine; for the log


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What was loaded, told to the dispatcher in HELLO."""

    name: str
    digest: str
    architecture: str
    context: int  # tokens a sequence may hold
    slots: int
    reserve_slots: int
    template_digest: str
    vocabulary: int
    prefix_reuse: bool


@dataclass(frozen=True, slots=True)
class Task:
    """One attempt at one job, as the worker received it. `handle` names it on the pipe and is unique in the epoch."""

    handle: int
    request: InferenceRequest
    priority: Priority
    aged: bool = False  # it has waited past its class' limit: it is not pre-empted
    deadline_ns: int = 0  # monotonic; 0: none


@dataclass(frozen=True, slots=True)
class Prepared:
    """A validated, tokenized task. Engines subclass it with what else they need."""

    task: Task
    prompt_tokens: int
    max_tokens: int

    def promoted(self, priority: Priority) -> Self:
        """The same, of another class."""
        return replace(self, task=replace(self.task, priority=priority))


Progress = Callable[[float], None]  # told how much of a model is loaded, 0 to 1
Interrupted = Callable[[int], bool]  # whether nobody wants the sequence of this handle any more; raises nothing
Urgent = Callable[[Priority], bool]  # whether a job of a higher class than this one has come meanwhile; raises nothing
Event = Token | Finished  # what a step yields; both travel to the dispatcher as they are, see wire.py


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A snapshot for the board, cheap enough to make after every step."""

    slots_used: int = 0  # sequences admitted, running or pre-empted
    preempted: int = 0
    queued_prompt_tokens: int = 0  # admitted and not yet computed
    kv_cells: int = 0
    kv_cells_used: int = 0
    prefill_rate: float = 0.0  # tokens/s, moving average
    decode_rate: float = 0.0  # tokens/s over all sequences, moving average
    step_ns: int = 0  # length of the last step
    prefix_hits: int = 0
    prefix_queries: int = 0
    prompt_tokens: int = 0  # computed since load
    generated_tokens: int = 0  # since load


def never(_: int) -> bool:
    """Every sequence is wanted to the end of its step."""
    return False


def nobody(_: Priority) -> bool:
    """No job of a higher class waits for the end of a step."""
    return False


class Engine(Protocol):
    """See the module's docstring for who calls what, when."""

    info: ModelInfo

    def prepare(self, task: Task) -> Prepared:
        """Render, tokenize and validate. Thread-safe. Raises RequestError; does no work on the model."""

    def admit(self, prepared: Prepared) -> None:
        """Take the task in. Raises NoCapacity (and changes nothing) when slots or cells do not suffice."""

    def cancel(self, handle: int) -> bool:
        """Drop the sequence now; no event of it follows. False if there is none."""

    def promote(self, handle: int, priority: Priority) -> None:
        """From the next step on the sequence has this class. An unknown handle is ignored."""

    def busy(self) -> bool:
        """True while a call of `step` would compute something."""

    def step(self, interrupted: Interrupted = never, urgent: Urgent = nobody) -> list[Event]:
        """Compute one batch: prefill chunks and one token of each running sequence. Blocks for one step only.

        `interrupted` and `urgent` may be asked on the same thread, as seldom as the engine likes; they touch no engine.
        After a yes the step may end without having computed anything for that sequence, which lives on until it is
        cancelled.
        """

    def statistics(self) -> EngineStatistics:
        """The numbers for the board."""

    def close(self) -> None:
        """Free everything. Legal twice."""
