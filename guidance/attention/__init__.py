"""The attention family: rules whose second branch is the network itself with some of its layers perturbed.

`layers.py` names and finds the layers, `patch.py` perturbs them for one call, `perturbed.py` is what the rules share.
"""
