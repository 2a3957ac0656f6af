"""What a C-STORE status asks of the sender."""

import pytest
from pydicom.multival import MultiValue

from worker.peer import Answer, answer_to, reason_for, trusted


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (0x0000, Answer.ACCEPTED),
        (0x0111, Answer.ACCEPTED),
        (0xB000, Answer.ACCEPTED),
        (0xB006, Answer.ACCEPTED),
        (0xB007, Answer.ACCEPTED),
        (0xA700, Answer.AGAIN),
        (0xA701, Answer.AGAIN),
        (0x0110, Answer.AGAIN_A_FEW_TIMES),
        (0xC000, Answer.AGAIN_A_FEW_TIMES),
        (0xC123, Answer.AGAIN_A_FEW_TIMES),
        (0xA777, Answer.PARK),
        (0xA778, Answer.PARK),
        (0xA779, Answer.PARK),
        (0xA900, Answer.PARK),
        (0x0117, Answer.PARK),
        (0x0122, Answer.PARK),
        (0x0124, Answer.PARK),
    ],
)
def test_a_status_is_accepted_tried_again_or_parked(status: int, answer: Answer) -> None:
    assert answer_to(status) is answer


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0xA700, "out of resources"),
        (0xC123, "cannot understand"),
        (0xA778, "identity"),
        (0x0122, "not supported"),
    ],
)
def test_a_status_is_named_in_words_and_digits(status: int, words: str) -> None:
    assert f"{status:04X}" in reason_for(status)
    assert words in reason_for(status)


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([], None),
        ([{"PatientID": "7 ", "AccessionNumber": ""}], {"PatientID": "7"}),
        ([{"PatientID": "7"}, {"PatientID": "7"}], {"PatientID": "7"}),
        ([{"PatientID": "7"}, {"PatientID": "8"}], None),
        ([{"PatientID": "M?-7"}], None),
        ([{"PatientID": "7", "AccessionNumber": MultiValue(str, ["A", "B"])}], None),
        ([{"PatientID": "7", "PatientName": "A^B=^"}], {"PatientID": "7"}),
        ([{"PatientID": "7", "PatientName": "A^B==c"}], {"PatientID": "7", "PatientName": "A^B==c"}),
    ],
)
def test_an_archive_is_believed_only_where_it_can_be(
    answers: list[dict[str, object]], told: dict[str, str] | None
) -> None:
    assert trusted(answers) == told
