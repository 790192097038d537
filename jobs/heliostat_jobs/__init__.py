"""What users run: the command line and one module per kind of job."""
