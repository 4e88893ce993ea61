"""The seeds of a cell as one model with stacked weights, where the model allows it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from gsym_bench.suite.task import Schedule
from gsym_bench.suite.train import (
    DivergedError,
    Fit,
    Generators,
    Measured,
    Trainer,
    Training,
    adam,
    is_out_of_memory,
    load_checkpoint,
    save_checkpoint,
)


class NotTogetherError(Exception):
    """Why these seeds have to be trained one by one."""


class _Told(nn.Module):
    """Stands for the model of one seed, whose predictions have been made."""

    def __init__(self, predictions: Tensor) -> None:
        super().__init__()
        self.where = nn.Parameter(predictions.detach().new_empty(0))  # says the device
        self._predictions, self._place = predictions, 0

    def forward(self, inputs: Tensor) -> Tensor:
        start, self._place = self._place, self._place + len(inputs)
        return self._predictions[start : self._place]


def _told(predictions: Tensor, inputs: Tensor) -> Tensor:
    return predictions


class Together:
    """Models of one kind, one per seed, as one model of stacked weights.

    All products of matrices become batched ones, whose sums run in another order: weights agree
    with those trained alone to rounding, which a long training may amplify. Batches and their order
    are those of each seed alone.

    Args:
        trainings: One per seed.
        seeds: The seeds.
        device: Where to train.

    Raises:
        NotTogetherError: The models differ in their weights or in their groups, draw random
            numbers when called, or hold what cannot be stacked.
    """

    def __init__(
        self, trainings: Sequence[Training], seeds: Sequence[int], device: torch.device
    ) -> None:
        self.trainings = trainings
        self.models: list[nn.Module] = []
        self.generators: list[Generators] = []
        for training, seed in zip(trainings, seeds, strict=True):
            Generators.seed(seed)
            self.models.append(training.model().to(device))
            self.generators.append(Generators())
        first = [list(model.named_parameters()) for model in self.models]
        shapes = [[(name, p.shape) for name, p in named] for named in first]
        if any(named != shapes[0] for named in shapes):
            raise NotTogetherError("their weights have other shapes")
        self.weights, buffers = stack_module_state(self.models)
        # Tables of a group are no state; those that are the same for all stay what they are.
        kept = self.models[0].state_dict().keys()
        self.buffers = {
            name: stacked
            for name, stacked in buffers.items()
            if name in kept or any(not torch.equal(stacked[0], other) for other in stacked)
        }
        self._base = copy.deepcopy(self.models[0])
        self._try()

    def predict(self, inputs: Sequence[Tensor]) -> Tensor:
        """What each model says of its own inputs, ``[seeds, b, ...]``."""
        if any(x.shape != inputs[0].shape for x in inputs):
            raise NotTogetherError("their batches have other shapes")
        call = vmap(lambda state, x: functional_call(self._base, state, (x,)), randomness="error")
        return call({**self.weights, **self.buffers}, torch.stack(list(inputs)))

    def groups(self) -> list[dict[str, Any]]:
        """Adam's groups of the stacked weights."""
        names = {id(p): name for name, p in self.models[0].named_parameters()}
        return [
            {"scale": 1.0, **group, "params": [self.weights[names[id(p)]] for p in group["params"]]}
            for group in self.trainings[0].parameters(self.models[0])
        ]

    def losses(self, batches: Sequence[Any]) -> list[Tensor]:
        """The loss of each seed."""
        inputs = [t.inputs(batch) for t, batch in zip(self.trainings, batches, strict=True)]
        self._base.train()
        pairs = zip(self.trainings, self.predict(inputs), batches, strict=True)
        return [t.loss(partial(_told, said), batch) for t, said, batch in pairs]

    @torch.no_grad()
    def validate(self, size: int) -> list[Measured]:
        """What each seed measures on its validation split."""
        self._base.eval()
        splits = [training.inputs(None).split(size) for training in self.trainings]
        device = next(iter(self.weights.values())).device
        parts = [self.predict([x.to(device) for x in part]) for part in zip(*splits, strict=True)]
        said = torch.cat(parts, dim=1)
        return [t.validate(_Told(own)) for t, own in zip(self.trainings, said, strict=True)]

    def clip(self, largest: float) -> None:
        """Bound the norm of the gradient of each seed."""
        gradients = [w.grad for w in self.weights.values() if w.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
        factor = (largest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))

    def state(self, place: int) -> dict[str, Tensor]:
        """A copy of the weights of one seed."""
        own = {**self.weights, **self.buffers}
        return {name: value[place].detach().clone() for name, value in own.items()}

    def model(self, place: int, state: dict[str, Tensor]) -> nn.Module:
        """The model of one seed with these weights."""
        model = self.models[place]
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)
        return model

    @torch.no_grad()
    def _try(self) -> None:
        before = {name: buffer.clone() for name, buffer in self.buffers.items()}
        try:
            self._base.train()
            device = next(iter(self.weights.values())).device
            inputs = [t.inputs(None)[:2].to(device) for t in self.trainings]
            self.predict(inputs)
            same = self._agrees(inputs)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as cause:
            raise NotTogetherError(str(cause).strip().splitlines()[0]) from cause
        self.buffers = before
        if not same:
            raise NotTogetherError("they differ in more than their weights, such as their groups")

    def _agrees(self, inputs: Sequence[Tensor]) -> bool:
        """Whether stacked models say what each says alone, at weights where no layer is silent."""
        self._base.eval()
        rng = torch.Generator().manual_seed(0)
        kept, weights = self.weights, {}
        for name, weight in kept.items():
            noise = torch.randn(weight.shape[1:], generator=rng).to(weight)
            weights[name] = weight + 0.1 * noise
        try:
            self.weights = weights
            stacked = self.predict(inputs)
        finally:
            self.weights = kept
        for place, (model, x) in enumerate(zip(self.models, inputs, strict=True)):
            own = {name: v[place] for name, v in {**weights, **self.buffers}.items()}
            alone = functional_call(model.eval(), own, (x,))
            model.train()
            size = float(alone.abs().amax())
            if not torch.allclose(stacked[place], alone, 1e-3, 1e-3 * size, equal_nan=True):
                return False
        return True


def fit_together(trainer: Trainer, recipes: Sequence[tuple[Training, Schedule, int]]) -> list[Fit]:
    """Train one model per seed as `Trainer.fit` does, all in one pass.

    Args:
        trainer: Where checkpoints lie, and how often they are written.
        recipes: What to train, the schedule of all of them, and the seeds.

    Raises:
        NotTogetherError: Nothing was done; train them one by one.
        BenchmarkError: The checkpoint is damaged, or other code wrote it.
    """
    start = saved = time.perf_counter()
    trainings, schedules, seeds = zip(*recipes, strict=True)
    schedule = schedules[0]
    if any(other != schedule for other in schedules):
        raise NotTogetherError("their schedules differ")
    both = Together(trainings, seeds, trainer.fabric.device)
    optimizer = adam(both.groups(), schedule.lr)
    own: list[dict[str, Any]] = [
        {"best_epoch": 0, "best": None, "best_measured": None, "history": [], "stopped": None}
        for _ in seeds
    ]
    epoch = 0
    if trainer.checkpoint.exists():
        content = load_checkpoint(trainer.checkpoint, trainer.fabric, _resuming(both, optimizer))
        epoch, own, start = content["epoch"], content["seeds"], start - content["seconds"]

    def stop(place: int, contents: dict[str, Any]) -> None:
        own[place]["stopped"] = epoch
        trainer.keep_diverged(seeds[place], epoch, both.state(place), contents)

    try:
        while epoch < schedule.epochs and any(one["stopped"] is None for one in own):
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * schedule.rate(epoch)
            for batches in _batches(both):
                optimizer.zero_grad()
                losses = both.losses(batches)
                for place, finite in enumerate(torch.stack(losses).isfinite().tolist()):
                    if own[place]["stopped"] is None and not finite:
                        stop(place, trainings[place].contents(batches[place]))
                going = [
                    loss for one, loss in zip(own, losses, strict=True) if one["stopped"] is None
                ]
                if not going:
                    break
                torch.stack(going).sum().backward()
                if schedule.clip is not None:
                    both.clip(schedule.clip)
                optimizer.step()
            epoch += 1
            if epoch % schedule.eval_every == 0 or epoch == schedule.epochs:
                for place, measured in enumerate(both.validate(schedule.eval_batch_size)):
                    if own[place]["stopped"] is None:
                        try:
                            if trainings[place].keep_best(own[place], epoch, measured):
                                own[place]["best"] = both.state(place)
                        except DivergedError as error:
                            stop(place, error.contents)
                shown = [
                    next(iter(one["best_measured"].values())) for one in own if one["best_measured"]
                ]
                if shown:
                    trainer.on_epoch(epoch, schedule.epochs, sum(shown) / len(shown))
            now = time.perf_counter()
            if now - saved >= trainer.every:
                content = {"epoch": epoch, "seeds": own, "seconds": now - start}
                content |= {"weights": both.weights, "buffers": both.buffers}
                content["optimizer"] = optimizer.state_dict()
                content["generators"] = [one.content for one in both.generators]
                save_checkpoint(trainer.checkpoint, content)
                saved = now
    except (RuntimeError, MemoryError) as error:
        trainer.checkpoint.unlink(missing_ok=True)
        if is_out_of_memory(error):
            raise NotTogetherError("memory is too short for all of them") from error
        raise
    seconds = (time.perf_counter() - start) / len(seeds)
    fits = []
    for place, one in enumerate(own):
        if one["stopped"] is not None:
            fits.append(Fit("diverged", seconds, one["stopped"]))
        else:
            model = both.model(place, one["best"])
            fits.append(Fit("ok", seconds, epoch, one["best_epoch"], model, one["history"]))
    return fits


def _batches(both: Together) -> Any:
    """The next batch of every seed, in the order that the generators of its own seed gave."""
    streams = [iter(training.batches()) for training in both.trainings]
    batches = []
    for place, stream in enumerate(streams):
        both.generators[place].use()
        batches.append(next(stream, None))
        both.generators[place] = Generators()
    while any(batch is not None for batch in batches):
        if any(batch is None for batch in batches):
            raise NotTogetherError("some have fewer batches than others")
        yield batches
        batches = [next(stream, None) for stream in streams]


def _resuming(both: Together, optimizer: torch.optim.Optimizer) -> Callable[[dict[str, Any]], None]:
    @torch.no_grad()
    def resume(content: dict[str, Any]) -> None:
        for name, weight in content.pop("weights").items():
            both.weights[name].copy_(weight)
        both.buffers = content.pop("buffers")
        optimizer.load_state_dict(content.pop("optimizer"))
        both.generators[:] = [Generators(one) for one in content.pop("generators")]

    return resume
