"""quantize → prove → serve → bench → save → recommend; the only package that knows all the others.

``requesting`` checks what is asked and forecasts it, ``making`` makes artifacts, ``claiming`` keeps their folders whole,
``proving`` proves them, ``measuring`` serves and measures cases, ``loads`` sweeps and searches, ``plans`` and ``recipes``
play a whole recipe.  Nothing is imported here: a bench of a URL starts without what a recipe needs.
"""
