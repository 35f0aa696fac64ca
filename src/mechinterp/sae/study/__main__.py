"""`python -m mechinterp.sae.study`: the sweeps of a scale."""

from mechinterp.sae.study.sweeps import main

main()
