"""Training of generators: progressive GANs, and the 2-D study's GAN."""
