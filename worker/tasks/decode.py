"""Queue `decode`: a received object becomes a film, or a reason why it is not analysed."""

from typing import Any

import numpy as np
import structlog
from sqlalchemy.orm import Session

from service.core import tally
from service.core.claims import claim_in_turn
from service.core.completion import request_analysis
from service.core.copies import settle_copies
from service.core.errors import ConfigurationError, LeaseLost
from service.core.failpoints import failpoint
from service.core.header import read_header
from service.core.leases import (
    DECODE,
    Lease,
    held,
    leased,
    named_in_logs,
    release_failed,
    renewed,
)
from service.core.ledger import record_event
from service.core.models import request_shadows
from service.core.rules import Decision, decide
from service.core.settings import Settings
from service.core.settlement import settle
from service.core.states import InstanceState
from service.core.tables import Instance, Study
from worker.context import Context, Serving, discarding, read_weights
from worker.decode import missing_decoders
from worker.image_statistics import ImageStatistics, image_statistics
from worker.picture import png
from worker.prepare import Prepared, prepare

_BATCH = 4
_log = structlog.get_logger()


def check(settings: Settings) -> None:
    """Stop the start of a pool that could not decode what the listener accepts.

    Raises
    ------
    ConfigurationError
        With the transfer syntaxes that have no decoder here, or with what is wrong with the weights.
    """
    read_weights(settings)
    missing = missing_decoders()
    if missing:
        raise ConfigurationError(f"no decoder for {', '.join(missing)}: install Hilum with its dependencies")


def warm_up(context: Context) -> None:
    """Make the model known to the ledger before the first task comes."""
    _log.info("decode.model", id=context.model().id)


def run(context: Context) -> None:
    """Lease the oldest objects that wait, and decode them."""
    model = context.model()
    leases = claim_in_turn(context.ledger, DECODE, _BATCH)
    failpoint("decode.claimed")
    with renewed(context.ledger, leases):
        for lease in leases:
            with named_in_logs(context.ledger, lease):
                try:
                    _decode_one(context, lease, model)
                except LeaseLost as fault:
                    _log.warning("decode.lease_lost", reason=str(fault))
                except Exception as fault:
                    _log.exception("decode.failed")
                    release_failed(context.ledger, lease, fault)


def _decode_one(context: Context, lease: Lease, model: Serving) -> None:
    with context.ledger.read() as session:
        row: Instance = leased(session, lease)
    assert row.spool_path is not None, "only objects that were kept wait for decoding"
    path, settings = context.spool.absolute(row.spool_path), context.settings
    anew = row.decision is None
    decision = (
        decide(settings.rules, read_header(path), row.calling_ae_title) if anew else Decision.of(row.decision)
    )
    prepared = Prepared(None, decision.reason)
    if decision.analyse:
        population: Any = decision.population or settings.population
        prepared = prepare(path, population, model.info.population_age_years)
    film = prepared.film
    film_path = (
        context.spool.write("films", ".npy", lambda stream: np.save(stream, film.pixels)) if film else None
    )
    failpoint("decode.film_written")
    with discarding(context.spool, film_path):
        statistics = image_statistics(film.pixels) if film else None
        picture = png(film.pixels) if film else b""
        picture_path = (
            context.spool.write("films", ".png", lambda stream: stream.write(picture)) if film else None
        )
    with discarding(context.spool, film_path, picture_path), context.ledger.write() as session:
        instance, study = held(session, lease)
        instance.film_path, instance.picture_path = film_path, picture_path
        if anew:
            instance.decision = decision.kept()
            if settings.rules:
                record_event(session, study, "rule", str(decision))
            if film_path and study.revision:
                study.build += 1  # a report that names it as left out has to be built anew
        _record(session, model.id, instance, study, prepared, statistics)
    failpoint("decode.recorded")


def _record(
    session: Session,
    model_id: int,
    instance: Instance,
    study: Study,
    prepared: Prepared,
    statistics: ImageStatistics | None,
) -> None:
    if study.backfill_id is None:
        tally.since(tally.STAGE_SECONDS, instance.ready_at, "decode", session=session)
    if prepared.film is None and study.backfill_id is None:
        why = tally.reason_class(prepared.reason)
        tally.add(tally.FILMS, InstanceState.NOT_ANALYSED, why, session=session)
    instance.flags, instance.last_error = list(prepared.flags), None
    instance.state = InstanceState.DECODED if prepared.film else InstanceState.NOT_ANALYSED
    instance.reason = prepared.reason
    instance.pixel_digest = prepared.film.pixel_digest if prepared.film else None
    if statistics is not None:
        instance.image_mean, instance.image_deviation = statistics.mean, statistics.deviation
        instance.image_entropy, instance.image_clipped = statistics.entropy, statistics.clipped
    record_event(session, study, "decoded", instance.reason or "")
    settle_copies(session, study, instance.sop_instance_uid)
    if instance.state == InstanceState.DECODED:
        request_analysis(session, instance, model_id)
        request_shadows(session, instance)
    settle(session, study)
