"""What a final diagnosis says by the rule that ships, and by one of the site."""

from pathlib import Path

import pytest

from service.commands.backfill.wording import Rule, Said
from service.core.errors import ConfigurationError

_SHIPPED = Rule.read(None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Right lower lobe pneumonia.", Said.PRESENT),
        ("Consolidation in the left upper lobe.", Said.PRESENT),
        ("No consolidation. No pleural effusion.", Said.ABSENT),
        ("There is no evidence of pneumonia.", Said.ABSENT),
        ("Pneumonia has been ruled out.", Said.ABSENT),
        ("Findings are negative for pneumonia", Said.ABSENT),
        ("Possible early infiltrate in the right base.", Said.UNCLEAR),
        ("Pneumonia cannot be excluded.", Said.UNCLEAR),
        ("Pneumonia?", Said.UNCLEAR),
        ("Rule out pneumonia.\nLungs are clear.", Said.UNCLEAR),
        ("Lungs are clear.", Said.ABSENT),
        ("No acute cardiopulmonary disease.", Said.ABSENT),
        ("Pneumothorax on the left.", Said.UNCLEAR),
        ("Fracture of the clavicle.", Said.UNCLEAR),
        ("No pneumothorax. Bronchopneumonia on both sides.", Said.PRESENT),
        ("No infiltrate on the left, but consolidation on the right.", Said.PRESENT),
        ("Pneumonie rechts basal.", Said.PRESENT),
        ("Pneumonisches Infiltrat im linken Unterlappen.", Said.PRESENT),
        ("Kein Nachweis pneumonischer Infiltrate.", Said.ABSENT),
        ("Infiltrate sind nicht nachweisbar.", Said.ABSENT),
        ("V. a. Pneumonie links.", Said.UNCLEAR),
        ("Ein beginnendes Infiltrat ist nicht auszuschließen.", Said.UNCLEAR),
        ("Unauffälliger Thorax.", Said.ABSENT),
        ("Z. n. Pneumonie im Vorjahr.", Said.UNCLEAR),
        ("Kein Pneumothorax. Keine Pneumonie. Kein Erguss.", Said.ABSENT),
        ("", Said.UNCLEAR),
    ],
)
def test_report_says_of_pneumonia(text: str, said: Said) -> None:
    assert _SHIPPED.of_text(text) is said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("PNEUMONIA", Said.PRESENT),
        ("1", Said.PRESENT),
        (" Ja ", Said.PRESENT),
        ("0", Said.ABSENT),
        ("normal", Said.ABSENT),
        ("J18.9", Said.PRESENT),
        ("J15", Said.PRESENT),
        ("R05; J18.0", Said.PRESENT),
        ("j10.0", Said.PRESENT),
        ("J10.1", Said.ABSENT),
        ("J21.9", Said.ABSENT),
        ("S42.00, R52.0", Said.ABSENT),
        ("J18.9 pneumonia, unspecified", Said.PRESENT),
        ("bacterial pneumonia", Said.PRESENT),
        ("bronchiolitis, no pneumonia", Said.ABSENT),
        ("see report", Said.UNCLEAR),
    ],
)
def test_value_of_a_diagnosis_is_a_label_codes_or_words(value: str, said: Said) -> None:
    assert _SHIPPED.of_value(value) is said


def test_site_may_have_a_rule_of_its_own(tmp_path: Path) -> None:
    own = tmp_path / "rule.toml"
    own.write_text(_SHIPPED.text.replace('"hilum-1"', '"ward-7"').replace("'infiltrat\\w*',", ""))
    rule = Rule.read(own)
    assert rule.version == "ward-7"
    assert rule.sha256 != _SHIPPED.sha256
    assert rule.of_text("Infiltrate on the left.") is Said.UNCLEAR


@pytest.mark.parametrize("content", ["nothing", "version = 1", 'version = "1"\n[text]\nfinding = ["("]'])
def test_rule_that_cannot_be_used_is_refused_in_words(tmp_path: Path, content: str) -> None:
    own = tmp_path / "rule.toml"
    own.write_text(content)
    with pytest.raises(ConfigurationError, match="--rule"):
        Rule.read(own)
