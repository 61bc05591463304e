"""Every limit and default, once: name, default, unit and meaning.

The command line (``--max-message-size``), the environment (``KRAIT_MAX_MESSAGE_SIZE``), the overrides of a controller
class and the table in ``docs/reference.md`` are all made from the fields of ``Config``.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import re
import weakref
from collections.abc import Mapping
from typing import Any, TypeAlias

from krait_ws.errors import ConfigError

RUNS_ON = ("thread", "greenlet", "loop")
SLOW_CONSUMER = ("block", "close", "drop_new", "drop_oldest")
_TOKEN = re.compile(r"[!-~]{16,256}")
_MOST = 1 << 40  # of whole numbers; the system's calls refuse larger ones, some of them only when a message comes
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
POLLERS = ("auto", "epoll", "watchers")


def _option(
    default: Any,
    unit: str,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    per_controller: bool = False,
) -> Any:
    return dataclasses.field(
        default=default,
        metadata={
            "unit": unit,
            "meaning": meaning,
            "least": least,
            "most": most,
            "choices": choices,
            "per_controller": per_controller,
        },
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """What is in force for a server. Immutable; safe to read from any thread.

    Raises:
        ConfigError: A value is of a wrong type, below its least value or none of its choices.
    """

    host: str = _option("127.0.0.1", "address", "Address to listen on; 0.0.0.0 for every interface.")
    port: int = _option(8000, "port", "TCP port to listen on; 0 takes a free one.", least=0, most=65535)
    unix: str = _option("", "file", "Path of a Unix socket to listen on instead of host and port.")
    workers: int = _option(
        1, "processes", "Processes that serve; more than one run under gunicorn.", least=1, most=1000
    )
    tls_cert: str = _option("", "file", "Certificate chain in PEM form; with it the port speaks https and wss.")
    tls_key: str = _option("", "file", "Its private key in PEM form; not needed when the certificate's file holds it.")
    log_level: str = _option(
        "info", "choice", "What is logged from which level on; debug with debug.", choices=LOG_LEVELS
    )
    log_format: str = _option("text", "choice", "Lines of the log; json has one object on each.", choices=LOG_FORMATS)
    access_log: bool = _option(True, "flag", "A line for each request, and for each connection that ends.")
    debug: bool = _option(False, "flag", "Reload changed route scripts; show tracebacks in the browser.")
    runs_on: str = _option(
        "thread", "choice", "What runs a controller's handler.", choices=RUNS_ON, per_controller=True
    )
    max_message_size: int = _option(
        1 << 20, "bytes", "Largest incoming message; a larger one closes with 1009.", least=1, per_controller=True
    )
    max_in_messages: int = _option(
        1024, "messages", "In-mailbox: above it the socket is not read.", least=1, per_controller=True
    )
    max_in_bytes: int = _option(
        4 << 20, "bytes", "In-mailbox: above it the socket is not read.", least=1, per_controller=True
    )
    max_out_messages: int = _option(
        1024, "messages", "Out-mailbox: above it slow_consumer decides.", least=1, per_controller=True
    )
    max_out_bytes: int = _option(
        4 << 20, "bytes", "Out-mailbox: above it slow_consumer decides.", least=1, per_controller=True
    )
    slow_consumer: str = _option(
        "block", "choice", "What a push does when the out-mailbox is full.", choices=SLOW_CONSUMER, per_controller=True
    )
    push_timeout: float = _option(
        30.0, "seconds", "Longest wait of a blocked push; then the connection closes with 1013.",
        least=0, per_controller=True,
    )  # fmt: skip
    stop_timeout: float = _option(
        10.0, "seconds", "Time a handler has to end after its connection; then it is abandoned.",
        least=0, per_controller=True,
    )  # fmt: skip
    drain_timeout: float = _option(
        30.0, "seconds", "Time from a signal to the end: to close every connection and wait for handlers.", least=0
    )
    close_timeout: float = _option(
        10.0, "seconds", "Time a peer has to take our last messages and answer a close.", least=0, per_controller=True
    )
    handshake_timeout: float = _option(10.0, "seconds", "Time a client has to send a whole request.", least=0.1)
    keep_alive_timeout: float = _option(60.0, "seconds", "Time an idle HTTP connection is kept.", least=0.1)
    send_timeout: float = _option(30.0, "seconds", "Time a client has to take 64 KiB of an HTTP answer.", least=0.1)
    max_connections: int = _option(
        10_000, "connections", "WebSocket connections at once; further ones get 503.", least=1
    )
    max_connections_per_address: int = _option(
        0, "connections", "The same for one address, or one IPv6 /64; further ones get 429. 0 for no limit.", least=0
    )
    max_handshakes_per_address: float = _option(
        0.0,
        "a second",
        "Upgrades of one address, or one IPv6 /64, and as many at once; then 429. 0 for no limit.",
        least=0,
    )
    max_threads: int = _option(
        0, "threads", "Threads of handlers; further controllers that need one get 503. 0 for no limit.", least=0
    )
    max_head_size: int = _option(
        32 << 10, "bytes", "Largest head of an HTTP request; a larger one gets 431.", least=1024
    )
    origin: str = _option(
        "", "list", "Origins whose pages may connect besides the site's own, with commas between; * allows all."
    )
    trusted_proxy: str = _option(
        "",
        "list",
        "Proxies whose X-Forwarded-* headers count: addresses, networks, unix for the Unix socket.",
    )
    ping_interval: float = _option(20.0, "seconds", "Silence after which a client is pinged; 0 never pings.", least=0)
    ping_timeout: float = _option(
        20.0, "seconds", "Silence after a ping that means the client is gone: close code 1006.", least=0.1
    )
    compress: bool = _option(False, "flag", "Offer permessage-deflate to clients that ask for it.", per_controller=True)
    compress_threshold: int = _option(
        512, "bytes", "Outgoing messages below it are sent as they are.", least=0, per_controller=True
    )
    compress_window_bits: int = _option(
        12, "bits", "Largest window of either side; memory per connection doubles with each.",
        least=9, most=15, per_controller=True,
    )  # fmt: skip
    compress_context: bool = _option(
        True, "flag", "Keep the window from message to message: smaller messages, more memory.", per_controller=True
    )
    max_inflated_size: int = _option(
        1 << 20, "bytes", "Largest incoming message after inflating; a larger one closes with 1009.",
        least=1, per_controller=True,
    )  # fmt: skip
    slow_hook: float = _option(
        0.05, "seconds", 'A hook of runs_on = "loop" that takes longer is logged with its stack; 0 logs none.', least=0
    )
    max_body_size: int = _option(1 << 20, "bytes", "Largest body of an HTTP request; a larger one gets 413.", least=0)
    script_threads: int = _option(
        64, "threads", "Route scripts that may run at the same moment.", least=1, most=100_000
    )
    script_timeout: float = _option(30.0, "seconds", "Time a route script has to answer; then 503.", least=0.1)
    app: str = _option("", "name", "A WSGI application, module:callable, for requests that the site has no file for.")
    metrics: bool = _option(False, "flag", "Metrics for Prometheus at /_krait/metrics; needs the extra metrics.")
    dashboard: bool = _option(False, "flag", "A live dashboard at /_krait/.")
    dashboard_token: str = _option(
        "", "secret", "Opens metrics and dashboard to who sends it; without one they are for this machine only."
    )
    linger: int = _option(
        50, "microseconds", "Time to look for a next message before a sleep, where the last came so soon; 0 for none.",
        least=0, most=1000,
    )  # fmt: skip
    poller: str = _option("auto", "choice", "How sockets are watched; auto takes epoll on Linux.", choices=POLLERS)

    def __post_init__(self) -> None:
        for option in options():
            object.__setattr__(self, option.name, _checked(option, getattr(self, option.name)))
        for origin in self.origins:
            if origin != "*" and "://" not in origin and origin != "null":
                raise ConfigError(f"origin: {origin!r} must be like https://example.org, or *")
        try:
            _ = self.trusted_proxies
        except ValueError as error:
            raise ConfigError(f"trusted_proxy: {error}") from None

        if self.dashboard_token and not _TOKEN.fullmatch(self.dashboard_token):
            raise ConfigError("dashboard_token: it must have 16 to 256 visible ASCII characters; take a random one")

    @property
    def origins(self) -> frozenset[str]:
        """``origin`` as a set."""
        return frozenset(_items(self.origin))

    @property
    def trusted_proxies(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """``trusted_proxy`` as networks."""
        items = (item for item in _items(self.trusted_proxy) if item != "unix")
        return tuple(ipaddress.ip_network(item, strict=False) for item in items)

    @property
    def trusts_unix(self) -> bool:
        """Whether ``trusted_proxy`` names the peers of the Unix socket."""
        return "unix" in _items(self.trusted_proxy)

    def for_controller(self, controller: object) -> Config:
        """This configuration with the attributes of a controller, or of its class, put over it.

        Raises:
            ConfigError: One of them has a value that cannot be used.
        """
        controller_class = type(controller)
        overrides = {name: value for name in _PER_CONTROLLER if (value := getattr(controller, name, None)) is not None}
        if not overrides:
            return self
        made = _of_defaults if self is DEFAULTS else _of_class
        base, values, config = made.get(controller_class, (None, None, self))
        if base is not self or values != overrides:
            try:
                config = dataclasses.replace(self, **overrides)
            except ConfigError as error:
                raise ConfigError(f"{controller_class.__qualname__}: {error}") from None
            made[controller_class] = (self, overrides, config)
        return config


_Made: TypeAlias = "weakref.WeakKeyDictionary[type, tuple[Config, dict[str, Any], Config]]"

# What ``for_controller`` made last for a class: all connections of a class share one object, checked once. Single steps
# of a dict are atomic, and at worst two threads make the same. A controller is made with the defaults and then served
# with the server's settings, so each has a place.
_of_class: _Made = weakref.WeakKeyDictionary()
_of_defaults: _Made = weakref.WeakKeyDictionary()
_PER_CONTROLLER = tuple(option.name for option in dataclasses.fields(Config) if option.metadata["per_controller"])


def options() -> tuple[dataclasses.Field[Any], ...]:
    """The table, a row per option; ``metadata`` holds unit, meaning, bounds, choices and per_controller."""
    return dataclasses.fields(Config)


def from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The options that ``KRAIT_*`` variables set, as the text they hold."""
    return {
        option.name: environment[f"KRAIT_{option.name.upper()}"]
        for option in options()
        if f"KRAIT_{option.name.upper()}" in environment
    }


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """``KRAIT_*`` variables that are no setting: misspelt, most likely."""
    known = {f"KRAIT_{option.name.upper()}" for option in options()} | {"KRAIT_CONFIG", "KRAIT_PURE_PYTHON"}
    return sorted(name for name in environment if name.startswith("KRAIT_") and name not in known)


def parse(name: str, text: str) -> Any:
    """The value of an option from the text of a flag or a variable. Sizes take ``k``, ``M`` and ``G`` (1,024 each).

    Raises:
        ConfigError: The text is no such value.
    """
    option = next(option for option in options() if option.name == name)
    kind = _kind(option)
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}[
                text.lower()
            ]
        if kind is int:
            scale = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}.get(text[-1:].lower(), 1)
            return int(text[:-1] if scale > 1 else text) * scale
        return kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number, which k, M or G may follow", float: "a number"}.get(
            kind, "text"
        )
        raise ConfigError(f"{name}: {text!r} is not {wanted} ({option.metadata['unit']})") from None


def _items(text: str) -> list[str]:
    return [item for part in text.split(",") if (item := part.strip())]


def _kind(option: dataclasses.Field[Any]) -> type:
    default: Any = option.default
    return type(default)


def _checked(option: dataclasses.Field[Any], value: Any) -> Any:
    kind = _kind(option)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= _MOST else math.copysign(math.inf, value)
    if type(value) is not kind:
        given = "its value" if option.metadata["unit"] == "secret" else repr(value)
        raise ConfigError(f"{option.name}: {given} must be of type {kind.__name__}")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{option.name}: {value!r} has a NUL in it")
    choices, least, most = (option.metadata[name] for name in ("choices", "least", "most"))
    if choices and value not in choices:
        raise ConfigError(f"{option.name}: {value!r} is none of {', '.join(choices)}")
    if least is not None and not value >= least:  # "not >=" refuses nan as well
        raise ConfigError(f"{option.name}: {value!r} is below {least} {option.metadata['unit']}")
    if most is None and kind is int:
        most = _MOST
    if most is not None and value > most:
        raise ConfigError(f"{option.name}: {value!r} is above {most} {option.metadata['unit']}")
    return value


DEFAULTS = Config()
"""What is in force where nobody says otherwise."""
