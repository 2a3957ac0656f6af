"""What stands below the marks of a plot."""

from service.api.page.plots import Bar, bars


def test_scanners_of_one_maker_are_told_apart() -> None:
    names = ["GE Healthcare Optima XR220", "GE Healthcare Optima XR240", "unknown"]
    drawn = [label for _, label in bars("", [Bar(name, 0.5) for name in names]).labels]
    assert drawn == ["…re Optima XR220", "…re Optima XR240", "unknown"]
