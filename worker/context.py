"""What one worker process works with: opened in the process that uses it, never across a fork."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy.exc import SQLAlchemyError

from model.weights import WeightsError, WeightsInfo, default_weights, read_info
from service.core.audit import Audit
from service.core.errors import ConfigurationError
from service.core.ledger import Ledger, register_model
from service.core.settings import Settings
from service.core.spool import Spool


@contextmanager
def discarding(spool: Spool, *paths: str | None) -> Iterator[None]:
    """Remove new files when the block that writes them into the ledger fails.

    Not when the ledger itself failed: the commit may have happened though its answer got lost, and then the
    ledger needs the files.
    """
    try:
        yield
    except SQLAlchemyError:
        raise
    except BaseException:
        for path in paths:
            spool.remove(path)
        raise


def read_weights(settings: Settings) -> WeightsInfo:
    """Return what the weights say of themselves; reading it needs no torch.

    Raises
    ------
    ConfigurationError
        When they cannot be used.
    """
    try:
        return read_info(settings.weights or default_weights())
    except WeightsError as fault:
        raise ConfigurationError(str(fault)) from None


@dataclass
class Context:
    """Settings, ledger, data folder and model of one process."""

    settings: Settings
    ledger: Ledger
    spool: Spool

    @classmethod
    def open(cls, settings: Settings) -> "Context":
        """Open the ledger and the data folder for this process."""
        spool = Spool(settings.data_dir)
        spool.make()
        return cls(settings, Ledger(settings.sqlalchemy_url), spool)

    @cached_property
    def audit(self) -> Audit:
        """The audit trail as this process writes it."""
        return Audit(self.settings, "worker")

    @cached_property
    def weights(self) -> WeightsInfo:
        """What the weights say of themselves."""
        return read_weights(self.settings)

    @cached_property
    def model_id(self) -> int:
        """Ledger row of the reporting model."""
        info = self.weights
        with self.ledger.write() as session:
            return register_model(session, info.name, info.version, info.sha256, info.class_activation)
