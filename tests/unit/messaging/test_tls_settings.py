"""What can be said of TLS to RabbitMQ, and what is wrong with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from messaging.settings import ServiceSettings, SettingsInvalid
from messaging.tls import TlsFiles
from tests.services.certificates import Authority, KeyPair

AMQPS = "amqps://localhost/"


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    authority = Authority()
    yield authority
    authority.remove()


@pytest.fixture(scope="module")
def ours(authority: Authority) -> KeyPair:
    return authority.issue("us", file="us")


def refused(**given: object) -> str:
    with pytest.raises(SettingsInvalid) as wrong:
        ServiceSettings.load(**given)
    return str(wrong.value)


def test_files_that_fit_together_are_taken(authority: Authority, ours: KeyPair) -> None:
    settings = ServiceSettings.load(
        amqp_url=AMQPS,
        amqp_ca_file=authority.certificate,
        amqp_cert_file=ours.certificate,
        amqp_key_file=ours.key,
    )
    assert settings.amqp_tls == TlsFiles(authority.certificate, ours.certificate, ours.key)


def test_certificate_and_key_may_stand_in_one_file(ours: KeyPair, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_text(ours.key.read_text() + ours.certificate.read_text())
    assert ServiceSettings.load(amqp_url=AMQPS, amqp_cert_file=both).amqp_tls.certificate == both


@pytest.mark.parametrize("name", ["amqp_ca_file", "amqp_cert_file"])
def test_files_without_tls_are_a_mistake(authority: Authority, name: str) -> None:
    told = refused(amqp_url="amqp://localhost/", **{name: authority.certificate})
    assert told == f"FORKJOIN_{name.upper()} is wrong: it is for TLS, and FORKJOIN_AMQP_URL has none: write amqps://"


@pytest.mark.parametrize("name", ["amqp_ca_file", "amqp_cert_file"])
def test_a_file_that_is_not_there_is_named(name: str) -> None:
    told = refused(amqp_url=AMQPS, **{name: "/nowhere.pem"})
    assert told == f"FORKJOIN_{name.upper()} is wrong: /nowhere.pem cannot be used: No such file or directory"


def test_a_file_without_a_certificate_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    assert "there is no certificate in it" in refused(amqp_url=AMQPS, amqp_ca_file=tmp_path / "empty.pem")


def test_a_key_without_a_certificate_is_told(ours: KeyPair) -> None:
    assert refused(amqp_url=AMQPS, amqp_key_file=ours.key) == (
        "FORKJOIN_AMQP_CERT_FILE is wrong: the key in FORKJOIN_AMQP_KEY_FILE goes with a certificate"
    )


def test_a_key_of_another_certificate_is_told(authority: Authority, ours: KeyPair) -> None:
    other = authority.issue("other", file="other")
    told = refused(amqp_url=AMQPS, amqp_cert_file=ours.certificate, amqp_key_file=other.key)
    assert "the key does not belong to the certificate" in told


@pytest.mark.parametrize("parameter", ["no_verify_ssl=1", "cafile=/ca.pem"])
def test_the_url_can_neither_turn_verification_off_nor_name_files(parameter: str) -> None:
    told = refused(amqp_url=f"{AMQPS}?{parameter}")
    assert told.startswith("FORKJOIN_AMQP_URL is wrong: certificates do not go into the URL, and are always verified")
