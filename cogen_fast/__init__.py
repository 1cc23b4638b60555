"""Fill in the missing part of an image, or of any vector, with a trained GAN as the prior.

`cogenerate` draws samples of ``G(z)`` given a partial or noisy observation of it, by annealed
importance sampling with Hamiltonian Monte Carlo moves; `inpaint` and `super_resolve` call it for
images. The parts are public, too: `sampler` for sampling loops of your own, `generators` for
networks and checkpoints, `baselines` for the methods which the paper compares with, and `metrics`
for comparisons with a known truth.
"""

from cogen_fast import generators, sampler
from cogen_fast.generators import (
    held_out_images,
    load_generator,
    pretrained,
    save_generator,
)
from cogen_fast.methods import baselines
from cogen_fast.methods.bounds import EvidenceBounds, bound_evidence
from cogen_fast.methods.checkpoint import Checkpoint
from cogen_fast.methods.presets import PRESETS, Preset
from cogen_fast.methods.progress import Snapshot
from cogen_fast.methods.settings import Adaptive, Paper
from cogen_fast.ops.dispatch import backends
from cogen_fast.ops.spec import AdaptationRule
from cogen_fast.problem.compute import Compute
from cogen_fast.problem.misfits import Huber, StudentT
from cogen_fast.problem.observation import (
    AveragePool,
    Mask,
    MeasurementOperator,
    Operator,
    Stride,
    UnknownNoise,
)
from cogen_fast.problem.operators import Blur, Fourier, Luminance, Magnitudes, Matrix
from cogen_fast.problem.perceptual import Lpips
from cogen_fast.problem.prior import Prior
from cogen_fast.results import metrics
from cogen_fast.results.result import Result
from cogen_fast.support.warnings import DiagnosisWarning
from cogen_fast.tasks import cogenerate, inpaint, super_resolve

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "AdaptationRule",
    "Adaptive",
    "AveragePool",
    "Blur",
    "Checkpoint",
    "Compute",
    "DiagnosisWarning",
    "EvidenceBounds",
    "Fourier",
    "Huber",
    "Lpips",
    "Luminance",
    "Magnitudes",
    "Mask",
    "Matrix",
    "MeasurementOperator",
    "Operator",
    "Paper",
    "Preset",
    "Prior",
    "Result",
    "Snapshot",
    "Stride",
    "StudentT",
    "UnknownNoise",
    "backends",
    "baselines",
    "bound_evidence",
    "cogenerate",
    "generators",
    "held_out_images",
    "inpaint",
    "load_generator",
    "metrics",
    "pretrained",
    "sampler",
    "save_generator",
    "super_resolve",
]
