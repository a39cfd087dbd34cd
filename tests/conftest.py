"""For all tests: a SIGINT ends who gets one, as it does for a user, also where the tests run in the background."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited from a shell's `&`, and children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
