"""Queue `infer`: films that wait, as one batch through the network."""

from datetime import timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from model.predict import Predictor
from model.prediction import Prediction
from model.weights import WeightsError
from service.core import tally
from service.core.claims import claim_in_turn
from service.core.errors import LeaseLost
from service.core.failpoints import failpoint
from service.core.leases import (
    INFER,
    LEASE_SECONDS,
    SHADOW,
    Lease,
    held,
    leased,
    named_in_logs,
    ready,
    release_failed,
    renewed,
)
from service.core.ledger import now, record_event
from service.core.results import Finding
from service.core.states import AnalysisState, InstanceState
from service.core.tables import Analysis, Instance, Shadow, Study
from worker.colours import overlay_png
from worker.context import Context, Serving, discarding
from worker.gpu import own_gpu

_BATCH = 8
_used: dict[str, str] = {}
_gpu = cache(own_gpu)
_log = structlog.get_logger()


def warm_up(context: Context) -> None:
    """Load the weights before the first task comes."""
    model = context.model()
    _log.info("infer.model", id=model.id, sha256=model.info.sha256)
    _predictor(context, model)


def about(_: Context) -> dict[str, str]:
    """Return what this process computed with last; another thread asks, so nothing is loaded for it."""
    return _used.copy()


def run(context: Context) -> None:
    """Lease the oldest films that wait for the reporting model, and analyse them as one batch.

    When none waits, films wait for the models in shadow.
    """
    model = context.model()
    if leases := _claim(context, model):
        failpoint("infer.claimed")
        _analyse(context, model, leases)
        return
    for row in context.shadows():
        if leases := claim_in_turn(context.ledger, SHADOW, _BATCH, model_id=row.id):
            try:
                shadow = context.serving(row)
            except WeightsError as fault:
                _log.warning("infer.shadow_not_read", model=row.sha256, reason=str(fault))
                for lease in leases:
                    release_failed(context.ledger, lease, fault)
                continue
            _analyse(context, shadow, leases)
            return  # and looks first whether a report waits


def _analyse(context: Context, model: Serving, leases: list[Lease]) -> None:
    with renewed(context.ledger, leases):
        films = _films(context, leases)
        if not films:
            return
        try:
            predictions = _predictor(context, model).predict([film for _, film in films])
        except Exception as fault:
            _log.exception(
                "infer.failed", stage=leases[0].stage.name, rows=[lease.row_id for lease, _ in films]
            )
            for lease, _ in films:
                release_failed(context.ledger, lease, fault)
            return
        for (lease, film), prediction in zip(films, predictions, strict=True):
            with named_in_logs(context.ledger, lease):
                try:
                    if lease.stage is SHADOW:
                        _record_shadow(context, lease, model, prediction)
                    else:
                        _record(context, lease, model, film, prediction)
                except LeaseLost as fault:
                    _log.warning("infer.lease_lost", reason=str(fault))
                except Exception as fault:
                    _log.exception("infer.not_recorded")
                    release_failed(context.ledger, lease, fault)


def _claim(context: Context, model: Serving) -> list[Lease]:
    """Lease films that wait for these weights, or have waited in vain for others."""
    _adopt(context, model.id)
    return claim_in_turn(context.ledger, INFER, _BATCH, model_id=model.id)


def _adopt(context: Context, mine: int) -> None:
    """Take over the films that have waited in vain for weights which nobody serves any more."""
    in_vain = now() - timedelta(seconds=LEASE_SECONDS)
    with context.ledger.read() as session:
        # Not grouped by the database: SQLite would go through all that was ever analysed, in that order.
        found = session.execute(
            select(Analysis.instance_id, Analysis.id).where(
                ready(INFER), Analysis.model_id != mine, Analysis.ready_at < in_vain
            )
        ).all()
    if not found:
        return
    waiting = list(dict(sorted((instance_id, row_id) for instance_id, row_id in found)).values())
    with context.ledger.write() as session:
        # What these weights said of the film before is said anew, so that the newest row is the newest word.
        films = select(Analysis.instance_id).where(Analysis.id.in_(waiting))
        session.execute(
            delete(Analysis)
            .where(Analysis.instance_id.in_(films), Analysis.model_id == mine)
            .execution_options(synchronize_session=False)
        )
        session.execute(
            update(Analysis)
            .where(Analysis.id.in_(waiting), ready(INFER))
            .values(model_id=mine, lease_token=Analysis.lease_token + 1)
            .execution_options(synchronize_session=False)
        )


def _predictor(context: Context, model: Serving) -> Predictor:
    predictor = _load(model.path, context.settings.engine, _gpu(context.spool.root))
    if predictor.info.sha256 != model.info.sha256:
        raise WeightsError(f"{model.path} was changed while it was read")
    predictor.info = model.info  # with the threshold that was decided last
    _used.update(device=f"{predictor.device}, {predictor.engine}", model=model.info.sha256)
    return predictor


@lru_cache(maxsize=5)
def _load(weights: Path, engine: str, device: str | None) -> Predictor:
    predictor = Predictor.load(weights, device, fastest=engine == "auto")
    if predictor.engine_fault:
        _log.warning("infer.engine", engine=predictor.engine, reason=predictor.engine_fault)
    return predictor


def _films(context: Context, leases: list[Lease]) -> list[tuple[Lease, npt.NDArray[Any]]]:
    """Read the films; one that cannot be read is given back by itself."""
    films = []
    for lease in leases:
        try:
            with context.ledger.read() as session:
                analysis = leased(session, lease)
                film_path = session.get_one(Instance, analysis.instance_id).film_path
            assert film_path is not None, "only decoded films wait for inference"
            films.append((lease, np.load(context.spool.absolute(film_path))))
        except LeaseLost as fault:
            _log.warning("infer.lease_lost", reason=str(fault))
        except Exception as fault:
            with named_in_logs(context.ledger, lease):
                _log.exception("infer.film_not_read")
            release_failed(context.ledger, lease, fault)
    return films


def _record_shadow(context: Context, lease: Lease, model: Serving, prediction: Prediction) -> None:
    """Write down what a model in shadow says; the study and its report know nothing of it."""
    with context.ledger.write() as session:
        shadow, _ = held(session, lease)
        _write_prediction(shadow, prediction, model)


def _record(
    context: Context, lease: Lease, model: Serving, film: npt.NDArray[Any], prediction: Prediction
) -> None:
    activation = prediction.activation
    path = overlay_path = None
    if activation is not None:
        path = context.spool.write("films", ".activation.npy", lambda stream: np.save(stream, activation))
        with discarding(context.spool, path):
            overlay = overlay_png(activation, *film.shape)
            overlay_path = context.spool.write("films", ".png", lambda stream: stream.write(overlay))
    failpoint("infer.activation_written")
    with discarding(context.spool, path, overlay_path), context.ledger.write() as session:
        analysis, study = held(session, lease)
        analysis.activation_path, analysis.overlay_path = path, overlay_path
        _write_result(session, analysis, study, prediction, model)
    failpoint("infer.recorded")


def _write_result(
    session: Session,
    analysis: Analysis,
    study: Study,
    prediction: Prediction,
    model: Serving,
) -> None:
    is_live = study.backfill_id is None
    if is_live:
        tally.since(tally.STAGE_SECONDS, analysis.ready_at, "infer", session=session)
    _write_prediction(analysis, prediction, model)
    instance = session.get_one(Instance, analysis.instance_id)
    if instance.state != InstanceState.DECODED:
        return  # superseded meanwhile: what was said stays recorded, the newer header speaks
    if analysis.finding == Finding.NOT_ANALYSED:
        instance.state, instance.reason = InstanceState.NOT_ANALYSED, prediction.reason
    else:
        instance.state = InstanceState.ANALYSED
    why = tally.reason_class(instance.reason)
    if is_live:
        tally.add(tally.FILMS, instance.state, why, session=session)
    record_event(session, study, "analysed", prediction.finding)


def _write_prediction(row: Analysis | Shadow, prediction: Prediction, model: Serving) -> None:
    row.state = AnalysisState.DONE
    row.finding = Finding(prediction.finding)
    row.probability = prediction.probability
    row.threshold = model.info.threshold
    row.reason = prediction.reason
    row.pattern = prediction.pattern
    row.flags = list(prediction.flags)
    row.gate_distance = prediction.gate_distance
