"""Whether an optimizer updates each parameter as if there were no others; found out by running it.

Ten steps, for some branch on their count (RAdam does after five), of the optimizer alone, all with
the same gradients: forward and backward pass have nothing to do with it.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import torch

from torch_ext.files import first_line
from torch_ext.tensors.compare import first_difference
from torch_ext.training.alone import OwnStep
from torch_ext.training.capture import Batch, require_strided
from torch_ext.training.modes import apart, of_a_graph
from torch_ext.training.updates import UnsupportedError
from torch_ext.training.world import World

_STEPS = 10


def settled(world: World, batch: Batch) -> World:
    """Return a copy whose optimizer has made the state that later steps find; nothing else is new.

    `batch` may be written to. Raises UnsupportedError if updates one by one are not what the step
    over all is, and what the loop raises.
    """
    assert isinstance(world.update, OwnStep)
    name = world.update.name
    with torch.random.fork_rng(devices=[]):
        gradients = _gradients(world, batch)
        loop, parts = world.copy(), world.copy()
        draws = False
        for _ in range(_STEPS):
            random_state = torch.get_rng_state()
            _update_all(loop, gradients)
            random_states = [torch.get_rng_state()]
            draws |= not torch.equal(random_state, random_states[0])
            torch.set_rng_state(random_state)
            # Draws keep the loop's order in a graph. Of anything else the order must not matter.
            _update_each(parts, gradients, gradients if draws else reversed(gradients))
            random_states.append(torch.get_rng_state())
            left = [
                {"the random state": state, **of.contents()}
                for state, of in zip(random_states, (loop, parts), strict=True)
            ]
            if difference := first_difference(*left):
                raise UnsupportedError(
                    f"{name} does not update each parameter as if there were no others: "
                    f"{difference.removeprefix('model.')} differs after updates one by one; keep "
                    "state per parameter (self.state[parameter]), and give a norm of all "
                    "gradients as clip_grad_norm"
                )
    others = [one for one in (*parts.parameter_homes, *parts.buffer_homes) if one not in gradients]
    before, after = world.contents(), parts.contents()
    if changed := first_difference({k: before[k] for k in others}, {k: after[k] for k in others}):
        raise UnsupportedError(
            f"{name} writes to {changed.removeprefix('model.')}, which is no parameter that it "
            "updates; do that outside of its step"
        )
    parts.update = dataclasses.replace(world.update, draws_random_numbers=draws)
    _put_back(parts, world)
    return parts


def _gradients(world: World, batch: Batch) -> dict[str, torch.Tensor]:
    """Of each parameter that the optimizer updates, in its order."""
    scratch = world.copy()
    now = scratch.look(batch)
    with apart():
        scratch.backward(now)
    found = {name: now.trained[name].grad for name in now.group_of}
    require_strided(found)
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def _update_all(world: World, gradients: Mapping[str, torch.Tensor]) -> None:
    trained = world.look(()).trained
    for name, gradient in gradients.items():
        trained[name].grad = gradient.clone()
    with apart():
        world.optimizer.step()
        world.optimizer.zero_grad()


def _update_each(world: World, gradients: Mapping[str, torch.Tensor], order: Iterable[str]) -> None:
    now = world.look(())
    step = world.step_alone(now, gradients)
    for name in order:
        parameter, gradient = now.trained[name], gradients[name].clone()
        parameter.grad = None
        memory = gradient.untyped_storage()
        try:
            with of_a_graph():
                step.update(parameter, gradient)
        except Exception as error:
            raise UnsupportedError(
                f"a step of {type(world.optimizer).__name__} over one parameter alone fails, and "
                f"over all does not: {type(error).__name__}: {first_line(error)}"
            ) from error
        del gradient
        if torch._C._storage_Use_Count(memory._cdata) > 1:
            raise UnsupportedError(
                f"{type(world.optimizer).__name__} keeps the gradient itself, whose memory a "
                "captured step uses again; let it keep a clone"
            )
    step.finish()


def _put_back(world: World, original: World) -> None:
    """Parameters and gradients."""
    trained, before = world.look(()).trained, original.look(()).trained
    with torch.no_grad():
        for name, parameter in trained.items():
            gradient = before[name].grad
            parameter.copy_(before[name])
            parameter.grad = None if gradient is None else gradient.clone()
