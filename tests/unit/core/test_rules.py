"""Which rule speaks of an image, and what is wrong with rules."""

import re
from pathlib import Path
from typing import Any

import pytest

from service.core.header import Header, header_of
from service.core.rules import Decision, Rule, When, decide, failed, parse
from service.core.settings import load
from tests import factories

PACS, WARD = "PACS", "WARD"


def image(**attributes: Any) -> Header:
    return header_of(factories.phantom_chest(**attributes), "1.2.840.10008.1.2.1")


def decided(entries: list[dict[str, Any]], title: str = "ROUTER", **attributes: Any) -> Decision:
    return decide(parse(entries, [PACS, WARD]), image(**attributes), title)


def faults(*entries: dict[str, Any]) -> list[str]:
    with pytest.raises(ValueError) as stopped:
        parse(list(entries), [PACS, WARD])
    return str(stopped.value).splitlines()


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, **more}


def test_without_rules_everything_is_analysed_and_goes_everywhere() -> None:
    assert decided([]) == Decision(None, True, None, None)


def test_the_first_rule_that_speaks_of_an_image_decides() -> None:
    rules = [
        named("knees", when={"body_part_examined": "KNEE"}, analyse=False),
        named("ward", when={"calling_ae_title": "WARD_*"}, destinations=[WARD]),
        named("rest", destinations=[PACS]),
    ]
    assert decided(rules, "WARD_7") == Decision("ward", True, (WARD,))
    assert decided(rules) == Decision("rest", True, (PACS,))
    assert decided(rules, "WARD_7", BodyPartExamined="KNEE").rule == "knees"


def test_what_is_not_analysed_is_sent_nowhere_unless_the_rule_names_somebody() -> None:
    assert decided([named("out", analyse=False)]) == Decision("out", False, ())
    assert decided([named("out", analyse=False, destinations=[PACS])]).destinations == (PACS,)


@pytest.mark.parametrize(("condition", "attributes", "holds"), [
    ({"modality": "DX"}, {}, True),
    ({"modality": "dx"}, {}, True),
    ({"modality": ["CR", "D?"]}, {}, True),
    ({"modality": "D"}, {}, False),
    ({"station_name": "ER*"}, {"StationName": "er_room 2"}, True),
    ({"station_name": ""}, {"StationName": None}, True),
    ({"station_name": "?*"}, {"StationName": None}, False),
    ({"study_description": "*thorax [ap]*"}, {"StudyDescription": "Child THORAX [AP] bed"}, True),
    ({"study_description": "*thorax [ap]*"}, {"StudyDescription": "thorax a"}, False),
    ({"series_description": "*port*"}, {"SeriesDescription": "AP Portable"}, True),
    ({"view_position": "AP", "modality": "CR"}, {}, False),
    ({"patient_age": "1-5"}, {"PatientAge": "005Y"}, True),
    ({"patient_age": "1-5"}, {"PatientAge": "071M"}, True),
    ({"patient_age": "1-5"}, {"PatientAge": "006Y"}, False),
    ({"patient_age": "<1"}, {"PatientAge": "011M"}, True),
    ({"patient_age": ["<1", ">=18"]}, {"PatientAge": "018Y"}, True),
    ({"patient_age": ["<1", ">=18"]}, {"PatientAge": "017Y"}, False),
    ({"patient_age": "3"}, {"PatientAge": "003Y"}, True),
    ({"patient_age": "unknown"}, {"PatientAge": None, "PatientBirthDate": None}, True),
    ({"patient_age": ">=0"}, {"PatientAge": None, "PatientBirthDate": None}, False),
])  # fmt: skip
def test_a_condition_holds_for_what_it_describes(
    condition: dict[str, Any], attributes: dict[str, Any], holds: bool
) -> None:
    assert (decided([named("it", when=condition)], **attributes).rule == "it") is holds


def test_each_condition_that_failed_is_named_with_what_was_found() -> None:
    (rule,) = parse([named("it", when={"modality": "CR", "view_position": "AP", "patient_age": ">=18"})], [])
    missed = failed(rule, image(PatientAge="003Y"), "ROUTER")
    assert [(item.condition, item.wanted, item.found) for item in missed] == [
        ("modality", ("CR",), "DX"),
        ("patient_age", (">=18",), "3"),
    ]


def test_a_value_that_goes_on_and_on_costs_no_more_than_another() -> None:
    (rule,) = parse([named("it", when={"study_description": "*a*a*a*a*a*a*a*a*b"})], [])
    assert failed(rule, image(StudyDescription="a" * 60), "ROUTER")


def test_all_faults_are_listed_at_once_by_the_rule_s_name() -> None:
    found = faults(
        named("first", when={"modalty": "DX"}, analyze=False),
        named("second", destinations=["PASC"], when={"modality": "DX"}),
        {"when": {"patient_age": "young"}},
        named("third", when={"modality": []}, analyse="no"),
        named("fourth", population="flag", analyse=False, when={"modality": "CR"}),
        named("<b>"),
        named("second"),
    )
    for text in (
        '"first": when.modalty: there is no such condition (there are: calling_ae_title, modality,',
        '"first": analyze: there is no such key (there are: name, when, analyse,',
        '"second": no such destination: PASC (there are: PACS, WARD)',
        "[[rules]] 3: name: Field required",
        '[[rules]] 3: when.patient_age: an age is in completed years: "1-5"',
        '"third": when.modality: nothing meets an empty list',
        '"third": analyse: Input should be a valid boolean',
        '"fourth": population is for images that are analysed',
        '"<b>": name: String should match pattern',
        '"second": another rule has this name',
    ):
        assert any(text in line for line in found), (text, found)
    assert all(line.startswith("HILUM_CONFIG: [[rules]] ") for line in found)
    assert len(found) == 10


@pytest.mark.parametrize(("first", "second", "reached"), [
    ({}, {"modality": "DX"}, False),
    ({"modality": "D*"}, {"modality": "DX", "view_position": "AP"}, False),
    ({"modality": "d*"}, {"modality": "DX"}, False),
    ({"modality": ["CR", "DX"]}, {"modality": ["DX", "CR"]}, False),
    ({"station_name": "ER*"}, {"station_name": "ER_*_?"}, False),
    ({"station_name": "ER?"}, {"station_name": "ER*"}, True),
    ({"station_name": "ER_*"}, {"station_name": "ER*"}, True),
    ({"station_name": "ER[1]"}, {"station_name": "ER1"}, True),
    ({"modality": "DX", "view_position": "AP"}, {"modality": "DX"}, True),
    ({"modality": "DX"}, {"view_position": "AP"}, True),
    ({"patient_age": ">=18"}, {"patient_age": "20-30"}, False),
    ({"patient_age": "1-5"}, {"patient_age": "1-6"}, True),
    ({"patient_age": ">=0"}, {"patient_age": "unknown"}, True),
    ({"patient_age": ["unknown", "1-9"]}, {"patient_age": ["3", "unknown"]}, False),
])  # fmt: skip
def test_a_rule_that_no_image_can_reach_is_a_fault(
    first: dict[str, Any], second: dict[str, Any], reached: bool
) -> None:
    entries = [named("one", when=first), named("two", when=second)]
    if reached:
        assert len(parse(entries, [])) == 2
    else:
        assert faults(*entries) == [
            'HILUM_CONFIG: [[rules]] "two": never reached: "one" before it speaks of all that meets it'
        ]


def test_what_was_decided_comes_back_from_the_ledger_as_it_was() -> None:
    for decision in (Decision(), Decision("a", False, ()), Decision("b", True, (PACS,), "flag")):
        assert Decision.of(decision.kept()) == decision
    assert Decision.of(None) == Decision()


ROOT = Path(__file__).parents[3]


def test_the_rules_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    config = tmp_path / "hilum.toml"
    config.write_text(blocks[0] + next(block for block in blocks if "[[rules]]" in block))
    rules = load(config=config).rules
    assert decide(rules, image(StationName="QA 3"), "ER_CR1") == Decision("phantoms", False, ())
    assert decide(rules, image(PatientAge="005Y"), "ER_DX1").rule == "emergency room"
    assert decide(rules, image(PatientAge="005Y"), "ER_DX2") == Decision()
    assert decide(rules, image(PatientAge="018Y"), "ER_DX1") == Decision("adults", False, (PACS,))


def test_the_rules_of_the_site_s_example_start(tmp_path: Path) -> None:
    text = (ROOT / "deploy" / "site" / "hilum.toml").read_text()
    sample = re.sub(
        r"^# ?", "", text[text.index("# [destinations") : text.index("# [notices")], flags=re.MULTILINE
    )
    config = tmp_path / "hilum.toml"
    config.write_text(sample)
    made = load(config=config)
    assert [rule.name for rule in made.rules] == ["phantoms", "research"]
    assert decide(made.rules, image(PatientAge="018Y"), "TRIAL_1") == Decision("research", True, (), "flag")
    assert str(made.destinations[0].hours) == "19:00-07:00"


def test_every_key_of_a_rule_and_every_condition_stands_in_the_readme() -> None:
    section = (ROOT / "README.md").read_text().split("## Which studies, where to")[1].split("## ")[0]
    assert re.findall(r"^\| (\w+) \|", section, re.MULTILINE)[1:] == list(Rule.model_fields)
    assert set(When.model_fields) <= set(re.findall(r"`(\w+)`", section))
