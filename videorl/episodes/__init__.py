"""Recorded episodes, scored again and shown. Needs no GPU and no model.

Episodes are not trusted: what a model wrote is shown as text, and code that a file names is loaded only where the
command line names it too.
"""
