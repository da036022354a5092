"""Who is watching a call, and which layers are no more than their weights."""

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrizations, parametrize

from mmbert_hf.shortcuts import is_plain_linear, is_traced

# Traced or not


def asked(seen):
    """A function of tensors that notes whether they are traced."""

    def note(tensor, *_):
        seen.append(is_traced(tensor))
        return tensor * 2

    return note


@pytest.mark.parametrize("requires_grad", [True, False])
def test_plain_tensors_are_not_traced(requires_grad):
    values = torch.zeros(3, requires_grad=requires_grad)
    assert not is_traced(values)
    assert not is_traced(values * 2)
    with torch.no_grad():
        assert not is_traced(values)
    with torch.inference_mode():
        assert not is_traced(torch.zeros(3))


TRANSFORMS = {
    "vmap": lambda note: torch.func.vmap(note)(torch.zeros(2, 3)),
    "grad": lambda note: torch.func.grad(lambda x: note(x).sum())(torch.zeros(3)),
    "jvp": lambda note: torch.func.jvp(note, (torch.zeros(3),), (torch.ones(3),)),
    "jacrev": lambda note: torch.func.jacrev(note)(torch.zeros(3)),
    "functionalize": lambda note: torch.func.functionalize(note)(torch.zeros(3)),
    "fake make_fx": lambda note: make_fx(note, tracing_mode="fake")(torch.zeros(3)),
    "symbolic make_fx": lambda note: make_fx(note, tracing_mode="symbolic")(torch.zeros(3)),
    "symbolic_trace": lambda note: torch.fx.symbolic_trace(lambda x: note(x)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, of forward derivatives
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_and_tracers(name):
    seen = []
    TRANSFORMS[name](asked(seen))
    assert seen
    assert all(seen)
    assert not is_traced(torch.zeros(3))  # and afterwards no more


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")  # torch's own
def test_jit_trace():
    seen = []
    torch.jit.trace(asked(seen), torch.zeros(3), check_trace=False)
    assert seen == [True]


def test_tensors_without_values():
    assert is_traced(torch.zeros(3, device="meta"))
    with torch._subclasses.FakeTensorMode():
        assert is_traced(torch.zeros(3))


@pytest.mark.parametrize("way", ["compile", "export"])
def test_compiled_and_exported_calls(way):
    class Answer(nn.Module):
        def forward(self, x):
            return x + 1 if is_traced(x) else x - 1

    model = Answer()
    assert model(torch.zeros(1)).item() == -1
    if way == "compile":
        torch.compiler.reset()
        traced = torch.compile(model, backend="eager", fullgraph=True)
    else:
        traced = torch.export.export(model, (torch.zeros(1),)).module()
    assert traced(torch.zeros(1)).item() == 1


# More than a weight


def test_plain_layers():
    assert is_plain_linear(nn.Linear(2, 3))
    assert is_plain_linear(nn.Linear(2, 3, bias=False).to(torch.bfloat16).requires_grad_(False).eval())
    layer = nn.Linear(2, 3)
    layer.weight.register_hook(lambda gradient: gradient)  # autograd calls those, whoever multiplies
    assert is_plain_linear(layer)


HOOKS = {
    "forward": lambda layer: layer.register_forward_hook(lambda *_: None),
    "forward, with keywords": lambda layer: layer.register_forward_hook(lambda *_: None, with_kwargs=True),
    "forward, always": lambda layer: layer.register_forward_hook(lambda *_: None, always_call=True),
    "before": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "before, with keywords": lambda layer: layer.register_forward_pre_hook(lambda *_: None, with_kwargs=True),
    "backward": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "before backward": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
    "forward of all": lambda _: global_hooks.register_module_forward_hook(lambda *_: None),
    "forward of all, with keywords": lambda _: global_hooks.register_module_forward_hook(
        lambda *_: None, with_kwargs=True
    ),
    "forward of all, always": lambda _: global_hooks.register_module_forward_hook(lambda *_: None, always_call=True),
    "before all": lambda _: global_hooks.register_module_forward_pre_hook(lambda *_: None),
    "backward of all": lambda _: global_hooks.register_module_full_backward_hook(lambda *_: None),
    "before backward of all": lambda _: global_hooks.register_module_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_of_every_kind(name):
    layer = nn.Linear(2, 3)
    handle = HOOKS[name](layer)
    try:
        assert not is_plain_linear(layer)
    finally:
        handle.remove()
        global_hooks._global_forward_hooks_with_kwargs.clear()  # torch 2.13 forgets to
    assert is_plain_linear(layer)


class Subclass(nn.Linear):
    pass


class QuantisedWeight(torch.Tensor):
    pass


def with_other_forward():
    """As accelerate wraps layers that it moves between devices."""
    layer = nn.Linear(2, 3)
    layer.forward = lambda inputs: inputs
    return layer


def with_quantised_weight():
    layer = nn.Linear(2, 3)
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(QuantisedWeight))
    return layer


def parametrised():
    layer = nn.Linear(2, 3)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


OTHERS = {
    "no linear layer": nn.Identity,
    "a sequence": lambda: nn.Sequential(nn.Linear(2, 3)),
    "a subclass": lambda: Subclass(2, 3),
    "lazy": lambda: nn.LazyLinear(3),
    "another forward": with_other_forward,
    "a quantised weight": with_quantised_weight,
    "parametrised": parametrised,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(2, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(2, 3)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_layers_that_are_more(name):
    assert not is_plain_linear(OTHERS[name]())
