"""Events with fields, for people, for machines and for the journal. The only door to structlog.

    log = get_logger("dispatcher", pid=os.getpid())
    log.info("job ended", job=id, state="done", total_ms=812)

A logger's own fields are bound once. Prompts and answers are logged only where the configuration asks for it. No call
blocks, raises or starts a thread: what standard error or the journal cannot take now is counted, and the count is told.
"""

from metamusesd.log.logger import LEVELS, Logger, configure, flush, get_logger, obey, tells_prompts, tick

__all__ = ["LEVELS", "Logger", "configure", "flush", "get_logger", "obey", "tells_prompts", "tick"]
