"""quantize → prove → serve → bench → save → recommend; the only package that knows all the others.

``requesting`` checks what is asked and forecasts it, ``making`` makes artifacts, ``claiming`` keeps their folders whole,
``proving`` proves them, ``measuring`` serves and measures cases, ``loads`` sweeps and searches, ``plans`` and ``recipes``
play a whole recipe.  ``tuning`` races over a space: ``contestants`` makes who takes part, ``expecting`` asks the estimate,
``visiting`` measures one load curve, ``searching`` has Optuna propose.  ``deploying`` writes what runs a row of a ranking
(``measured_row``), ``verifying`` and ``watching`` hold what runs to it (``promises``).  Nothing is imported here: a bench of a URL starts
without what a recipe needs.
"""
