"""The optimisation: epochs, weight averaging, early stopping, checkpoints that resume to the same result."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.network import Network
from model.preprocess import model_input
from model.training.augment import Borrow, film_augmentation
from model.training.films import Films
from model.training.recipe import Metrics, Progress, Recipe

Stack = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class ResumeError(Exception):
    """A checkpoint that cannot be gone on from; the message says why."""


class _TrainingFilms(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Augmented films of one epoch; a film's draw depends on seed, epoch and index only, not on who draws."""

    def __init__(self, films: Films, recipe: Recipe, epoch: int) -> None:
        self._films = films
        self._targets = np.stack([films.labels, films.bacterial], axis=1)
        self._size, self._seed = recipe.size(epoch), (recipe.seed * 1009 + epoch) * 1_000_003
        self._share = recipe.augmented(epoch)
        self._borrow = Borrow(films.planes, recipe.histogram, recipe.spectrum, recipe.surround)
        self._augment = film_augmentation(recipe.film_side, recipe.flip)

    def __len__(self) -> int:
        return len(self._films)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed + index)
            if self._share >= 1.0 or torch.rand(()) < self._share:
                film = self._augment(self._borrow(index))
            else:
                film = torch.from_numpy(self._films.planes[index])[None].float() / 255.0
        plane = model_input(film[0].numpy(), self._size)
        return torch.from_numpy(plane)[None], torch.from_numpy(self._targets[index])


def logits_of(
    network: nn.Module, films: Stack, size: int, device: torch.device, batch: int = 64
) -> npt.NDArray[Any]:
    """Score films as they are, without augmentation: (n, 2) float64 logits, as `Network.forward` gives."""
    network.eval()
    scores: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(films), batch):
            planes = np.stack([model_input(film, size) for film in films[start : start + batch]])
            tensor = torch.from_numpy(planes)[:, None].to(device, memory_format=torch.channels_last)
            scores.append(network(tensor).double().cpu())
    return torch.cat(scores).numpy()


def class_weights(labels: Labels) -> tuple[float, float]:
    """Weights for label 0 and label 1 that give both classes half of the loss.

    The public set has nearly three pneumonias to one normal. Weighting keeps every film once an epoch, where
    oversampling would repeat the few normals and undersampling would drop pneumonias.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if not positives or not negatives:
        return 0.0, 0.0  # one class alone teaches nothing
    return len(labels) / (2.0 * negatives), len(labels) / (2.0 * positives)


def fit(
    training: Films,
    validation: Films,
    recipe: Recipe,
    *,
    checkpoint: Path,
    log: Path,
    measure: Callable[[npt.NDArray[Any], Films], Metrics],
    on_progress: Callable[[Progress], None] | None = None,
    device: torch.device | None = None,
    loaders: int = 0,
    stop_after: int | None = None,
    start: Network | None = None,
) -> Network:
    """Train a network from scratch or from another one's weights, or go on from a checkpoint.

    Parameters
    ----------
    training, validation
        Planes of the same side, and labels.
    recipe
        Everything that decides the result.
    checkpoint
        Written after every epoch (temporary name, then renamed); read first when it is there.
    log
        CSV with one row an epoch.
    measure
        From validation logits (n, 2) and films to figures; "loss" among them decides which epoch is kept.
    on_progress
        Called after every batch, and with the figures after every epoch.
    device
        Default: CUDA when there is one (with mixed precision), else CPU.
    loaders
        Processes that augment; they change the speed, never the result.
    stop_after
        Stop after this many epochs in this call, as an interruption would.
    start
        The network to start from, whose weights `recipe.init` names; None: from scratch.

    Returns
    -------
    Network
        The averaged weights of the best epoch, on the CPU.

    Raises
    ------
    ResumeError
        When the checkpoint cannot be read or was made with another recipe.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner = _Learner(recipe, device, start)
    state: dict[str, Any] = {"epoch": 0, "best": math.inf, "best_epoch": 0, "kept": None, "history": []}
    if checkpoint.exists():
        state = learner.resume(checkpoint)
        _write_log(log, state["history"])
    tell = on_progress or (lambda now: None)
    batches = math.ceil(len(training) / recipe.batch)
    epochs = recipe.epochs + recipe.settle
    last = epochs if stop_after is None else min(epochs, state["epoch"] + stop_after)

    while state["epoch"] < last:
        if state["epoch"] < recipe.epochs and state["epoch"] - state["best_epoch"] >= recipe.patience:
            state["epoch"] = recipe.epochs  # no better for long: settle
        epoch, started = state["epoch"], time.monotonic()
        losses: list[float] = []
        for loss in learner.epoch(training, epoch, loaders):
            losses.append(loss)
            tell(Progress(epoch + 1, epochs, len(losses), batches, float(np.mean(losses[-50:]))))
        logits = logits_of(learner.averaged, validation.planes, recipe.size(epoch), device)
        metrics = measure(logits, validation)
        row = {"epoch": epoch + 1, "size": recipe.size(epoch), "training_loss": float(np.mean(losses))}
        row |= {f"validation_{name}": value for name, value in metrics.items()}
        state["history"].append(row | {"seconds": round(time.monotonic() - started, 1)})
        state["epoch"] = epoch + 1
        # Before it has trained at the size it serves at, it is not judged: each epoch replaces the last.
        judged = metrics["loss"] if recipe.size(epoch) == recipe.sizes[-1] else math.inf
        if judged <= state["best"]:
            state |= {"best": judged, "best_epoch": epoch + 1, "kept": learner.averaged_weights()}
        learner.save(checkpoint, state)
        _write_log(log, state["history"])
        tell(Progress(epoch + 1, epochs, batches, batches, row["training_loss"], metrics))

    kept = Network(recipe.dropout)
    kept.load_state_dict({name: tensor.cpu() for name, tensor in state["kept"].items()})
    return kept.eval()


class _Learner:
    """The network in training, its running average and its optimiser."""

    def __init__(self, recipe: Recipe, device: torch.device, start: Network | None) -> None:
        torch.manual_seed(recipe.seed)
        self._recipe, self._device = recipe, device
        self._network = Network(recipe.dropout)
        if start is not None:
            self._network.load_state_dict(start.state_dict())
        self._network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        follow = get_ema_multi_avg_fn(recipe.average)  # type: ignore[no-untyped-call]
        self.averaged = AveragedModel(self._network, multi_avg_fn=follow, use_buffers=True)
        # Weight decay on kernels only, never on biases and normalisation.
        kernels = [tensor for tensor in self._network.parameters() if tensor.ndim > 1]
        others = [tensor for tensor in self._network.parameters() if tensor.ndim <= 1]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": kernels, "weight_decay": recipe.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=recipe.rate,
        )

    def epoch(self, training: Films, epoch: int, loaders: int) -> Iterator[float]:
        """Run one epoch, yielding the loss of every batch."""
        recipe, cuda = self._recipe, self._device.type == "cuda"
        known = training.bacterial[training.bacterial >= 0]
        classes = class_weights(training.labels) if recipe.balanced else (1.0, 1.0)
        weights = torch.tensor([classes, class_weights(known)], device=self._device)
        loader = torch.utils.data.DataLoader(
            _TrainingFilms(training, recipe, epoch),
            batch_size=recipe.batch,
            shuffle=True,
            generator=torch.Generator().manual_seed(recipe.seed * 1009 + epoch),
            num_workers=loaders,
            pin_memory=cuda,
        )
        # Dropout draws from the global generator; seeding it here makes an epoch the same after a resume.
        torch.manual_seed(recipe.seed * 1009 + epoch)
        self._network.train()
        for step, (films, targets) in enumerate(loader):
            for part in self._optimiser.param_groups:
                part["lr"] = recipe.learning_rate(epoch + step / len(loader))
            planes = films.to(self._device, memory_format=torch.channels_last, non_blocking=True)
            truth = targets.to(self._device, non_blocking=True)
            # bfloat16 has the range of float32, so no gradient scaler is needed.
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=cuda or recipe.half):
                logits = self._network(planes)
            loss = _loss(logits.float(), truth, weights, recipe)
            self._optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
            self._optimiser.step()
            self.averaged.update_parameters(self._network)
            yield float(loss.detach())

    def averaged_weights(self) -> dict[str, torch.Tensor]:
        """Copy the averaged weights to the CPU."""
        tensors = self.averaged.module.state_dict()
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def save(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint under a temporary name, then rename it."""
        content = {
            "recipe": asdict(self._recipe),
            "state": state,
            "network": self._network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        half_written = checkpoint.with_suffix(".tmp")
        torch.save(content, half_written)
        half_written.replace(checkpoint)

    def resume(self, checkpoint: Path) -> dict[str, Any]:
        """Take everything from a checkpoint and return the state beside the tensors."""
        try:
            content = torch.load(checkpoint, map_location=self._device, weights_only=True)
            # What an older checkpoint does not know was what is the default now.
            mine, theirs = asdict(self._recipe), asdict(Recipe()) | content["recipe"]
        except (OSError, RuntimeError, KeyError, UnpicklingError) as fault:
            raise ResumeError(f"{checkpoint} is no readable checkpoint; delete it to start anew") from fault
        other = sorted(name for name in mine if mine[name] != theirs.get(name))
        if other:
            raise ResumeError(
                f"{checkpoint} was made with other settings ({', '.join(other)}); delete it to start anew, "
                "or train with the settings it was made with"
            )
        self._network.load_state_dict(content["network"])
        self.averaged.load_state_dict(content["averaged"])
        self._optimiser.load_state_dict(content["optimiser"])
        state: dict[str, Any] = content["state"]
        return state


def _loss(logits: torch.Tensor, truth: torch.Tensor, weights: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Class-balanced cross entropy of both heads; the second learns from pneumonias of known kind only."""
    smooth = truth.clamp(min=0) * (1.0 - recipe.smoothing) + recipe.smoothing / 2.0
    each = nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    each = each * torch.where(truth > 0, weights[:, 1], weights[:, 0]) * (truth >= 0)
    return (each[:, 0] + recipe.pattern * each[:, 1]).mean()


def _write_log(log: Path, history: list[dict[str, Any]]) -> None:
    with log.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(history[0]))
        writer.writeheader()
        writer.writerows(history)
