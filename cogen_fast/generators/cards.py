"""Model cards: what a file of weights is, in the form that the Hugging Face Hub reads."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogen_fast.generators.hub import ENDING
from cogen_fast.support.arguments import shown

TO_FILL_IN = "**To be filled in:**"
"""Marks what only the author of a generator can say."""
_DRAWS = 4
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_KINDS = {
    "ProgressiveGenerator": ("a progressive GAN (Karras et al. 2018)", "gan"),
    "StyleGAN2Generator": ("a StyleGAN2 (Karras et al. 2020)", "gan"),
    "MLPGenerator": ("dense layers", "mlp"),
}
_TEXT = """\
---
{metadata}
---

# {title}

{summary}

| | |
|---|---|
| network | `{kind}`: {description}, {count:,} numbers of type {dtype} |
| latents | {latents} |
| outputs | (n, {shape}) |
| range of the outputs | {extent} |
| configuration | `{config}` |
| file | `{file}`, {size:,} bytes |
| SHA-256 of the file | `{digest}` |
| licence | {licence} |
| training data | {mark} what they are, where they are from, under which licence |
| training | {mark} program, settings, duration |

## Use

```python
import torch

from cogen_fast import load_generator

G = load_generator({name}){cast}
z = torch.randn(4, {latent_size})
outputs = G({call})  # (4, {shape})
```

From a repository of the Hugging Face Hub, where the file is to have this name, it is
`load_generator("hf://OWNER/NAME/{on_hub}")`, with `pip install 'cogen-fast[hub]'`.
The file is safetensors: it holds tensors and its configuration, and no code. What is observed of an
output has to be in the units of the outputs, which their range above shows.

## How good it is

{mark} a metric, with the command that printed it.

## Known limits

{mark} what it cannot make, what is missing in its data, and what it should not be used for.
"""


def card_path(path: Path) -> Path:
    """Where the card of a file lies: beside it, with the same name and the ending .md."""
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.md")


def checked_licence(value: object) -> str | None:
    """``value`` in lower case if it can be an identifier of the hub's, or None.

    ValueError, naming ``license``, for anything else.
    """
    if value is None:
        return None
    text = value.lower() if isinstance(value, str) else ""
    if not _LICENCE.fullmatch(text):
        raise ValueError(
            "license: expected an identifier of a licence, such as 'apache-2.0', 'cc-by-4.0' or "
            f"'other', got {shown(value)}"
        )
    return text


def digest_of_file(content: bytes) -> str:
    """SHA-256 of a file's bytes, as a card has it and as the hub shows it."""
    return hashlib.sha256(content).hexdigest()


def card_of(generator: Any, path: Path, content: bytes, licence: str | None) -> str:
    """The card of a generator whose file at ``path`` has the bytes ``content``."""
    kind = type(generator).__name__
    description, tag = _KINDS[kind]
    shape = ", ".join(map(str, generator.output_shape))
    of_images = len(generator.output_shape) == 3
    values = list(generator.state_dict().values())
    classes = generator.config.get("classes", 0)
    makes = "images" if of_images else "vectors"
    return _TEXT.format(
        metadata=_metadata(tag, of_images, licence),
        title=path.name.removesuffix(".safetensors"),
        summary=f"A generator: it maps latents with a standard normal prior to {makes}.",
        kind=kind,
        description=description,
        count=sum(value.numel() for value in values),
        dtype=str(values[0].dtype).removeprefix("torch."),
        latents=f"(n, {generator.latent_size}), standard normal"
        + (f"; and one of {classes} labels" if classes else ""),
        shape=shape,
        extent=_extent(generator, classes),
        config=json.dumps(generator.config),
        file=path.name,
        on_hub=path.name if path.name.endswith(ENDING) else f"{path.name}{ENDING}",
        size=len(content),
        digest=digest_of_file(content),
        licence=licence or f"{TO_FILL_IN} an identifier such as apache-2.0, here and at the top",
        mark=TO_FILL_IN,
        name=json.dumps(path.name, ensure_ascii=False),
        cast="" if values[0].dtype == torch.float32 else ".float()",
        latent_size=generator.latent_size,
        call="z, 0" if classes else "z",
    )


def _metadata(tag: str, of_images: bool, licence: str | None) -> str:
    """YAML that the hub reads."""
    lines = ["library_name: cogen-fast", f"license: {licence or 'unknown'}"]
    if of_images:
        lines.append("pipeline_tag: unconditional-image-generation")
    return "\n".join([*lines, "tags:", "- cogen-fast", f"- {tag}"])


def _extent(generator: Any, classes: int) -> str:
    """The least and the largest value of a few outputs."""
    low, high = torch.aminmax(_outputs(generator, classes))
    return f"{low:.3g} to {high:.3g} in {_DRAWS} outputs of random latents"


@torch.no_grad()
def _outputs(generator: Any, classes: int) -> Tensor:
    """Outputs of a few random latents, the same in every call, in float32 or float64.

    Half precision is not computed on every device, so that a copy in float32 takes its place.
    """
    weight = next(iter(generator.state_dict().values()))
    if weight.element_size() == 2:
        generator = copy.deepcopy(generator).float()
        weight = weight.float()
    random = torch.Generator().manual_seed(0)
    z = torch.randn(_DRAWS, generator.latent_size, generator=random).to(weight)
    labels = [0] if classes else []
    return torch.cat([generator(each[None], *labels) for each in z])
