"""The gate: has the candidate become worse than the base, and how sure is that?

``thresholds`` what is gated, and how much worse is tolerated and how much blocks · ``design`` blocks, their orders, and
the looks at which error may be spent · ``decide`` a status for each metric from the blocks · ``counts`` what needs no
clock: failures, cut answers, token counts, quality · ``gaps`` and ``trimming`` figures that some runs lack ·
``unpaired`` stored runs against stored runs · ``differences`` what is not the same on the two sides · ``baselines``
accepted runs in the results folder · ``history`` a metric over commits.

It knows the core alone.  Who measures is ``llmopt.pipeline.gating``.
"""
