"""All stages · any process · the events that somebody may want to find by their kind: each has an id for ever.

`journalctl MESSAGE_ID=…` finds them, and alerts may stand on them; docs/logs.md says what each means. An id is never
given to another event; an event that gets another name keeps its id.
"""

from __future__ import annotations

MESSAGE_IDS = {
    # the daemon
    "starting": "99356a58c734449ea0348ab2b66279b8",
    "ready": "a6b1564221f540c0bde55cd3be8f5024",
    "stopping": "a1251d5060824b67b61f745b7692a61d",
    "stopped": "4be3c857b2fc47c8bee0271f104a4fd8",
    "the daemon cannot start": "b5114dedcc3048fbace4dc5102d76554",
    # children
    "child died": "51cd9a9ef1a440ae935588301dff63af",
    "child given up": "98e7079985a044d38ef20c69e62945b3",
    "child is hung": "d80a04b376204f5796a31d7424ea139d",
    "recycled": "ce051b3e82974a0bb96aa40bea91b615",
    "model not loaded": "855e15dae3fa4affaa67c8c70e10d58d",
    # redis
    "redis answers": "6431cfe3d57040c5a140ce8587934e24",
    "redis cannot be asked": "760192d757724f48ae3646d559809664",
    "redis refused": "79a55150ba2e4fb1b9d8a50531fdfe93",
    # the log itself
    "log lines were lost": "488fa1f2bfa44c79b6ee2e3397d0782d",
}
