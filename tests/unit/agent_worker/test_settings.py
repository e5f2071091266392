from typing import Any

import pytest

from agent_worker.settings import WorkerSettings
from messaging.settings import SettingsInvalid


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _ in WorkerSettings.variables():
        monkeypatch.delenv(name, raising=False)


def test_without_any_variable_there_are_defaults_and_a_name_of_its_own() -> None:
    first, second = WorkerSettings.load(), WorkerSettings.load()
    assert first.amqp_url.get_secret_value() == "amqp://guest:guest@localhost:5672/"
    assert first.worker_concurrency == 10
    assert first.worker_id != second.worker_id


def test_variables_are_read_and_what_is_given_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKJOIN_WORKER_CONCURRENCY", "3")
    monkeypatch.setenv("FORKJOIN_WORKER_ID", "w")
    monkeypatch.setenv("FORKJOIN_LOG_LEVEL", "debug")
    assert WorkerSettings.load(worker_concurrency=None).options().concurrency == 3
    assert WorkerSettings.load(worker_concurrency=4).options().concurrency == 4
    assert WorkerSettings.load().options().worker_id == "w"
    assert WorkerSettings.load().log_level == "DEBUG"


def test_the_password_is_in_no_text_of_the_settings() -> None:
    settings = WorkerSettings.load(amqp_url="amqp://me:hush@host/")
    assert "hush" not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://me:hush@host/", "not a URL of RabbitMQ; write amqp://user:password@host:5672/vhost"),
        ("hush", "not a URL of RabbitMQ"),
        ("amqp://", "names no host"),
        ("amqp://me:hush@host:0/", "names no host, or port 0"),
        ("amqp://me:hush@host:seventy/", "not a URL that can be read"),
        ("amqp://me:hush#@host/", "not a URL"),
        ("amqp://[hush/", "not a URL that can be read"),
    ],
)
def test_a_wrong_url_says_what_would_be_right_and_keeps_the_secret(
    monkeypatch: pytest.MonkeyPatch, url: str, told: str
) -> None:
    monkeypatch.setenv("FORKJOIN_AMQP_URL", url)
    with pytest.raises(SettingsInvalid) as refused:
        WorkerSettings.load()
    assert str(refused.value).startswith("FORKJOIN_AMQP_URL is wrong: ")
    assert told in str(refused.value)
    assert "hush" not in str(refused.value)


def test_all_wrong_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[str, Any] = {"WORKER_CONCURRENCY": "0", "WORKER_DRAIN_TIMEOUT": "soon", "LOG_FORMAT": "xml"}
    for name, value in wrong.items():
        monkeypatch.setenv(f"FORKJOIN_{name}", value)
    with pytest.raises(SettingsInvalid) as refused:
        WorkerSettings.load()
    lines = str(refused.value).splitlines()
    assert sorted(line.partition(" is wrong: ")[0] for line in lines) == sorted(f"FORKJOIN_{name}" for name in wrong)
    assert any("greater than or equal to 1" in line for line in lines)
    assert any("'console' or 'json'" in line for line in lines)


def test_help_describes_every_variable() -> None:
    assert all(description for _, description in WorkerSettings.variables())
