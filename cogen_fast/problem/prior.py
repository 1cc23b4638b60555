"""A generator as a prior: which of its latent spaces is sampled, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cogen_fast.support.arguments import (
    check_choice,
    check_number,
    check_seed,
    check_whole,
    shown,
)

Space = Literal["z", "w", "w+"]
NoiseMaps = Literal["fixed", "latent"]
SPACES: tuple[str, ...] = get_args(Space)
NOISE_MAPS: tuple[str, ...] = get_args(NoiseMaps)
_SLOPE = 0.2  # of the leaky ReLU that ends a StyleGAN's mapping network
_FITTED, _AT_ONCE = 100_000, 10_000  # draws for the whitening (Wulff and Torralba: a million)
_STYLED = ("styles", "synthesise", "truncated", "style_layers", "style_size", "noise_sides")


class Prior(nn.Module):
    """A generator whose latents are standard normal, in the space and with the inputs of choice.

    ``cogenerate(Prior(G, space="w"), x_obs, mask)``: it stands wherever a ``G`` is expected, and is
    called like one: ``prior(result.latents[0])`` gives outputs again, and so does
    ``prior(result.latents[b], b)`` where each observation has a condition of its own.

    Args:
        G: callable or module. ``G(z)``, or ``G(z, c)`` where there are ``conditions``.
        space: what is sampled.
            "z": G's own latents, for which the prior is exact.
            "w": a StyleGAN2's styles, one for all layers. Their prior is the Gaussian of Wulff and
            Torralba (2020, section 3): a leaky ReLU with slope 1 / 0.2 undoes the mapping
            network's last one, and the result is whitened by the mean and covariance of ``draws``
            mapped latents. What is sampled are the whitened coordinates, the widest first.
            "w+": a style for each layer, ``sqrt(1 - spread^2)`` times a common one plus
            ``spread`` times one of its own, in whitened coordinates: layers differ as ``spread``
            allows, and each style has the prior of "w". The common coordinates are the first.
        noise: "fixed" keeps the noise maps that a StyleGAN2 holds; "latent" samples them too, as
            further latents, one for each pixel of each layer.
        conditions: what a conditional G is given beside the latents: ``(1, ...)`` for one that all
            observations share, or ``(B, ...)`` for one each; a number is one that all share.
            Tensors, arrays or numbers, passed on in their own type, one row for each latent. In "w"
            and "w+" all observations share one.
        output: which part of what G returns is the output: an index of a tuple, the key or
            attribute of a mapping or an object, or a function. None: G returns a tensor.
        spread: of "w+", in (0, 1].
        draws: mapped latents that the whitening is fitted on, and ``seed`` their noise.

    Raises:
        TypeError, ValueError: an argument is out of range, or G has no such space; names it.

    Source: Wulff and Torralba 2020 (arXiv:2009.06529).
    """

    def __init__(
        self,
        G: Callable[..., Any],
        *,
        space: Space = "z",
        noise: NoiseMaps = "fixed",
        conditions: Any = None,
        output: int | str | Callable[[Any], Tensor] | None = None,
        spread: float = 0.3,
        draws: int = _FITTED,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(G) or isinstance(G, Prior):
            raise TypeError(f"G: expected a callable or module, got {type(G).__name__}")
        self.generator = G
        self.space = check_choice("space", space, SPACES)
        self.noise = check_choice("noise", noise, NOISE_MAPS)
        self.output = _checked_output(output)
        self.spread = check_number("spread", spread, above=0.0)
        if self.spread > 1.0:
            raise ValueError(f"spread: expected at most 1, got {spread}")
        check_whole("draws", draws, 2)
        check_seed(seed)
        self.conditions: Tensor | None
        self.register_buffer("conditions", _as_conditions(conditions))
        self._check_classes()
        if self.styled:
            self._check_styled()
        if self.space != "z":
            if self.per_observation:
                assert self.conditions is not None
                raise ValueError(
                    f"conditions: expected one for all observations in space={space!r}, got "
                    f"{len(self.conditions)}"
                )
            self._fit(draws, seed)

    @property
    def styled(self) -> bool:
        """Whether G is called in two parts, mapping and synthesis, as a StyleGAN2."""
        return self.space != "z" or self.noise == "latent"

    @property
    def per_observation(self) -> bool:
        """Whether calls need to know which observation each row belongs to."""
        return self.conditions is not None and len(self.conditions) > 1

    @property
    def latent_size(self) -> int | None:
        """Length of a latent in a StyleGAN2's spaces; None where it is as G takes it."""
        if not self.styled:
            return None
        return self._leading_size + sum(side * side for side in self._noise_sides)

    def describe(self) -> list[str]:
        """What a result should say of the space, in sentences; none for G's own latents."""
        sentences = []
        if self.space == "w":
            sentences.append(
                "latents are whitened coordinates of the style w, common to all layers"
            )
        elif self.space == "w+":
            sentences.append(
                "latents are whitened coordinates of the styles w+: the common one first, then "
                f"each layer's own, with spread {self.spread:g}"
            )
        if self.noise == "latent":
            sentences.append("the noise maps of all layers are latents, behind the others")
        return sentences

    def check_count(self, observations: int) -> None:
        """Raise ValueError unless there is one condition, or one for each observation."""
        if self.per_observation:
            assert self.conditions is not None
            count, shape = len(self.conditions), tuple(self.conditions.shape)
            if count != observations:
                raise ValueError(
                    f"conditions: expected 1 or {observations}, one for each observation, got "
                    f"{count} (shape {shape}); a single one of that shape is conditions[None]"
                )

    def forward(self, latents: Tensor, index: Tensor | int | None = None) -> Tensor:
        """Outputs ``(n, ...)`` of latents ``(n, latent_size)``.

        ``index``, a number or ``(n,)``, is the observation of the rows, which is needed where each
        observation has a condition of its own. Raises ValueError where it is missing, TypeError
        where ``output`` finds no tensor.
        """
        labels = self._labels(latents, index)
        if not self.styled:
            inputs = (latents,) if labels is None else (latents, labels)
            return self._picked(self.generator(*inputs))
        flat = latents.flatten(1)
        styles = self._styles(flat[:, : self._leading_size], labels)
        return self._picked(self.generator.synthesise(styles, noise=self._maps(flat)))  # type: ignore[attr-defined]

    def styles(self, latents: Tensor, index: Tensor | int | None = None) -> Tensor:
        """A StyleGAN2's styles of latents: ``(n, style_size)``, or ``(n, layers, style_size)``.

        Raises ValueError where G has none.
        """
        self._check_styled()
        size = self._leading_size if self.styled else latents.flatten(1).shape[1]
        return self._styles(latents.flatten(1)[:, :size], self._labels(latents, index))

    def _labels(self, latents: Tensor, index: Tensor | int | None) -> Tensor | None:
        """The conditions ``(n, ...)`` of rows of latents; None without any.

        ``index`` is as in `forward`; raises ValueError where it is missing.
        """
        if self.conditions is None:
            return None
        conditions = self.conditions.to(latents.device)
        if len(conditions) == 1:
            return conditions.expand(len(latents), *conditions.shape[1:])
        if index is None:
            raise ValueError(
                f"index: expected the observation of each row, as there are {len(conditions)} "
                "conditions, got none; give prior(latents[b], b) for observation b"
            )
        return conditions[torch.as_tensor(index, device=latents.device).expand(len(latents))]

    def _check_classes(self) -> None:
        """Check the conditions against the number of classes, for StyleGAN2s of this package."""
        classes = classes_of(self.generator)
        if classes is None:
            return
        if self.conditions is None:
            if classes:
                raise ValueError(f"conditions: expected one of {classes} classes, got none")
            return
        if not classes:
            raise ValueError("conditions: expected none, as G is unconditional, got some")
        given = self.conditions
        whole = not given.is_floating_point() and given.ndim == 1
        if whole and not bool(((given >= 0) & (given < classes)).all()):
            raise ValueError(
                f"conditions: expected whole numbers in [0, {classes}), got {shown(given.tolist())}"
            )
        if not whole and (given.ndim != 2 or given.shape[1] != classes):
            raise ValueError(
                f"conditions: expected whole numbers, or shape (1 or B, {classes}), got "
                f"{given.dtype} {tuple(given.shape)}"
            )

    def _check_styled(self) -> None:
        missing = [name for name in _STYLED if not hasattr(self.generator, name)]
        if missing:
            wish = f"space={self.space!r}" if self.space != "z" else f"noise={self.noise!r}"
            raise ValueError(
                "G: expected a StyleGAN2 (`StyleGAN2Generator`, or any G with "
                f"{', '.join(_STYLED)}) for {wish}, got {type(self.generator).__name__} without "
                f"{', '.join(missing)}"
            )

    @property
    def _noise_sides(self) -> list[int]:
        if self.noise == "fixed":
            return []
        sides: list[int] = self.generator.noise_sides  # type: ignore[attr-defined]
        return sides

    @property
    def _leading_size(self) -> int:
        """Latents before the noise maps."""
        G: Any = self.generator
        if self.space == "z":
            return int(G.latent_size)
        return int(G.style_size) * (1 if self.space == "w" else 1 + G.style_layers)

    def _styles(self, leading: Tensor, labels: Tensor | None) -> Tensor:
        G: Any = self.generator
        if self.space == "z":
            inputs = (leading,) if labels is None else (leading, labels)
            own: Tensor = G.styles(*inputs)
            return own
        y = leading.reshape(len(leading), -1, G.style_size)
        if self.space == "w+":
            y = math.sqrt(1.0 - self.spread**2) * y[:, :1] + self.spread * y[:, 1:]
        v = self.style_centre + y @ self.style_basis
        w: Tensor = G.truncated(torch.where(v < 0.0, _SLOPE * v, v))
        return w[:, 0] if self.space == "w" else w

    def _maps(self, latents: Tensor) -> Any:
        if self.noise == "fixed":
            return "stored"
        sides = self._noise_sides
        pieces = torch.split(latents[:, self._leading_size :], [side * side for side in sides], 1)
        return [m.reshape(-1, 1, side, side) for m, side in zip(pieces, sides, strict=True)]

    def _picked(self, returned: Any) -> Tensor:
        if isinstance(returned, Tensor) and self.output is not None and not callable(self.output):
            raise TypeError(f"output: expected none, as G returns a tensor, got {self.output!r}")
        if self.output is None:
            x = returned
        elif callable(self.output):
            x = self.output(returned)
        elif isinstance(returned, Mapping) or isinstance(self.output, int):
            x = returned[self.output]
        else:
            x = getattr(returned, self.output)
        if not isinstance(x, Tensor):
            raise TypeError(f"output: expected a tensor in what G returns, got {shown(x)}")
        return x

    def _fit(self, draws: int, seed: int) -> None:
        """Mean and covariance of the styles before their leaky ReLU."""
        G: Any = self.generator
        if draws <= G.style_size:
            raise ValueError(f"draws: expected more than {G.style_size}, w's size, got {draws}")
        random = torch.Generator().manual_seed(seed)
        weights = next(iter(G.parameters()), torch.empty(0, device="cpu"))
        total = torch.zeros(G.style_size, dtype=torch.float64, device="cpu")
        square = torch.zeros(G.style_size, G.style_size, dtype=torch.float64, device="cpu")
        for start in range(0, draws, _AT_ONCE):
            count = min(_AT_ONCE, draws - start)
            z = torch.randn(count, G.latent_size, generator=random, device="cpu").to(weights)
            with torch.no_grad():
                w = G.styles(z, self._labels(z, None), truncation=1.0)
            w = w.cpu().double()  # in this order, as not every device has float64
            v = torch.where(w < 0.0, w / _SLOPE, w)
            total += v.sum(0)
            square += v.T @ v
        mean = total / draws
        values, vectors = torch.linalg.eigh(square / draws - torch.outer(mean, mean))
        basis = values.flip(0).clamp(min=0.0).sqrt()[:, None] * vectors.flip(1).T
        self.style_centre: Tensor
        self.style_basis: Tensor
        self.register_buffer("style_centre", mean.to(weights.dtype).to(weights.device))
        self.register_buffer("style_basis", basis.to(weights.dtype).to(weights.device))


def first_by_default(rows: Tensor, index: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """``index``, or where it is empty the first observation for each of the ``rows``."""
    return index or (torch.zeros(len(rows), dtype=torch.int64, device=rows.device),)


def classes_of(generator: Any) -> int | None:
    """How many classes a StyleGAN2 of this package knows, 0 for none; None for any other G."""
    classes = getattr(generator, "classes", None)
    return classes if isinstance(classes, int) and hasattr(generator, "style_layers") else None


def _checked_output(output: Any) -> Any:
    if isinstance(output, bool) or not (
        output is None or isinstance(output, int | str) or callable(output)
    ):
        raise TypeError(
            f"output: expected an index, a key or attribute, or a function, got {shown(output)}"
        )
    return output


def _as_conditions(conditions: Any) -> Tensor | None:
    if conditions is None:
        return None
    try:
        tensor = torch.as_tensor(conditions)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"conditions: expected a tensor, an array or numbers, got {shown(conditions)}"
        ) from error
    tensor = tensor.detach()
    if tensor.ndim == 0:
        tensor = tensor[None]
    if len(tensor) == 0:
        raise ValueError(f"conditions: expected at least one, got shape {tuple(tensor.shape)}")
    return tensor
