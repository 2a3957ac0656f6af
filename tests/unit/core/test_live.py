"""The configuration file, saved while everything runs."""

import hashlib
from pathlib import Path

import pytest

from service.core.live import Live
from service.core.settings import Settings, load

PACS = '[destinations.PACS]\nurl = "dicom://PACS@h:104"\n'
KNEES = '[[rules]]\nname = "knees"\nwhen.body_part_examined = "KNEE"\nanalyse = false\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "hilum.toml"
    file.write_text(PACS)
    return file


def looked(live: Live, times: int = 2) -> Settings:
    for _ in range(times):
        live.look()
    return live.settings


def test_a_saved_file_counts_at_the_second_look_and_every_other_setting_stays(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Live(load(config=config, ae_title="OURS"))
    before = looked(live)
    assert live.digest == hashlib.sha256(config.read_bytes()).hexdigest()
    changes: list[Settings] = []
    live.on_change(changes.append)
    monkeypatch.setenv("HILUM_POPULATION", "flag")
    config.write_text(f"{PACS}hours = '19:00-07:00'\n{KNEES}")
    assert looked(live, 1) is before
    after = looked(live, 1)
    assert [rule.name for rule in after.rules] == ["knees"]
    assert str(after.destinations[0].hours) == "19:00-07:00"
    assert (after.ae_title, after.population) == ("OURS", "refuse")
    assert before.rules == ()
    assert changes == [after]
    assert live.digest == hashlib.sha256(config.read_bytes()).hexdigest()
    assert looked(live, 3) is after


def test_a_file_that_is_still_being_written_does_not_count(config: Path) -> None:
    live = Live(load(config=config))
    looked(live)
    for written in (KNEES, KNEES + PACS, KNEES + PACS + "# done\n"):
        config.write_text(written)
        live.look()
        assert live.settings.rules == ()
    assert len(looked(live, 1).rules) == 1


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("[[rules", "no TOML"),
        (PACS + '[[rules]]\nname = "a"\ndestinations = ["PASC"]\n', "no such destination: PASC"),
        (None, "can't be read"),
    ],
)
def test_a_file_with_a_fault_changes_nothing_and_is_said(
    config: Path, written: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(PACS + KNEES)
    live = Live(load(config=config))
    before = looked(live)
    if written is None:
        config.unlink()
    else:
        config.write_text(written)
    assert looked(live, 5) is before
    assert said in live.fault
    assert capsys.readouterr().out.count("config.refused") == 1
    config.write_text(PACS)
    assert looked(live).rules == ()
    assert live.fault == ""


def test_a_fault_beside_the_file_is_seen_to_be_mended(config: Path, tmp_path: Path) -> None:
    live = Live(load(config=config))
    looked(live)
    credentials = tmp_path / "credentials"
    config.write_text(
        f'[destinations.WEB]\nurl = "https://h/dicom-web"\ncredentials_file = "{credentials}"\n'
    )
    looked(live)
    assert "credentials_file" in live.fault
    credentials.write_text("user:password")
    live._again = 0.0
    assert looked(live, 1).destinations[0].name == "WEB"
    assert live.fault == ""


def test_what_was_saved_before_the_first_look_counts_too(config: Path) -> None:
    settings = load(config=config)
    config.write_text(PACS + KNEES)
    assert len(looked(Live(settings)).rules) == 1


def test_destinations_of_the_environment_win_after_a_change_too(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HILUM_DESTINATIONS", "OTHER=dicom://O@h:104")
    live = Live(load(config=config))
    config.write_text(PACS + KNEES)
    assert [item.name for item in looked(live).destinations] == ["OTHER"]
    assert len(live.settings.rules) == 1


def test_a_link_that_is_set_to_another_file_is_a_change(config: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "mounted.toml", tmp_path / "other.toml"
    link.symlink_to(config)
    live = Live(load(config=link))
    looked(live)
    other.write_text(PACS + KNEES)
    link.unlink()
    link.symlink_to(other)
    assert len(looked(live).rules) == 1


def test_without_a_file_nothing_is_looked_at() -> None:
    live = Live(load())
    live.start(0.001)
    assert looked(live).rules == ()
    assert (live.digest, live.fault) == ("", "")
