"""Whether a final diagnosis says pneumonia, by a stated rule: labels, ICD-10 codes, words of a report.

The rule is a small TOML file (``rule.toml`` here is the one that ships), so that a site can read what was
counted as what, and change it. What is unclear is not counted. The idea of triggers before and behind a
finding is that of NegEx (Chapman 2001, J Biomed Inform 34:301), within one sentence.
"""

import hashlib
import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from service.core.errors import ConfigurationError

_CODE = re.compile(r"[A-TV-Z]\d[0-9A-Z](\.?[0-9A-Z]{1,4})?[-+*!]?", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s,;|/]+")
# Not behind a digit or an abbreviation of one or two letters: "V. a.", "z.B.", "2.5 cm".
_SENTENCE = re.compile(r"(?<!\b\w)(?<!\b\w\w)(?<!\d)[.!;](?=\s|$)|\n+|(?<=\?)\s")
_LISTS = ("finding", "denied_before", "denied_after", "unsure", "breaks", "normal")


class Said(StrEnum):
    """What a final diagnosis says of pneumonia."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Rule:
    """A rule as it was read; `text` is its file and `sha256` that of the file."""

    version: str
    text: str
    sha256: str
    present: frozenset[str]
    absent: frozenset[str]
    codes: re.Pattern[str]
    words: dict[str, re.Pattern[str]]

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read a rule; without a path the one that ships.

        Raises
        ------
        ConfigurationError
            When it can't be read or holds something else.
        """
        name = path or "the rule that ships"
        try:
            shipped = files("service.commands.backfill") / "rule.toml"
            text = (path or shipped).read_text(encoding="utf-8")
            return cls._of(text, tomllib.loads(text))
        except OSError as fault:
            raise ConfigurationError(f"--rule: {name} can't be read ({fault.strerror})") from None
        except re.error as fault:
            raise ConfigurationError(f"--rule: {name} holds no regular expression: {fault}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as fault:
            raise ConfigurationError(
                f"--rule: {name} is not made as `hilum backfill rule` prints it ({fault})"
            ) from None

    @classmethod
    def _of(cls, text: str, table: dict[str, Any]) -> Self:
        labels, words = table["labels"], table["text"]
        return cls(
            str(table["version"]),
            text,
            hashlib.sha256(text.encode()).hexdigest(),
            frozenset(item.casefold() for item in labels["present"]),
            frozenset(item.casefold() for item in labels["absent"]),
            re.compile(table["codes"]["present"], re.IGNORECASE),
            {name: re.compile("|".join(words[name]) or "(?!)", re.IGNORECASE) for name in _LISTS},
        )

    def of_value(self, value: str) -> Said:
        """Return what the value of a diagnosis column says: a label, codes, or a text."""
        plain = " ".join(value.split())
        if plain.casefold() in self.present:
            return Said.PRESENT
        if plain.casefold() in self.absent:
            return Said.ABSENT
        codes = [item for item in _SEPARATORS.split(plain) if item]
        if codes and all(_CODE.fullmatch(item) for item in codes):
            found = any(self.codes.fullmatch(item.rstrip("-+*!")) for item in codes)
            return Said.PRESENT if found else Said.ABSENT
        return self.of_text(value)

    def of_text(self, text: str) -> Said:
        """Return what a report says in words."""
        parts = [part for sentence in _sentences(text) for part in self.words["breaks"].split(sentence)]
        said = {self._of_part(part) for part in parts} - {None}
        for answer in (Said.PRESENT, Said.UNCLEAR, Said.ABSENT):
            if answer in said:
                return answer
        return Said.ABSENT if self.words["normal"].search(text) else Said.UNCLEAR

    def _of_part(self, part: str) -> Said | None:
        """Return what a part of a sentence says, None when it names no finding."""
        found = list(self.words["finding"].finditer(part))
        if not found:
            return None
        if self.words["unsure"].search(part):
            return Said.UNCLEAR
        denied = all(
            self.words["denied_before"].search(part[: match.start()])
            or self.words["denied_after"].search(part[match.end() :])
            for match in found
        )
        return Said.ABSENT if denied else Said.PRESENT


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in _SENTENCE.split(text.replace("\r\n", "\n")) if part and part.strip()]
