"""`python -m analysis`: see analysis/report.py."""

from analysis.report import main

if __name__ == "__main__":
    main()
