"""Settings: the table, what is refused, the text of flags and variables, and the overrides of a controller class."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from krait_ws.config import Config, from_environment, options, parse
from krait_ws.errors import ConfigError
from krait_ws.websockets import WebsocketsCtrlBase

NUMBERS = [option for option in options() if type(option.default) in (int, float)]
CHOICES = [option for option in options() if option.metadata["choices"]]


def ids(option: Any) -> str:
    return str(option.name)


def test_the_defaults_that_the_design_fixes() -> None:
    config = Config()
    assert config.runs_on == "thread"
    assert config.slow_consumer == "block"
    assert config.push_timeout == 30
    assert config.debug is False


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("option", options(), ids=ids)
def test_every_option_has_a_unit_and_a_meaning(option: Any) -> None:
    assert option.metadata["unit"]
    assert option.metadata["meaning"].endswith(".")


@pytest.mark.parametrize("option", [option for option in NUMBERS if option.metadata["least"] is not None], ids=ids)
def test_the_least_value_is_the_least(option: Any) -> None:
    least = option.metadata["least"]
    assert getattr(Config(**{option.name: least}), option.name) == least
    below = least - 1 if type(option.default) is int else least - 0.01
    with pytest.raises(ConfigError, match=f"{option.name}: {below}.* below"):
        Config(**{option.name: below})


@pytest.mark.parametrize("option", [option for option in NUMBERS if option.metadata["most"] is not None], ids=ids)
def test_the_largest_value_is_the_largest(option: Any) -> None:
    most = option.metadata["most"]
    assert getattr(Config(**{option.name: most}), option.name) == most
    with pytest.raises(ConfigError, match=f"{option.name}: {most + 1} is above"):
        Config(**{option.name: most + 1})


@pytest.mark.parametrize("option", [option for option in NUMBERS if type(option.default) is int], ids=ids)
def test_no_whole_number_is_larger_than_the_system_takes(option: Any) -> None:
    with pytest.raises(ConfigError, match=f"{option.name}: .* is above"):
        Config(**{option.name: 1 << 63})


def test_no_text_has_a_nul() -> None:
    with pytest.raises(ConfigError, match=r"unix: '\\x00abstract' has a NUL"):
        Config(unix="\0abstract")


def test_a_secret_of_a_wrong_type_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="dashboard_token: its value must be of type str") as error:
        Config(dashboard_token=12345678901234567)  # type: ignore[arg-type]
    assert "123" not in str(error.value)


@pytest.mark.parametrize("option", NUMBERS, ids=ids)
def test_every_number_has_a_least_value(option: Any) -> None:
    assert option.metadata["least"] is not None, "nothing is unbounded"


@pytest.mark.parametrize("option", CHOICES, ids=ids)
def test_choices(option: Any) -> None:
    for choice in option.metadata["choices"]:
        assert getattr(Config(**{option.name: choice}), option.name) == choice
    with pytest.raises(ConfigError, match=f"{option.name}: 'neither' is none of .*{option.default}"):
        Config(**{option.name: "neither"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "8000"),
        ("port", 8000.0),
        ("port", True),
        ("port", None),
        ("host", 5),
        ("debug", 1),
        ("debug", "yes"),
        ("push_timeout", "30"),
        ("push_timeout", True),
        ("runs_on", None),
        ("max_message_size", 1.5),
    ],
)
def test_a_wrong_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        Config(**{name: value})


def test_whole_seconds_will_do() -> None:
    assert Config(push_timeout=5).push_timeout == 5.0
    assert type(Config(push_timeout=5).push_timeout) is float


@pytest.mark.parametrize("option", [option for option in NUMBERS if type(option.default) is float], ids=ids)
def test_not_a_number_is_refused(option: Any) -> None:
    with pytest.raises(ConfigError, match=option.name):
        Config(**{option.name: float("nan")})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("port", "0", 0),
        ("port", "8080", 8080),
        ("max_message_size", "64k", 64 * 1024),
        ("max_message_size", "64K", 64 * 1024),
        ("max_message_size", "2M", 2 << 20),
        ("max_message_size", "1g", 1 << 30),
        ("max_message_size", "100", 100),
        ("push_timeout", "2.5", 2.5),
        ("push_timeout", "3", 3.0),
        ("host", "0.0.0.0", "0.0.0.0"),
        ("runs_on", "greenlet", "greenlet"),
        ("debug", "1", True),
        ("debug", "true", True),
        ("debug", "YES", True),
        ("debug", "0", False),
        ("debug", "False", False),
        ("debug", "no", False),
        ("debug", "", False),
    ],
)
def test_the_text_of_flags_and_variables(name: str, text: str, value: Any) -> None:
    parsed = parse(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", ""),
        ("port", "http"),
        ("port", "80.5"),
        ("max_message_size", "k"),
        ("max_message_size", "1kb"),
        ("max_message_size", "1.5M"),
        ("push_timeout", ""),
        ("push_timeout", "soon"),
        ("debug", "maybe"),
    ],
)
def test_text_that_is_no_value_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: {text!r} is "):
        parse(name, text)


def test_the_environment() -> None:
    environment = {
        "KRAIT_PORT": "1",
        "KRAIT_MAX_MESSAGE_SIZE": "64k",
        "KRAIT_UNKNOWN": "x",
        "PORT": "2",
        "krait_host": "h",
    }
    assert from_environment(environment) == {"port": "1", "max_message_size": "64k"}


# ---- overrides of a class


def test_a_class_without_overrides_gets_the_same_settings() -> None:
    config = Config(port=1)
    assert config.for_controller(WebsocketsCtrlBase()) is config


def test_the_overrides_of_a_class_win_and_the_rest_stays() -> None:
    class Own(WebsocketsCtrlBase):
        max_message_size = 10
        stop_timeout = 0

    own = Config(max_message_size=99, max_in_messages=7).for_controller(Own())
    assert (own.max_message_size, own.stop_timeout, own.max_in_messages) == (10, 0, 7)


def test_a_subclass_inherits_them() -> None:
    class Own(WebsocketsCtrlBase):
        max_message_size = 10

    class Further(Own):
        pass

    assert Config().for_controller(Further()).max_message_size == 10


def test_only_settings_of_a_controller_can_be_overridden() -> None:
    class Own(WebsocketsCtrlBase):
        port = 5

    assert Config().for_controller(Own()).port == Config().port


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("runs_on", "fibre"),
        ("slow_consumer", "wait"),
        ("max_message_size", 0),
        ("push_timeout", -1),
        ("max_in_bytes", "1M"),
    ],
)
def test_an_override_that_cannot_be_used_names_class_and_setting(name: str, value: Any) -> None:
    bad = type("Chatty", (WebsocketsCtrlBase,), {name: value})
    with pytest.raises(ConfigError, match=rf"Chatty: {name}: "):
        Config().for_controller(bad())


# ---- lists


def test_origins_and_proxies_are_lists_with_commas() -> None:
    config = Config(origin=" https://a.org ,https://b.org", trusted_proxy="10.0.0.0/8, ::1")
    assert config.origins == {"https://a.org", "https://b.org"}
    assert [str(network) for network in config.trusted_proxies] == ["10.0.0.0/8", "::1/128"]
    assert Config().origins == frozenset()
    assert Config().trusted_proxies == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [("origin", "a.org"), ("origin", "https://a.org,b"), ("trusted_proxy", "proxy"), ("trusted_proxy", "1")],
)
def test_lists_that_cannot_be_used(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: "):
        Config(**{name: text})
