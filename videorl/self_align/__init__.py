"""Pairs that a model makes of its own responses, for preference training without anybody's labels.

`templates.py` has every word that is said to the model, `methods.py` what is asked in which order, and `__main__.py`
runs it over a data set.
"""
