"""Which configuration to deploy: limits first, all at one load; then the front, then the rank, with doubt.

``candidates``  runs → configurations with their load curves (``points``), of what may be compared
``constraints`` words → a goal; whether a limit holds at a load.  ``choosing``: the load at which a configuration is judged
``rank``        the whole: ``recommend(candidates, goal)``; ``comparing`` and ``ties``: who beats whom, how surely;
                ``front``: who is behind whom, and the knee; ``rows``: one row of the document with its reasons
``relaxation``  what must give where nothing passes.  ``baseline``, ``cost``, ``diagnosis``: columns of a row
``steps``       one change at a time, as a waterfall
``racing``      measuring half as much; ``space``: what there is to measure

The document that all reports are made of is described at the top of ``llmopt/report/document.py``.
"""
