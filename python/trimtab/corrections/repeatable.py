# SPDX-License-Identifier: MIT
"""Whether a network is a function: the same answer to the same state at every call, whatever else is in the batch.

Looked at is what it does, not which layers it has: it is called twice on a few states, and the answers are compared bit for bit.
A reverse sweep calls the network again, long after the solver did and on other batches; of one that is no function it would
differentiate what never ran.
"""

from __future__ import annotations

import contextlib
import random
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trimtab.core.errors import ConfigError
from trimtab.corrections.networks import network_dtype

STATES = 4         # on which a network is tried
TRIES = 16         # times a network is called that draws random numbers and gives the same answer: a draw may change nothing
BATCH = 1e-3       # largest difference, over the largest answer, that another batch may make: rounding, not statistics
ACCELERATOR = 1e-5  # the same of two equal calls off the CPU, which may sum in another order
NUMBERS, DEPTH, LONG = 1024, 3, 64  # of an array, and of nested lists: beyond, an attribute is told by its place in memory

Mark = dict[tuple[str, str], Any]
_known: WeakKeyDictionary[nn.Module, tuple[Mark, frozenset[tuple[str, str]]]] = WeakKeyDictionary()
_SIMPLE = frozenset((int, bool, str, type(None)))
# What every module has, and what does not take part in forward.
_TABLES = frozenset(vars(nn.Module())) - {"training", "_forward_hooks", "_forward_pre_hooks"}


def as_slot(correction: nn.Module, states: Tensor) -> Tensor:
    """Call a correction as a solver's slot does, on a copy: a first layer that works in place must not change what is recorded.

    Args:
        correction: the module, (B, N) -> (B, M).
        states: (B, N), with or without a graph.

    Returns:
        (B, M), in the module's precision.
    """
    held = next(iter((*correction.parameters(), *correction.buffers())), states)
    answer: Tensor = correction(states.to(held.device, network_dtype(correction), copy=True))
    return answer


def check_function(correction: nn.Module, states: Tensor, *, learns: bool = True) -> None:
    """Refuse a network that is no function of the state, in the mode that it is in; at once when it is known and has not changed.

    Args:
        correction: the module, (B, N) -> (B, M).
        states: (B, N), B > 0, of which a few are tried.
        learns: it is to have a gradient by those of its parameters that want one.

    Raises:
        ConfigError: which layer gives another answer, or changes a buffer, at every call; an answer that depends on the other
            states of the batch; or one without a graph.
    """
    known = _known.get(correction)
    mark = fingerprint(correction)
    if known is not None and not _differ(known[0], mark) - known[1]:
        return
    rows = _examples(states)
    with _put_back(correction), torch.no_grad():
        first = as_slot(correction, rows)  # makes what is made late
        before, tensors = fingerprint(correction), _tensors(correction)
        with _same_draws():
            drawn = torch.get_rng_state()
            part = as_slot(correction, rows[: STATES // 2])  # between two equal calls, so that what is remembered differs
            answers = [first, as_slot(correction, rows)]
            drew = not torch.equal(drawn, torch.get_rng_state())
            answers += [as_slot(correction, rows) for _ in range(TRIES if drew else 0)]
        after = fingerprint(correction)
        _refuse_state(correction, tensors)
        if not all(_same(first, one) for one in answers[1:]):
            raise ConfigError(f"{_culprit(correction, rows)}gives another answer to the same state at every call, so that there "
                              "is no gradient: call .eval() on it, or use a layer without random numbers, statistics of the "
                              "batch and memory.")
        if not _near(answers[-1][: STATES // 2], part, BATCH):
            raise ConfigError(f"The network {_mode(correction)}answers a state by the other states of the batch, too, so that "
                              "there is no gradient: use LayerNorm or GroupNorm in place of statistics of the batch, or call "
                              ".eval() on what has them.")
        if learns:
            check_graph(correction, rows)
    _known[correction] = (after, frozenset(_differ(before, after)))


def check_graph(correction: nn.Module, states: Tensor) -> list[str]:
    """Refuse a network whose answer has no derivative by any parameter, as one with torch.no_grad() inside.

    Args:
        correction: the module.
        states: (B, N).

    Returns:
        The names of trainable parameters that the answer does not depend on.

    Raises:
        ConfigError: parameters want a gradient, and the answer has none.
    """
    named = {name: one for name, one in correction.named_parameters() if one.requires_grad}
    if not named:
        return []
    with torch.enable_grad():
        answer = as_slot(correction, _examples(states))
        found = [None] * len(named)
        if answer.requires_grad:
            found = list(torch.autograd.grad(answer.sum(), list(named.values()), allow_unused=True))  # type: ignore[arg-type]
    unused = [name for name, one in zip(named, found, strict=True) if one is None]
    if len(unused) == len(named):
        raise ConfigError(NO_GRAPH)
    return unused


NO_GRAPH = ("The network's answer has no gradient by any of its parameters, which want one: take torch.no_grad(), detach() or "
            "numpy out of its forward, or call requires_grad_(False) on a network that is not to learn.")


def check_memory(correction: nn.Module, states: Tensor, ranks: int) -> None:
    """Refuse a network that changes its own state when it is called, where several ranks call it on parts of a batch.

    Args:
        correction: the module, in the mode in which it will be called.
        states: (B, N), of which a few are tried.
        ranks: that compute it.

    Raises:
        ConfigError: which buffer of which layer, or that something else is remembered.
    """
    rows = _examples(states)
    with _put_back(correction), torch.no_grad():
        tensors = _tensors(correction)
        answers = []
        for _ in range(2):
            with _same_draws():
                answers.append(as_slot(correction, rows))
        remedy = f"each of {ranks} ranks would come to its own: train on one rank, or use LayerNorm or GroupNorm"
        _refuse_state(correction, tensors, remedy)
        if not _same(*answers):
            raise ConfigError(f"{_culprit(correction, rows)}remembers something from call to call, or draws from a generator of "
                              f"its own, and {remedy}.")


@contextlib.contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """All layers in one mode inside the block.

    Args:
        module: any.
        training: training or evaluation mode.
    """
    modes = [(one, one.training) for one in module.modules()]
    module.train(training)
    try:
        yield
    finally:
        for one, before in modes:
            one.training = before


def unused(correction: nn.Module, states: Tensor) -> str:
    """Trainable parameters that the answer does not depend on, as a warning.

    Args:
        correction, states: see `check_graph`.

    Returns:
        A sentence; "" when there are none.

    Raises:
        ConfigError: see `check_graph`.
    """
    with _put_back(correction):
        names = check_graph(correction, states)
    if not names:
        return ""
    return (f"{len(names)} parameters of the network get no gradient, and stay as they are: {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}; its answer does not depend on them.")


def fingerprint(module: nn.Module) -> Mark:
    """What a module is but for the numbers in its tensors: layers, modes, attributes, hooks; to be compared, not kept in a file.

    Args:
        module: any.

    Returns:
        A value for each attribute of each layer.
    """
    mark: Mark = {}
    _add_layer(mark, "", module)
    return mark


def changes_itself(module: nn.Module, call: Callable[[], Any]) -> frozenset[tuple[str, str]]:
    """Attributes that a call changes, as a counter does: what they are is no setting.

    Args:
        module: any.
        call: calls it.

    Returns:
        Keys of its `fingerprint`.
    """
    before = fingerprint(module)
    call()
    return frozenset(_differ(before, fingerprint(module)))


def _add_layer(mark: Mark, path: str, layer: nn.Module) -> None:
    """One layer and those in it; as quick as can be, for it stands before every rollout."""
    mark[path, ""] = (id(layer), type(layer))
    for name, value in vars(layer).items():
        if name not in _TABLES:
            mark[path, name] = value if type(value) in _SIMPLE else _plain(value, DEPTH)
    for table in (layer._parameters, layer._buffers):
        for name, tensor in table.items():
            mark[path, name] = tensor is not None and (tensor.dtype, tensor.requires_grad, tensor.device)
    for name, inner in layer._modules.items():
        if inner is not None:
            _add_layer(mark, f"{path}.{name}", inner)


def _differ(one: Mark, other: Mark) -> set[tuple[str, str]]:
    if one == other:
        return set()
    return {key for key in one.keys() | other.keys() if key not in one or key not in other or one[key] != other[key]}


def _plain(value: Any, depth: int) -> Any:
    """Something equal for equal settings, without a reference to what may be large."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device | torch.Size):
        return (type(value).__name__, repr(value)) if isinstance(value, float | complex) else value
    if isinstance(value, np.ndarray | np.generic) and value.size <= NUMBERS:
        return (value.shape, str(value.dtype), value.tobytes())
    if depth and isinstance(value, list | tuple | set | frozenset) and len(value) <= LONG:
        return (type(value).__name__, *(_plain(one, depth - 1) for one in value))
    if depth and isinstance(value, dict) and len(value) <= LONG:
        return ("dict", *((_plain(key, 1), _plain(one, depth - 1)) for key, one in value.items()))
    return (type(value).__qualname__, id(value.__func__) if isinstance(value, types.MethodType) else id(value))


def _examples(states: Tensor) -> Tensor:
    """A few states that differ, (STATES, N)."""
    rows = torch.arange(STATES)
    return states.detach()[rows % len(states)] * (1 + 1e-3 * rows[:, None]).to(states.device, states.dtype)


def _tensors(module: nn.Module) -> dict[str, tuple[Tensor, Tensor, int]]:
    """Parameters and buffers, each with a copy and torch's count of what was written to it."""
    named = (*module.named_parameters(), *module.named_buffers())
    return {name: (one, one.detach().clone(), one._version) for name, one in named if not is_lazy(one)}


@contextlib.contextmanager
def _put_back(module: nn.Module) -> Iterator[None]:
    """Trying a network changes nothing: not its buffers, and not what is random later."""
    before, drawn, plain = _tensors(module), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(drawn)  # noqa: NPY002
        random.setstate(plain)
        with torch.no_grad():
            for name, (tensor, copy, _) in before.items():
                if not _same(tensor, copy):
                    tensor.copy_(copy)
                _attach(module, name, tensor)


def _attach(module: nn.Module, name: str, tensor: Tensor) -> None:
    """A buffer that was exchanged for another tensor is put back."""
    path, _, last = name.rpartition(".")
    buffers = module.get_submodule(path)._buffers
    if last in buffers and buffers[last] is not tensor:
        buffers[last] = tensor


@contextlib.contextmanager
def _same_draws() -> Iterator[None]:
    """Global generators begin at the same place each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  a user's network may draw from the global generator
        yield


def _refuse_state(module: nn.Module, before: dict[str, tuple[Tensor, Tensor, int]], remedy: str = "") -> None:
    now = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, (tensor, copy, version) in before.items():
        path, _, last = name.rpartition(".")
        layer = module.get_submodule(path)
        # In training mode what is written counts, though it be the same now: an iteration that has converged goes on with the
        # next weights.
        written = layer.training and (now.get(name) is not tensor or tensor._version != version)
        if written or name not in now or not _same(now[name], copy):
            why = remedy or ("there is no gradient then: call .eval() on it, or use LayerNorm, GroupNorm or a layer that keeps "
                             "nothing")
            raise ConfigError(f"{_named(path, layer)}changes its {last} at every call, and {why}.")


def _culprit(module: nn.Module, rows: Tensor) -> str:
    """The innermost layer that gives different answers to the same input."""
    calls: list[list[tuple[str, nn.Module, list[Tensor], list[Tensor]]]] = []

    def record(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, seen: Any, answer: Any) -> None:
            calls[-1].append((path, layer, _found(seen), _found(answer)))

        return hook

    hooks = [layer.register_forward_hook(record(path)) for path, layer in module.named_modules()]
    try:
        with torch.no_grad():
            for _ in range(TRIES):
                calls.append([])
                as_slot(module, rows)
    finally:
        for one in hooks:
            one.remove()
    for other in calls[1:]:
        for (path, layer, seen, answer), (_, _, seen_too, answer_too) in zip(calls[0], other, strict=False):
            if _all_same(seen, seen_too) and not _all_same(answer, answer_too):
                return _named(path, layer)
    return _named("", module)


def _found(values: Any) -> list[Tensor]:
    """Copies of the tensors in what a layer is given or answers."""
    if isinstance(values, Tensor):
        return [values.detach().clone()]
    if isinstance(values, dict):
        values = list(values.values())
    return [one for value in values for one in _found(value)] if isinstance(values, list | tuple) else []


def _all_same(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(ones) == len(others) and all(map(_same, ones, others))


def _same(one: Tensor, other: Tensor) -> bool:
    """The same numbers, NaN in the same places included; off the CPU up to rounding."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.device.type != "cpu" and (one.is_floating_point() or one.is_complex()):
        return _near(one, other, ACCELERATOR)
    equal = one == other
    return bool((equal | ((one != one) & (other != other))).all())


def _near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    if one.shape != other.shape:
        return False
    finite = one.isfinite() & other.isfinite()
    difference, size = (one - other)[finite].abs(), one[finite].abs()
    return not difference.numel() or bool(difference.max() <= tolerance * size.max())


def _named(path: str, layer: nn.Module) -> str:
    """The beginning of a sentence."""
    where = f"The layer {path}" if path else "The network"
    return f"{where} ({type(layer).__name__}) {_mode(layer)}"


def _mode(module: nn.Module) -> str:
    return "is in training mode and " if module.training else ""
