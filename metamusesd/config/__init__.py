"""The configuration: options.py and observing.py say what there is, load.py reads it."""

from metamusesd.config.choice import Choice
from metamusesd.config.load import DEFAULT_FILE, load
from metamusesd.config.loopback import loopback
from metamusesd.config.missing import is_model, is_there, missing_embedder, missing_models
from metamusesd.config.observing import Health, Log, Telemetry
from metamusesd.config.options import (
    CLASSES,
    DEMO_MODEL,
    EMBEDDED,
    SECTIONS,
    TABLES,
    Cache,
    Config,
    Daemon,
    JobClass,
    Model,
    Queue,
    Redis,
    Tier,
)
from metamusesd.config.routes import POLICIES, Routing, Tenant

__all__ = [
    "CLASSES",
    "DEFAULT_FILE",
    "DEMO_MODEL",
    "EMBEDDED",
    "POLICIES",
    "SECTIONS",
    "TABLES",
    "Cache",
    "Choice",
    "Config",
    "Daemon",
    "Health",
    "JobClass",
    "Log",
    "Model",
    "Queue",
    "Redis",
    "Routing",
    "Telemetry",
    "Tenant",
    "Tier",
    "is_model",
    "is_there",
    "load",
    "loopback",
    "missing_embedder",
    "missing_models",
]
