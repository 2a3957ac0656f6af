"""Settings: every fault at once, each named; nothing secret repeated."""

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.core.destination import Destination
from service.core.errors import ConfigurationError
from service.core.settings import load
from service.core.states import Kind
from tests.certificates import Authority


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


def test_a_stow_rs_server_is_a_destination_named_by_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "HILUM_DESTINATIONS", "https://vna.local/dicom-web,A=http://h:8042/dicom-web,https://b/x=y/"
    )
    first, second, third = load().destinations
    assert (first.name, first.host, first.port, first.is_dicomweb) == ("vna.local", "vna.local", 443, True)
    assert (second.name, second.port, third.name) == ("A", 8042, "b")
    assert not pacs().is_dicomweb


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("https://user:secret@h/dicom-web", "credentials_file"),
        ("https://secret@h/dicom-web", "credentials_file"),
        ("https:///dicom-web", "https://host/path"),
        ("https://h/dicom-web?key=secret", "without ? and #"),
        ("https://h:99999/dicom-web", "dicom://AET@host:port or https://host/dicom-web"),
        ("ftp://h/dicom-web", "dicom://AET@host:port or https://host/dicom-web"),
        ("dicom://h:104", "AE title, host and port"),
        ("dicoms://P@h", "needed: dicoms://AET@host:port"),
    ],
)
def test_a_url_that_is_no_destination_stops_the_start_and_is_not_repeated(url: str, fault: str) -> None:
    with pytest.raises(ConfigurationError) as stopped:
        load(destinations=f"A={url}")
    assert fault in str(stopped.value)
    assert "secret" not in str(stopped.value)


@pytest.mark.parametrize(
    ("written", "header"),
    [("user:pass:word\n", "Basic dXNlcjpwYXNzOndvcmQ="), ("Bearer abc.def", "Bearer abc.def")],
)
def test_credentials_are_read_from_their_file_each_time(tmp_path: Path, written: str, header: str) -> None:
    file = tmp_path / "credentials"
    file.write_text("first:one")
    made = pacs(url="https://h/dicom-web", credentials_file=str(file))
    file.write_text(written)
    assert made.authorization() == header
    assert pacs(url="https://h/dicom-web").authorization() is None


@pytest.mark.parametrize(
    "written", [None, b"", b"secret", b"Bearer secret word", b"a:secret\nb:secret", b"\xff:"]
)
def test_credentials_that_are_none_stop_the_start_and_are_not_repeated(
    tmp_path: Path, written: bytes | None
) -> None:
    file = tmp_path / "credentials"
    if written is not None:
        file.write_bytes(written)
    with pytest.raises(ConfigurationError, match="credentials_file") as stopped:
        pacs(url="https://h/dicom-web", credentials_file=str(file))
    assert "secret" not in str(stopped.value)


def test_a_storage_scp_has_no_credentials(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("user:password")
    with pytest.raises(ConfigurationError, match="C-STORE has no credentials"):
        pacs(credentials_file=str(tmp_path / "credentials"))


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


@pytest.mark.parametrize(
    "secret", ["", "\n", "changeme", "changeme\n", "secret", "admin", "hilum", "ward-7", "ward-7\n"]
)
def test_a_secret_that_anybody_guesses_is_no_token(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    monkeypatch.setenv("HILUM_API_TOKENS", f"good:viewer:{'a' * 64},ward-7:administrator:{digest}")
    with pytest.raises(ConfigurationError, match=r"HILUM_API_TOKENS: token 2 \(ward-7\) .* `hilum token`"):
        load()


def test_one_secret_is_one_token_with_one_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM_API_TOKENS", f"one:viewer:{'a' * 64},two:administrator:{'a' * 64}")
    with pytest.raises(ConfigurationError, match=r"token 2 \(two\) has the secret of another one"):
        load()


def test_proxies_are_addresses_and_never_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM_TRUSTED_PROXIES", "10.1.2.3, 172.16.0.0/12, ::1")
    assert load().trusted_proxies == ("10.1.2.3/32", "172.16.0.0/12", "::1/128")
    for wrong in ("*", "0.0.0.0/0", "::/0", "proxy.local", "10.1.2.3/8"):
        monkeypatch.setenv("HILUM_TRUSTED_PROXIES", wrong)
        with pytest.raises(ConfigurationError, match="HILUM_TRUSTED_PROXIES"):
            load()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_the_listener_is_not_opened_to_the_network_for_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("HILUM_DIMSE_HOST", host)
    with pytest.raises(ConfigurationError, match="lets anybody in the network send: name who may"):
        load()
    monkeypatch.setenv("HILUM_CALLING_AE_TITLES", "ROUTER")
    assert load().dimse_host == host
    monkeypatch.setenv("HILUM_CALLING_AE_TITLES", "")
    config = tmp_path / "hilum.toml"
    config.write_text('[peers.ROUTER]\naddresses = ["10.0.0.0/8"]\n')
    monkeypatch.setenv("HILUM_CONFIG", str(config))
    assert load().peers[0].ae_title == "ROUTER"


def test_peers_of_the_file_and_of_the_short_form_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "hilum.toml"
    config.write_text(
        '[peers.ROUTER]\naddresses = ["10.0.0.0/8"]\n[peers.second]\nae_title = "CT 1"\nmay = []\n'
    )
    monkeypatch.setenv("HILUM_CONFIG", str(config))
    monkeypatch.setenv("HILUM_CALLING_AE_TITLES", "ROUTER, CT 1,DX")
    router, second, third = load().peers
    assert (router.ae_title, len(router.addresses), router.may) == ("ROUTER", 1, ("store",))
    assert (second.ae_title, second.may) == ("CT 1", ())
    assert (third.ae_title, third.addresses) == ("DX", ())


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[peers.A]\nae_title = "B"\n[peers.B]\n', "two peers have the same AE title"),
        ('[peers.A]\naddresses = ["10.1.2.3/8"]\n', "host bits"),
        ('[peers.A]\naddress = "10.1.2.3"\n', "address"),
        ('[peers.A]\naddresses = "10.1.2.3"\n', "addresses"),
        ("[peers]\nA = 1\n", r"\[peers.NAME\]"),
    ],
)
def test_a_wrong_peer_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, fault: str
) -> None:
    config = tmp_path / "hilum.toml"
    config.write_text(text)
    monkeypatch.setenv("HILUM_CONFIG", str(config))
    with pytest.raises(ConfigurationError, match=fault):
        load()


def test_a_tls_port_needs_our_certificate_the_cas_of_peers_and_somebody_bound(authority: Authority) -> None:
    files = authority.issue("hilum.example").settings
    bound = [{"ae_title": "ROUTER", "certificates": ["router.example"]}]
    for name in files:
        with pytest.raises(ConfigurationError, match=f"HILUM_DIMSE_TLS_PORT needs HILUM_{name.upper()}"):
            load(dimse_tls_port=2762, calling_ae_titles=bound, **{**files, name: ""})
    with pytest.raises(ConfigurationError, match="open to nobody"):
        load(dimse_tls_port=2762, calling_ae_titles="ROUTER", **files)
    made = load(dimse_tls_port=2762, calling_ae_titles=bound, **files)
    assert made.dimse_ports == {"HILUM_DIMSE_PORT": 11112, "HILUM_DIMSE_TLS_PORT": 2762}
    assert load(dimse_tls_port=2762, destinations="PACS=dicoms://PACS@h:2762", **files).dimse_tls_port == 2762


def test_each_port_can_be_off_and_not_both(authority: Authority) -> None:
    files = authority.issue("hilum.example").settings
    assert load(dimse_tls_port="off").dimse_ports == {"HILUM_DIMSE_PORT": 11112}
    bound = [{"ae_title": "ROUTER", "certificates": ["router.example"]}]
    secured = load(
        dimse_port="off", dimse_tls_port=2762, dimse_host="0.0.0.0", calling_ae_titles=bound, **files
    )
    assert secured.dimse_ports == {"HILUM_DIMSE_TLS_PORT": 2762}
    with pytest.raises(ConfigurationError, match="leaves no port"):
        load(dimse_port="off")
    with pytest.raises(ConfigurationError, match="a port of its own"):
        load(dimse_tls_port=11112, calling_ae_titles=bound, **files)


def test_a_key_that_others_can_read_stops_the_start(authority: Authority) -> None:
    issued = authority.issue("hilum.example")
    issued.key.chmod(0o644)
    with pytest.raises(ConfigurationError, match=r"HILUM_DIMSE_TLS_.*chmod 600"):
        load(**issued.settings)
    with pytest.raises(ConfigurationError, match=r"destination PACS: tls: .*chmod 600"):
        pacs(url="https://h/dicom-web", tls={name: str(path) for name, path in issued.files})


def test_a_dicoms_destination_is_shown_our_certificate_unless_it_names_another(authority: Authority) -> None:
    ours, another = authority.issue("hilum.example"), authority.issue("another.example")
    own = {"certificate_file": str(another.certificate), "key_file": str(another.key)}

    def tls(url: str, **options: Any) -> Any:
        (made,) = load(destinations=[{"name": "PACS", "url": url, **options}], **ours.settings).destinations
        return made.tls

    assert tls("dicoms://P@h:2762") == ours.files
    assert tls("dicoms://P@h:2762", tls=own) == another.files
    assert tls("https://h/dicom-web") is None
    assert tls("https://h/dicom-web", tls={"ca_file": str(ours.ca)}).certificate_file is None
    assert tls("dicom://P@h:104") is None


@pytest.mark.parametrize("url", ["dicom://P@h:104", "http://h/dicom-web"])
def test_tls_of_a_destination_without_it_stops_the_start(url: str) -> None:
    with pytest.raises(ConfigurationError, match="tls is for dicoms:// and https://"):
        pacs(url=url, tls={})


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


def pacs(**options: Any) -> Destination:
    """Return one destination as the TOML file would name it."""
    entry = {"name": "PACS", "url": "dicom://P@h:104", **options}
    (destination,) = load(destinations=[entry]).destinations
    return destination


def kinds(destination: Destination, finding: str = "present", **known: set[str]) -> set[str]:
    return {str(kind) for kind in Kind if destination.wants(kind, finding, **known)}


def test_by_default_a_destination_gets_the_3d_report_and_a_heat_map_of_positives() -> None:
    assert kinds(pacs()) == {"sr", "heatmap"}
    assert kinds(pacs(), "absent") == {"sr"}
    assert kinds(pacs(), refused={"sr"}) == {"comprehensive-sr", "heatmap"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sr": "comprehensive"}, {"comprehensive-sr", "heatmap"}),
        ({"sr": "text"}, {"text", "heatmap"}),
        ({"sr": "none"}, {"heatmap"}),
        ({"objects": ["heatmap"]}, {"heatmap"}),
        ({"objects": ["sr", "text", "gsps", "pdf", "rejection"]}, {"sr", "text", "gsps", "pdf", "rejection"}),
        ({"objects": ["text", "pdf"]}, {"text", "pdf"}),
    ],
)
def test_a_destination_gets_what_it_asks_for(options: dict[str, Any], expected: set[str]) -> None:
    assert kinds(pacs(**options)) == expected


@pytest.mark.parametrize(
    ("options", "chest", "knee"),
    [
        ({}, True, False),
        ({"not_analysed": "always"}, True, True),
        ({"not_analysed": "never"}, False, False),
        ({"sr": "none"}, False, False),
        ({"objects": ["text"]}, True, False),
        ({"objects": ["pdf"]}, True, False),
    ],
)
def test_who_is_told_that_a_film_was_not_analysed(options: dict[str, Any], chest: bool, knee: bool) -> None:
    destination = pacs(**options)
    said = destination.wants_not_analysed(True), destination.wants_not_analysed(False)
    assert said == (chest, knee)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90m", timedelta(minutes=90)), ("24h", timedelta(hours=24)), ("3d", timedelta(days=3))],
)
def test_expiry_is_a_number_with_its_unit(text: str, expected: timedelta) -> None:
    assert pacs(expires_after=text).expires_after == expected


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"expires_after": 24}, "a number with its unit"),
        ({"expires_after": "0h"}, "a number with its unit"),
        ({"expires_after": "24 hours"}, "a number with its unit"),
        ({"sr": "88.33"}, "'3d', 'comprehensive', 'text' or 'none'"),
        ({"objects": ["seg"]}, "'rejection'"),
        ({"not_analysed": "sometimes"}, "'chest', 'always' or 'never'"),
        ({"sr": "none", "objects": ["sr", "heatmap"]}, "contradict"),
        ({"sr": "comprehensive", "objects": ["heatmap"]}, "contradict"),
        ({"sr": "text", "objects": ["sr", "text"]}, "sends the text SR already"),
        ({"heatmap": "always", "objects": ["sr"]}, 'heatmap = "always" needs'),
        ({"not_analysed": "always", "objects": ["heatmap"]}, "a report in words"),
        ({"objects": []}, "gets nothing at all"),
        ({"objects": ["rejection"]}, "gets nothing at all"),
    ],
)
def test_a_destination_that_cannot_be_meant_stops_the_start(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match="HILUM_DESTINATIONS") as stopped:
        pacs(**options)
    assert fault in str(stopped.value)


def test_two_faults_of_one_destination_are_both_named() -> None:
    with pytest.raises(ConfigurationError) as stopped:
        pacs(sr="comprehensive", objects=["pdf"], heatmap="always")
    assert "contradict" in str(stopped.value)
    assert 'needs "heatmap"' in str(stopped.value)
    assert str(stopped.value).count("destination PACS") == 2


@pytest.mark.parametrize("document", ["README.md", "deploy/site/hilum.toml"])
def test_the_documented_destination_is_one_that_starts(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[3] / document).read_text()
    if document.endswith(".toml"):
        text = text[text.index("# [destinations") :].replace("# ", "", 1).replace("\n# ", "\n")
    else:
        text = text.partition("## Settings")[2].split("```toml\n")[1].split("```")[0]
    for name, line in (("oncall-secret", f"whsec_{'A' * 44}"), ("mail-password", "open sesame")):
        (tmp_path / name).write_text(line)
    config = tmp_path / "hilum.toml"
    config.write_text(text.replace("/etc/hilum", str(tmp_path)))
    monkeypatch.setenv("HILUM_CONFIG", str(config))
    (destination,) = load().destinations
    assert [channel.is_mail for channel in load().notices] == [False, True] * document.endswith(".toml")
    assert destination.expires_after == timedelta(hours=24)
    assert kinds(destination) == {"sr", "heatmap"}


def test_a_secret_is_read_from_its_file_and_a_variable_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hilum_broker_url").write_text("redis://file:6379/0\n")
    (tmp_path / "hilum_api_tokens").write_text(f"nurse:clinician:{'2' * 64},ward:viewer:{'3' * 64}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load().broker_url == "redis://file:6379/0"
    assert [token.name for token in load().api_tokens] == ["nurse", "ward"]
    monkeypatch.setenv("HILUM_BROKER_URL", "")
    assert load().broker_url == "redis://file:6379/0", "an empty value is none"
    monkeypatch.setenv("HILUM_BROKER_URL", "redis://variable:6379/0")
    assert load().broker_url == "redis://variable:6379/0"


def test_what_is_wrong_with_a_secret_is_said_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hilum_database_url").write_text("mysql://hilum:canary@db/hilum")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(ConfigurationError, match="HILUM_DATABASE_URL") as caught:
        load()
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("channel", "fault"),
    [
        ({"url": "ftp://host/"}, "a channel is https://"),
        ({"url": "https://user:secret@host/"}, "do not belong into a URL"),
        ({"url": "smtp://host/path", "from": "a@b", "to": ["c@d"]}, "nothing behind it"),
        ({"url": "smtp://host"}, "needs from and to"),
        ({"url": "smtps://host", "from": "a@b", "to": ["somebody"]}, "somebody is no mail address"),
        ({"url": "smtps://host", "from": "a@b", "to": ["c@d"], "user": "u"}, "go together"),
        ({"url": "https://host/", "to": ["c@d"]}, "are for mails"),
        ({"url": "https://host/", "events": ["everything"]}, "events"),
        ({"url": "https://host/", "events": ["test"]}, "test is no event"),
        ({"url": "https://host/", "silence_after": "4"}, "a number with its unit"),
        ({"url": "https://host/", "secret_file": "/nowhere"}, "/nowhere can't be read"),
        ({"url": "https://host/", "sceret_file": "/nowhere"}, "sceret_file"),
    ],
)
def test_a_wrong_channel_of_notices_is_named(channel: dict[str, object], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault) as stopped:
        load(notices=[{"name": "ONCALL", **channel}])
    assert "HILUM_NOTICES[0]" in str(stopped.value)
    assert "secret@" not in str(stopped.value)


def test_a_secret_that_is_short_or_no_base64_stops_the_start_and_is_not_repeated(tmp_path: Path) -> None:
    for content in ("whsec_c2hvcnQ=", "a password that somebody thought of", ""):
        (tmp_path / "secret").write_text(content)
        with pytest.raises(ConfigurationError, match="must hold one line, whsec_") as stopped:
            load(notices=[{"name": "A", "url": "https://host/", "secret_file": tmp_path / "secret"}])
        assert not content or content not in str(stopped.value)


def test_the_short_form_of_notices_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "hilum.toml"
    config.write_text('[notices.A]\nurl = "https://a/"\n')
    monkeypatch.setenv("HILUM_CONFIG", str(config))
    assert [channel.url for channel in load().notices] == ["https://a/"]
    monkeypatch.setenv("HILUM_NOTICES", "B=https://b/x?y=1, C=http://c/")
    assert [(channel.name, channel.url) for channel in load().notices] == [
        ("B", "https://b/x?y=1"),
        ("C", "http://c/"),
    ]


@pytest.mark.parametrize(
    "hours", ["", "Mon", "Mon-Fri", "Mon-Fri 8-17", "Mon-Fri 17:00-08:00", "Mo-Fr 08:00-17:00"]
)
def test_working_hours_that_are_none_stop_the_start(hours: str) -> None:
    with pytest.raises(ConfigurationError, match="HILUM_WORKING_HOURS"):
        load(working_hours=hours)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("https://hilum.hospital.local", "https://hilum.hospital.local"),
        ("https://hilum.hospital.local:8443/", "https://hilum.hospital.local:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("", None),
    ],
)
def test_the_public_address_is_that_of_a_host(given: str, read: str | None) -> None:
    assert load(public_url=given).public_url == read


@pytest.mark.parametrize(
    "given",
    [
        *(
            "hilum.hospital.local",
            "ftp://hilum",
            "https://",
            "https://h/hilum",
            "https://h?x=1",
            "https://h#x",
        ),
        *("https://user:secret@h", "javascript://h", "https://hilüm.local"),
    ],
)
def test_a_public_address_that_cannot_begin_a_link_stops_the_start(given: str) -> None:
    with pytest.raises(ConfigurationError, match=r"HILUM_PUBLIC_URL: .*https://host") as refused:
        load(public_url=given)
    assert "secret" not in str(refused.value)
