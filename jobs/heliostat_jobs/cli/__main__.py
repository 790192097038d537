"""``python -m heliostat_jobs.cli``: the command line without its script."""

from heliostat_jobs.cli.app import main

if __name__ == "__main__":
    main()
