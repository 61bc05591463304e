"""Settings from a file, the environment and flags: who wins, where it came from, and what a mistake is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from krait_ws.config import options
from krait_ws.errors import ConfigError
from krait_ws.settings import read_settings


def write(folder: Path, text: str) -> str:
    file = folder / "krait.toml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KRAIT_")}
    return subprocess.run(
        [sys.executable, "-m", "krait_ws", *arguments],
        capture_output=True, text=True, timeout=30, check=False, env={**clean, **environment},
    )  # fmt: skip


def test_the_flag_wins_over_the_variable_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = write(tmp_path, "port = 1\nhost = 'file'\nruns_on = 'loop'")
    settings = read_settings(
        {"config": file, "port": "3", "debug": None}, {"KRAIT_PORT": "2", "KRAIT_HOST": "variable"}
    )
    config = settings.config
    assert (config.port, config.host, config.runs_on, config.debug) == (3, "variable", "loop", False)
    assert settings.sources == {"port": "--port", "host": "KRAIT_HOST", "runs_on": file}


def test_the_variable_names_a_file_and_the_flag_another(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("port = 1")
    two.write_text("port = 2")
    assert read_settings({}, {"KRAIT_CONFIG": str(one)}).config.port == 1
    assert read_settings({"config": str(two)}, {"KRAIT_CONFIG": str(one)}).config.port == 2


def test_no_file_is_read_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "port = 1")
    monkeypatch.chdir(tmp_path)
    assert read_settings({}, {}).config.port == 8000


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("max_message_size = 5", "max_message_size", 5),
        ("max_message_size = '64k'", "max_message_size", 64 * 1024),
        ("push_timeout = 5", "push_timeout", 5.0),
        ("push_timeout = 0.5", "push_timeout", 0.5),
        ("compress = true", "compress", True),
        ("origin = ['https://a.org', 'https://b.org']", "origin", "https://a.org,https://b.org"),
        ("origin = 'https://a.org'", "origin", "https://a.org"),
        ("", "port", 8000),
    ],
)
def test_what_a_file_may_say(tmp_path: Path, text: str, name: str, value: Any) -> None:
    found = getattr(read_settings({"config": write(tmp_path, text)}, {}).config, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "{file}: prot: there is no such setting; is it port?"),
        ("max-message-size = 1", "{file}: max-message-size: there is no such setting; is it max_message_size?"),
        ("[server]\nport = 1", "{file}: server: there is no such setting"),
        ("port = '80'", "{file}: port: '80' must be of type int"),
        ("port = 80.5", "{file}: port: 80.5 must be of type int"),
        ("port = true", "{file}: port: True must be of type int"),
        ("port = 70000", "{file}: port: 70000 is above 65535 port"),
        ("debug = 'yes'", "{file}: debug: 'yes' must be of type bool"),
        ("host = 5", "{file}: host: 5 must be of type str"),
        ("host = ['a']", "{file}: host: ['a'] must be of type str"),
        ("origin = [5]", "{file}: origin: [5] must be of type str"),
        ("max_message_size = 'many'", "{file}: max_message_size: 'many' is not a whole number"),
        ("runs_on = 'fibre'", "{file}: runs_on: 'fibre' is none of thread"),
        ("port = ", "{file}: Invalid value (at end of document)"),
        ("port = 1\nport = 2", "{file}: Cannot overwrite a value"),
    ],
)
def test_a_mistake_in_a_file_names_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        read_settings({"config": file}, {})
    assert str(error.value).startswith(message.format(file=file))
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        read_settings({"config": str(tmp_path / "none.toml")}, {})
    (tmp_path / "bytes.toml").write_bytes(b"host = '\xff'")
    with pytest.raises(ConfigError, match=r"bytes\.toml: .*utf-8"):
        read_settings({"config": str(tmp_path / "bytes.toml")}, {})


def test_a_mistake_elsewhere_names_the_flag_or_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"^--port: 'http' is not"):
        read_settings({"port": "http"}, {})
    with pytest.raises(ConfigError, match=r"^KRAIT_PORT: 70000 is above"):
        read_settings({}, {"KRAIT_PORT": "70000"})


# ---- the commands


def test_config_prints_every_setting_and_where_it_came_from(tmp_path: Path) -> None:
    file = write(tmp_path, "host = '::1'\ncompress = true")
    done = run("config", "--config", file, "--max-message-size", "2M", KRAIT_PORT="9000")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split(" = ")[0]: [part.strip() for part in line.split(" = ")[1].split("#")] for line in
            done.stdout.splitlines()}  # fmt: skip
    assert set(rows) == {option.name for option in options()}
    assert rows["host"] == ['"::1"', file]
    assert rows["compress"] == ["true", file]
    assert rows["port"] == ["9000", "KRAIT_PORT"]
    assert rows["max_message_size"] == [str(2 << 20), "--max-message-size"]
    assert rows["runs_on"] == ['"thread"', "default"]


def test_what_config_prints_is_a_file_for_config(tmp_path: Path) -> None:
    printed = run("config", "--port", "9000", "--host", "ü\U0001f600\\").stdout
    again = read_settings({"config": write(tmp_path, printed)}, {})
    assert (again.config.port, again.config.host) == (9000, "ü\U0001f600\\")
    assert again.config == read_settings({"port": "9000", "host": "ü\U0001f600\\"}, {}).config


def test_a_time_without_end_is_printed_as_toml_has_it(tmp_path: Path) -> None:
    printed = run("config", "--push-timeout", "inf").stdout
    assert read_settings({"config": write(tmp_path, printed)}, {}).config.push_timeout == float("inf")


def test_config_does_not_show_secrets() -> None:
    done = run("config", KRAIT_DASHBOARD_TOKEN="abcdefghijklmnopqrstuvwx")
    assert "# dashboard_token is set, not shown  # KRAIT_DASHBOARD_TOKEN" in " ".join(done.stdout.split(" ")).replace(
        "   ", "  "
    )
    assert "abcdefgh" not in done.stdout


def test_serve_takes_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "prot = 1")
    for done in (run("serve", str(tmp_path), "--config", file), run("serve", str(tmp_path), KRAIT_CONFIG=file)):
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"krait-ws: {file}: prot: there is no such setting; is it port?\n"


# ---- completion


def completions(words: str) -> set[str]:
    place = str(len(words.split(" ")) - 1)
    done = run(_KRAIT_WS_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=place)
    assert done.returncode == 0, done.stderr
    return {line.partition(",")[2] for line in done.stdout.splitlines()}


def test_commands_flags_and_values_are_completed() -> None:
    assert {"serve", "routes", "bench"} <= completions("krait-ws ")
    assert completions("krait-ws ro") == {"routes"}
    assert completions("krait-ws serve --max-message") == {"--max-message-size"}
    assert completions("krait-ws serve --runs-on gr") == {"greenlet"}
    assert completions("krait-ws completion ") == {"bash", "zsh", "fish"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_code_for_a_shell_asks_krait_ws(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert f"_KRAIT_WS_COMPLETE={shell}_complete" in done.stdout


def test_bash_takes_the_code() -> None:
    script = run("completion", "bash").stdout + "\ncomplete -p krait-ws\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "_krait_ws_completion" in done.stdout


def test_another_shell_is_refused() -> None:
    done = run("completion", "tcsh")
    assert done.returncode == 2
    assert "'tcsh'" in done.stderr
