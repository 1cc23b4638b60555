"""Undo a blur: a photograph was blurred by a known Gaussian and has noise.

Fine detail is lost in a blur. The samples show detail that would look the same once blurred.
"""

from report import draw, error, noise, prior_mean, samples, target, tell

from cogen_fast import Blur, cogenerate, held_out_images, pretrained

NOISE = 0.1
path = target(__file__)
generator = pretrained("fashion-32")
truth = held_out_images("fashion-32")["boot"]

blur = Blur.gaussian(2.0)  # standard deviation in pixels; Blur(kernel) takes any kernel
blurred = blur.measure(truth[None])[0]
observed = blurred + noise(blurred.shape, NOISE)

result = cogenerate(generator, observed, blur, noise_std=NOISE, budget=600, progress=False)

mean, blind = result.mean()[0], prior_mean(generator)
tell(result, error(mean, truth), error(blind, truth))
draw(
    path,
    [[("truth", truth), ("observed", observed), *samples(result.images[0]), ("mean", mean)]],
    "Deblurring. The photograph was blurred by a Gaussian of 2 pixels, and noise of standard "
    "deviation 0.1 was added. The samples and their mean are sharp again.",
)
