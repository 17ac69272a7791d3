"""quantize → prove → serve → bench → save → recommend; the only package that knows all the others.

``making`` makes and proves artifacts, ``measuring`` serves and measures cases, ``loads`` sweeps and searches, ``plans``
plays a whole recipe.  Nothing is imported here: a bench of a URL starts without what a recipe needs.
"""
