"""Super-resolution: 8 x 8 pixels of a photograph of 32 x 32.

The small image may hold the mean of each block of pixels (`AveragePool`) or one pixel of each
(`Stride`). `super_resolve` is the short form for both.
"""

from report import draw, error, noise, prior_mean, samples, target, tell

from cogen_fast import AveragePool, Stride, held_out_images, pretrained, super_resolve

NOISE, NOISE_STD = 0.05, 0.1  # the second counts the generator's own error, too
path = target(__file__)
generator = pretrained("fashion-32")
truth = held_out_images("fashion-32")["sneaker"]
blind = prior_mean(generator)

rows = []
for downsample, operator in (("average", AveragePool(4)), ("stride", Stride(4))):
    small = operator.measure(truth[None])[0]
    small = small + noise(small.shape, NOISE)
    result = super_resolve(
        generator,
        small,
        4,
        downsample=downsample,
        noise_std=NOISE_STD,
        budget=400,
        polish=0,  # samples alone, no best fits beside them
        progress=False,
    )
    mean = result.mean()[0]
    tell(result, error(mean, truth), error(blind, truth), f"mean ({downsample})")
    rows.append([("truth", truth), (downsample, small), *samples(result.images[0]), ("mean", mean)])
draw(
    path,
    rows,
    "Super-resolution by 4. Above, each observed pixel is the mean of a block of 4 x 4; below, it "
    "is the first pixel of the block.",
)
