"""The report of a comparison: one HTML page and one picture, from the run folders alone and never from a model.

`units` writes numbers for people, `records` reads the folders, `metrics` says which number is better, `pairs` holds the
arms against each other, `searched` tells how their settings were found, `plots`, `telemetry` and `picture` draw, `page`
fills `template.html`. Nothing here loads weights: what a report shows was measured before, and the same folder always
gives the same page.
"""

from nanokimi.report.page import write_report

__all__ = ["write_report"]
