"""The orchestrator's settings: each wrong value names its variable, and none is shown."""

import os

import pytest

from messaging.settings import SettingsInvalid
from orchestrator.bootstrap import make_database
from orchestrator.errors import WrongUse
from orchestrator.settings import Settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FORKJOIN_")]:
        monkeypatch.delenv(name)


def test_without_any_variable_there_are_defaults() -> None:
    settings = Settings.load()
    assert settings.database_url is None
    assert settings.unknown_agent_after == 60.0
    assert settings.database_pool_size == 10


def test_each_process_has_a_name_of_its_own() -> None:
    assert Settings.load().replica_id != Settings.load().replica_id


def test_variables_are_read_and_arguments_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKJOIN_UNKNOWN_AGENT_AFTER", "2.5")
    monkeypatch.setenv("FORKJOIN_REPLICA_ID", "from-environment")
    settings = Settings.load(replica_id="given", database_pool_size=None)
    assert (settings.unknown_agent_after, settings.replica_id) == (2.5, "given")


def test_who_may_report_goes_with_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKJOIN_WORKER_USERS", '{"analysts": ["keywords"]}')
    with pytest.raises(SettingsInvalid, match="FORKJOIN_WORKER_USERS is wrong: set FORKJOIN_AMQP_SIGN too"):
        Settings.load()
    monkeypatch.setenv("FORKJOIN_AMQP_SIGN", "true")
    assert Settings.load().worker_users == {"analysts": frozenset({"keywords"})}


def test_who_may_report_that_is_no_json_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKJOIN_WORKER_USERS", "analysts=keywords")
    with pytest.raises(SettingsInvalid, match="FORKJOIN_WORKER_USERS is wrong: input should be a valid dictionary"):
        Settings.load()


WRONG = {
    "AMQP_URL": "http://user:hush@host/",
    "DATABASE_POOL_SIZE": "3",
    "REPLICA_ID": "with spaces hush",
    "UNKNOWN_AGENT_AFTER": "0",
    "MAX_MESSAGE_BYTES": "hush",
    "LOG_LEVEL": "HUSH",
    "LOG_FORMAT": "hush",
}


@pytest.mark.parametrize(("variable", "value"), WRONG.items(), ids=list(WRONG))
def test_a_wrong_value_names_its_variable_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"FORKJOIN_{variable}", value)
    with pytest.raises(SettingsInvalid, match=f"FORKJOIN_{variable} is wrong: ") as wrong:
        Settings.load()
    assert "hush" not in str(wrong.value).lower()
    assert wrong.value.__cause__ is None


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in WRONG.items():
        monkeypatch.setenv(f"FORKJOIN_{variable}", value)
    with pytest.raises(SettingsInvalid) as wrong:
        Settings.load()
    lines = str(wrong.value).splitlines()
    assert {line.split(" ")[0] for line in lines} == {f"FORKJOIN_{variable}" for variable in WRONG}


def test_passwords_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKJOIN_DATABASE_URL", "postgresql://user:hush@host/db")
    monkeypatch.setenv("FORKJOIN_AMQP_URL", "amqp://user:hush@host/")
    assert "hush" not in repr(Settings.load())
    assert "hush" not in str(Settings.load())


@pytest.mark.parametrize(
    "url", ["mysql://user:hush@host/db", "postgresql://user@host:hush/db", "postgresql://user:hush@[::1/db", "hush"]
)
def test_a_database_url_that_is_none_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("FORKJOIN_DATABASE_URL", url)
    with pytest.raises(WrongUse, match="postgresql://") as wrong:
        make_database(Settings.load())
    assert "hush" not in str(wrong.value)
    assert wrong.value.__cause__ is None


def test_a_missing_database_url_is_told_with_an_example() -> None:
    with pytest.raises(WrongUse, match="set FORKJOIN_DATABASE_URL, for example postgresql://"):
        make_database(Settings.load())


def test_every_setting_says_what_it_is_for() -> None:
    assert all(variable.startswith("FORKJOIN_") and meaning for variable, meaning in Settings.variables())
