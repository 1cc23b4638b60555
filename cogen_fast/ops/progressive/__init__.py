"""The layers of a progressive GAN: in C++ on the CPU, in Triton, or by torch."""
