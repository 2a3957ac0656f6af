"""Log lines say where and of what kind, and repeat no word that may be a patient's."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from service.core.errors import OutOfResources
from service.core.logs import outline

_ROOT = Path(__file__).parents[2]
_START = (
    "import logging, structlog, warnings\nfrom service.core import logs\n"
    "logs.protect_patients()\nlogs.configure('test')\n"
)


def said(script: str) -> str:
    """Return what a process that is set up like a role writes, the end of a traceback included."""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", _START + script],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


RAISES = "def fails():\n    int('Canary^Yellow')\n"


@pytest.mark.parametrize(
    "script",
    [
        "try:\n    fails()\nexcept Exception:\n    structlog.get_logger().exception('failed')",
        "try:\n    fails()\nexcept Exception:\n    logging.getLogger('uvicorn.error').exception('failed')",
        "try:\n    fails()\nexcept Exception as fault:\n    try:\n"
        "        raise OSError('Canary') from fault\n"
        "    except Exception:\n        logging.getLogger('x').error('failed', exc_info=True)",
        "import asyncio\nasync def main():\n    async def inner():\n        fails()\n"
        "    task = asyncio.create_task(inner())\n    await asyncio.sleep(0.01)\nasyncio.run(main())",
        "try:\n    fails()\nexcept Exception as fault:\n"
        "    data = {'exc': repr(fault), 'args': '(Canary)'}\n"
        "    logging.getLogger('celery.app.trace').error('raised: %(exc)s\\n%(args)s', data, exc_info=True,"
        " extra={'data': data})",
        "import threading\nthread = threading.Thread(target=fails)\nthread.start()\nthread.join()",
        "class Falls:\n    def __del__(self):\n        fails()\nx = Falls()\ndel x",
        "fails()",
    ],
    ids=["structlog", "library", "chain", "asyncio", "celery", "thread", "destructor", "end of the process"],
)
def test_a_traceback_has_its_place_and_kind_and_no_words(script: str) -> None:
    lines = said(RAISES + script)
    assert "canary" not in lines.lower()
    (line,) = lines.splitlines()
    assert "in fails" in json.loads(line)["exception"]
    assert "ValueError" in line


def test_a_process_that_crashes_leaves_no_core() -> None:
    shown = "import resource\nprint(resource.getrlimit(resource.RLIMIT_CORE))"
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        assert before[1] != 0, "the machine lets nobody leave one"
        assert said(shown) == "(0, 0)\n"
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


def test_a_warning_has_its_place_and_kind_and_no_words() -> None:
    lines = said("warnings.warn('Canary^Yellow')")
    assert "canary" not in lines.lower()
    assert json.loads(lines)["kind"] == "UserWarning"


@pytest.mark.parametrize(
    "library", ["pydicom", "pynetdicom.acse", "sqlalchemy.engine.Engine", "httpcore.http11"]
)
def test_libraries_that_repeat_values_are_silent_at_every_level(library: str) -> None:
    shown = f"logging.getLogger().setLevel(1)\nlogger = logging.getLogger('{library}')\nlogger.setLevel(1)\n"
    assert said(shown + "logger.debug('Canary')\nlogger.error('Canary')") == ""
    assert "Bird" in said("logging.getLogger('another').error('Bird')")


def test_our_own_words_and_the_system_s_stay() -> None:
    assert outline(OutOfResources("no room")).endswith("OutOfResources: no room")
    assert outline(OSError(28, "No space left on device", "/path")).endswith("No space left on device")


@pytest.mark.parametrize(("form", "is_json"), [("auto", True), ("json", True), ("text", False)])
def test_the_form_of_a_line_is_what_the_setting_says(form: str, is_json: bool) -> None:
    script = f"logs.configure('test', '{form}')\nstructlog.get_logger().info('it.happened', number=3)"
    (line,) = said(script).splitlines()
    assert "it.happened" in line
    assert line.startswith("{") is is_json
    if is_json:
        assert json.loads(line)["number"] == 3
