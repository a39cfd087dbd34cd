"""metamusesd.config and etc/metamusesd.toml."""

import json
import re
import tomllib
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

from metamusesd import config
from metamusesd.config import SECTIONS, TABLES, Config, load, loopback
from metamusesd.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "etc" / "metamusesd.toml"


def mistakes_of(text: str, tmp_path: Path, **environ: str) -> list[str]:
    path = tmp_path / "metamusesd.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, environ=environ)
    return caught.value.mistakes


def uncommented() -> str:
    return re.sub(r"(?m)^#: ", "", SAMPLE.read_text("utf-8"))


def test_sample_as_shipped_is_the_default(tmp_path: Path) -> None:
    """The sample, used as it is, configures exactly what no file at all configures."""
    assert replace(load(SAMPLE, environ={}), source="") == replace(Config(), source="")


@pytest.mark.parametrize("gpu", ["0,1", "0+0", "cuda:0", "0+", -1])
def test_what_is_no_gpu_is_named(gpu: object) -> None:
    """An index, a UUID, or several of them; CUDA's own spellings are refused, and so is one GPU twice."""
    with pytest.raises(ConfigError, match=r"tiers\.fast\.gpus: .* is no GPU"):
        load(overrides={"tiers.fast.gpus": json.dumps([gpu])}, environ={})


def test_one_gpu_has_one_name() -> None:
    """By index here and by UUID there: nobody could see that two tiers share it."""
    asked = {"tiers.fast.gpus": json.dumps(["GPU-aa"]), "tiers.medium.gpus": json.dumps(["0+1"])}
    with pytest.raises(ConfigError, match=r"tiers\.\*\.gpus: 0, 1, GPU-aa: name all of them by index, or all by UUID"):
        load(overrides=asked | {"tiers.medium.enabled": "true", "tiers.medium.model": "smollm2"}, environ={})
    load(overrides={"tiers.fast.gpus": json.dumps(["0", "1+2"])}, environ={})


def test_sample_names_every_option_with_its_default(tmp_path: Path) -> None:
    """Every option of every section stands in the sample; uncommented it still means the default."""
    data = tomllib.loads(uncommented())
    shown = {
        **{name: data[name] for name in SECTIONS},
        "models": data["models"]["smollm2"],
        "tiers": data["tiers"]["fast"],
        "classes": data["classes"]["low"],
        "tenants": data["tenants"]["small"],
    }
    for name, kind in {**SECTIONS, **TABLES}.items():
        assert set(shown[name]) == {spec.name for spec in fields(kind)}, name
    path = tmp_path / "all.toml"
    path.write_text(uncommented())
    loaded = load(path, environ={})
    assert list(loaded.tenants) == ["small"]
    assert replace(loaded, source="", tenants={}) == replace(Config(), source="")


def test_sample_examples_are_valid(tmp_path: Path) -> None:
    """The commented models and tiers of the former service are valid when they are taken in."""
    start = uncommented().index("# [models.qwen-1b]")
    text = uncommented()[:start] + re.sub(r"(?m)^# ?", "", uncommented()[start:])
    path = tmp_path / "examples.toml"
    path.write_text(text)
    loaded = load(path, environ={})
    assert list(loaded.enabled_tiers()) == ["fast", "medium", "heavy", "code"]
    assert loaded.models["qwen-7b"].context == 131072


def test_every_option_is_documented_and_has_a_default() -> None:
    """No option without a default; bounds contain the default."""
    for kind in (*SECTIONS.values(), *TABLES.values()):
        for spec in fields(kind):
            default = spec.default if spec.default is not MISSING else spec.default_factory()  # type: ignore[misc]
            least, most = spec.metadata["least"], spec.metadata["most"]
            if isinstance(default, int | float) and not isinstance(default, bool) and default != -1:
                assert (least is None or default >= least) and (most is None or default <= most), spec.name


@pytest.mark.parametrize(
    ("text", "named", "remedy"),
    [
        ("[daemon]\ndrain = 3", "daemon.drain:", "unknown key"),
        ("[demon]\n", "demon:", "unknown section"),
        ('[telemetry]\notlp_endpoint = "localhost:4318"', "telemetry.otlp_endpoint:", "http://host:4318"),
        ("[telemetry]\nsample = 1.5", "telemetry.sample:", "at most 1"),
        ('[log]\nformat = "xml"', "log.format:", "journal"),
        ('[health]\ntcp = "0.0.0.0:9464"', "health.tcp:", "127.0.0.1:9464"),
        ('[health]\ntcp = "[2001:db8::1]:9464"', "health.tcp:", "[::1]:9464"),
        ('[health]\ntcp = "localhost:9464"', "health.tcp:", "'localhost' is no address"),
        ('[health]\ntcp = "::1:9464"', "health.tcp:", "not understood"),
        ('[health]\ntcp = "127.0.0.1"', "health.tcp:", "no port"),
        ('[health]\ntcp = "127.0.0.1:0"', "health.tcp:", "no port"),
        ("daemon = 3", "daemon:", "write [daemon]"),
        ("[daemon]\ndrain_s = -1", "daemon.drain_s:", "at least 0"),
        ("[daemon]\ndrain_s = 1e9", "daemon.drain_s:", "at most"),
        ("[daemon]\ndrain_s = '3'", "daemon.drain_s:", "give a float"),
        ("[daemon]\nrestart_limit = true", "daemon.restart_limit:", "give a int"),
        ("[redis]\nappendfsync = 'sometimes'", "redis.appendfsync:", "use one of"),
        ("[redis]\nurl = 'localhost:6379'", "redis.url:", "redis://"),
        ("[tiers.huge]\nmodel = 'smollm2'", "tiers.huge:", "use one of"),
        ("[tiers.fast]\nmodel = 'gpt'", "tiers.fast.model:", "add [models.gpt]"),
        ("[tiers.fast]\nmodel = 'smollm2'\nworkers = 'many'", "tiers.fast.workers:", "`auto` or a number"),
        ("[tiers.fast]\nmodel = 'smollm2'\nworkers = 0", "tiers.fast.workers:", "at least 1"),
        ("[tiers.fast]\nmodel = 'smollm2'\nenabled = false", "tiers:", "enable one"),
        ("[models.a]\nengine = 'llamacpp'", "models.a.file:", "name a GGUF file"),
        ("[models.a]\nfile = 'a'\nkv_cache_type = 'q4_0'", "models.a.kv_cache_type:", "use one of f16, q8_0"),
        (
            "[models.a]\nfile = 'a'\nkv_cache_type = 'q8_0'\nflash_attention = false",
            "models.a.kv_cache_type:",
            "set models.a.flash_attention = true",
        ),
        ("[models]\na = 3", "models.a:", "write [models.a]"),
        ("[daemon", "metamusesd.toml:", "is not TOML"),
    ],
)
def test_mistakes_name_key_and_remedy(text: str, named: str, remedy: str, tmp_path: Path) -> None:
    """Each mistake is one line that names the key and says what would be right."""
    (line,) = [line for line in mistakes_of(text, tmp_path) if named in line]
    assert remedy in line
    assert "\n" not in line


def test_all_mistakes_come_together(tmp_path: Path) -> None:
    """Three mistakes in three sections are three lines."""
    assert len(mistakes_of("[daemon]\nx = 1\n[redis]\ny = 2\n[log]\nlevel = 'loud'", tmp_path)) == 3


def test_unreadable_file_is_one_line(tmp_path: Path) -> None:
    """A file that is not there, or is not text, is a mistake like any other."""
    with pytest.raises(ConfigError, match=r"cannot be read"):
        load(tmp_path / "none.toml", environ={})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot be read"):
        load(tmp_path / "binary.toml", environ={})


def test_environment_overrides_file_and_flags_override_both(tmp_path: Path) -> None:
    """File, then the former service's variables, then METAMUSESD_SECTION__KEY, then flags."""
    path = tmp_path / "m.toml"
    path.write_text("[redis]\nurl = 'redis://file'\nprefix = 'file'\n[queue]\nmax_jobs = 5")
    environ = {"REDIS_URL": "redis://environment", "METAMUSESD_QUEUE__MAX_JOBS": "7", "FAST_TIER_WORKERS": "10"}
    loaded = load(path, environ=environ, overrides={"redis.url": "redis://flag", "daemon.drain_s": "3"})
    assert loaded.redis.url == "redis://flag"
    assert loaded.redis.prefix == "file"
    assert loaded.queue.max_jobs == 7
    assert loaded.tiers["fast"].concurrency == 10
    assert loaded.daemon.drain_s == 3.0


def test_empty_variable_names_no_file() -> None:
    """METAMUSESD_CONFIG= is the same as none."""
    assert load(environ={"METAMUSESD_CONFIG": ""}) == load(environ={})


def test_former_service_may_enable_tiers_it_never_had(tmp_path: Path) -> None:
    """ENABLE_HEAVY_TIER=true without a heavy model says what to add; without any file it is no mistake."""
    assert load(None, environ={"ENABLE_MEDIUM_TIER": "true", "MEDIUM_TIER_WORKERS": "5"}).enabled_tiers().keys() == {
        "fast"
    }
    (line,) = mistakes_of("[tiers.fast]\nmodel = 'smollm2'", tmp_path, ENABLE_HEAVY_TIER="true")
    assert "add [tiers.heavy]" in line


def test_long_runtime_directory_is_refused_before_any_socket_fails(tmp_path: Path) -> None:
    """A socket path over 107 bytes is a mistake of the configuration, not a failure at start."""
    (line,) = mistakes_of(f"[daemon]\nruntime_dir = '/{'r' * 120}'", tmp_path)
    assert line.startswith("daemon.runtime_dir:")


def test_secrets_are_not_shown() -> None:
    """The Redis URL may carry a password; it never appears in a repr."""
    assert "hunter2" not in repr(load(None, environ={"REDIS_URL": "redis://:hunter2@host"}))


def test_credentials_stand_between_file_and_environment(tmp_path: Path) -> None:
    """systemd's credential redis_url goes before the file, REDIS_URL before both; a secret is never shown."""
    path = tmp_path / "m.toml"
    path.write_text("[redis]\nurl = 'redis://file'\n[cache]\nqdrant_api_key = 'file'")
    (tmp_path / "redis_url").write_text("redis://:hunter2@host\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    loaded = load(path, environ=environ)
    assert (loaded.redis.url, loaded.cache.qdrant_api_key) == ("redis://:hunter2@host", "file")
    assert "hunter2" not in repr(loaded)
    (tmp_path / "qdrant_api_key").write_text("1234")
    assert load(path, environ=environ).cache.qdrant_api_key == "1234"
    assert load(path, environ=environ | {"REDIS_URL": "redis://environment"}).redis.url == "redis://environment"


@pytest.mark.parametrize(
    ("content", "words"), [(b"\n", "is empty"), (b"\xff", "not UTF-8"), (None, "cannot be read: Is a directory")]
)
def test_a_credential_that_says_nothing_is_a_mistake(tmp_path: Path, content: bytes | None, words: str) -> None:
    """Empty, or no text: the line names the option, the file and the remedy."""
    path = tmp_path / "redis_url"
    path.mkdir() if content is None else path.write_bytes(content)
    [line] = mistakes_of("", tmp_path, CREDENTIALS_DIRECTORY=str(tmp_path))
    assert line.startswith("redis.url:") and str(path) in line and words in line


@pytest.mark.parametrize(("shared", "url"), [(True, "redis://service"), (False, "embedded")])
def test_commands_with_the_services_file_use_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool, url: str
) -> None:
    """Root's `metamusesd jobs` reaches the Redis of the service; a daemon with a file of its own does not."""
    path = tmp_path / "m.toml"
    path.write_text("")
    (tmp_path / "redis_url").write_text("redis://service")
    monkeypatch.setitem(load.__globals__, "SERVICE_CREDENTIALS", tmp_path)
    if shared:
        monkeypatch.setitem(load.__globals__, "DEFAULT_FILE", path)
    assert load(path, environ={}).redis.url == url


def test_every_secret_has_a_variable() -> None:
    """Its credential is named by it."""
    secrets = [spec for kind in (*SECTIONS.values(), *TABLES.values()) for spec in fields(kind) if not spec.repr]
    assert secrets and all(spec.metadata["env"] for spec in secrets)


def test_missing_models_are_named_with_the_remedy(tmp_path: Path) -> None:
    """A model file that is not there is one line that says how to bring it."""
    loaded = load(None, environ={"MODELS_DIR": str(tmp_path)})
    (line,) = config.missing_models(loaded)
    assert "metamusesd models fetch" in line
    (tmp_path / config.DEMO_MODEL).touch()
    assert config.missing_models(loaded) == []


@pytest.mark.parametrize(("text", "on"), [("true", True), ("1", True), ("Yes", True), ("FALSE", False), ("off", False)])
def test_the_former_services_cache_variables(text: str, on: bool) -> None:
    """Without quotes, as they stand in its .env file."""
    environ = {
        "ENABLE_SEMANTIC_CACHE": text, "CACHE_SIMILARITY_THRESHOLD": "0.97", "CACHE_TTL_HOURS": "12",
        "QDRANT_URL": "http://qdrant:6333", "QDRANT_API_KEY": "1234",
    }  # fmt: skip
    cache = load(environ=environ).cache
    assert (cache.enabled, cache.similarity_threshold, cache.ttl_hours) == (on, 0.97, 12.0)
    assert (cache.qdrant_url, cache.qdrant_api_key) == ("http://qdrant:6333", "1234")
    assert "1234" not in repr(cache)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("candidate_threshold", "0.96", "above cache.similarity_threshold"),
        ("similarity_threshold", "1.5", "too large"),
        ("exact_domains", '["maths"]', "no domain"),
        ("qdrant_url", '"qdrant:6333"', "http://host:6333"),
        ("collection", '"a b"', "not a name"),
        ("enabled", '"maybe"', "give a bool"),
    ],
)
def test_cache_mistakes_name_the_key(tmp_path: Path, key: str, value: str, words: str) -> None:
    """What is wrong, and what would be right."""
    [line] = mistakes_of(f"[cache]\n{key} = {value}\n", tmp_path)
    assert line.startswith(f"cache.{key}:") and words in line


def test_loopback_addresses_are_understood() -> None:
    """Both families, any port, by number."""
    assert loopback("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert loopback("127.8.0.1:1") == ("127.8.0.1", 1)
    assert loopback("[::1]:65535") == ("::1", 65535)
