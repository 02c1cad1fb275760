"""python -m tests.fuzz.training: random models, trained by the loop and by a captured step.

Between steps modules are replaced, weights tied, attributes and flags changed; steps are called
under random modes. After each the two must be equal bit for bit, unless the step was refused
before anything was written.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import random
import sys
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import torch_ext
from torch_ext.attributes import Watch
from torch_ext.tensors.compare import first_difference
from torch_ext.training import UnsupportedError, planned_graph, world
from torch_ext.training.modes import Modes
from torch_ext.training.questions import Answers

WIDTH, ROWS, STEPS = 8, 6, 5
# Of a block, and how often they are drawn; the last three keep a state, which is refused.
_KINDS = {
    "plain": 60,
    "scaled": 10,
    "checkpointed": 10,
    "mean": 10,
    "cast": 10,
    "masked": 10,
    "asking": 10,
    "counting": 1,
    "recurrent": 1,
    "written": 1,
}


# Of the peak without one: memory budgets.
SHARES = (0.95, 0.8, 0.6, 0.01)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the program of a seed."""

    seed: int
    failure: str = ""
    refused: str = ""  # why no step could be captured, or none any more
    graphs: int = 0


class Block(nn.Module):
    """One of many layers, and what it does besides."""

    def __init__(self, choose: random.Random) -> None:
        super().__init__()
        self.layer = _layer(choose)
        self.scale = torch.ones(WIDTH)
        self.settings = {"factors": [1.0]}
        self.calls = 0
        self.last = torch.zeros(ROWS, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.kind = choose.choices(list(_KINDS), list(_KINDS.values()))[0]

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The layer's result, in the manner of the kind."""
        if self.kind == "checkpointed":
            return checkpoint(self.layer, x, use_reentrant=False)  # type: ignore[no-any-return]
        if self.kind == "cast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.layer(x).float()  # type: ignore[no-any-return]
        y: torch.Tensor = self.layer(x)
        if self.kind == "scaled":
            y = y * self.scale * self.settings["factors"][0]
        elif self.kind == "mean":
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
            y = y - self.mean
        elif self.kind == "masked":
            y = y + y[mask].sum()
        elif self.kind == "asking":
            y = y if mask.all() else y * mask[:, None]
        elif self.kind == "counting":
            self.calls += 1
            y = y / self.calls
        elif self.kind == "recurrent":
            if self.last.shape == y.shape:
                y = y + self.last
            self.last = y.detach()
        elif self.kind == "written":
            y = y + self.scale
            self.scale.add_(1)
        return y


class Rows(nn.Module):
    """An LSTM along the features, which not every processor has in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(1, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The last of its results."""
        with torch.autocast("cpu", enabled=False):
            result: torch.Tensor = self.layers(x.float()[..., None])[0][:, -1]
        return result


def _layer(choose: random.Random) -> nn.Module:
    makers: list[Callable[[], nn.Module]] = [
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)),
        lambda: nn.BatchNorm1d(WIDTH),
        lambda: nn.LayerNorm(WIDTH),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        Rows,
    ]
    return choose.choice(makers)()


class Net(nn.Module):
    """Blocks one behind the other."""

    def __init__(self, choose: random.Random) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(choose) for _ in range(choose.randint(2, 4)))
        self.last = nn.Linear(WIDTH, WIDTH)
        if choose.random() < 0.2:
            self.blocks[0].requires_grad_(False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of all blocks."""
        for block in self.blocks:
            x = x + block(x, mask)
        result: torch.Tensor = self.last(x)
        return result


def _loss(result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return ((result - target) ** 2).mean()


def _optimizer(model: nn.Module, choose: random.Random) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    if choose.random() < 0.2:
        parameters = parameters[len(parameters) // 2 :]
    groups = [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.02}]
    kind, options = choose.choice(
        [
            (torch.optim.SGD, {}),
            (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
            (torch.optim.Adam, {"amsgrad": True}),
            (torch.optim.AdamW, {}),
        ]
    )
    made: torch.optim.Optimizer = kind(groups, lr=0.01, **options)
    return made


class Lion(torch.optim.Optimizer):
    """As users write one."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": 0.0, "count": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Count in the group, and keep a mean per parameter."""
        for group in self.param_groups:
            group["count"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    change = mean.lerp(parameter.grad, 0.1).sign_()
                    parameter.sub_(change, alpha=group["lr"] / group["count"])
                    mean.lerp_(parameter.grad, 0.01)


def _other_optimizer(groups: list[dict[str, Any]], choose: random.Random) -> torch.optim.Optimizer:
    """One of those whose own code makes the updates, over the same parameters."""
    kinds: list[Callable[..., torch.optim.Optimizer]] = [
        torch.optim.Adafactor,
        functools.partial(torch.optim.RMSprop, momentum=0.9, centered=True),
        torch.optim.Adagrad,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.Adadelta,
        torch.optim.Adamax,
        Lion,
    ]
    given = [{"params": group["params"], "lr": group["lr"]} for group in groups]
    return choose.choice(kinds)(given, lr=0.01)


# --- what happens between steps -------------------------------------------------------------------

Event = Callable[[Net, torch.optim.Optimizer, random.Random], None]


def _block(model: Net, choose: random.Random) -> Block:
    return choose.choice(list(model.blocks))  # type: ignore[arg-type]


def _replace_layer(model: Net, optimizer: torch.optim.Optimizer, choose: random.Random) -> None:
    block = _block(model, choose)
    block.layer = _layer(choose)
    if choose.random() < 0.5:
        optimizer.add_param_group({"params": list(block.layer.parameters()), "lr": 0.03})


def _replace_parameter(model: Net, _: torch.optim.Optimizer, choose: random.Random) -> None:
    model.last.weight = nn.Parameter(model.last.weight.detach() * 1.5)


def _assign(model: Net, _: torch.optim.Optimizer, choose: random.Random) -> None:
    values = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(values, assign=choose.random() < 0.5)


def _tie(model: Net, _: torch.optim.Optimizer, choose: random.Random) -> None:
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear) and "weight" in module._parameters:
            if choose.random() < 0.5:
                module.weight = model.last.weight
            else:
                module.weight.data = model.last.weight.data


def _freeze(model: Net, _: torch.optim.Optimizer, choose: random.Random) -> None:
    _block(model, choose).requires_grad_(choose.random() < 0.5)


def _change_options(model: Net, _: torch.optim.Optimizer, choose: random.Random) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = choose.choice([0.1, 0.5])
        elif isinstance(module, nn.BatchNorm1d):
            module.momentum = choose.choice([0.1, 0.5])
        elif isinstance(module, nn.LayerNorm):
            module.eps = choose.choice([1e-5, 1e-2])


def _change_attributes(model: Net, _: torch.optim.Optimizer, choose: random.Random) -> None:
    block = _block(model, choose)
    choose.choice(
        [
            lambda: block.scale.mul_(2),
            lambda: setattr(block, "scale", block.scale * 3),
            lambda: block.settings.update(factors=[2.0]),
            lambda: block.settings["factors"].__setitem__(0, 3.0),
        ]
    )()


def _add_hook(model: Net, _: torch.optim.Optimizer, choose: random.Random) -> None:
    _block(model, choose).register_forward_hook(lambda module, given, result: result * 2)


def _change_buffers(model: Net, _: torch.optim.Optimizer, choose: random.Random) -> None:
    block = _block(model, choose)
    block.mean = torch.ones(WIDTH)


def _change_mode(model: Net, _: torch.optim.Optimizer, choose: random.Random) -> None:
    choose.choice([model, _block(model, choose)]).train(choose.random() < 0.5)


def _change_groups(_: Net, optimizer: torch.optim.Optimizer, choose: random.Random) -> None:
    group = choose.choice(optimizer.param_groups)
    group["lr"] *= 2
    group["weight_decay"] = choose.choice([0.0, 0.1])


EVENTS: list[Event] = [
    _replace_layer,
    _replace_parameter,
    _assign,
    _tie,
    _freeze,
    _change_options,
    _change_attributes,
    _add_hook,
    _change_buffers,
    _change_mode,
    _change_groups,
]


# --- modes ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3 - before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _cast() -> Any:
    return torch.autocast("cpu", torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class Around:
    """Contexts of a step: of both, of forward pass and loss alone, of our call alone."""

    both: Callable[[], Any] = contextlib.nullcontext
    forward: Callable[[], Any] = contextlib.nullcontext
    ours: Callable[[], Any] = contextlib.nullcontext


MODES = [
    *[Around()] * 6,
    *[Around(forward=_cast)] * 2,
    Around(ours=torch.no_grad),
    Around(ours=torch.inference_mode),
    Around(both=_threads),
    Around(both=_deterministic),
]


# --- side by side ---------------------------------------------------------------------------------


class Program:
    """A model with its optimizer, batches, events and modes; equal for equal seeds."""

    def __init__(self, seed: int) -> None:
        choose = random.Random(seed)
        torch.manual_seed(seed)
        self.model = Net(choose)
        self.optimizer = _optimizer(self.model, choose)
        self.accumulate = choose.choice([1, 1, 1, 2])
        self.options: dict[str, Any] = choose.choice(
            [{}, {}, {"clip_grad_norm": 0.5}, {"clip_grad_value": 0.01}]
        )
        self.ours: dict[str, Any] = choose.choice(
            [{}, {}, {"runtime": "torchscript"}, {"max_graphs": 2}]
        )
        generator = torch.Generator().manual_seed(seed)
        sizes = [ROWS if choose.random() < 0.9 else ROWS - 1 for _ in range(STEPS)]
        masks = [torch.rand(ROWS, generator=generator) < least for least in (0.5, 0.5, 2.0)]
        self.batches = [
            (
                torch.randn(size, WIDTH, generator=generator),
                choose.choice(masks)[:size],
                torch.randn(size, WIDTH, generator=generator),
            )
            for size in sizes
        ]
        self.events = [
            choose.sample(EVENTS, choose.choice([0, 0, 1, 2])) if number else []
            for number in range(STEPS)
        ]
        self.constructed, *self.called = choose.choices(MODES, k=STEPS + 1)
        if seed % 5 == 4:
            self.optimizer = _other_optimizer(self.optimizer.param_groups, random.Random(seed))
            self.ours.pop("runtime", None)

    def change(self, number: int, seed: int) -> None:
        """What happens before a step."""
        torch.manual_seed(seed + number)
        for event in self.events[number]:
            event(self.model, self.optimizer, random.Random(seed + number))

    def loop_step(self, number: int) -> torch.Tensor:
        """What the captured step replaces."""
        x, mask, target = self.batches[number]
        around = self.called[number]
        with around.both():
            with around.forward():
                loss = _loss(self.model(x, mask), target)
            loss.backward()  # type: ignore[no-untyped-call]
            if (number + 1) % self.accumulate == 0:
                trained = [p for p in self.model.parameters() if p.requires_grad]
                if "clip_grad_norm" in self.options:
                    nn.utils.clip_grad_norm_(trained, self.options["clip_grad_norm"])
                if "clip_grad_value" in self.options:
                    nn.utils.clip_grad_value_(trained, self.options["clip_grad_value"])
                self.optimizer.step()
                self.optimizer.zero_grad()
        return loss.detach()

    def contents(self) -> dict[str, Any]:
        """All that a step may change."""
        found: dict[str, Any] = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            found[f"{name}.grad"] = parameter.grad
            for item, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{name} {item}"] = value
        return {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in found.items()
        }


def _constructed(ours: Program, **options: Any) -> torch_ext.training.TrainingStep:
    around = ours.constructed
    with around.both(), around.forward(), around.ours():
        return torch_ext.training_step(
            *(ours.model, _loss, ours.optimizer, ours.batches[0]),
            accumulate=ours.accumulate,
            **{**ours.options, **ours.ours, **options},
        )


def examine(seed: int) -> Outcome:
    """Train both ways; the first difference, if there is one.

    Every fourth seed has a budget, every fifth an optimizer of which only its own code knows, every
    third planned addresses.
    """
    loop, ours = Program(seed), Program(seed)
    addresses = seed % 3 == 2
    try:
        step = _constructed(ours, addresses=addresses)
        if seed % 4 == 1:
            share = SHARES[seed // 4 % len(SHARES)]
            levers = {"levers": ("order", "overwrite", "repeat"), "time_budget": 0.5}
            levers["addresses"] = addresses
            step = _constructed(ours, **levers, memory_budget=int(share * step.report.peak_bytes))
            reasons = [use.reason for use in step.report.levers if use.name == "repeat"]
            if any("failed" in why or "was planned" in why for why in reasons):
                return Outcome(seed, f"repeats: {reasons}")
    except UnsupportedError as error:
        return Outcome(seed, refused=str(error))
    for number in range(STEPS):
        loop.change(number, seed)
        ours.change(number, seed)
        before = ours.contents()
        torch.manual_seed(number)
        try:
            expected = loop.loop_step(number)
        except RuntimeError:
            break  # nothing is left that gets a gradient
        random_states = [torch.get_rng_state()]
        torch.manual_seed(number)
        around = ours.called[number]
        try:
            with around.both(), around.forward(), around.ours():
                actual = step(*ours.batches[number])
        except UnsupportedError as error:
            written = first_difference(before, ours.contents())
            failure = f"step {number}: refused after writing {written}" if written else ""
            return Outcome(seed, failure, refused=str(error), graphs=_graphs(step))
        random_states.append(torch.get_rng_state())
        difference = first_difference(
            {"the loss": expected, "the random state": random_states[0], **loop.contents()},
            {"the loss": actual, "the random state": random_states[1], **ours.contents()},
        )
        measured_bytes = step.report.measured_peak_bytes
        if measured_bytes is not None and measured_bytes < step.report.lower_bound_bytes:
            difference = difference or "the peak, below the proven bound,"
        if difference:
            return Outcome(seed, f"step {number}: {difference} differs", graphs=_graphs(step))
    return Outcome(seed, graphs=_graphs(step))


def _graphs(step: torch_ext.training.TrainingStep) -> int:
    return sum(map(len, step._graphs.values()))


# Rules of the product, and how it does without each: some program has to notice.
RULES: dict[str, tuple[Any, str, Any]] = {
    "attributes": (Watch, "is_unchanged", lambda self: True),
    "modes": (Modes, "now", classmethod(lambda cls: cls(None, ()))),
    "memory": (world.World, "_shares_memory", lambda self, leaves: False),
    "answers": (Answers, "hold", lambda self, tensors: True),
    "state": (planned_graph.attributes, "changes", lambda before, after: []),
    "gradients": (world, "of_a_graph", torch.no_grad),
}


def examine_without(seed: int, rule: str) -> Outcome:
    """As examine, without one of the rules."""
    with unittest.mock.patch.object(*RULES[rule][:2], RULES[rule][2]):
        try:
            return examine(seed)
        except Exception as error:
            return Outcome(seed, f"{type(error).__name__}: {error}")


def main() -> None:
    """Examine many seeds; exit with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--rules", action="store_true", help="the first seed that notices each")
    options = parser.parse_args()
    _quiet()
    seeds = range(options.start, options.start + options.count)
    if options.rules:
        for rule in RULES:
            found = (seed for seed in seeds if examine_without(seed, rule).failure)
            print(f"{rule}: {next(found, None)}", flush=True)
        return
    outcomes = []
    for seed in seeds:
        outcomes.append(examine(seed))
        if outcomes[-1].failure:
            print(f"seed {seed}: {outcomes[-1].failure}", flush=True)
    refused = sum(bool(outcome.refused) for outcome in outcomes)
    failed = sum(bool(outcome.failure) for outcome in outcomes)
    graphs = sum(outcome.graphs for outcome in outcomes)
    print(f"{len(outcomes)} programs, {graphs} graphs, {refused} refused, {failed} failures")
    sys.exit(failed > 0)


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("torch_ext").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
