"""Generators on devices other than CPUs and CUDA GPUs, here a pretended one (`pretended`)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pretended
import pytest
import torch
from processes import in_a_process
from torch import Tensor, nn
from torch.utils import backend_registration

from cogen_fast import (
    Adaptive,
    Compute,
    Paper,
    Prior,
    baselines,
    bound_evidence,
    cogenerate,
    inpaint,
    pretrained,
    super_resolve,
)
from cogen_fast.generators.stylegan2 import StyleGAN2Generator
from cogen_fast.problem.devices import checked_device, generator_device
from cogen_fast.support.memory import is_out_of_memory

CPU = Compute(backend="native")
FAST: dict[str, Any] = {"progress": False, "seed": 3}
needs_place = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no place for a device made in Python",
)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 5))


def pictures() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Linear(4, 32), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 3, 4, 4), nn.Tanh())
    )


class Conditional(nn.Module):
    """Outputs that a condition shifts."""

    latent_size = 3

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, z: Tensor, condition: Tensor) -> Tensor:
        return self.net(z) + condition


X_OBS, MASK = torch.linspace(-1.0, 1.0, 5), torch.tensor([1, 0, 1, 0, 1])
IMAGE = torch.linspace(-0.9, 0.9, 192).reshape(3, 8, 8)
HALF = (torch.arange(8) < 4).long()
CONDITIONS = torch.tensor([[0.5], [-0.5]])


def same(make: Any, run: Any) -> Any:
    """The run on the pretended device, whose numbers are those of the run on the CPU."""
    here = run(make(), CPU)
    pretended.CALLS.clear()
    there = run(pretended.moved(make()), Compute())
    assert there.settings["backend"] == "native"
    assert torch.equal(there.latents, here.latents)
    assert torch.equal(there.images, here.images)
    assert there.images.device == torch.device("cpu")
    products = ("aten::addmm", "aten::mm", "aten::convolution", "aten::convolution_backward")
    assert sum(pretended.CALLS[name] for name in products) > 100
    (note,) = [each for each in there.notes if "runs on" in each]
    assert note.startswith("generator: runs on pretended:0; latents, misfit and sampler are")
    assert note.endswith("untried on a real device other than cpu and cuda")
    assert not any("runs on" in each for each in here.notes)
    return there


def vectors() -> None:
    def run(G: Any, compute: Compute) -> Any:
        return cogenerate(G, X_OBS, MASK, noise_std=0.3, budget=60, compute=compute, **FAST)

    pretended.use()
    there = same(net, run)
    assert there.log_evidence is not None


def functions() -> None:
    pretended.use()
    G, seen = pretended.moved(net()), set()

    def function(z: Tensor) -> Tensor:
        seen.add(z.device.type)
        return G(z)

    options: dict[str, Any] = {"noise_std": 0.3, "budget": 40, "latent_shape": 3, **FAST}
    there = cogenerate(function, X_OBS, MASK, compute=Compute(device="pretended"), **options)
    here = cogenerate(net(), X_OBS, MASK, compute=CPU, **options)
    assert torch.equal(there.latents, here.latents)
    assert seen == {"pretended"}


def images() -> None:
    pretended.use()
    same(
        pictures,
        lambda G, compute: inpaint(G, IMAGE, HALF, budget=40, compute=compute, **FAST),
    )
    low = torch.nn.functional.avg_pool2d(IMAGE, 2)
    same(
        pictures,
        lambda G, compute: super_resolve(G, low, 2, budget=40, compute=compute, **FAST),
    )


def methods() -> None:
    pretended.use()
    x = torch.stack([X_OBS, -X_OBS])

    def unknown(G: Any, compute: Compute) -> Any:
        return cogenerate(G, x, MASK, noise_std="auto", budget=60, compute=compute, **FAST)

    def frozen(G: Any, compute: Compute) -> Any:
        method = Adaptive(populations=2, evidence="frozen")
        options = {"noise_std": 0.3, "budget": 60, "compute": compute, **FAST}
        return cogenerate(G, X_OBS, MASK, method=method, **options)

    def own(G: Any, compute: Compute) -> Any:
        options = {"budget": 60, "compute": compute, **FAST}
        return cogenerate(G, x, MASK, misfit=lambda y, t: 9 * (y - t).abs().sum(-1), **options)

    def best(G: Any, compute: Compute) -> Any:
        options = {"noise_std": 0.3, "learning_rate": 0.05, "steps": 60, "compute": compute}
        return baselines.reconstruct(G, X_OBS, MASK, method="adam", seed=3, **options)

    for run in (unknown, frozen, own, best):
        same(net, run)
    paper = Paper(ais_steps=12, leapfrog_steps=10)
    same(pictures, lambda G, c: cogenerate(G, IMAGE, HALF, method=paper, compute=c, **FAST))
    bounds = [
        bound_evidence(G, MASK, noise_std=0.5, simulations=2, chains=16, compute=c, seed=3)
        for G, c in ((net(), CPU), (pretended.moved(net()), Compute()))
    ]
    assert torch.equal(bounds[0].gap, bounds[1].gap)


def conditions() -> None:
    def make() -> Prior:
        return Prior(Conditional(), conditions=CONDITIONS)

    def run(G: Any, compute: Compute) -> Any:
        x = torch.stack([X_OBS, -X_OBS])
        return cogenerate(G, x, MASK, noise_std=0.3, budget=60, compute=compute, **FAST)

    pretended.use()
    same(make, run)


def styles() -> None:
    """Styles whose prior is fitted from draws of a network on the device."""

    pretended.use()
    sizes: dict[str, Any] = {"latent_size": 5, "mapping": [12, 6], "feature_maps": [4, 3]}

    def run(move: Any, compute: Compute) -> Any:
        torch.manual_seed(3)
        prior = Prior(move(StyleGAN2Generator(8, **sizes)), space="w", draws=200)
        mask = torch.ones(8, 8)
        found = cogenerate(prior, IMAGE, mask, budget=20, chains=4, compute=compute, **FAST)
        return prior.style_basis, found.latents

    here, there = run(lambda G: G, CPU), run(pretended.moved, Compute())
    assert there[0].device.type == "pretended"
    assert torch.equal(there[0].cpu(), here[0])
    assert torch.equal(there[1], here[1])


def garments() -> None:
    """The shipped generator, whose fast path is for other devices."""
    image = torch.zeros(1, 32, 32)
    mask = (torch.arange(32) < 16).long()

    def run(G: Any, compute: Compute) -> Any:
        return cogenerate(G, image, mask, budget=20, chains=2, compute=compute, **FAST)

    pretended.use()
    same(lambda: pretrained("fashion-32"), run)


def refusals() -> None:
    pretended.use()
    G = pretended.moved(net())

    def run(**compute: Any) -> Any:
        options = {"noise_std": 0.3, "budget": 40, **FAST}
        return cogenerate(G, X_OBS, MASK, compute=Compute(**compute), **options)

    for compute, message in (
        ({"backend": "fused"}, "^backend: fused serves cpu and cuda, got G on pretended:0$"),
        ({"device": "cpu"}, r"^device: expected G's weights on cpu, got them on pretended:0"),
        ({"device": "pretended:1"}, "^device: .*present, got pretended:1; .* 1 pretended dev"),
        ({"energy_dtype": "float64"}, "^energy_dtype: .*pretended has no torch.float64"),
        ({"gradient_dtype": "bfloat16"}, "^gradient_dtype: .*torch.bfloat16: Tried to use AMP"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**compute)
    # The device itself refuses these.
    held = torch.ones(2).to("pretended")
    with pytest.raises(TypeError, match=r"pretended has no torch\.float64"):
        held.double()
    with pytest.raises(RuntimeError, match="expected all tensors on pretended"):
        held + torch.ones(2)


@needs_place
@pytest.mark.parametrize(
    "function",
    [
        "vectors",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "functions",
                "images",
                "methods",
                "conditions",
                "styles",
                "garments",
                "refusals",
            )
        ),
    ],
)
def test_a_generator_on_another_device(function: str) -> None:
    in_a_process(__file__, function)


@pytest.mark.parametrize("name", ["mps", "xpu"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    if getattr(torch, name).is_available():
        pytest.skip("it is there")
    with pytest.raises(
        ValueError,
        match=f"^device: expected one that is present, got {name}; torch .* 0 {name} dev",
    ):
        generator_device(name)


@pytest.mark.parametrize("name", ["mps", "xpu"])
def test_a_device_that_torch_sees_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, name, SimpleNamespace(device_count=lambda: 1))
    assert generator_device(name) == torch.device(name)
    with pytest.raises(ValueError, match=f"present, got {name}:1; torch .* sees 1 {name} devices"):
        generator_device(f"{name}:1")
    with pytest.raises(ValueError, match=f"^device: expected cpu or cuda, got {name}$"):
        checked_device(name)  # which training uses


def test_a_half_precision_that_torch_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Instead of raising an error, torch may warn and continue in float32.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    compute = Compute(gradient_dtype="float16")
    message = r"^gradient_dtype: expected .*autocast .* cpu, got torch\.float16$"
    with pytest.raises(ValueError, match=message):
        cogenerate(net(), X_OBS, MASK, noise_std=0.3, compute=compute, **FAST)


def test_memory_of_mps_that_ran_out_is_known() -> None:
    text = "MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 1.00 MB)"
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("MPS backend cannot be used"))
