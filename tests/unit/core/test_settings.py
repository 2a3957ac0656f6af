"""Settings: every fault at once, each named; nothing secret repeated."""

from pathlib import Path

import pytest

from service.core.errors import ConfigurationError
from service.core.settings import load


def test_the_defaults_are_a_gateway_on_this_machine_alone() -> None:
    settings = load()
    assert (settings.dimse_host, settings.http_host) == ("127.0.0.1", "127.0.0.1")
    assert settings.population == "refuse"
    assert settings.destinations == ()


def test_destinations_are_read_with_and_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "HILUM_DESTINATIONS", "PACS=dicom://ORTHANC@127.0.0.1:4242, dicom://OTHER@pacs.local:104"
    )
    first, second = load().destinations
    assert (first.name, first.ae_title, first.host, first.port) == ("PACS", "ORTHANC", "127.0.0.1", 4242)
    assert second.name == "OTHER"


def test_every_fault_is_listed_with_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM_DIMSE_PORT", "99999")
    monkeypatch.setenv("HILUM_TIMEZONE", "Mars/Olympus")
    monkeypatch.setenv("HILUM_DESTINATIONS", "ftp://x")
    monkeypatch.setenv("HILUM_POPULATION", "everybody")
    with pytest.raises(ConfigurationError) as stopped:
        load()
    for name in ("HILUM_DIMSE_PORT", "HILUM_TIMEZONE", "HILUM_DESTINATIONS", "HILUM_POPULATION"):
        assert name in str(stopped.value)


def test_a_token_in_clear_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM_API_TOKENS", "my-secret-token")
    with pytest.raises(ConfigurationError) as stopped:
        load()
    assert "my-secret-token" not in str(stopped.value)


def test_the_api_is_not_opened_to_the_network_without_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM_HTTP_HOST", "0.0.0.0")
    with pytest.raises(ConfigurationError, match="HILUM_API_TOKENS"):
        load()
    monkeypatch.setenv("HILUM_API_TOKENS", f"ward:viewer:{'a' * 64}")
    assert load().api_tokens[0].role == "viewer"


def test_a_longest_wait_shorter_than_the_quiet_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM_STUDY_QUIET_SECONDS", "600")
    with pytest.raises(ConfigurationError, match="HILUM_STUDY_MAX_WAIT_SECONDS"):
        load()


def test_destinations_can_stand_in_the_toml_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "hilum.toml"
    config.write_text('[destinations.PACS]\nurl = "dicom://P@h:104"\nrequired = false\nobjects = ["sr"]\n')
    monkeypatch.setenv("HILUM_CONFIG", str(config))
    (destination,) = load().destinations
    assert (destination.name, destination.required, destination.objects) == ("PACS", False, ("sr",))


@pytest.mark.parametrize(
    ("text", "fault"),
    [("[destinations.P]\nurl=1", "HILUM_DESTINATIONS"), ("nonsense", "no TOML"), ("[odd]", "unknown table")],
)
def test_a_wrong_toml_file_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, fault: str
) -> None:
    config = tmp_path / "hilum.toml"
    config.write_text(text)
    monkeypatch.setenv("HILUM_CONFIG", str(config))
    with pytest.raises(ConfigurationError, match=fault):
        load()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().ae_title = "OTHER"  # type: ignore[misc]
