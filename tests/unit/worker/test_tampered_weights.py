"""No pool works with weights that are not the file they were."""

from pathlib import Path

import pytest

from model.weights import default_weights
from service.core.errors import ConfigurationError
from service.core.settings import Settings, load
from tests.ledgers import migrated
from worker.context import Context
from worker.tasks import decode, infer, report


@pytest.fixture
def tampered(tmp_path: Path) -> Settings:
    """Settings of a site whose weights differ in one bit, without a hash beside them."""
    content = bytearray(default_weights().read_bytes())
    content[-1] ^= 1
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(content)
    settings = load(data_dir=tmp_path, weights=weights)
    migrated(settings.sqlalchemy_url)
    return settings


def test_no_pool_starts_on_tampered_weights(tampered: Settings) -> None:
    for check in (decode.check, report.check, lambda settings: infer.warm_up(Context.open(settings))):
        with pytest.raises(ConfigurationError, match="changed"):
            check(tampered)
