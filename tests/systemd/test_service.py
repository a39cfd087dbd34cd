"""The service under a real systemd, from `make install` to `make uninstall`, in this order."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator

from metamusesd.config import DEMO_MODEL
from metamusesd.control import EXIT_BAD_CONFIG
from tests.systemd import page
from tests.systemd.box import until
from tests.systemd.service import CONFIG, READY_S, START, STATE, UNIT, WORKERS, Service

CHILDREN = {"redis", "dispatcher", "vectors", *(f"fast-{number}" for number in range(WORKERS))}
BAD_CONFIG = "[demon]\ndrain_s = 3"
PROVED = {"Install", "Back up", "Restore", "Uninstall"}  # sections of the page with a test of their own
HANG_S = 40.0  # for whatever hangs to be found and replaced


def test_install_says_what_to_do_next(installed: Service) -> None:
    """User, directories, unit and configuration are there, with the rights that the service needs, and nothing runs."""
    for line in ("models fetch", CONFIG, "metamusesd check", "systemctl enable --now metamusesd"):
        assert line in installed.first_words
    rights = installed.box.says("stat", "--format=%U:%G %a", STATE, f"{STATE}/models", CONFIG).splitlines()
    assert rights == ["metamusesd:metamusesd 750", "metamusesd:metamusesd 2775", "root:metamusesd 640"]
    assert installed.show("LoadState") == "loaded" and installed.show("ActiveState") == "inactive"
    assert "ok  models.smollm2" in installed.first_words  # metamusesd check
    assert installed.box.says("stat", "--format=%U", f"{STATE}/models/{DEMO_MODEL}") == UNIT
    for file in ("man/man1/metamusesd.1", "bash-completion/completions/metamusesd", "zsh/site-functions/_metamusesd"):
        assert installed.box.path(f"/usr/local/share/{file}").stat().st_size > 1000


def test_start_returns_when_it_is_ready(installed: Service, tell: Callable[[str], None]) -> None:
    """`systemctl enable --now` waits for READY=1: the next job is taken at once, and the status line says how it is."""
    begun_s = time.monotonic()
    installed.follow(START)
    tell(f"start to ready: {time.monotonic() - begun_s:.1f} s")
    assert installed.box.ask_health("/readyz")[0] == 200
    assert installed.show("StatusText").startswith("ready: ")
    whole = f"ready: {WORKERS}/{WORKERS} workers ready"
    until(lambda: installed.show("StatusText").startswith(whole), READY_S, whole)
    assert set(installed.pids()) == CHILDREN


def test_jobs_are_served_without_privileges_on_their_cores(service: Service) -> None:
    """Every process is the service's user's, without a capability or a way to one; workers sit on a core each."""
    assert all(result.state == "done" for result in service.results(service.submit(4, tokens=10)))
    uid = service.box.says("id", "--user", UNIT)
    for pid in [service.main_pid(), *map(str, service.pids().values())]:
        facts = dict(line.split(":\t", 1) for line in service.box.says("cat", f"/proc/{pid}/status").splitlines())
        assert facts["Uid"].split() == [uid] * 4
        assert (facts["CapPrm"], facts["CapEff"], facts["CapBnd"]) == ("0" * 16,) * 3
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    sits = {}
    for worker in service.status()["workers"]:
        line = service.box.says("grep", "Cpus_allowed_list", f"/proc/{worker['pid']}/status")
        sits[worker["name"]] = line.split()[1]
        assert worker["cores"] == [int(sits[worker["name"]])]
    assert len(set(sits.values())) == WORKERS


def test_hardening_leaves_redis_and_the_embedder_their_work(service: Service) -> None:
    """Redis forks and rewrites its file; the semantic cache learns and finds; nothing complains of a refused call."""
    with service.client() as client:
        ends = {"temperature": 0.0, "stop": [",", "."]}  # an answer that is cut, or loops, is not kept
        ask = {"user_query": "What is the capital of France?", "user_address": "a", "params": ends}
        first = client.execute(ask, 60)
        until(lambda: service.status()["vectors"]["entries"] >= 1, 30, "the answer is learnt")
        again = client.execute(ask | {"user_query": "What's the capital of France?", "user_address": "b"}, 60)
    assert (first.from_cache, again.from_cache) == (False, True), again
    assert again.cache is not None and again.cache.kind == "semantic"
    redis = service.box.path("/run/metamusesd/redis.sock")
    with _redis(str(redis)) as ask_redis:
        ask_redis("BGREWRITEAOF")
        until(lambda: "aof_rewrite_in_progress:0" in ask_redis("INFO persistence"), 30, "the file is rewritten")
        assert "aof_last_bgrewrite_status:ok" in ask_redis("INFO persistence")
    assert "not permitted" not in service.journal().lower()


def test_hardening_leaves_placement_its_calls(service: Service) -> None:
    """Cores, memory of a node, locked and huge pages: a program in the service's own sandbox may have them all."""
    service.drop_in("ExecStartPre=/opt/metamusesd/current/bin/python /src/tests/systemd/placement_calls.py")
    service.systemctl("restart")


def test_members_of_the_group_may_submit_and_look(service: Service) -> None:
    """A person in the group metamusesd needs no more than the commands; others are turned away."""
    for person, groups in (("friend", UNIT), ("stranger", "")):
        service.box.run("useradd", "--create-home", "--groups", groups, person)
    ask = ("metamusesd", "submit", "--max-tokens", "5", "--no-stream", "Name a colour.")
    assert service.box.run("runuser", "-u", "friend", "--", *ask).stdout.strip()
    assert "ready" in service.box.run("runuser", "-u", "friend", "--", "metamusesd", "status").stdout
    assert service.box.run("runuser", "-u", "stranger", "--", *ask, check=False).returncode != 0


def test_reload_touches_only_what_changed(service: Service) -> None:
    """One worker fewer, and one more again, under load: no job is lost, and all other processes stay."""
    before = service.pids()
    ids = service.submit(24, tokens=60)
    service.wait_running(8)
    service.configure(workers=1)
    service.systemctl("reload")
    fewer = service.pids()
    assert fewer == {name: pid for name, pid in before.items() if name != "fast-1"}
    ids += service.submit(12, tokens=60)
    service.configure(workers=2)
    service.systemctl("reload")
    more = service.pids()
    assert set(more) == set(before) and {name: more[name] for name in fewer} == fewer
    assert more["fast-1"] != before["fast-1"]
    results = service.results(ids)
    assert [result.state for result in results] == ["done"] * 36
    assert {result.worker for result in service.results(service.submit(8, tokens=5))} == {"fast-0", "fast-1"}


def test_a_reload_with_a_mistake_is_refused(service: Service) -> None:
    """systemctl fails, the journal says why, and the daemon goes on as it was."""
    before = service.pids()
    service.configure(more=BAD_CONFIG)
    assert service.box.run("systemctl", "reload", UNIT, check=False).returncode != 0
    assert "demon: unknown section" in service.journal()
    assert service.show("ActiveState") == "active" and service.pids() == before
    assert [result.state for result in service.results(service.submit(2, tokens=5))] == ["done"] * 2


def test_a_killed_supervisor_comes_back(service: Service, tell: Callable[[str], None]) -> None:
    """SIGKILL of the main process: its family dies with it, systemd starts another, and every job ends."""
    ids = service.submit(16, tokens=80)
    service.wait_running(8)
    main, family = service.main_pid(), service.pids()
    begun_s = time.monotonic()
    service.box.run("kill", "-KILL", main)
    until(lambda: service.main_pid() not in ("0", main), HANG_S, "another supervisor")
    service.wait_ready()
    tell(f"SIGKILL to ready: {time.monotonic() - begun_s:.1f} s")
    alive = {int(line.split()[1]) for line in service.processes()}
    assert not alive & set(family.values()), service.processes()
    assert [result.state for result in service.results(ids)] == ["done"] * 16
    assert service.show("NRestarts") == "1"


def test_a_hung_dispatcher_is_replaced(service: Service, tell: Callable[[str], None]) -> None:
    """SIGSTOP: the supervisor replaces it, no model is loaded again, systemd does not notice."""
    ids = service.submit(8, tokens=60)
    service.wait_running(4)
    main, before = service.main_pid(), service.pids()
    begun_s = time.monotonic()
    service.box.run("kill", "-STOP", str(before["dispatcher"]))
    until(lambda: service.pids().get("dispatcher") not in (None, before["dispatcher"]), HANG_S, "another dispatcher")
    service.wait_ready()
    tell(f"SIGSTOP of the dispatcher to ready: {time.monotonic() - begun_s:.1f} s")
    after = service.pids()
    assert {**after, "dispatcher": 0} == {**before, "dispatcher": 0}
    assert service.main_pid() == main and service.show("NRestarts") == "0"
    assert [result.state for result in service.results(ids)] == ["done"] * 8


def test_a_hung_supervisor_meets_the_watchdog(service: Service, tell: Callable[[str], None]) -> None:
    """SIGSTOP of the main process: systemd misses its messages, ends the family, starts another; every job ends."""
    service.drop_in("WatchdogSec=4")
    service.systemctl("restart")
    ids = service.submit(8, tokens=60)
    main, family = service.main_pid(), service.pids()
    begun_s = time.monotonic()
    service.box.run("kill", "-STOP", main)
    until(lambda: service.main_pid() not in ("0", main), HANG_S, "another supervisor")
    service.wait_ready()
    tell(f"SIGSTOP of the supervisor to ready, WatchdogSec=4: {time.monotonic() - begun_s:.1f} s")
    assert "Watchdog timeout" in service.journal() and "most recent call first" in service.journal()
    alive = {int(line.split()[1]) for line in service.processes()}
    assert not alive & set(family.values()), service.processes()
    assert [result.state for result in service.results(ids)] == ["done"] * 8


def test_stop_drains(service: Service, tell: Callable[[str], None]) -> None:
    """Short jobs end, long ones go back unburnt, the exit code is 0, nothing is left; the next start finishes them."""
    short, long = service.submit(2, tokens=5), service.submit(10, tokens=250)
    service.wait_running(8)
    begun_s = time.monotonic()
    service.systemctl("stop")
    tell(f"stop, with jobs: {time.monotonic() - begun_s:.1f} s")
    assert (service.show("ExecMainStatus"), service.show("Result")) == ("0", "success")
    assert service.processes() == []
    service.systemctl("start")
    assert [result.state for result in service.results(short + long)] == ["done"] * 12
    assert service.attempts(long) == [("done", 0)] * 10


def test_what_takes_long_has_its_time(service: Service) -> None:
    """Start, reload and drain outlast the unit's timeouts, because the supervisor lives and says that it goes on."""
    service.drop_in("TimeoutStartSec=2\nTimeoutStopSec=2")
    service.systemctl("restart")
    service.wait_ready()
    begun_s = time.monotonic()
    other = f"[models.other]\nfile = '{DEMO_MODEL}'\ncontext = 2048"
    service.configure(model="other", more=other)
    service.systemctl("reload")
    assert time.monotonic() - begun_s > 2
    ids = service.submit(10, tokens=250)
    service.wait_running(8)
    begun_s = time.monotonic()
    service.systemctl("stop")
    assert time.monotonic() - begun_s > 2
    assert (service.show("ExecMainStatus"), service.show("Result")) == ("0", "success")
    service.systemctl("start")
    assert [result.state for result in service.results(ids)] == ["done"] * 10


def test_a_broken_configuration_is_not_tried_again(service: Service) -> None:
    """Exit 78 once, with the mistake in the journal; repaired, it starts."""
    service.systemctl("stop")
    service.configure(more=BAD_CONFIG)
    assert service.box.run("systemctl", "start", UNIT, check=False).returncode != 0
    assert (service.show("ExecMainStatus"), service.show("SubState")) == (str(EXIT_BAD_CONFIG), "failed")
    assert service.show("NRestarts") == "0"
    assert "demon: unknown section" in service.journal()
    service.configure()
    service.systemctl("start")
    service.wait_ready()


def test_the_journal_knows_jobs(service: Service) -> None:
    """`journalctl METAMUSES_JOB_ID=…` finds what happened to one job, and not its prompt."""
    first, other = service.submit(2, tokens=5)
    service.results([first, other])
    found = until(lambda: service.journal("--output=json", f"METAMUSES_JOB_ID={first}"), 20, "its events")
    events = [json.loads(line) for line in found.splitlines()]
    assert {event["METAMUSES_JOB_ID"] for event in events} == {first}
    assert all(event["_SYSTEMD_UNIT"] == f"{UNIT}.service" for event in events)
    assert "Tell me a story" not in service.journal()


def test_a_restart_refuses_no_probe(service: Service, tell: Callable[[str], None]) -> None:
    """Whoever asks /livez without a pause while the service is restarted always gets an answer, sometimes later."""
    before = service.main_pid()
    with _probing(service) as (answers, refused):
        service.systemctl("restart")
        service.wait_ready()
    assert service.main_pid() != before
    tell(f"{len(answers)} probes, {len(refused)} refused, the slowest {max(answers):.2f} s")
    assert not refused and len(answers) > 10


def test_secrets_come_as_credentials(service: Service) -> None:
    """A Redis with a password: it stands in a file of root's, not in the environment, the arguments, the journal."""
    program = service.box.says("find", "/opt/metamusesd/", "-name", "redis-server", "-type", "f").splitlines()[0]
    server = ("--port", "6390", "--requirepass", "hunter2", "--bind", "127.0.0.1", "--save", "")
    service.box.run("systemd-run", "--unit=other-redis", program, *server)
    store = service.box.path("/etc/credstore/metamusesd.redis_url")
    try:
        store.write_text("redis://:hunter2@127.0.0.1:6390/0\n")
        store.chmod(0o600)
        service.systemctl("restart")
        service.wait_ready()
        assert "redis" not in service.pids()
        assert service.box.run("metamusesd", "submit", "--max-tokens", "5", "Name a river.").stdout.strip()
        for pid in [service.main_pid(), *map(str, service.pids().values())]:
            assert "hunter2" not in service.box.says("cat", f"/proc/{pid}/environ", f"/proc/{pid}/cmdline")
        assert "hunter2" not in service.journal() + json.dumps(service.status())
    finally:
        store.unlink()
        service.box.run("systemctl", "stop", "other-redis")


def test_an_upgrade_waits_for_the_restart(service: Service) -> None:
    """Installed again: the configuration is kept, the running daemon keeps its files, the next start has new ones."""
    before, ours = service.main_pid(), service.box.path(CONFIG).read_text()
    said = service.follow("make install")
    assert "systemctl restart metamusesd" in said and service.box.path(CONFIG).read_text() == ours
    old = _environment_of(service, before)
    new = service.box.says("readlink", "/opt/metamusesd/current")
    assert old != new and service.main_pid() == before
    service.box.run("kill", "-KILL", str(service.pids()["dispatcher"]))  # its successor imports the old files
    service.wait_ready()
    service.systemctl("restart")
    assert _environment_of(service, service.main_pid()) == new
    assert set(service.box.says("ls", "/opt/metamusesd").split()) == {old, new, "current", "share"}


def test_a_backup_brings_jobs_back(service: Service) -> None:
    """As docs/operations.md says: jobs that waited at the backup are done after the restore, whatever came between."""
    service.box.run("metamusesd", "drain")
    ids = service.submit(3, tokens=5)
    service.follow(page.commands()["Back up"])
    assert [result.state for result in service.results(ids)] == ["done"] * 3
    service.box.run("rm", "--recursive", f"{STATE}/redis", CONFIG)
    service.follow(page.commands()["Restore"])
    service.wait_ready()
    assert [result.state for result in service.results(ids)] == ["done"] * 3


def test_every_other_block_of_the_page_works(service: Service) -> None:
    """First job, configure, reload, drain, upgrade: each block as it stands, with a daemon that is well before it."""
    others = {name: block for name, block in page.commands().items() if name not in PROVED}
    assert set(others) == {"First job", "Configure", "Reload", "Drain", "Upgrade"}
    for block in others.values():
        until(lambda: service.box.run("metamusesd", "status", check=False).returncode == 0, READY_S, "all is well")
        service.follow(block)


def test_uninstall_leaves_state_and_nothing_else(service: Service) -> None:
    """No process, no file of ours but configuration and state; PURGE=1 takes those, and the user."""
    said = service.follow(page.commands()["Uninstall"])
    assert "make uninstall PURGE=1" in said
    assert service.processes() == []
    assert service.show("LoadState") == "not-found"
    left = service.box.says("find", "/etc", "/opt", "/usr/local", "/var/lib", "-name", "*metamuses*").splitlines()
    assert sorted(left) == ["/etc/metamusesd", CONFIG, "/etc/systemd/system/metamusesd.service.d", STATE]
    service.follow("make uninstall PURGE=1")
    assert service.box.says("find", "/etc", "/opt", "/usr/local", "/var/lib", "-name", "*metamuses*") == ""
    assert service.box.run("id", UNIT, check=False).returncode != 0


def _environment_of(service: Service, pid: str) -> str:
    """The name of the directory that this daemon runs from."""
    return service.box.says("grep", "--text", "--only-matching", "env-[0-9]*", f"/proc/{pid}/cmdline").splitlines()[0]


@contextlib.contextmanager
def _probing(service: Service) -> Iterator[tuple[list[float], list[OSError]]]:
    """A thread that asks /livez in a loop: how long each answer took, and what was refused."""
    answers: list[float] = []
    refused: list[OSError] = []
    enough = threading.Event()

    def probe() -> None:
        while not enough.is_set():
            begun_s = time.monotonic()
            try:
                service.box.ask_health("/livez")
                answers.append(time.monotonic() - begun_s)
            except OSError as error:
                refused.append(error)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield answers, refused
    finally:
        enough.set()
        thread.join(READY_S)


@contextlib.contextmanager
def _redis(path: str) -> Iterator[Callable[[str], str]]:
    import redis

    with redis.Redis(unix_socket_path=path, decode_responses=True) as link:
        link.set_response_callback("INFO", lambda text, **_: text)
        yield lambda command: str(link.execute_command(*command.split()))
