"""What one worker process works with: opened in the process that uses it, never across a fork."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from model.weights import WeightsError, WeightsInfo, default_weights, read_info
from service.core import models
from service.core.audit import Audit
from service.core.errors import ConfigurationError
from service.core.ledger import Ledger, register_model
from service.core.population import Population
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.tables import Model


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


def population_of(info: WeightsInfo) -> Population:
    """Return on whom weights were validated, in the gateway's words."""
    return Population(
        info.population_age_years, info.population_sexes, info.population_views, info.population_scanners
    )


@dataclass(frozen=True)
class Serving:
    """A model that is asked: its ledger row, what its weights and the site say of it, and their file."""

    id: int
    info: WeightsInfo
    path: Path


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

    def model(self) -> Serving:
        """The model that reports, as it was decided last."""
        _ = self.own_model_id  # known to the ledger, once in the life of a process
        with self.ledger.read() as session:
            row = models.reporting(session)
        assert row is not None, "taken up above"
        serving = self.serving(row)
        if row.population is None:  # it was added before this was kept
            with self.ledger.write() as session:
                session.get_one(Model, row.id).population = population_of(serving.info).kept()
        return serving

    def shadows(self) -> Sequence[Model]:
        """Rows of the models that run beside it."""
        with self.ledger.read() as session:
            return models.shadows(session)

    def serving(self, row: Model) -> Serving:
        """Return a model with what its weights say.

        Raises
        ------
        WeightsError
            When they are gone from the data folder, or others than the ledger names.
        """
        assert row.path is not None, "a model that is asked has its weights in the data folder"
        path = self.spool.absolute(row.path)
        return Serving(row.id, _as_decided(_info(path, row.sha256), row.threshold), path)

    @cached_property
    def own_model_id(self) -> int:
        """Ledger row of the model that HILUM_WEIGHTS names, or that ships, with weights in the data folder.

        It reports, unless a person promoted another one and HILUM_WEIGHTS does not insist.
        """
        source, info = self.settings.weights or default_weights(), read_weights(self.settings)
        identity = info.name, info.version, info.sha256
        with self.ledger.read() as session:
            known = session.scalars(select(Model.path).where(Model.sha256 == info.sha256)).first()
        if known is not None and not self.spool.absolute(known).exists():
            known = None  # an earlier data folder had them
        content = source.read_bytes() if known is None else b""
        path = known or self.spool.write("models", ".safetensors", lambda stream: stream.write(content))
        why = "HILUM_WEIGHTS names it" if self.settings.weights else "it ships with this version of Hilum"
        with discarding(self.spool, None if known else path), self.ledger.write() as session:
            row = session.get_one(Model, register_model(session, *identity, info.class_activation))
            row.path, row.population = path, population_of(info).kept()
            models.take_up(session, row, why, always=self.settings.weights is not None)
            return row.id


@lru_cache(maxsize=8)
def _info(path: Path, sha256: str) -> WeightsInfo:
    """Read what weights in the data folder say; a file there is never altered.

    Raises
    ------
    WeightsError
        When they are gone, or others than the ledger names.
    """
    info = read_info(path)
    if info.sha256 != sha256:
        raise WeightsError(f"{path}: its SHA-256 is {info.sha256}, the ledger names {sha256}; add it again")
    return info


def _as_decided(info: WeightsInfo, threshold: float | None) -> WeightsInfo:
    """Return the weights with the site's operating point.

    The zone without a finding moves with it, and stays as wide in log-odds (`model.calibrate`).
    """
    if threshold is None:
        return info
    if info.indeterminate is None or not 0.0 < threshold < 1.0:  # all films are present then, or none
        return replace(info, threshold=threshold, indeterminate=None)
    moved = _odds(threshold) / _odds(info.threshold)
    low, high = (moved * _odds(edge) / (1.0 + moved * _odds(edge)) for edge in info.indeterminate)
    return replace(info, threshold=threshold, indeterminate=(low, high))


def _odds(probability: float) -> float:
    return probability / (1.0 - probability)
