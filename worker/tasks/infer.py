"""Queue `infer`: films that wait, as one batch through the network."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session, aliased

from model.predict import Predictor
from model.prediction import Prediction
from model.weights import default_weights
from service.core.errors import LeaseLost
from service.core.leases import INFER, Lease, claim, held, ready, release_failed, renewed
from service.core.ledger import record_event
from service.core.results import Finding
from service.core.states import AnalysisState, InstanceState
from service.core.tables import Analysis, Instance, Study
from worker.context import Context, discarding

_BATCH = 8
_log = structlog.get_logger()


def warm_up(context: Context) -> None:
    """Load the weights before the first task comes."""
    _log.info("infer.model", id=context.model_id, sha256=context.weights.sha256)
    _predictor(context)


def run(context: Context) -> None:
    """Lease the oldest films that wait for the reporting model, and analyse them as one batch."""
    leases = _claim(context)
    if not leases:
        return
    with renewed(context.ledger, leases):
        try:
            predictions = _predictor(context).predict([_film(context, lease) for lease in leases])
        except Exception as fault:
            _log.exception("infer.failed", analyses=[lease.row_id for lease in leases])
            for lease in leases:
                release_failed(context.ledger, lease, fault)
            return
        for lease, prediction in zip(leases, predictions, strict=True):
            try:
                _record(context, lease, prediction)
            except LeaseLost as fault:
                _log.warning("infer.lease_lost", reason=str(fault))


def _claim(context: Context) -> list[Lease]:
    """Lease a batch of fresh films; one that failed before goes alone, lest it spoil others again."""
    ours = Analysis.model_id == context.model_id
    _adopt(context)
    return claim(context.ledger, INFER, _BATCH, ours, Analysis.attempts == 0) or claim(
        context.ledger, INFER, 1, ours
    )


def _adopt(context: Context) -> None:
    """Take over the films that wait for weights which nobody serves any more: the site has other ones now."""
    ours = aliased(Analysis)
    same_film = exists().where(ours.instance_id == Analysis.instance_id, ours.model_id == context.model_id)
    with context.ledger.read() as session:
        strange = session.scalars(
            select(Analysis.id).where(ready(INFER), Analysis.model_id != context.model_id, ~same_film)
        )
        waiting = strange.all()
    if waiting:
        with context.ledger.write() as session:
            session.execute(
                update(Analysis)
                .where(Analysis.id.in_(waiting), ready(INFER))
                .values(model_id=context.model_id, attempts=0)
                .execution_options(synchronize_session=False)
            )


def _predictor(context: Context) -> Predictor:
    return _load(context.settings.weights or default_weights())


@cache
def _load(weights: Path) -> Predictor:
    return Predictor.load(weights)


def _film(context: Context, lease: Lease) -> npt.NDArray[Any]:
    with context.ledger.read() as session:
        analysis = session.get_one(Analysis, lease.row_id)
        film_path = session.get_one(Instance, analysis.instance_id).film_path
    assert film_path is not None, "only decoded films wait for inference"
    film: npt.NDArray[Any] = np.load(context.spool.absolute(film_path))
    return film


def _record(context: Context, lease: Lease, prediction: Prediction) -> None:
    activation = prediction.activation
    path = None
    if activation is not None:
        path = context.spool.write("films", ".activation.npy", lambda stream: np.save(stream, activation))
    with discarding(context.spool, path), context.ledger.write() as session:
        analysis, study = held(session, lease)
        _write_result(session, analysis, study, prediction, context.weights.threshold, path)


def _write_result(
    session: Session,
    analysis: Analysis,
    study: Study,
    prediction: Prediction,
    threshold: float,
    path: str | None,
) -> None:
    analysis.state = AnalysisState.DONE
    analysis.finding = Finding(prediction.finding)
    analysis.probability = prediction.probability
    analysis.threshold = threshold
    analysis.reason = prediction.reason
    analysis.pattern = prediction.pattern
    analysis.flags = list(prediction.flags)
    analysis.gate_distance = prediction.gate_distance
    analysis.activation_path = path
    instance = session.get_one(Instance, analysis.instance_id)
    if instance.state != InstanceState.DECODED:
        return  # superseded meanwhile: what was said stays recorded, the newer header speaks
    if analysis.finding == Finding.NOT_ANALYSED:
        instance.state, instance.reason = InstanceState.NOT_ANALYSED, prediction.reason
    else:
        instance.state = InstanceState.ANALYSED
    record_event(session, study, "analysed", analysis.finding)
