"""quantize → prove → serve → bench → save → recommend; the only package that knows all the others.

``making`` makes artifacts, ``proving`` proves them, ``measuring`` serves and measures cases, ``loads`` sweeps and
searches, ``plans`` plays a whole recipe.  Nothing is imported here: a bench of a URL starts without what a recipe needs.
"""
