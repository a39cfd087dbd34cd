"""All stages · dispatcher and clients · what an error of Redis means to us: text in, one of our errors out.

A command refused inside a script comes wrapped, and each version wraps it differently:

    6.2   ERR Error running script (call to f_<sha>): @user_script:7: @user_script: 7: -OOM command not allowed …
    7.0   OOM command not allowed … script: <sha>, on @user_script:7.

Errors that nobody here knows count as passing trouble: waiting loses nothing, giving up might.
"""

from __future__ import annotations

import re

from metamusesd.errors import InvalidRequest, MetamusesdError, QueueFault, QueueUnavailable

TROUBLES = {
    "LOADING": "loading",
    "OOM": "memory",
    "READONLY": "read_only",
    "UNBLOCKED": "read_only",  # the server became a replica under a blocked read
    "MISCONF": "disk",
    "BUSY": "busy",
    "TRYAGAIN": "busy",
    "CLUSTERDOWN": "busy",
    "MASTERDOWN": "busy",
    "NOREPLICAS": "busy",
    "MOVED": "busy",
    "ASK": "busy",
    "NOAUTH": "denied",
    "NOPERM": "denied",
    "WRONGPASS": "denied",
    "DENIED": "denied",
}
ASTRAY = frozenset({"READONLY", "UNBLOCKED", "MASTERDOWN", "NOREPLICAS", "CLUSTERDOWN"})  # another server may do
DENIED = re.compile(r"The user executing the script can't|ACL failure|AUTH <password> called|DB index is out of range")
PASSING = re.compile(r"in a cluster node|cluster is down|max number of clients")
LASTING = re.compile(r"user_script|^ERR (Invalid stream ID|value is not|syntax error|unknown command|wrong number)")
REMEDIES = {
    "denied": "; check user, password, database and permissions of redis.url",
    "disk": "; free its disk",
    "memory": "; raise its maxmemory",
}
_wrapping = re.compile(r"^ERR Error running script .*?@user_script: ?\d+: (?:@user_script: ?\d+: )?-?", re.DOTALL)


def translate(error: Exception) -> MetamusesdError:
    """What our callers are told about a reply or a connection that failed."""
    text = str(error) or type(error).__name__
    code, _, rest = text.partition(" ")
    if code == "INVALID" and rest.count("|") == 2:
        return InvalidRequest(*rest.split("|"))
    if isinstance(error, OSError | TimeoutError) or not str(error):
        return QueueUnavailable(f"The job queue cannot be reached: {text}")
    trouble = trouble_of(text)
    if not trouble:
        return QueueFault(f"A queue script failed, on a key that somebody else wrote or by a mistake of ours: {text}")
    return QueueUnavailable(f"The job queue does not serve: {text}{REMEDIES.get(trouble, '')}", trouble=trouble)


def trouble_of(text: str) -> str:
    """The trouble (a name of board.RedisTrouble, lower case) that an error reply speaks of; empty: it is a fault."""
    inner = code_of(text)
    if inner in TROUBLES:
        return TROUBLES[inner]
    if DENIED.search(text):
        return "denied"
    if inner in ("WRONGTYPE", "CROSSSLOT") or (LASTING.search(text) and not PASSING.search(text)):
        return ""
    return "busy"


def code_of(text: str) -> str:
    """The first word of an error reply, or of the one that a script's error wraps."""
    return _wrapping.sub("", text).partition(" ")[0]
