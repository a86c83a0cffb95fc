"""Job queues as applications: each a program that makes and does jobs, and writes down on disk what was done.

    python -m PROGRAM PORT FOLDER

It makes jobs until `FOLDER/stop` is there, does what is left, and writes `FOLDER/made` and `FOLDER/done`, a job's
number a line. The two files are the truth: they go through no server. The programs run in an environment of their
own (tests/support/jobs/requirements.txt), since their libraries pin versions that Exodus does not have.
"""
