"""From run folders to conclusions: `python -m analysis runs/` writes a report, `python -m analysis.table RUN...` a table,
`python -m analysis.costs CSV...` what pruned networks cost.

Needs run folders and prune_utils alone:

    design.py       what is declared: options, contrast, quantities, positive controls
    no_skill.py     what no skill scores
    runs.py         run folders, read and checked
    studies.py      which runs are compared with which
    paired.py       the statistics, as pure functions
    measures.py     the numbers of each table
    baseline.py     CleanRL's own runs beside the dense runs
    views.py        the tables as they are read
    conclusions.py  the sentences
    figures.py      the figures
    page.py         the page with all of it
    report.py       the command line, and the files of a report
    table.py        the command that prints one table of finished runs
    costs.py        the command for what evals.efficiency measured
"""
