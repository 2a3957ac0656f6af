"""Options that many commands have."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
Html = Annotated[Path | None, typer.Option(help="One HTML file that needs nothing beside it.")]
