"""All stages · any process · the events that somebody may want to find by their kind: each has an id for ever.

`journalctl MESSAGE_ID=…` finds them, and alerts may stand on them; docs/logs.md says what each means. An id is never
given to another event; an event that gets another name keeps its id.
"""

from __future__ import annotations

MESSAGE_IDS = {
    # the daemon
    "starting": "99356a58c734449ea0348ab2b66279b8",
    "stopping": "a1251d5060824b67b61f745b7692a61d",
    "stopping at once": "53a3255ae325401f8d5e4f452fc891fd",
    "stopped": "4be3c857b2fc47c8bee0271f104a4fd8",
    "the daemon cannot start": "b5114dedcc3048fbace4dc5102d76554",
    "reloading": "bd42e98c57bb45e3a3811cc2ad795b2d",
    "reloaded": "b52731c4634d480a97303d22436b3a26",
    "reload rolled back": "d601aa4459e14a1fa6bf71e9506f2b66",
    "configuration refused, the present one stays": "e3465614abc04a5db7cdd43e94800bc7",
    "draining": "2e7432c8536a4cb797037b9ae3ecba99",
    "undrained": "307244e740b54512871d7a6e27e4ddca",
    # children
    "started": "2c4bb7a183034af69d1ea9fed30416a6",
    "ready": "a6b1564221f540c0bde55cd3be8f5024",
    "child died": "51cd9a9ef1a440ae935588301dff63af",
    "child given up": "98e7079985a044d38ef20c69e62945b3",
    "child is hung": "d80a04b376204f5796a31d7424ea139d",
    "recycled": "ce051b3e82974a0bb96aa40bea91b615",
    "replaced": "a54bc53f8a8d48a9977376f39966cddc",
    "model not loaded": "855e15dae3fa4affaa67c8c70e10d58d",
    "canary passed": "a9c58e1a278248a58ffda4417f9e6421",
    "a tier goes to sleep": "4f4efd02c94e4449b7faee4bb44e49d3",
    "a tier wakes": "4f99b71840104b0fa9206d7f3c05c6b9",
    # Redis
    "redis answers": "6431cfe3d57040c5a140ce8587934e24",
    "redis cannot be asked": "760192d757724f48ae3646d559809664",
    "redis refused": "79a55150ba2e4fb1b9d8a50531fdfe93",
    # the caches
    "no semantic cache": "018902033ddf434d809afa29b08a9533",
    "lookups fail": "fae67846f35d4c01bb4a6c4fa72d41db",
    "lookups work again": "6e00cb36454a44299dab3ed1a640cb70",
    # jobs
    "job ended": "39603403e66c45509fd7be777d6aa427",
    "job refused": "3b583264c72741aa96d9cb44bb1bf337",
    "job lost its worker": "d593d0ead9b14edd9fca5d033d9206c0",
    "job is quarantined": "9084bf4a8eba420784db114813265004",
    "job is tried again": "39115735eeb54f2e8c846802eb3ffa71",
    "job goes a tier up": "6fbc9c58f083445bafcc9b198ddafe72",
    "job given back": "72823db44c624b58a4da85c0892bbc95",
    "job waited too long": "2ab310619e694aaabec8606251e73d4f",
    "job is somebody else's now": "49331f416bdf48fd9b0020ff448eaf3c",
    "given up": "960b02bfd11147ea934277218be6682c",
    # what is told
    "log lines were lost": "488fa1f2bfa44c79b6ee2e3397d0782d",
    "traces are lost": "107c0106150844fdb20bc81c7939e1e2",
}
