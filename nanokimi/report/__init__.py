"""The report of a comparison: one HTML page and one picture, from the run folders alone and never from a model.

`units` formats numbers, `records` reads the folders, `metrics` says which number is better, `pairs` compares arms with
each other, `searched` shows how their settings were found, `plots`, `telemetry` and `picture` draw, and `page` fills
`template.html`. The `study_` modules make the page of a study. Nothing here loads weights: everything that a report
shows was measured before, and the same folder always gives the same page.
"""

from nanokimi.report.page import write_report

__all__ = ["write_report"]
