"""Every fault that the gateway promises to withstand is caused by a test."""

from tests.faults import table


def test_every_row_of_the_table_of_faults_has_a_test() -> None:
    tests = table.marked()
    assert set(tests) == set(table.ROWS)


def test_the_table_names_the_tests_that_there_are() -> None:
    assert table.README.read_text() == table.rendered(), "run python -m tests.faults.table"
