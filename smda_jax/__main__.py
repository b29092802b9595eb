"""`python -m smda_jax`."""

from smda_jax.cli import main

main()
