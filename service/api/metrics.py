"""Prometheus metrics, computed from the ledger at each scrape: every replica says the same."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from service.api import status
from service.core.heartbeat import ROLES, silent_roles
from service.core.ledger import Ledger

_BY_STATE = (
    ("studies", "state", "Studies by state"),
    ("findings", "finding", "Studies by finding"),
    ("instances", "state", "Received objects by state"),
    ("ready", "queue", "Work that could start now, by queue"),
    ("oldest_ready_seconds", "queue", "Age of the oldest work that could start now, by queue"),
)


class LedgerCollector(Collector):
    """Asks the ledger when Prometheus asks; no label names a patient."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterable[Metric]:
        with self._ledger.read() as session:
            counts = status.counts(session)
            models = status.models(session)
        for name, label, text in _BY_STATE:
            family = GaugeMetricFamily(f"hilum_{name}", text, labels=[label])
            for value, count in counts[name].items():
                family.add_metric([value], count)
            yield family
        deliveries = GaugeMetricFamily(
            "hilum_deliveries", "Reports by destination and state", labels=["destination", "state"]
        )
        for key, count in counts["deliveries"].items():
            deliveries.add_metric(key.split("\x1f"), count)
        yield deliveries
        silent = silent_roles(self._ledger)
        roles = GaugeMetricFamily(
            "hilum_role_up", "1 when a process of the role is alive and well", labels=["role"]
        )
        for role in ROLES:
            roles.add_metric([role], 0 if role in silent else 1)
        yield roles
        info = InfoMetricFamily("hilum_model", "Models that have looked at films")
        for model in models:
            info.add_metric([], {"name": model.name, "version": model.version, "sha256": model.sha256})
        yield info


def registry(ledger: Ledger) -> CollectorRegistry:
    """Return a registry with the ledger's collector alone."""
    made = CollectorRegistry(auto_describe=False)
    made.register(LedgerCollector(ledger))
    return made
