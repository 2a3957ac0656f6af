"""A structured report as text and as one self-contained page, for those without a tool such as dsr2html."""

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from service.core.content_tree import ContentItem, content_tree
from worker import codes


def render_text(report: Dataset) -> str:
    """Return the content tree of a report, one line an item."""
    return "".join(f"{'  ' * item.depth}{_line(item)}\n" for item in content_tree(report))


def render_html(report: Dataset) -> str:
    """Return one self-contained page of a structured report.

    Parameters
    ----------
    report
        A structured report; patient's, study's and document's attributes may be missing.

    Returns
    -------
    str
        HTML with title, verdict, number, limits and algorithm, then the whole content tree; its style is
        within, it loads nothing. It names the patient, as every report does.
    """
    items = list(content_tree(report))
    top = {name: _last(items, concept) for name, concept in _SUMMARY.items()}
    comments = [item.value for item in items if item.says(codes.COMMENT)]
    return _template().render(
        title=items[0].name,
        verdict=top["conclusion"] or next(iter(comments), ""),
        presence=top["presence"].partition(" (")[0],
        top=top,
        numbers=_numbers(items),
        parameters=list(dict.fromkeys(item.value for item in items if item.says(codes.ALGORITHM_PARAMETERS))),
        limits=list(dict.fromkeys(comment for comment in comments if comment != top["conclusion"])),
        patient=[(label, _attribute(report, keyword)) for label, keyword in _PATIENT],
        document=[(label, _attribute(report, keyword)) for label, keyword in _DOCUMENT],
        items=items,
    )


_SUMMARY = {
    "conclusion": codes.CONCLUSION,
    "presence": codes.PRESENCE,
    "finding": codes.FINDING,
    "algorithm": codes.ALGORITHM_NAME,
    "version": codes.ALGORITHM_VERSION,
}
_PATIENT = (
    ("Patient", "PatientName"),
    ("Patient ID", "PatientID"),
    ("Born", "PatientBirthDate"),
    ("Sex", "PatientSex"),
    ("Accession number", "AccessionNumber"),
    ("Study", "StudyDescription"),
    ("Study date", "StudyDate"),
)
_DOCUMENT = (
    ("Written", "ContentDate"),
    ("Revision", "InstanceNumber"),
    ("Completion", "CompletionFlag"),
    ("Verification", "VerificationFlag"),
    ("Stage", "PreliminaryFlag"),
    ("Series", "SeriesDescription"),
    ("Document", "SOPInstanceUID"),
)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("worker", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _line(item: ContentItem) -> str:
    relationship = f"{item.relationship} " if item.relationship else ""
    value = f" = {' '.join(item.value.splitlines())}" if item.value else ""
    return f"{relationship}{item.value_type} ({', '.join(item.name_code)}, {item.name}){value}"


def _last(items: list[ContentItem], concept: Code) -> str:
    """Return the value of the last item of that name: the study's stands after those of its images."""
    values = [item.value for item in items if item.says(concept)]
    return values[-1] if values else ""


def _numbers(items: list[ContentItem]) -> list[tuple[int, str]]:
    """Return the certainty of each image with the presence it led to, as both stand in one group.

    With it the image's number: its place in the image library, whose entries alone are CONTAINED; 0 for an
    image that the library does not list.
    """
    library = [item.value for item in items if item.value_type == "IMAGE" and item.relationship == "CONTAINS"]
    numbers, certainty, shown = [], "", ""
    for item in items:
        if item.value_type == "CONTAINER":
            certainty = shown = ""
        elif item.says(codes.CERTAINTY_OF_FINDING):
            certainty = item.value
        elif item.value_type == "IMAGE":
            shown = item.value
        elif item.says(codes.PRESENCE) and certainty:
            number = library.index(shown) + 1 if shown in library else 0
            numbers.append((number, f"{certainty}, {item.value.partition(' (')[0].lower()}"))
    return sorted(numbers)


def _attribute(report: Dataset, keyword: str) -> str:
    value = report.get(keyword)
    if value is None or value == "":
        return ""
    text = str(value)
    if keyword.endswith("Date") and len(text) == 8:
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    return text
